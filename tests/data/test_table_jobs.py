"""A job on a table gives the same file wherever it was killed, and refuses what it did not begin."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipped_kd.data.table_jobs import TableJob
from flipped_kd.data.tables import TableSource
from flipped_kd.data.text_tables import Chunk
from tests.data.table_job_runs import (
    SCORES,
    Killed,
    job,
    never,
    pairs,
    quick,
    read_json,
    run,
    score,
    write_csv,
    write_json,
)

# ---- Killed anywhere ----

CALLS = ("replace", "fsync", "unlink", "rmdir", "mkdir")


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Die at the given step of reading, computing or touching the disk; afterwards nothing more can be done to it."""
    count = [0]

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] > step:
                raise Killed
            return call(*args, **kwargs)

        return watching

    batches = TableSource.batches
    step_of_reading = watched(lambda: None)

    def watched_batches(self: TableSource, size: int) -> Iterator[Any]:
        for batch in batches(self, size):
            step_of_reading()
            yield batch

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, watched(getattr(os, name)))
        patch.setattr(TableSource, "batches", watched_batches)
        yield count


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same seven pairs in three formats."""
    folder = tmp_path_factory.mktemp("sources")
    rows = [{"text_a": f"a {n}", "text_b": f"b {n * n}", "n": str(n)} for n in range(7)]
    write_json(folder / "in.jsonl", rows)
    write_csv(folder / "in.csv", [list(rows[0]), *(list(row.values()) for row in rows)])
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    return {ending: folder / f"in.{ending}" for ending in ("jsonl", "csv", "parquet")}


@pytest.mark.parametrize(("read", "written"), [("jsonl", "jsonl"), ("csv", "parquet"), ("parquet", "csv")])
def test_killed_at_every_step_and_run_again(
    read: str, written: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(sources[read], tmp_path / f"whole.{written}")
    whole = (tmp_path / f"whole.{written}").read_bytes()
    step, finished = 0, False
    while not finished:
        target = tmp_path / f"{step}.{written}"
        computed: list[int] = []

        def compute(chunk: Chunk, computed: list[int] = computed) -> pa.Table:
            computed.append(len(chunk.rows))
            return score(chunk)

        with killed_at(step, monkeypatch):
            try:
                run(sources[read], target, compute)
                finished = True
            except Killed:
                pass
        assert not target.exists() or target.read_bytes() == whole
        folder = target.with_name(target.name + ".partial")
        if folder.exists() and any(folder.iterdir()):
            run(sources[read], target, compute)
            assert not folder.exists()
        elif not target.exists():
            run(sources[read], target, compute)
        assert target.read_bytes() == whole
        assert sum(computed) <= 7 + 2  # of what was finished nothing is computed again: at most the part in the making
        step += 1
    assert step > 30


@quick
@given(
    st.lists(pairs, min_size=1, max_size=9),
    st.lists(st.integers(0, 60), max_size=4),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_killed_several_times_with_several_processes(
    rows: list[dict[str, str]], kills: list[int], part_rows: int, world: int
) -> None:
    """Any rows, any kills, any number of processes, another one each time: the same bytes."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        folder = Path(name)
        write_json(folder / "in.jsonl", rows)
        run(folder / "in.jsonl", folder / "whole.jsonl", part_rows=part_rows)
        target = folder / "out.jsonl"
        for attempt, step in enumerate([*kills, 10**6]):
            with killed_at(step, monkeypatch):
                try:
                    _together(folder / "in.jsonl", target, part_rows, world + attempt)
                except Killed:
                    pass
            if target.exists():
                break
        assert target.read_bytes() == (folder / "whole.jsonl").read_bytes()


def _together(source: Path, target: Path, part_rows: int, world: int) -> None:
    ranks = [job(source, target, part_rows=part_rows) for _ in range(world)]
    ranks[0].start(SCORES.names)
    if not ranks[0].begin("m"):
        return
    for rank, work in reversed(list(enumerate(ranks))):
        work.attach()
        work.fill(score, rank=rank, world=world)
    ranks[0].join(SCORES)


def half_done(source: Path, target: Path, **options: Any) -> None:
    """Stop after two parts."""

    def compute(chunk: Chunk) -> pa.Table:
        if len(list(target.parent.glob(f"{target.name}.partial/part-*"))) == 2:
            raise Killed
        return score(chunk)

    with pytest.raises(Killed):
        run(source, target, compute, **options)


