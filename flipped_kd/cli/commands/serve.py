"""`flipped-kd serve`: a trained model behind HTTP."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...utils.redaction import MIN_TOKEN_LENGTH, SENDABLE, SERVER_TOKEN, hide
from ..arguments import UsageError

if TYPE_CHECKING:
    from ...inference.matcher import FlippedMatcher
    from ...serving.corpus import CorpusSource
    from ...serving.settings import Settings

logger = logging.getLogger(__name__)
NEEDED = ("fastapi", "uvicorn", "httptools", "prometheus_client")


def serve(options: Namespace) -> None:
    """Put a model behind HTTP."""
    # Before torch is imported, which takes seconds.
    missing = [name.replace("_", "-") for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}, not installed here: pip install 'flipped_kd[serve]'")
    token = read_token(options.token_file)
    from ...serving import runtime
    from ...serving.service import Service
    from ...serving.settings import Limits, Settings
    from ...utils.devices import use_cpu_threads
    from ..models import checked_kind, load_matcher

    settings = Settings(
        host=options.host,
        port=options.port,
        token=token,
        allowed_hosts=tuple(options.allow_host),
        name=options.name or Path(os.path.abspath(options.model)).name,
        log_requests=options.log_requests,
        batch_tokens=options.batch_tokens,
        wait_ms=options.wait_ms,
        batch_size=options.batch_size,
        limits=Limits(
            body_bytes=options.max_body,
            texts=options.max_texts,
            tokens=options.max_tokens,
            waiting_requests=options.max_waiting,
            waiting_tokens=max(options.max_waiting_tokens, options.max_tokens),
            seconds=options.timeout,
        ),
    )
    runtime.check_exposure(settings, options.without_token)
    corpus = _corpus(options)

    def load() -> FlippedMatcher:
        matcher, _ = load_matcher(options)
        checked_kind(matcher, options.score)
        return matcher

    use_cpu_threads()
    service = Service(load, settings, corpus, options.score)
    runtime.serve(service, partial(_tell, settings), _abandon)


def read_token(file: str | None) -> str | None:
    """The token that clients have to send, from a file or the variable; never shown from now on.

    Raises:
        UsageError: it cannot be read, or is none that can be sent and hidden.
    """
    if file is None and SERVER_TOKEN not in os.environ:
        return None
    where = SERVER_TOKEN if file is None else "--token-file"
    try:
        token = (os.environ[SERVER_TOKEN] if file is None else Path(file).read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"--token-file {file} cannot be read ({reason}): give a file with the token") from None
    if len(token) < MIN_TOKEN_LENGTH or not SENDABLE.fullmatch(token):
        raise UsageError(
            f"{where} holds {len(token)} characters that make no token: give at least {MIN_TOKEN_LENGTH} letters, "
            "digits or signs in ASCII, without white space"
        )
    hide(token)
    return token


def _corpus(options: Namespace) -> CorpusSource | None:
    from ...serving.corpus import CorpusSource as Source

    if options.corpus is None:
        for name in ("id_column", "save_index", "index_kind"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is about the corpus: give --corpus FILE too")
        return None
    return Source(
        options.corpus,
        options.text_column,
        options.id_column,
        options.skip_bad_rows,
        None if options.save_index is None else Path(options.save_index),
        options.index_kind or "auto",
    )


def _abandon(failure: Exception | None) -> None:
    """End the process although a thread works: it could be minutes until it looks up, and Python waits for it."""
    if failure is not None:
        logger.error("error: %s", failure)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if failure is None else 1)


def _tell(settings: Settings, port: int, _stop: object) -> None:
    host = settings.host
    logger.info("http://%s:%d, loading the model", f"[{host}]" if ":" in host else host, port)
