"""Tables are read and written unchanged, and bad ones refused before any work."""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flipped_kd.data.table_jobs import TableJob
from flipped_kd.data.table_writers import json_text
from flipped_kd.data.tables import TableSource
from flipped_kd.data.text_tables import TextTable, read_texts, scan
from tests.data.table_job_runs import (
    COLUMNS,
    SCORES,
    job,
    json_tables,
    never,
    quick,
    read_csv,
    read_json,
    run,
    score,
    scores_of,
    texts,
    write_csv,
    write_json,
)

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


ARROW_TEXTS = [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]

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
        (
            "in.csv",
            'text_a,text_b\na,b\n"say \\"hi\\"",b\n',
            r"'in.csv', line 3 cannot be read as CSV in UTF-8: .*expected",
        ),
        ("in.csv", 'text_a,text_b\na,b\n"c,d\n', "'in.csv', line 3 cannot be read as CSV in UTF-8: unexpected end"),
        ("in.csv", "a,b\n", "no column 'text_a'"),
        ("in.csv", "text_a;text_b\na;b\n", "--text-a-column. Its fields .*separated by ';': save it with commas"),
        ("in.csv", "", "'in.csv' is empty"),
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


@pytest.mark.parametrize("part_rows", [1, 3])
def test_a_row_that_lacks_a_column_is_a_bad_row_wherever_it_stands(part_rows: int, tmp_path: Path) -> None:
    good = [{"text_a": f"a{n}", "text_b": "b"} for n in range(2)]
    for place in range(3):
        rows: list[dict[str, Any]] = [*good[:place], {"text_b": "x"}, *good[place:]]
        write_json(tmp_path / "in.jsonl", rows)
        with pytest.raises(ValueError, match="no column|'text_a' is null"):
            run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", never, part_rows=part_rows)
        work = job(tmp_path / "in.jsonl", tmp_path / f"{place}.jsonl", skip_bad_rows=True, part_rows=part_rows)
        found = work.start(SCORES.names)
        assert (found.rows, found.bad) == (2, 1)
        assert work.begin("m")
        work.fill(score)
        work.join(SCORES)
        assert [row["text_a"] for row in read_json(tmp_path / f"{place}.jsonl")] == ["a0", "a1"]


def test_a_bad_row_needs_no_name_either(tmp_path: Path) -> None:
    write_json(tmp_path / "in.jsonl", [{"text_b": "x"}, {"text_a": "a", "text_b": "b", "key": "k"}])
    for part_rows in (1, 2):
        table = TextTable(TableSource(tmp_path / "in.jsonl"), COLUMNS, part_rows, True, ("--id-column", "key"))
        assert [id for chunk in table.chunks() for id in chunk.ids] == ["k"]
        other = TextTable(TableSource(tmp_path / "in.jsonl"), COLUMNS, part_rows, True, ("--id-column", "kee"))
        with pytest.raises(ValueError, match="no column 'kee'.*--id-column"):
            for chunk in other.chunks():
                assert not chunk.ids  # nothing is given to work on


def test_a_name_that_no_file_can_hold_makes_a_bad_row(tmp_path: Path) -> None:
    """Texts with lone surrogates do, too; inside a list JSON escapes them."""
    names: list[Any] = ["k", "\ud800" + 100 * "x", ["\ud800"], "7"]
    write_json(tmp_path / "in.jsonl", [{"text_a": "a", "text_b": "b", "key": name} for name in names])
    table = TextTable(TableSource(tmp_path / "in.jsonl"), COLUMNS, 3, False, ("--id-column", "key"))
    with pytest.raises(
        ValueError, match=r"row 1 .*column 'key' is '\\ud800x.{,60}, but .*: correct it, .*--skip-bad-rows"
    ):
        list(table.chunks())
    table = TextTable(TableSource(tmp_path / "in.jsonl"), COLUMNS, 3, True, ("--id-column", "key"))
    assert [(chunk.ids, len(chunk.rows), chunk.bad) for chunk in table.chunks()] == [
        (["k", '["\\ud800"]'], 2, 1),
        (["7"], 1, 0),
    ]


def test_a_column_that_no_row_has_is_no_bad_row(tmp_path: Path) -> None:
    write_json(tmp_path / "in.jsonl", [{"text_b": "x"}, {"text_b": "y"}])
    for skip in (False, True):
        with pytest.raises(ValueError, match=r"no column 'text_a'; its columns are \['text_b'\].*--text-a-column"):
            job(tmp_path / "in.jsonl", tmp_path / "out.jsonl", skip_bad_rows=skip).start(SCORES.names)