def test_other_input_options_or_model_are_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    half_done(sources["jsonl"], target)
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "out.jsonl.partial").iterdir())
    changed = tmp_path / "in.jsonl"
    changed.write_text(sources["jsonl"].read_text().replace("a 6", "a 5"), encoding="utf-8")
    with pytest.raises(ValueError, match="the input has changed.*--restart"):
        run(changed, target, never)
    with pytest.raises(ValueError, match="score was 'both' and is 'answer'.*--restart"):
        run(sources["jsonl"], target, never, options={"score": "answer"})
    with pytest.raises(ValueError, match="part_rows was 2 and is 3"):
        run(sources["jsonl"], target, never, part_rows=3)
    with pytest.raises(ValueError, match="the model has changed.*--restart"):
        run(sources["jsonl"], target, never, model="other")
    assert before == sorted((path.name, path.read_bytes()) for path in (tmp_path / "out.jsonl.partial").iterdir())
    run(changed, target, restart=True)
    assert [row["text_a"] for row in read_json(target)][-1] == "a 5" and not Path(f"{target}.partial").exists()


def test_the_same_texts_in_another_file_go_on(sources: dict[str, Path], tmp_path: Path) -> None:
    """What counts are the texts: neither name, time nor format of the input."""
    target = tmp_path / "out.csv"
    half_done(sources["csv"], target)
    computed = []
    run(sources["parquet"], target, lambda chunk: computed.append(chunk) or score(chunk))
    assert len(computed) == 2  # of four parts


def test_a_damaged_part_is_computed_again(
    sources: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(sources["jsonl"], tmp_path / "whole.jsonl")
    target = tmp_path / "out.jsonl"
    half_done(sources["jsonl"], target)
    part = min((tmp_path / "out.jsonl.partial").glob("part-*"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    run(sources["jsonl"], target)
    assert "damaged" in caplog.text and part.name in caplog.text
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_input_that_changes_meanwhile_is_noticed(sources: dict[str, Path], tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for change in (lambda text: text.replace("b 36", "b 37"), lambda text: text[: text.rindex("{")]):
        source.write_bytes(sources["jsonl"].read_bytes())
        work = job(source, target, restart=True)
        work.start(SCORES.names)
        work.begin("m")
        work.fill(score)
        source.write_text(change(source.read_text()), encoding="utf-8")
        with pytest.raises(RuntimeError, match="changed while"):
            work.join(SCORES)
        assert not target.exists()


def test_nothing_of_the_users_is_overwritten(sources: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("precious")
    with pytest.raises(ValueError, match="exists.*--overwrite"):
        run(sources["jsonl"], target, never)
    assert target.read_text() == "precious"
    run(sources["jsonl"], target, overwrite=True)
    assert len(read_json(target)) == 7
    source = tmp_path / "in.jsonl"
    source.write_bytes(sources["jsonl"].read_bytes())
    with pytest.raises(ValueError, match="is the input"):
        run(source, source, never, overwrite=True)
    folder = tmp_path / "new.jsonl.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    for restart in (False, True):
        with pytest.raises(ValueError, match="in the way.*move it"):
            run(sources["jsonl"], tmp_path / "new.jsonl", never, restart=restart)
    assert (folder / "thesis.txt").read_text() == "precious"


def test_two_jobs_on_one_target_never_tear_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file system has no locks, nothing keeps a second one away: it dies while both write the result."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_json(source, [{"text_a": letter * 100_000, "text_b": "b"} for letter in "acde"])  # more than is buffered
    run(source, tmp_path / "whole.jsonl", part_rows=1)
    first, second = (job(source, target, part_rows=1) for _ in range(2))
    for work in (first, second):
        work.start(SCORES.names)
        work.begin("m")
        work.fill(score)
    in_order = TableJob._in_order

    def meanwhile(self: TableJob, added: pa.Schema) -> Iterator[Any]:
        for number, row in enumerate(list(in_order(self, added))):
            if self is second and number == 1:
                raise Killed
            if self is first and number == 3:
                with pytest.raises(Killed):
                    second.join(SCORES)
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(TableJob, "_in_order", meanwhile)
        with pytest.raises(OSError, match="cannot be written"):
            first.join(SCORES)
    assert not target.exists()
    run(source, target, never, part_rows=1)
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
