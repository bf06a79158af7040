"""Forked ranks meet, and those that fail or hang are ended and told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launching import HangError, Ranks
from tests.serving.running import wait_for

MODULE = "tests.distributed.idle_run"
pytestmark = pytest.mark.distributed


def test_ranks_that_end(tmp_path: Path) -> None:
    ranks = Ranks(MODULE, "end", tmp_path)
    ranks.finish(120)
    assert [program.returncode for program in ranks.programs] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_one_that_fails_ends_the_other(tmp_path: Path) -> None:
    ranks = Ranks(MODULE, "fail", tmp_path)
    with pytest.raises(AssertionError, match="the last rank fails"):
        ranks.finish(120)
    assert [program.wait(30) for program in ranks.programs] == [-9, 1]


def test_those_that_hang_say_where(tmp_path: Path) -> None:
    ranks = Ranks(MODULE, "hang", tmp_path)
    wait_for(lambda: len([*tmp_path.iterdir()]) == 2, 120)
    with pytest.raises(HangError, match="idle_run.py.* in main(.|\n)*idle_run.py.* in main"):
        ranks.finish(1)
    assert [program.wait(30) for program in ranks.programs] == [-6, -6]
