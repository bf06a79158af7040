"""The teacher's cache under kill -9, several runs at once and a clock that jumps, with a real teacher in processes."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flipped_kd.data.keys import text_keys
from flipped_kd.teachers import shards as teacher_shards
from flipped_kd.teachers.cache import TeacherCache, fill_cache
from flipped_kd.teachers.score_table import TeacherEmbeddings
from flipped_kd.teachers.shards import CacheIdentity
from tests.cli.helpers import ROOT, environment
from tests.conftest import make_pairs
from tests.warm_python import Program

# Scores texts FIRST to LAST - 1 in shards of eight and keeps the vectors; dies by SIGKILL after so many shards.
SCRIPT = """
import os, signal, sys
import numpy as np
from flipped_kd.teachers import shards as teacher_shards
from flipped_kd.teachers.loading import load_teacher
from flipped_kd.teachers.cache import TeacherCache
from tests.teachers.test_cache_faults import TEXTS, text_keys

model, cache, out = sys.argv[1:4]
first, last, survives = map(int, sys.argv[4:])
teacher_shards.MAX_SHARD_ROWS = 8
write, written = TeacherCache.write, []
def counted(self, keys, vectors):
    if len(written) == survives:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(len(keys))
    return write(self, keys, vectors)
TeacherCache.write = counted
texts = TEXTS[first:last]
table = load_teacher(model).embed(texts, cache_dir=cache, batch_size=4, show_progress=False)
np.savez(out, vectors=table.vectors(text_keys(texts)), scored=np.array(written))
"""
ROWS = make_pairs(40)
TEXTS = sorted({*ROWS["text_a"], *ROWS["text_b"]})
IDENTITY = CacheIdentity("embeddings", "some/teacher", "e" * 64, 2)


def start(teacher: Path, cache: Path, out: Path, first: int, last: int, survives: int = -1) -> subprocess.Popen[str]:
    arguments = (teacher, cache, out, first, last, survives)
    return Program(["-c", SCRIPT, *arguments], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], out: Path) -> Any:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    return np.load(out)


def test_killed_half_way_it_goes_on_to_the_same_vectors(teacher_dir: Path, tmp_path: Path) -> None:
    count = len(TEXTS)
    whole = finished(start(teacher_dir, tmp_path / "one", tmp_path / "one.npz", 0, count), tmp_path / "one.npz")
    assert len(whole["scored"]) >= 4
    killed = start(teacher_dir, tmp_path / "two", tmp_path / "two.npz", 0, count, survives=2)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "two").rglob("part-*.arrow"))) == 2
    resumed = finished(start(teacher_dir, tmp_path / "two", tmp_path / "two.npz", 0, count), tmp_path / "two.npz")
    np.testing.assert_array_equal(resumed["vectors"], whole["vectors"])
    assert resumed["scored"].sum() == whole["scored"].sum() - 16


def test_two_runs_share_a_folder_at_once(teacher_dir: Path, tmp_path: Path) -> None:
    """Overlapping texts: both end with right vectors, and a third finds everything."""
    count = len(TEXTS)
    ranges = [(0, 2 * count // 3), (count // 3, count)]
    outs = [tmp_path / f"{number}.npz" for number in range(3)]
    both = [start(teacher_dir, tmp_path / "cache", out, *span) for out, span in zip(outs, ranges, strict=False)]
    found = [finished(process, out) for process, out in zip(both, outs, strict=False)]
    third = finished(start(teacher_dir, tmp_path / "cache", outs[2], 0, count), outs[2])
    assert third["scored"].sum() == 0
    for (first, last), one in zip(ranges, found, strict=True):
        # Each saw its own or the other's, which differ by batches' last bits at most.
        np.testing.assert_allclose(one["vectors"], third["vectors"][first:last], atol=1e-6)
    alone = finished(start(teacher_dir, tmp_path / "alone", tmp_path / "alone.npz", 0, count), tmp_path / "alone.npz")
    np.testing.assert_allclose(third["vectors"], alone["vectors"], atol=1e-6)


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400], ids=["back", "forward"])
def test_a_clock_that_jumps_changes_nothing(jump: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written first is what is read, whatever the clock says of the second."""
    monkeypatch.setattr(teacher_shards, "MAX_SHARD_ROWS", 4)
    real = time.time_ns
    keys = text_keys(TEXTS[:10])

    def fill(value: float, part: np.ndarray) -> TeacherEmbeddings:
        cache = TeacherCache(tmp_path, IDENTITY)
        paths = fill_cache(
            *(cache, part, np.ones(len(part), np.int64), lambda rows: np.full((len(rows), 2), value, np.float32)),
            **{"block": 4, "description": "texts", "show_progress": False},
        )
        return TeacherEmbeddings(paths, 2)

    fill(1.0, keys[:6])
    monkeypatch.setattr(time, "time_ns", lambda: real() + jump * 10**9)
    # A run that did not see the first one's shards, as two started at the same moment: it writes all keys again.
    cache = TeacherCache(tmp_path, IDENTITY)
    cache.write(keys, np.full((len(keys), 2), 2.0, np.float32))
    table = fill(3.0, keys)
    np.testing.assert_array_equal(table.vectors(keys)[:, 0], [1.0] * 6 + [2.0] * 4)
    monkeypatch.setattr(time, "time_ns", real)
    np.testing.assert_array_equal(fill(4.0, keys).vectors(keys)[:, 0], [1.0] * 6 + [2.0] * 4)
