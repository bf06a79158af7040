"""The benchmark's clients get the numbers of `predict`, and say so where a server does not."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from benchmarks.serving import _ask, _check_same
from flipped_kd import FlippedMatcher
from tests.conftest import make_pairs
from tests.serving.running import Running

PAIRS = [(row["text_a"], row["text_b"]) for row in make_pairs(24)]


def port_of(server: Running) -> int:
    return int(server.url.rpartition(":")[2])


@pytest.mark.parametrize("clients", [1, 8])
def test_every_pair_is_asked_once_by_some_client(server: Running, matcher: FlippedMatcher, clients: int) -> None:
    load = asyncio.run(_ask(port_of(server), PAIRS, clients))
    np.testing.assert_allclose(load.probabilities, matcher.predict(PAIRS), rtol=0, atol=1e-5)
    assert len(load.latencies) == len(PAIRS) and 0 < min(load.latencies) <= max(load.latencies) <= load.seconds
    assert load.percentile(50) <= load.percentile(99) <= 1000 * max(load.latencies)


def test_other_numbers_and_errors_stop_it(server: Running, matcher: FlippedMatcher) -> None:
    port = port_of(server)
    with pytest.raises(RuntimeError, match="422"):
        asyncio.run(_ask(port, [("cash", " ")], 1))
    wrong = lambda *_, **__: np.zeros(len(PAIRS))  # noqa: E731
    stand_in = type("Wrong", (), {"predict": staticmethod(wrong)})()
    _check_same(matcher, port, port, PAIRS)
    with pytest.raises(RuntimeError, match="gives other probabilities than predict: nothing is timed"):
        _check_same(stand_in, port, port, PAIRS)


def test_requests_that_share_a_query_and_many_at_once_are_rounds(server: Running, matcher: FlippedMatcher) -> None:
    """Of 32 clients, and equal to what the matcher gives."""
    pairs = [("where is my card", text) for _, text in PAIRS] * 4
    load = asyncio.run(_ask(port_of(server), pairs, 32))
    np.testing.assert_allclose(load.probabilities, matcher.predict(pairs), rtol=0, atol=1e-5)
