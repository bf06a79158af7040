"""Loading a file of pairs: every format gives the same pairs, what cannot be read says why."""

import json
import os
from functools import partial

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import DatasetDict

from flipped_kd.data.keys import shared_texts
from flipped_kd.data.loading import load_pairs
from flipped_kd.data.tables import TableSource
from flipped_kd.data.validation import validate_pairs
from tests.data.pair_sets import ROWS, SHARED, pairs, rows_of, write, write_lines, write_many


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "folder"])
def test_every_format_gives_the_same_pairs(kind, tmp_path):
    assert rows_of(load_pairs(write(kind, tmp_path))) == ROWS


def test_a_changed_file_is_read_again(tmp_path):
    path = write("jsonl", tmp_path)
    load_pairs(path)
    write_lines(path, ROWS[::-1])
    os.utime(path, ns=(1, 1))
    assert rows_of(load_pairs(path)) == ROWS[::-1]


def test_file_names_are_not_patterns(tmp_path):
    folder = tmp_path / "a[1]*"
    folder.mkdir()
    assert rows_of(load_pairs(write("jsonl", folder))) == ROWS


@pytest.mark.parametrize("before", ["", "\n", "\r\n\r\n"])
def test_csv_may_begin_with_a_byte_order_mark_and_blank_lines(before, tmp_path):
    path = tmp_path / "bom.csv"
    path.write_text(f"{before}text_a,text_b,label\na,b,1\n\nc,d,0\n", encoding="utf-8-sig", newline="")
    assert [row["text_a"] for row in rows_of(load_pairs(path))] == ["a", "c"]
    assert [row["text_a"] for rows in TableSource(path).batches(1) for row in rows] == ["a", "c"]


def test_splits_of_a_saved_dict_are_chosen_by_name(tmp_path):
    DatasetDict(train=pairs(), test=pairs().select([2, 3])).save_to_disk(tmp_path / "saved")
    assert len(load_pairs(tmp_path / "saved", split="test")) == 2
    for split in (None, "dev"):
        with pytest.raises(ValueError, match=r"splits \['test', 'train'\].*name one"):
            load_pairs(tmp_path / "saved", split=split)


def test_a_single_saved_split_takes_no_split(tmp_path):
    with pytest.raises(ValueError, match="leave split out"):
        load_pairs(write("folder", tmp_path), split="test")


def test_a_slice_of_a_file(tmp_path):
    assert rows_of(load_pairs(write("jsonl", tmp_path), split="train[:2]")) == ROWS[:2]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("whole", [False, True], ids=["file", "folder"])
def test_new_content_is_read_where_the_time_of_the_file_stays(kind, whole, tmp_path):
    """As in images and archives that fix the times of their files."""
    path = write_many(tmp_path / "many", kind, "train", ROWS)
    os.utime(path, ns=(1, 1))
    source = tmp_path / "many" if whole else path
    assert rows_of(load_pairs(source)) == ROWS
    write_many(tmp_path / "many", kind, "train", ROWS[::-1])
    os.utime(path, ns=(1, 1))
    assert rows_of(load_pairs(source)) == ROWS[::-1]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("gone.jsonl", None, "does not exist"),
        ("pairs.txt", "a", "unknown ending '.txt'.*give one of"),
        ("pairs.jsonl", "", "is empty"),
        ("pairs.jsonl", "\n\n", "'pairs.jsonl' has no rows: .*at least one row"),
        ("pairs.csv", "text_a,text_b,label\n", "'pairs.csv' has no rows: .*at least one row"),
        (
            "pairs.csv",
            "text_a,b,label\nx,y,1\n",
            r"no column \['text_b'\]; its columns are \['b', 'label', 'text_a'\]: name .* by .*--text-b-column",
        ),
        ("pairs.csv", "text_a,text_a,text_b,label\nx,x,y,1\n", "names a column twice"),
        ("pairs.csv", "label,text_a,text_b\n1,x,y\n0,x,one, two\n", "line 3 has 4 fields and the header 3"),
        ("pairs.csv", b"text_a,text_b,label\n\xff,y,1\n", "cannot be read as CSV in UTF-8: save it as UTF-8 .line 2"),
        ("pairs.csv", "text_a\ttext_b\tlabel\nx\ty\t1\n", r"separated by '\\t': save it with commas \(tabs"),
        ("pairs.jsonl", '{"text_a": "x", "text_b": "y", "label": 1}\n{"text_a": "x",\n', "line 2 is not JSON"),
        ("pairs.jsonl", '{"text_a": "\\ud800", "text_b": "y", "label": 1}\n', "row 0 .*without lone surrogates"),
        ("pairs.jsonl", b'{"text_a": "\xff", "text_b": "y", "label": 1}\n', r"row 0 .*'text_a' is .*xff.* not UTF-8"),
        ("pairs.jsonl", '{"text_a": "x", "text_b": "y", "label": 1}\n[1]\n', "line 2 is no JSON object"),
        ("pairs.jsonl", '{"text_a": "x", "b": "y", "label": 1}\n', r"no column \['text_b'\]; its columns are"),
        ("pairs.json", '[{"text_a": "x", "text_b": "y", "label": 1},]', "'pairs.json' is not JSON in UTF-8"),
        ("pairs.json", '[{"text_a": "x", "text_b": "y", "label": 1}, 2]', "element 2 is no JSON object"),
        ("pairs.parquet", "no parquet", "cannot be read as parquet"),
    ],
)
def test_unreadable_sources_say_why(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / name)


