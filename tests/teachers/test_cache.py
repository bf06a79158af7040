"""The teacher's cache: written once, whole, safe against kills, corruption, other teachers and other writers."""

import errno
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flipped_kd.teachers import score_table as teacher_scores
from flipped_kd.teachers import shards as teacher_shards
from flipped_kd.teachers.cache import METADATA_NAME, TeacherCache, fill_cache
from flipped_kd.teachers.score_table import TeacherEmbeddings, TeacherPairScores, VectorTable, ordered_pair_keys
from flipped_kd.teachers.shards import CacheIdentity

DIM = 6
IDENTITY = CacheIdentity("embeddings", "some/teacher", "f" * 64, DIM)


def vector_of(keys: np.ndarray, salt: int = 0) -> np.ndarray:
    """A unit vector that is a function of the key (and the salt) alone."""
    rows = [np.random.default_rng([abs(int(key)), salt]).normal(size=DIM) for key in keys]
    vectors = np.array(rows, dtype=np.float32).reshape(-1, DIM)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Scorer:
    """A stand-in for the model: counts what it is asked for and can die at a given call."""

    def __init__(self, keys: np.ndarray, fail_at_call: int | None = None, salt: int = 0) -> None:
        self.keys, self.fail_at_call, self.salt = keys, fail_at_call, salt
        self.calls: list[np.ndarray] = []

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        if len(self.calls) == self.fail_at_call:
            raise KeyboardInterrupt
        self.calls.append(self.keys[positions])
        return vector_of(self.keys[positions], self.salt)

    @property
    def scored(self) -> list[int]:
        return sorted(np.concatenate([np.empty(0, np.int64), *self.calls]).tolist())


def fill(directory: Path, scorer: Scorer, identity: CacheIdentity = IDENTITY, block: int = 4) -> TeacherEmbeddings:
    lengths = scorer.keys % 7
    cache = TeacherCache(directory, identity)
    paths = fill_cache(cache, scorer.keys, lengths, scorer, block=block, description="texts", show_progress=False)
    return TeacherEmbeddings(paths, identity.dim)


def shards(directory: Path) -> list[Path]:
    return sorted(directory.rglob("part-*.arrow"))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_shards, "MAX_SHARD_ROWS", 8)


KEYS = np.arange(100, 130, dtype=np.int64)


@pytest.mark.usefixtures("small_shards")
def test_each_distinct_key_is_scored_once_and_read_back(tmp_path: Path) -> None:
    scorer = Scorer(np.concatenate([KEYS, KEYS[::-1], KEYS[:5]]))
    table = fill(tmp_path, scorer)
    assert scorer.scored == KEYS.tolist()
    assert len(shards(tmp_path)) == 4 and len(table) == len(KEYS)
    wanted = np.array([129, 100, 113, 100])
    np.testing.assert_array_equal(table.vectors(wanted), vector_of(wanted))
    again = Scorer(KEYS)
    np.testing.assert_array_equal(fill(tmp_path, again).vectors(KEYS), vector_of(KEYS))
    assert again.calls == []
    more = Scorer(np.array([5, 100, 6]))
    assert len(fill(tmp_path, more)) == len(KEYS) + 2 and more.scored == [5, 6]


def test_items_come_longest_first_whatever_their_order(tmp_path: Path) -> None:
    orders = []
    for number, keys in enumerate((KEYS, KEYS[::-1])):
        scorer = Scorer(keys)
        fill(tmp_path / str(number), scorer)
        orders.append(np.concatenate(scorer.calls))
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (np.diff(orders[0] % 7) <= 0).all()


@pytest.mark.usefixtures("small_shards")
def test_a_kill_loses_only_the_shard_in_the_making(tmp_path: Path) -> None:
    killed = Scorer(KEYS, fail_at_call=5)  # two calls a shard: dies in the third
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, killed)
    assert len(shards(tmp_path)) == 2
    assert list(tmp_path.rglob(".tmp-*")) == []
    resumed = Scorer(KEYS)
    table = fill(tmp_path, resumed)
    kept = np.concatenate(killed.calls[:4])
    assert resumed.scored == sorted(set(KEYS.tolist()) - set(kept.tolist()))
    np.testing.assert_array_equal(table.vectors(KEYS), vector_of(KEYS))


def corrupt_truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def corrupt_empty(data: bytes) -> bytes:
    return b""


