"""Batcher: one thread, rounds of many requests, and what becomes of those that fail, leave or come too late."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flipped_kd.serving import batching as batching_module
from flipped_kd.serving.batching import Batcher
from flipped_kd.serving.engine import Engine
from flipped_kd.serving.errors import ModelLostError, Refused
from flipped_kd.serving.settings import Limits
from flipped_kd.serving.work_queue import Item

SMALL = Limits(tokens=100, waiting_requests=3, waiting_tokens=100)


def items(*keys: object, tokens: int = 10) -> list[Item]:
    return [Item(key, key, tokens) for key in keys]


class Model:
    """Doubles what it is given; stops at a gate, and fails where it is told to."""

    def __init__(self) -> None:
        self.rounds: list[list[Any]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, contents: list[Any]) -> Sequence[Any]:
        self.threads.add(threading.get_ident())
        self.rounds.append(contents)
        assert self.gate.wait(10)
        if "poison" in contents:
            raise RuntimeError("a text that nobody may read in a log")
        return [2 * content for content in contents]


class Told:
    """What an observer was told."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, int, int]] = []
        self.joins = self.drops = 0

    def round_done(self, requests: int, rows: int, tokens: int, seconds: float) -> None:
        assert seconds > 0
        self.rounds.append((requests, rows, tokens))

    def joined(self, rows: int) -> None:
        self.joins += rows

    def dropped(self) -> None:
        self.drops += 1


@asynccontextmanager
async def batching(
    model: Model, told: Told | None = None, limits: Limits | None = None, wait: float = 0.02, tokens: int = 1000
) -> AsyncIterator[Batcher]:
    batcher = Batcher(limits or Limits(), wait, told or Told())
    batcher.compute, batcher.round_tokens = model, tokens
    batcher.start()
    try:
        yield batcher
    finally:
        model.gate.set()
        await batcher.close()


async def while_busy(batcher: Batcher, model: Model) -> asyncio.Task[list[Any]]:
    """A request that the model computes until its gate opens."""
    model.gate.clear()
    task = asyncio.create_task(batcher.run(items("busy")))
    while ["busy"] not in model.rounds:
        await asyncio.sleep(0.001)
    return task


def test_requests_that_come_together_are_one_round_in_one_thread() -> None:
    model, told = Model(), Told()

    async def ask() -> list[list[Any]]:
        async with batching(model, told) as batcher:
            busy = await while_busy(batcher, model)
            asked = [asyncio.create_task(batcher.run(items(number, number + 1))) for number in range(4)]
            await asyncio.sleep(0)
            assert batcher.waiting == (4, 50)
            model.gate.set()
            await busy
            return await asyncio.gather(*asked)

    assert asyncio.run(ask()) == [[2 * number, 2 * number + 2] for number in range(4)]
    assert [sorted(map(str, contents)) for contents in model.rounds] == [["busy"], list("01234")]
    assert told.rounds == [(1, 1, 10), (4, 5, 50)] and told.joins == 3 and told.drops == 0
    assert len(model.threads) == 1 and threading.get_ident() not in model.threads


def test_a_round_waits_for_those_who_came_together_before_but_not_for_long() -> None:
    model = Model()

    async def ask() -> tuple[float, float]:
        async with batching(model, wait=1.0) as batcher:
            start = time.monotonic()
            await batcher.run(items("alone"))
            alone = time.monotonic() - start
            busy = await while_busy(batcher, model)
            asked = [asyncio.create_task(batcher.run(items(number))) for number in range(3)]
            await asyncio.sleep(0.01)
            model.gate.set()
            await asyncio.gather(busy, *asked)
            start = time.monotonic()
            first = asyncio.create_task(batcher.run(items("first")))
            await asyncio.sleep(0.05)
            await asyncio.gather(first, batcher.run(items("second")), batcher.run(items("third")))
            together = time.monotonic() - start
            start = time.monotonic()
            await batcher.run(items("left alone"))
            assert 0.9 < time.monotonic() - start < 10
            return alone, together

    alone, together = asyncio.run(ask())
    assert alone < 0.9 and together < 0.9
    assert ["first", "second", "third"] in model.rounds


def test_those_who_came_meanwhile_wait_for_those_who_are_answered() -> None:
    model = Model()

    async def ask() -> None:
        async with batching(model, wait=1.0) as batcher:
            busy = await while_busy(batcher, model)
            meanwhile = asyncio.create_task(batcher.run(items("meanwhile")))
            await asyncio.sleep(0.01)
            model.gate.set()
            await busy
            await asyncio.gather(meanwhile, batcher.run(items("again")))

    asyncio.run(ask())
    assert model.rounds == [["busy"], ["meanwhile", "again"]]


