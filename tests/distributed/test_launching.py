"""Forked ranks meet, and those that fail or hang are ended and told of."""

from __future__ import annotations

import pytest

from tests.distributed.launching import HangError, Ranks

MODULE = "tests.distributed.idle_run"
pytestmark = pytest.mark.distributed


def test_ranks_that_end() -> None:
    ranks = Ranks(MODULE, "end")
    ranks.finish(120)
    assert [program.returncode for program in ranks.programs] == [0, 0]


def test_one_that_fails_ends_the_other() -> None:
    ranks = Ranks(MODULE, "fail")
    with pytest.raises(AssertionError, match="the last rank fails"):
        ranks.finish(120)
    assert [program.wait(30) for program in ranks.programs] == [-9, 1]


def test_those_that_hang_say_where() -> None:
    ranks = Ranks(MODULE, "hang")
    with pytest.raises(HangError, match="not ended after 10 s:(.|\n)*idle_run.py.* in main"):
        ranks.finish(10)
    assert [program.wait(30) for program in ranks.programs] == [-6, -6]