def corrupt_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("damage", [corrupt_truncate, corrupt_empty, corrupt_bit])
def test_a_corrupt_shard_is_named_and_rebuilt(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    first = Scorer(KEYS)
    fill(tmp_path, first)
    victim = shards(tmp_path)[1]
    victim.write_bytes(damage(victim.read_bytes()))
    again = Scorer(KEYS)
    with caplog.at_level(logging.WARNING):
        table = fill(tmp_path, again)
    assert victim.name in caplog.text and "corrupt" in caplog.text
    assert again.scored == sorted(np.concatenate(first.calls[2:4]).tolist())
    np.testing.assert_array_equal(table.vectors(KEYS), vector_of(KEYS))
    assert not victim.exists() and len(shards(tmp_path)) == 4


def test_a_whole_shard_of_another_teacher_is_ignored_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = CacheIdentity("embeddings", "some/teacher", "e" * 64, DIM)
    fill(tmp_path / "other", Scorer(KEYS, salt=1), other)
    fill(tmp_path, Scorer(KEYS[:1]))
    [stray] = shards(tmp_path / "other")
    target = tmp_path / IDENTITY.folder_name / stray.name
    target.write_bytes(stray.read_bytes())
    with caplog.at_level(logging.WARNING):
        table = fill(tmp_path, Scorer(KEYS))
    assert target.name in caplog.text and target.exists()
    np.testing.assert_array_equal(table.vectors(KEYS), vector_of(KEYS))


def test_another_teachers_folder_is_refused_and_the_own_one_accepted(tmp_path: Path) -> None:
    fill(tmp_path, Scorer(KEYS))
    folder = tmp_path / IDENTITY.folder_name
    own = Scorer(KEYS)
    fill(folder, own)
    assert own.calls == []
    for other in (
        CacheIdentity("embeddings", "other", "0" * 64, DIM),
        CacheIdentity("pair_probabilities", "some/teacher", "f" * 64, 1),
    ):
        with pytest.raises(ValueError, match="a cache written by another teacher.*some/teacher.*cache_dir"):
            TeacherCache(folder, other)


def test_a_fingerprint_that_differs_behind_the_folder_name_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, Scorer(KEYS))
    alike = CacheIdentity("embeddings", "some/teacher", "f" * 63 + "0", DIM)
    assert alike.folder_name == IDENTITY.folder_name
    with pytest.raises(ValueError, match="another teacher"):
        fill(tmp_path, Scorer(KEYS), alike)


def test_corrupt_metadata_is_written_anew_and_good_shards_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, Scorer(KEYS))
    metadata = tmp_path / IDENTITY.folder_name / METADATA_NAME
    metadata.write_text('{"fingerp')
    scorer = Scorer(np.append(KEYS, 7))
    with caplog.at_level(logging.WARNING):
        fill(tmp_path, scorer)
    assert METADATA_NAME in caplog.text and scorer.scored == [7]
    assert json.loads(metadata.read_text())["fingerprint"] == IDENTITY.fingerprint


def test_two_writers_at_once_and_the_first_one_wins(tmp_path: Path) -> None:
    class Interrupted(Scorer):
        def __call__(self, positions: np.ndarray) -> np.ndarray:
            if not self.calls:
                fill(tmp_path, Scorer(KEYS[:10], salt=1))  # another process, while this one computes
            return super().__call__(positions)

    fill(tmp_path, Interrupted(KEYS))
    assert len(shards(tmp_path)) == 2
    reader = Scorer(KEYS)
    table = fill(tmp_path, reader)
    assert reader.calls == [] and len(table) == len(KEYS)
    np.testing.assert_array_equal(table.vectors(KEYS[:10]), vector_of(KEYS[:10], salt=1))
    np.testing.assert_array_equal(table.vectors(KEYS[10:]), vector_of(KEYS[10:]))


def test_a_directory_that_cannot_be_written_is_named_before_the_teacher_runs(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    scorer = Scorer(KEYS)
    with pytest.raises(OSError, match="cannot be written .*cache_dir.*file"):
        fill(blocked, scorer)
    assert scorer.calls == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, Scorer(KEYS[:3]))
    real_fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:  # the metadata still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*free space") as caught:
        fill(tmp_path, Scorer(KEYS))
    assert caught.value.errno == errno.ENOSPC
    assert len(shards(tmp_path)) == 1 and list(tmp_path.rglob(".tmp-*")) == []