@pytest.mark.parametrize(("share", "all_of_them"), [(0.0, False), (1e6, True)])
def test_a_round_waits_while_they_keep_coming(
    share: float, all_of_them: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is waited for a second, all of them as long as that, or a share of the last round's time."""
    monkeypatch.setattr(batching_module, "WAIT_SHARE", share)
    model = Model()

    async def ask() -> None:
        async with batching(model, wait=1.0) as batcher:
            busy = await while_busy(batcher, model)
            asked = [asyncio.create_task(batcher.run(items(number))) for number in range(10)]
            await asyncio.sleep(0.01)
            model.gate.set()
            await asyncio.gather(busy, *asked)
            model.rounds.clear()
            for number in range(10):  # again, one after the other
                asked.append(asyncio.create_task(batcher.run(items(number))))
                await asyncio.sleep(0.15)
            await asyncio.gather(*asked)

    asyncio.run(ask())
    assert (len(model.rounds[0]) == 10) == all_of_them


def test_a_large_request_is_read_in_rounds_and_small_ones_between_them() -> None:
    model = Model()

    async def ask() -> list[str]:
        done: list[str] = []
        async with batching(model, tokens=100) as batcher:
            busy = await while_busy(batcher, model)

            async def one(name: str, *keys: object) -> None:
                await batcher.run(items(*keys))
                done.append(name)

            large = asyncio.create_task(one("large", *range(50)))
            await asyncio.sleep(0)
            small = asyncio.create_task(one("small", "x"))
            await asyncio.sleep(0)
            model.gate.set()
            await asyncio.gather(busy, large, small)
        return done

    assert asyncio.run(ask()) == ["small", "large"]
    assert all(len(contents) <= 10 for contents in model.rounds) and "x" in model.rounds[1]


def test_what_a_client_that_left_waited_for_is_not_computed() -> None:
    model, told = Model(), Told()

    async def ask() -> None:
        async with batching(model, told) as batcher:
            busy = await while_busy(batcher, model)
            gone = asyncio.create_task(batcher.run(items("gone", "wanted")))
            stays = asyncio.create_task(batcher.run(items("wanted", "too")))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            assert batcher.waiting == (1, 20)
            model.gate.set()
            assert await stays == ["wantedwanted", "tootoo"] and await busy
            with pytest.raises(asyncio.CancelledError):
                await gone

    asyncio.run(ask())
    assert model.rounds == [["busy"], ["wanted", "too"]] and told.drops == 1


def test_too_much_is_refused_with_the_time_to_come_again() -> None:
    model = Model()

    async def ask() -> None:
        async with batching(model, limits=SMALL) as batcher:
            busy = await while_busy(batcher, model)
            waiting = [asyncio.create_task(batcher.run(items(number))) for number in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Refused, match="3 requests with 30 tokens wait already") as many:
                await batcher.run(items("another"))
            assert many.value.status == 429 and int(many.value.headers["Retry-After"]) >= 1
            # What is computed anyway costs nothing.
            joins = asyncio.create_task(batcher.run(items("busy", 1)))
            await asyncio.sleep(0)
            waiting.pop().cancel()
            await asyncio.sleep(0)
            with pytest.raises(Refused, match="429|wait already"):
                await batcher.run(items("a", "b", tokens=41))
            model.gate.set()
            await asyncio.gather(busy, joins, *waiting)

    asyncio.run(ask())


def test_one_request_that_fails_does_not_fail_those_it_was_read_with(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()

    async def ask() -> list[Any]:
        async with batching(model) as batcher:
            busy = await while_busy(batcher, model)
            asked = [
                asyncio.create_task(batcher.run(items(*keys)))
                for keys in (("a", "poison"), ("a", "b"), ("poison",), ("c",))
            ]
            await asyncio.sleep(0)
            model.gate.set()
            await busy
            found = await asyncio.gather(*asked, return_exceptions=True)
            return [*found, await batcher.run(items("later"))]

    found = asyncio.run(ask())
    assert [type(value) for value in found] == [RuntimeError, list, RuntimeError, list, list]
    assert found[1] == ["aa", "bb"] and found[3:] == [["cc"], ["laterlater"]]
    assert "4 requests failed together (RuntimeError)" in caplog.text and "nobody may read" not in caplog.text


def test_one_who_joined_a_round_that_failed_is_read_again() -> None:
    model = Model()

    async def ask() -> list[Any]:
        async with batching(model) as batcher:
            model.gate.clear()
            first = asyncio.create_task(batcher.run(items("good", "poison")))
            while not model.rounds:
                await asyncio.sleep(0.001)
            joins = asyncio.create_task(batcher.run(items("good")))
            await asyncio.sleep(0)
            model.gate.set()
            return await asyncio.gather(first, joins, return_exceptions=True)

    failed, good = asyncio.run(ask())
    assert isinstance(failed, RuntimeError) and good == ["goodgood"]


def test_functions_are_called_between_rounds_in_the_same_thread() -> None:
    model = Model()
    order: list[str] = []

    def aside(name: str) -> int:
        order.append(name)
        return threading.get_ident()

    async def ask() -> set[int]:
        async with batching(model, tokens=10) as batcher:
            assert await batcher.between(lambda: aside("at rest"))
            busy = await while_busy(batcher, model)
            asked = asyncio.create_task(batcher.run(items(*range(4))))
            calls = [asyncio.create_task(batcher.between(lambda n=n: aside(f"call {n}"))) for n in range(3)]
            left = asyncio.create_task(batcher.between(lambda: aside("never")))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.sleep(0)
            rounds = len(model.rounds)
            model.gate.set()
            threads = set(await asyncio.gather(*calls))
            assert len(model.rounds) - rounds >= 2  # one round between two calls
            with pytest.raises(ZeroDivisionError):
                await batcher.between(lambda: 1 / 0)
            await asyncio.gather(busy, asked)
            return threads

    assert asyncio.run(ask()) == model.threads
    assert order == ["at rest", "call 0", "call 1", "call 2"]


def test_closing_finishes_what_waits_and_takes_nothing_more() -> None:
    model = Model()

    async def ask() -> None:
        async with batching(model) as batcher:
            busy = await while_busy(batcher, model)
            waits = asyncio.create_task(batcher.run(items("waits")))
            aside = asyncio.create_task(batcher.between(lambda: None))
            await asyncio.sleep(0)
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0.05)
            assert not batcher.is_alive and not batcher.has_failed
            for late in (batcher.run(items("late")), batcher.between(lambda: None)):
                with pytest.raises(Refused, match="being closed") as refused:
                    await late
                assert refused.value.status == 503
            model.gate.set()
            await closing
            assert await busy and await waits == ["waitswaits"]
            with pytest.raises(Refused):
                await aside

    asyncio.run(ask())


def test_if_the_thread_ends_nobody_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()

    async def ask() -> None:
        async with batching(model) as batcher:
            busy = await while_busy(batcher, model)
            waits = asyncio.create_task(batcher.run(items("waits")))
            await asyncio.sleep(0)

            def broken(_chosen: Any) -> None:
                raise SystemError("the machinery itself")

            monkeypatch.setattr(batcher, "_compute_round", broken)
            model.gate.set()
            await busy
            with pytest.raises(Refused, match="the model has failed"):
                await waits
            assert not batcher.is_alive and batcher.has_failed
            for late in (batcher.run(items("late")), batcher.between(lambda: None)):
                with pytest.raises(Refused, match="the model has failed"):
                    await late

    asyncio.run(ask())
    assert "the model's thread has ended (SystemError)" in caplog.text and "machinery" not in caplog.text


def test_a_function_that_ends_the_thread_leaves_nobody_waiting() -> None:
    class Panic(BaseException):
        """As tokenizers raises it, which is written in Rust."""

    def ends() -> None:
        raise Panic("index out of range")

    async def ask() -> None:
        async with batching(Model()) as batcher:
            with pytest.raises(RuntimeError, match="Panic: index out of range"):
                await asyncio.wait_for(batcher.between(ends), 5)
            while batcher.is_working:
                await asyncio.sleep(0.001)
            assert not batcher.is_alive and batcher.has_failed

    asyncio.run(ask())


def test_before_a_model_is_there_everything_is_refused() -> None:
    async def ask() -> None:
        batcher = Batcher(Limits(), 0.005, Told())
        batcher.start()
        with pytest.raises(Refused, match="being loaded"):
            await batcher.run(items("a"))
        assert await batcher.run([]) == []
        await batcher.close()

    asyncio.run(ask())


def test_a_lost_model_ends_the_thread() -> None:
    """What a GPU fails at for good comes as an exception of a request would; the engine tells the two apart."""
    engine: Any = SimpleNamespace(_computed=failing(torch.AcceleratorError("an illegal memory access")))
    with pytest.raises(ModelLostError, match="an illegal memory access"):
        Engine._compute(engine, [])
    engine._computed = failing(torch.OutOfMemoryError("too much"))
    with pytest.raises(torch.OutOfMemoryError):
        Engine._compute(engine, [])
    assert not issubclass(ModelLostError, Exception)


def failing(error: Exception) -> Any:
    def compute(_: Any) -> Any:
        raise error

    return compute