@pytest.mark.parametrize("kind", ARROW_TEXTS, ids=str)
def test_every_kind_of_arrow_text_is_read_and_written(kind: pa.DataType, tmp_path: Path) -> None:
    """Views are what `pyarrow.table` makes of a frame of polars."""
    table = pa.table({"text_a": ["a0", " ", "a2"], "text_b": ["b"] * 3})
    table = table.set_column(0, "text_a", table["text_a"].cast(kind)).append_column("n", table["text_b"].cast(kind))
    pq.write_table(table, tmp_path / "in.parquet")
    for written in ("parquet", "jsonl", "csv"):
        work = job(tmp_path / "in.parquet", tmp_path / f"out.{written}", skip_bad_rows=True)
        assert work.start(SCORES.names).bad == 1
        assert work.begin("m")
        work.fill(score)
        work.join(SCORES)
    assert pq.read_table(tmp_path / "out.parquet")["text_a"].to_pylist() == ["a0", "a2"]
    assert pq.read_schema(tmp_path / "out.parquet").field("text_a").type == kind
    assert [row["text_a"] for row in read_json(tmp_path / "out.jsonl")] == ["a0", "a2"]


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
    # Far enough down that the reader's own position, in a chunk, would mislead.
    latin = "text_a,text_b\n" + "a,b\n" * 5000 + "é,b\n"
    (tmp_path / "latin.csv").write_bytes(latin.encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8 .line 5002 holds the byte 0xe9"):
        run(tmp_path / "latin.csv", tmp_path / "latin.jsonl", never)


def test_two_options_do_not_name_one_column(tmp_path: Path) -> None:
    """A typing error that scored a text against itself."""
    write_json(tmp_path / "in.jsonl", [{"text_a": "a", "text_b": "b"}])
    columns = {"--text-a-column": "text_a", "--text-b-column": "text_a"}
    with pytest.raises(ValueError, match="--text-a-column and --text-b-column name the same column"):
        TextTable(TableSource(tmp_path / "in.jsonl"), columns, 10)


def test_a_pipe_is_told_from_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "in.jsonl")
    with pytest.raises(ValueError, match="is a pipe: give it on standard input, with -"):
        TableSource(tmp_path / "in.jsonl")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed"):
        next(TableSource("-").batches(1))


def test_a_row_without_an_id_is_bad(tmp_path: Path) -> None:
    """Several were all named "null"."""
    path = tmp_path / "in.jsonl"
    write_json(path, [{"text": "a", "id": 1}, {"text": "b"}, {"text": "c", "id": None}, {"text": "d", "id": "x"}])
    options: dict[str, Any] = {"part_rows": 10, "id_column": ("--id-column", "id")}
    with pytest.raises(ValueError, match="row 1 .*column 'id' is empty"):
        list(TextTable(TableSource(path), {"--text-column": "text"}, **options).chunks())
    (chunk,) = TextTable(TableSource(path), {"--text-column": "text"}, skip_bad_rows=True, **options).chunks()
    assert chunk.ids == ["1", "x"] and chunk.bad == 2
    write_csv(tmp_path / "in.csv", [["id", "text"], ["", "a"], ["7", "b"]])
    with pytest.raises(ValueError, match="row 0 .*column 'id' is empty"):
        list(TextTable(TableSource(tmp_path / "in.csv"), {"--text-column": "text"}, **options).chunks())


def test_ids_of_parquet_have_no_quotes(tmp_path: Path) -> None:
    number, day = Decimal("17"), date(2026, 1, 2)
    columns = {"text": ["a", "b"], "id": pa.array([number, number], pa.decimal128(38, 0)), "day": [day, day]}
    pq.write_table(pa.table(columns), tmp_path / "texts.parquet")
    for column, expected in (("id", "17"), ("day", "2026-01-02")):
        _, ids = read_texts(str(tmp_path / "texts.parquet"), ("--text-column", "text"), ("--id-column", column), False)
        assert ids == [expected] * 2


def test_nan_of_parquet_is_null_in_json(tmp_path: Path) -> None:
    columns = {"text_a": ["a"], "text_b": ["b"], "x": [float("nan")], "y": [[1.5, float("-inf")]], "z": ["NaN"]}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    (row,) = (json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "out.jsonl").open(encoding="utf-8"))
    assert (row["x"], row["y"], row["z"]) == (None, [1.5, None], "NaN")
    run(tmp_path / "in.parquet", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["x"] == "NaN"  # of which CSV has one


def test_values_that_python_cannot_hold_are_named_before_any_work(tmp_path: Path) -> None:
    late = pa.array([0, 300_000_000_000], pa.timestamp("s"))  # in the year 11476
    pq.write_table(pa.table({"text": ["a", "b"], "due": late}), tmp_path / "texts.parquet")
    table = TextTable(TableSource(tmp_path / "texts.parquet"), {"--text-column": "text"}, 10)
    scan(table, [])
    with pytest.raises(ValueError, match=r"'texts.parquet', column 'due' has a value that can be written as Parquet"):
        scan(table, [], converts=True)


def test_a_damaged_page_is_told_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"text": [f"text {number}" for number in range(3000)]}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[50:400] = bytes(350)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"'pairs.parquet' cannot be read as Parquet: "):
        list(TableSource(path).batches(100))
