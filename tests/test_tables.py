"""Tables are read and written unchanged, and a job on a table gives the same file wherever it was killed."""

from __future__ import annotations

import csv
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flipped_kd.table_jobs import TableJob
from flipped_kd.table_writers import WRITABLE, json_text
from flipped_kd.tables import TableSource, format_of
from flipped_kd.text_tables import Chunk, TextTable

SCORES = pa.schema([("score", pa.float64()), ("match", pa.bool_())])
COLUMNS = {"--text-a-column": "text_a", "--text-b-column": "text_b"}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda text: text.strip())
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
pairs = st.fixed_dictionaries({"text_a": texts, "text_b": texts})
more = st.dictionaries(st.sampled_from(["x", "y", ""]), anything, max_size=2)
json_tables = st.lists(st.builds(dict.__or__, pairs, more), max_size=9)
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


class Killed(BaseException):
    """What a process dies of here; nothing catches it."""


def score(chunk: Chunk) -> pa.Table:
    """A score of each pair that depends on nothing but its texts."""
    return score_texts(chunk.texts)


def score_texts(columns: tuple[list[str], ...]) -> pa.Table:
    numbers = [zlib.crc32("\0".join(pair).encode()) / 2**32 for pair in zip(*columns, strict=True)]
    return pa.table({"score": numbers, "match": [number >= 0.5 for number in numbers]}, schema=SCORES)


def job(source: Path, target: Path, *, part_rows: int = 2, **options: Any) -> TableJob:
    table = TextTable(TableSource(source), COLUMNS, part_rows, options.pop("skip_bad_rows", False))
    settings = options.pop("options", {"score": "both"})
    return TableJob(table, target, format_of(target, WRITABLE), settings, **options)


def run(source: Path, target: Path, compute: Any = score, model: str = "m", **options: Any) -> None:
    """A whole job in one process."""
    work = job(source, target, **options)
    work.start(SCORES.names)
    if work.begin(model):
        work.fill(compute)
        work.join(SCORES)


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)


