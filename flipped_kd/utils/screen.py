"""What is shown to somebody who looks on. It never decides how a run ends: a terminal may lack letters."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast


class Legible:
    """A text stream that shows what its encoding lacks as escapes, as in ``\\u0394``.

    Args:
        stream: where the text goes; every other attribute is its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text. Raises OSError as the stream does."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Raises OSError as the stream does."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Unfailing(Legible):
    """As `Legible`; what the stream does not take is dropped: its reader is gone, its disk is full, it is closed."""

    def write(self, text: str) -> int:
        """Write what can be written; a line is seen at once, in a file too."""
        with contextlib.suppress(OSError, ValueError):
            super().write(text)
            if "\n" in text:
                super().flush()
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            super().flush()


@contextlib.contextmanager
def unfailing_screen() -> Iterator[None]:
    """Standard output and standard error raise nothing while the block runs; also a decorator of functions."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_unfailing(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            if stream is not None and not isinstance(stream, Unfailing):
                _let_go(stream)


def _unfailing(stream: TextIO | None) -> Any:
    # A process may be started without the one or the other; print then shows nothing.
    return stream if stream is None or isinstance(stream, Unfailing) else cast(TextIO, Unfailing(stream))


def _let_go(stream: TextIO) -> None:
    """If the stream takes no more, drop what is left for it: Python would complain again when it closes it."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except ValueError:
        pass  # closed before