def test_other_columns_of_parquet_are_not_read(tmp_path):
    """They may be of a type that `datasets` lacks, or fill the disk with what nobody asked for."""
    facts = pa.array([[("a", 1)]] * len(ROWS), pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.Table.from_pylist(ROWS).append_column("facts", facts), tmp_path / "pairs.parquet")
    assert rows_of(load_pairs(tmp_path / "pairs.parquet")) == ROWS


def test_a_missing_relative_file_is_not_looked_up_on_the_hub():
    with pytest.raises(ValueError, match="does not exist"):
        load_pairs("some/where/pairs")
    with pytest.raises(ValueError, match="does not exist"):
        load_pairs("pairs.jsonl")


@pytest.mark.parametrize("label", ["1", True, 1.0])
def test_a_file_may_mix_forms_of_label(label, tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", [ROWS[0] | {"label": label}, *ROWS[1:]])
    assert rows_of(load_pairs(path)) == ROWS


@pytest.fixture
def small_chunks(monkeypatch):
    """`datasets` takes the types from the first 10 MB of a file, here 64 bytes, and fails if the rest has others."""
    monkeypatch.setattr("flipped_kd.data.pair_files.load_dataset", partial(datasets.load_dataset, chunksize=64))
    monkeypatch.setattr("flipped_kd.data.pair_files._JSON_PART", 64)


def test_a_value_that_changes_type_late_in_a_file_is_found(tmp_path, small_chunks):
    rows = [ROWS[0]] * 3 + [ROWS[1], ROWS[1] | {"label": "no"}]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(ValueError, match=r"row 4 .* column 'label' is 'no' \(str\).*1 of 5 rows"):
        load_pairs(path)
    assert rows_of(load_pairs(path, skip_bad_rows=True)) == rows[:4]


@pytest.mark.parametrize("as_array", [False, True])
def test_a_wrong_type_in_one_row_does_not_alter_the_others(as_array, tmp_path):
    """`datasets` would store the column as JSON, which turns the texts "007" into 7 and '"quoted"' into 'quoted'."""
    texts = ["007", "1.0", "null", "true", '"quoted"', "[1]", "plain"]
    rows = [{"text_a": text, "text_b": "2020-01-01", "label": place % 2} for place, text in enumerate(texts)]
    mixed = [*rows, {"text_a": 7, "text_b": "x", "label": 1}]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(mixed, indent=2)) if as_array else write_lines(path, mixed)
    with pytest.raises(ValueError, match=r"row 7 .* column 'text_a' is 7 \(int\)"):
        load_pairs(path)
    assert rows_of(load_pairs(path, skip_bad_rows=True)) == rows
    assert rows_of(load_pairs(path, split="train[:2]")) == rows[:2]
    assert rows_of(load_pairs(path, split="train[25%:]", skip_bad_rows=True)) == rows[2:]
    altered = datasets.load_dataset("json", data_files=str(path), split="train")
    with pytest.raises(ValueError, match="'text_a' holds values of several types"):
        validate_pairs(altered)