def test_a_read_only_cache_that_holds_everything_is_read_without_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, Scorer(KEYS))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(os, "replace", refuse)
    np.testing.assert_array_equal(fill(tmp_path, Scorer(KEYS)).vectors(KEYS), vector_of(KEYS))
    with pytest.raises(PermissionError, match="cannot be written"):
        fill(tmp_path, Scorer(np.append(KEYS, 7)))


def test_old_temporary_files_are_removed_and_fresh_ones_left(tmp_path: Path) -> None:
    fill(tmp_path, Scorer(KEYS[:3]))
    folder = tmp_path / IDENTITY.folder_name
    old, fresh = folder / ".tmp-old", folder / ".tmp-fresh"
    old.touch()
    fresh.touch()
    os.utime(old, (0, 0))
    fill(tmp_path, Scorer(KEYS))
    assert not old.exists() and fresh.exists()


def test_vectors_stay_in_the_memory_map_and_a_pickle_holds_paths_only(tmp_path: Path) -> None:
    table = fill(tmp_path, Scorer(np.arange(3000, dtype=np.int64)), block=1000)
    for mapped in table._vectors:
        assert not mapped.flags.owndata and not mapped.flags.writeable
    pickled = pickle.dumps(table)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).vectors(KEYS), table.vectors(KEYS))


def test_similarity_in_chunks_equals_the_cosines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = fill(tmp_path, Scorer(KEYS))
    first, second = np.repeat(KEYS, len(KEYS)), np.tile(KEYS, len(KEYS))
    expected = (vector_of(first).astype(np.float64) * vector_of(second)).sum(axis=1)
    whole = table.similarity(first, second)
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    assert whole.dtype == np.float32 and np.abs(whole).max() <= 1.0
    monkeypatch.setattr(teacher_scores, "SIMILARITY_CHUNK_BYTES", 7 * 4 * DIM)
    np.testing.assert_allclose(table.similarity(first, second), whole, atol=1e-6)
    with pytest.raises(ValueError, match="equal length.*(3,).*(2,)"):
        table.similarity(KEYS[:3], KEYS[:2])
    assert table.similarity(KEYS[:0], KEYS[:0]).shape == (0,)


def test_a_key_that_was_not_scored_is_refused(tmp_path: Path) -> None:
    table = fill(tmp_path, Scorer(KEYS))
    with pytest.raises(ValueError, match=r"1 of 3 keys were not scored .*position 1, key 77\).*embed\(\)"):
        table.rows(np.array([100, 77, 101]))
    with pytest.raises(ValueError, match="not scored"):
        VectorTable([], DIM).vectors(np.array([1]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6), max_size=4), st.randoms())
def test_lookup_equals_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], random: Random
) -> None:
    cache = TeacherCache(tmp_path_factory.mktemp("table"), IDENTITY)
    cache.prepare()
    expected: dict[int, np.ndarray] = {}
    for salt, part in enumerate(filter(None, parts)):
        keys = np.array(part, dtype=np.int64)
        vectors = np.arange(len(keys) * DIM, dtype=np.float32).reshape(-1, DIM) + 100 * salt
        cache.write(keys, vectors)
        for key, vector in zip(part, vectors, strict=True):
            expected.setdefault(key, vector)
    table = VectorTable(cache.shard_paths(), DIM)
    asked = [random.choice(list(expected)) for _ in range(10)] if expected else []
    found = table.vectors(np.array(asked, dtype=np.int64))
    assert len(table) == len(expected) and found.shape == (len(asked), DIM)
    for key, vector in zip(asked, found, strict=True):
        np.testing.assert_array_equal(vector, expected[key])


def test_pair_keys_keep_the_order_of_the_texts() -> None:
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, size=300, dtype=np.int64)
    first, second = np.repeat(keys, 300), np.tile(keys, 300)
    assert len(np.unique(ordered_pair_keys(first, second))) == 300 * 300


def test_pair_scores_turn_probabilities_into_the_scale_of_a_cosine(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, CacheIdentity("pair_probabilities", "cross", "a" * 64, 1))
    cache.prepare()
    first, second = np.array([1, 2, 3]), np.array([4, 5, 6])
    probabilities = np.array([0.0, 0.75, 1.0], dtype=np.float32)
    table = TeacherPairScores([cache.write(ordered_pair_keys(first, second), probabilities[:, None])], 1)
    np.testing.assert_array_equal(table.probability(first, second), probabilities)
    np.testing.assert_array_equal(table.similarity(first[::-1], second[::-1]), [1.0, 0.5, -1.0])
    with pytest.raises(ValueError, match="same order"):
        table.similarity(second, first)