def read_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def read_json(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def scores_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return score_texts(([row["text_a"] for row in rows], [row["text_b"] for row in rows])).to_pylist()


# ---- What is read is written unchanged ----


@quick
@given(json_tables)
def test_json_lines_keep_every_value(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        write_json(source, rows)
        run(source, target)
        assert read_json(target) == [row | more for row, more in zip(rows, scores_of(rows), strict=True)]


@quick
@given(st.lists(st.tuples(texts, texts, st.text(st.characters(exclude_categories=["Cs"]), max_size=6)), max_size=9))
def test_csv_keeps_every_text(rows: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for ending, separator in (("csv", ","), ("tsv", "\t")):
            source, target = Path(folder, f"in.{ending}"), Path(folder, f"out.{ending}")
            with open(source, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
                writer.writerows([["text_a", "text_b", "x"], *rows])
            run(source, target)
            with open(target, encoding="utf-8", newline="") as file:
                found = list(csv.reader(file, delimiter=separator))
            assert found[0] == ["text_a", "text_b", "x", "score", "match"]
            assert [tuple(row[:3]) for row in found[1:]] == rows
            expected = scores_of([{"text_a": row[0], "text_b": row[1]} for row in rows])
            assert [float(row[3]) for row in found[1:]] == [row["score"] for row in expected]


@quick
@given(json_tables)
def test_json_to_parquet_and_csv_lose_nothing(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.jsonl")
        write_json(source, rows)
        run(source, Path(folder, "out.parquet"))
        run(source, Path(folder, "out.csv"))
        found = pq.read_table(Path(folder, "out.parquet"))
        header, *lines = read_csv(Path(folder, "out.csv")) if rows else [[]]
        names = list(dict.fromkeys(name for row in rows for name in row))
        assert found.column_names == names + SCORES.names and len(found) == len(lines) == len(rows)
        for name in names:
            values = [row.get(name) for row in rows]
            plain = {type(value) for value in values if value is not None}
            is_plain = len(plain) < 2 and not plain & {list, dict} and found.schema.field(name).type != pa.string()
            if is_plain or (plain <= {str} and found[name].to_pylist() == values):
                assert found[name].to_pylist() == values
            elif plain <= {int, float} and found.schema.field(name).type == pa.float64():
                assert found[name].to_pylist() == values
            else:
                texts = found[name].to_pylist()
                assert [text if text is None else json.loads(text) for text in texts] == values
            for value, line in zip(values, lines, strict=True):
                cell = line[header.index(name)]
                assert cell == ("" if value is None else value) or json.loads(cell) == value


def test_parquet_keeps_its_schema(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text_a": pa.array(["a", "b", "c", "d", "e"]).dictionary_encode(),
            "text_b": pa.array(list("vwxyz"), pa.large_string()),
            "when": pa.array([0, 1, None, 3, 4], pa.timestamp("ns", "UTC")),
            "list": pa.array([[1], None, [], [2, 3], [4]], pa.list_(pa.int16())),
            "struct": pa.array([{"k": b"\xff"}] * 5, pa.struct([pa.field("k", pa.binary(), nullable=False)])),
        }
    ).replace_schema_metadata({"whose": "mine"})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    run(tmp_path / "in.parquet", tmp_path / "out.parquet", part_rows=3)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.select(table.column_names).equals(table) and found.schema.metadata[b"whose"] == b"mine"
    assert found.schema.names == table.column_names + SCORES.names
    run(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    first = read_json(tmp_path / "out.jsonl")[1]
    assert first["when"].startswith("1970-01-01T00:00:00") and first["struct"] == {"k": "/w=="}


def test_vectors_are_written_in_every_format(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 3)
    schema = pa.schema([("vector", column.type)])
    source = tmp_path / "in.txt"
    source.write_text("one\ntwo\nthree\nfour\nfive\n", encoding="utf-8")
    order = {word: place for place, word in enumerate(source.read_text().split())}
    for ending in ("npy", "jsonl", "parquet", "csv"):
        table = TextTable(TableSource(source), {"--text-column": "text"}, 2)
        work = TableJob(table, tmp_path / f"out.{ending}", ending, {}, keep_rows=ending != "npy")
        work.start(["vector"])
        work.begin("m")
        work.fill(lambda chunk: pa.table([column.take([order[text] for text in chunk.texts[0]])], schema=schema))
        work.join(schema)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy", mmap_mode="r"), vectors)
    found = [row["vector"] for row in read_json(tmp_path / "out.jsonl")]
    np.testing.assert_array_equal(np.array(found, np.float32), vectors)
    assert max(len(repr(number)) for row in found for number in row) < 14  # float32's digits, not float64's
    read = pq.read_table(tmp_path / "out.parquet")
    assert read["text"].to_pylist() == list(order) and read["vector"].type == column.type
    np.testing.assert_array_equal(np.array(read["vector"].to_pylist(), np.float32), vectors)
    cells = [json.loads(line[1]) for line in read_csv(tmp_path / "out.csv")[1:]]
    np.testing.assert_array_equal(np.array(cells, np.float32), vectors)


def test_lone_surrogates_stay_json(tmp_path: Path) -> None:
    assert json.loads(json_text({"x": "\ud800é"})) == {"x": "\ud800é"} and "é" in json_text("é")
    write_json(tmp_path / "in.jsonl", [{"text_a": "a", "text_b": "b", "x": "\ud800"}])
    for ending in ("jsonl", "csv", "parquet"):
        run(tmp_path / "in.jsonl", tmp_path / f"out.{ending}")
    assert read_json(tmp_path / "out.jsonl")[0]["x"] == "\ud800"
    assert json.loads(read_csv(tmp_path / "out.csv")[1][2]) == "\ud800"


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


def never(chunk: Chunk) -> pa.Table:
    raise AssertionError("computed again")


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


# ---- Bad input ----


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", '{"text_a": "a", "text_b": "b"}\n{"text_a": 7, "text_b": "b"}\n', r"row 1 .*'text_a' is 7"),
        ("in.jsonl", '{"text_a": "a", "text_b": " "}\n', r"row 0 .*not white space.*--skip-bad-rows"),
        ("in.jsonl", '{"text_a": "a", "text_b": "\\ud800"}\n', "surrogates"),
        ("in.jsonl", '{"q": "a", "text_b": "b"}\n', r"no column 'text_a'.*\['q', 'text_b'\].*--text-a-column"),
        ("in.jsonl", '{"text_a": "a", "text_b": "b"}\n[1]\n', "line 2 is no JSON object"),
        ("in.jsonl", '{"text_a": "a", "text_b": "b"}\n{"te', "line 2 is not JSON"),
        ("in.jsonl", '{"text_a": "a", "text_b": "b", "score": 1}\n', "column 'score'.*--column-prefix"),
        ("in.csv", "text_a,text_b\na\n", "line 2 has 1 fields"),
        ("in.csv", "text_a,text_a\na,b\n", "twice"),
        ("in.csv", "a,b\n", "no column 'text_a'"),
        ("in.parquet", "PAR1", "cannot be read as Parquet"),
        ("in.xls", "", r"ending '.xls'.*'\.jsonl'"),
    ],
)
def test_bad_input_is_refused_before_any_work(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / name, tmp_path / "out.jsonl", never)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bad_rows_are_left_out_on_request(tmp_path: Path) -> None:
    rows = [{"text_a": f"a{n}", "text_b": "" if n in (0, 1, 4) else "b", "n": n} for n in range(6)]
    write_json(tmp_path / "in.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    for ending in ("jsonl", "parquet"):
        work = job(tmp_path / f"in.{ending}", tmp_path / f"{ending}.jsonl", skip_bad_rows=True)
        found = work.start(SCORES.names)
        assert (found.rows, found.bad) == (3, 3)
        assert work.begin("m")
        work.fill(score)
        work.join(SCORES)
        assert [row["n"] for row in read_json(tmp_path / f"{ending}.jsonl")] == [2, 3, 5]


def test_no_rows_give_no_rows(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    (tmp_path / "in.csv").write_text("text_a,text_b,n\n")
    pq.write_table(pa.table({"text_a": pa.array([], pa.string()), "text_b": []}), tmp_path / "in.parquet")
    for read in ("jsonl", "csv", "parquet"):
        for written in ("jsonl", "csv", "parquet"):
            run(tmp_path / f"in.{read}", tmp_path / f"{read}.{written}", never)
    assert (tmp_path / "jsonl.jsonl").read_bytes() == b""
    assert read_csv(tmp_path / "csv.csv") == [["text_a", "text_b", "n", "score", "match"]]
    assert pq.read_schema(tmp_path / "parquet.parquet").names == ["text_a", "text_b", "score", "match"]


def test_long_texts_and_foreign_bytes_in_csv(tmp_path: Path) -> None:
    long = "word " * 100_000  # above csv's own limit of 131,072 characters
    write_csv(tmp_path / "in.csv", [["text_a", "text_b"], [long, 'b\r\n"'], ["\x00 null byte", "c"]])
    run(tmp_path / "in.csv", tmp_path / "out.csv")
    assert [row[:2] for row in read_csv(tmp_path / "out.csv")[1:]] == [[long, 'b\r\n"'], ["\x00 null byte", "c"]]
    (tmp_path / "latin.csv").write_bytes("text_a,text_b\né,b\n".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        run(tmp_path / "latin.csv", tmp_path / "latin.jsonl", never)
