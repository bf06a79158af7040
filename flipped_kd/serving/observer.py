"""Who is told of a batcher's work."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """What is told of the work done."""

    def round_done(self, requests: int, rows: int, tokens: int, seconds: float) -> None:
        """A round has been computed; called in the model's thread."""

    def joined(self, rows: int) -> None:
        """So many items were asked for that another request waits for too."""

    def dropped(self) -> None:
        """A request has gone before its answer was there."""