def test_scores_may_become_fractions_late_in_a_file(tmp_path, small_chunks):
    rows = [ROWS[0] | {"label": 3}] * 3 + [ROWS[1] | {"label": 1.5}]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    assert load_pairs(path, label_threshold=2)["label"][:] == [1, 1, 1, 0]


def test_texts_that_look_like_dates_late_in_a_file_stay_texts(tmp_path, small_chunks):
    rows = [*ROWS[:1] * 3, *[{"text_a": "2020-01-01", "text_b": "2020-01-02T03:04:05", "label": 0}] * 3]
    assert rows_of(load_pairs(write_lines(tmp_path / "pairs.jsonl", rows))) == rows


def test_texts_that_look_like_dates_stay_texts(tmp_path):
    rows = [{"text_a": "2020-01-01", "text_b": f"2020-01-0{label + 1}", "label": label} for label in (1, 0)]
    assert rows_of(load_pairs(write_lines(tmp_path / "pairs.jsonl", rows))) == rows


def test_max_rows_is_a_seeded_subset_in_order(tmp_path):
    rows = [{"text_a": f"a{i}", "text_b": f"b{i}", "label": i % 2} for i in range(200)]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    subset = rows_of(load_pairs(path, max_rows=50, seed=3))
    places = [rows.index(row) for row in subset]
    assert places == sorted(set(places)) and len(places) == 50
    assert subset == rows_of(load_pairs(path, max_rows=50, seed=3))
    assert subset != rows_of(load_pairs(path, max_rows=50, seed=4))
    assert rows_of(load_pairs(path, max_rows=500)) == rows
    assert subset == rows_of(load_pairs(path, max_rows=np.int64(50), seed=np.int64(3)))
    for wrong in (0, 2.5, True, "3"):
        with pytest.raises(ValueError, match=f"max_rows is {wrong!r}; it must be a whole number from 1"):
            load_pairs(path, max_rows=wrong)
    with pytest.raises(ValueError, match=r"label_threshold is \[0.5\]; it must be a finite number"):
        load_pairs(path, label_threshold=[0.5])
    with pytest.raises(ValueError, match="max_rows=1, seed=0 has a single class"):
        load_pairs(path, max_rows=1)


@pytest.mark.skipif(not (SHARED / "data/banking77").is_dir(), reason=f"no real pairs at {SHARED.name}/data/banking77")
def test_real_splits_load_and_share_no_text():
    splits = {name: load_pairs(SHARED / f"data/banking77/{name}.jsonl") for name in ("train", "validation", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 8000, "validation": 1000, "test": 2000}
    assert [found for found in shared_texts(**splits) if found.second == "test"] == []


@pytest.mark.parametrize(
    ("split", "rows"), [("train[:2]", 2), ("train[50%:]", 2), ("train+test", 6), ("test[1:]+train[:1]", 2), ("all", 6)]
)
def test_slices_of_a_saved_dict_are_those_of_files(split, rows, tmp_path):
    DatasetDict(train=pairs(), test=pairs().select([2, 3])).save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    for name, part in (("train", ROWS), ("test", ROWS[2:4])):
        write_lines(tmp_path / "files" / f"{name}.jsonl", part)
    saved, files = (load_pairs(tmp_path / kind, split=split) for kind in ("saved", "files"))
    assert len(saved) == rows and rows_of(saved) == rows_of(files)


@pytest.mark.parametrize(
    "content",
    [
        'label,text_a,text_b\n1,q1,"Lost card\n0,q2,he said "no" to me\n0,q3,d3\n',
        'text_a,label,text_b\na,1,b\nc,0,"d\ne,1,f\n',
    ],
)
def test_an_open_quote_takes_no_rows_with_it(content, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"'pairs\.csv', line \d cannot be read as CSV"):
        load_pairs(path)
    # A quote within a text is one.
    path.write_text('text_a,text_b,label\n5" pipe,"a ""b"" c",1\nd,"e\nf",0\n')
    assert [row["text_b"] for row in rows_of(load_pairs(path))] == ['a "b" c', "e\nf"]


def test_a_folder_whose_name_is_a_pattern_is_told_of(tmp_path):
    (tmp_path / "a[b]").mkdir()
    write_lines(tmp_path / "a[b]" / "train.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"in a path without \[, \* and \?"):
        load_pairs(tmp_path / "a[b]")
