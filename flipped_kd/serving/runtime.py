"""The server as a process: it listens, loads, serves, takes signals, and ends when what was begun is done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvicorn

from .app import create_app
from .connection import Connection
from .errors import Refused
from .service import Service
from .settings import Settings

logger = logging.getLogger(__name__)
# Of connections that wait to be taken: clients that come all at once.
BACKLOG = 2048


def check_exposure(settings: Settings, without_token: bool) -> None:
    """Refuse to listen to other machines without a token, unless that was asked for.

    Raises:
        ValueError: it was not.
    """
    if settings.is_loopback or settings.token is not None:
        return
    if not without_token:
        raise ValueError(
            f"host={settings.host!r} can be reached from other machines, and whoever reaches it may ask: give a token "
            "(--token-file FILE or the variable FLIPPED_KD_TOKEN), or --without-token where something else guards it"
        )
    logger.warning("%s can be reached from other machines, and asks nobody for a token", settings.host)


def serve(
    service: Service,
    listening: Callable[[int, Callable[[], Any]], None] | None = None,
    abandon: Callable[[Exception | None], Any] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that were begun are answered first. A second signal ends at once.

    Where a system has no SIGHUP, as Windows, the corpus is read anew by its route alone.

    Args:
        service: not opened yet.
        listening: called with the port once there is one, and with a function that ends the server as a signal does.
        abandon: called at the end where a thread works still that nobody waits for any more, and that cannot be
            interrupted: it ends the process, by the failure it is given, if any. None waits for what it does.

    Raises:
        OSError: the address cannot be had.
        ValueError: model or corpus cannot be loaded.
        RuntimeError: the model has failed for good; whoever started the server may start it again.
    """
    with _listen(service.settings) as sock:
        config = uvicorn.Config(
            create_app(service),
            http=partial(Connection, service.settings.limits.seconds),  # type: ignore[arg-type]
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            backlog=BACKLOG,
            timeout_graceful_shutdown=math.ceil(service.settings.limits.seconds),
        )
        # uvloop's, where it is installed.
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(service, _Server(config, service), sock, listening, abandon))


async def _serve(
    service: Service,
    server: _Server,
    sock: socket.socket,
    listening: Callable[[int, Callable[[], Any]], None] | None,
    abandon: Callable[[Exception | None], Any] | None,
) -> None:
    opening = asyncio.create_task(_open(service, server))
    changed = asyncio.Event()
    reloading = asyncio.create_task(_reload(service, opening, changed))
    loop = asyncio.get_running_loop()

    def end() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        service.end()

    with _signals(loop, end, changed.set):
        if listening is not None:
            listening(sock.getsockname()[1], lambda: loop.call_soon_threadsafe(end))
        try:
            await server.serve(sockets=[sock])
        finally:
            for task in (opening, reloading):
                task.cancel()
            await service.close(at_once=server.force_exit)
    with contextlib.suppress(asyncio.CancelledError):
        await opening  # raises what it failed at
    failure = None
    if service.batcher.has_failed:
        failure = RuntimeError("the model has failed, and the server has ended with it: start it again")
    logger.info("ended")
    if abandon is not None and service.is_working:
        abandon(failure)
    if failure is not None:
        raise failure


async def _open(service: Service, server: _Server) -> None:
    try:
        await service.open()
        logger.info("ready")
    except BaseException:
        server.should_exit = True
        raise


async def _reload(service: Service, opening: asyncio.Task[None], changed: asyncio.Event) -> None:
    """Read the corpus after each signal, also one that came while it was read: that reading may have missed it."""
    await asyncio.wait([opening])
    while await changed.wait():
        changed.clear()
        try:
            await service.reload_corpus(wait=True)
        except Refused as refused:
            logger.warning("SIGHUP: %s", refused.reason)
        except Exception as error:
            # The message may quote a text.
            logger.error("SIGHUP: the corpus is not read anew (%s)", type(error).__name__)
            logger.debug("traceback", exc_info=True)


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, end: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """Take SIGTERM, SIGINT and SIGHUP, as far as there are such, and give them back as they were."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    named = {"SIGTERM": end, "SIGINT": end, "SIGHUP": reload}
    taken = {getattr(signal, name): handler for name, handler in named.items() if hasattr(signal, name)}
    before = {number: signal.getsignal(number) for number in taken}
    for number, handler in taken.items():
        _take(loop, number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            if old is not None:  # None is one that was not set from Python
                signal.signal(number, old)


def _take(loop: asyncio.AbstractEventLoop, number: signal.Signals, handler: Callable[[], None]) -> None:
    try:
        loop.add_signal_handler(number, handler)
    except NotImplementedError:  # by the loops of Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler))


@contextlib.contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    """A socket that listens, closed at the end."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        sock = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = (
            os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
        )  # names have errors of their own
        place = f"{settings.host} port {settings.port}"
        raise OSError(error.errno, f"{place} cannot be had ({reason}): give another --host or --port") from error
    with sock:
        yield sock


class _Server(uvicorn.Server):
    """Ends when the model has failed.

    Signals are handled in `_signals`: uvicorn would die of them after it has ended well.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        self.should_exit |= self._service.batcher.has_failed
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
