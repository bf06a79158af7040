"""Loading and checking pair sets: every accepted form gives the same pairs, every bad one is refused with reason."""

import gzip
import json
import logging
import os
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from flipped_kd.data.keys import shared_texts
from flipped_kd.data.loading import load_pairs
from flipped_kd.data.validation import PAIR_FEATURES, PairColumns, validate_pairs

# Texts that readers like to change: quotes, separators, line ends, and words that pandas takes for missing values.
ROWS = [
    {"text_a": 'he said "hi", twice', "text_b": "NA", "label": 1},
    {"text_a": "007", "text_b": "null\tand\nvoid", "label": 0},
    {"text_a": "卡在哪里 🙂", "text_b": " padded ", "label": 1},
    {"text_a": "1.0", "text_b": "None", "label": 0},
]
SHARED = Path(os.environ.get("FLIPPED_KD_SHARED", Path(__file__).resolve().parents[3] / "shared"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep the caches of `datasets` out of the home of whoever runs the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pairs(**changes) -> Dataset:
    """Four good rows, with whole columns replaced."""
    return Dataset.from_dict({column: [row[column] for row in ROWS] for column in PAIR_FEATURES} | changes)


def rows_of(dataset: Dataset) -> list[dict]:
    assert dataset.features == PAIR_FEATURES
    return dataset.to_list()


def write_lines(path: Path, lines: list) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def write(kind: str, folder: Path) -> Path:
    """Write `ROWS` as a user of each format would."""
    dataset, path = Dataset.from_list(ROWS), folder / f"pairs.{kind}"
    if kind in ("jsonl", "ndjson"):
        write_lines(path, ROWS)
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "parquet":
        dataset.to_parquet(path)
    elif kind == "folder":
        dataset.save_to_disk(path)
    else:
        dataset.to_pandas().to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    return path


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


def test_csv_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "bom.csv").write_text("text_a,text_b,label\na,b,1\nc,d,0\n", encoding="utf-8-sig")
    assert [row["text_a"] for row in rows_of(load_pairs(tmp_path / "bom.csv"))] == ["a", "c"]


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


def test_a_folder_of_files_has_their_splits(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_lines(tmp_path / "test.jsonl", ROWS[2:])
    assert rows_of(load_pairs(tmp_path, split="test")) == ROWS[2:]


def write_many(folder: Path, kind: str, name: str, rows: list[dict]) -> Path:
    """Rows in a file of a folder, made where need be."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.{kind}"
    if kind == "parquet":
        Dataset.from_list(rows, features=PAIR_FEATURES).to_parquet(path)
    elif kind == "jsonl":
        write_lines(path, rows)
    else:
        Dataset.from_list(rows).to_pandas().to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_a_folder_gives_the_pairs_that_its_files_give(kind, tmp_path):
    """Beyond 10,000 rows too, and in a second file, where what was guessed from the first rows no longer holds."""
    plain = [{"text_a": f"a {row}", "text_b": "b", "label": row % 2} for row in range(10_001)]
    late = [{"text_a": text, "text_b": "2020-01-01", "label": 1} for text in ("007", "2021-02-03")]
    folder = tmp_path / "many"
    write_many(folder, kind, "train-0", plain + late[:1])
    write_many(folder, kind, "train-1", late)
    write_many(folder, kind, "test", ROWS)
    (folder / "README.md").write_text("# Pairs\n")
    assert rows_of(load_pairs(folder, split="train")) == plain + late[:1] + late
    assert rows_of(load_pairs(folder, split="test")) == ROWS
    assert rows_of(load_pairs(folder, split="train[-2:]", require_both_classes=False)) == late
    assert rows_of(load_pairs(folder, split="test[:1]+train[:2]")) == ROWS[:1] + plain[:2]
    assert len(load_pairs(folder, split="all")) == len(plain) + 3 + len(ROWS)
    for split in (None, "dev"):
        with pytest.raises(ValueError, match=r"has the splits \['test', 'train'\] and split is .*name one"):
            load_pairs(folder, split=split)


@pytest.mark.parametrize(
    "kind, content, message",
    [
        (
            "csv",
            "text_a,text_b,label\nDear sir, where is my card,Card not here,1\nx,y,0\n",
            r"'train.csv' cannot be read as CSV in UTF-8: .* line 2 has 4 fields and the header 3",
        ),
        ("tsv", "text_a\ttext_b\tlabel\nx\ty\tz\t1\n", "line 2 has 4 fields"),
        ("csv", b"text_a,text_b,label\n\xe9,y,1\n", "'train.csv' cannot be read as CSV in UTF-8"),
        ("csv", "text_a,b,label\nx,y,1\n", r"train.csv has no column \['text_b'\]"),
        ("csv", "text_a,text_a,text_b,label\nx,x,y,1\n", "names a column twice"),
        ("jsonl", '{"text_a": "x", "text_b": "y", "label": 1}\n{"text_a": "x",\n', "train.jsonl', line 2 is not JSON"),
        ("jsonl", '{"text_a": "x", "b": "y", "label": 1}\n', r"no column \['text_b'\]; its columns are"),
        ("jsonl", '{"text_a": "x", "text_b": 7, "label": 1}\n', r"row 0 .*'text_b' is 7 \(int\)"),
        ("parquet", "no parquet", "'many' cannot be read"),
        ("xyz", "a", "'many' cannot be read"),
    ],
)
def test_a_bad_file_of_a_folder_is_named(kind, content, message, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / f"train.{kind}").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_pairs(folder)


@pytest.mark.parametrize("late", [7, True, {"a": 1}])
def test_no_value_of_a_second_file_becomes_a_text(late, tmp_path):
    """`datasets` casts it to the types of the first file."""
    write_many(tmp_path / "many", "jsonl", "train-0", ROWS)
    write_many(tmp_path / "many", "jsonl", "train-1", [ROWS[0] | {"text_a": late}])
    with pytest.raises(ValueError, match=r"many: row 4 .*a text must be a string"):
        load_pairs(tmp_path / "many")
    assert rows_of(load_pairs(tmp_path / "many", skip_bad_rows=True)) == ROWS


def test_a_folder_is_read_as_its_configuration_says(tmp_path):
    folder = tmp_path / "many"
    write_many(folder, "csv", "good", ROWS)
    write_many(folder, "csv", "broken", [{"question": "a"}])
    (folder / "latin.txt").write_bytes("text_a;text_b;label\né;007;1\nNA;b,c;0\n".encode("latin-1"))
    configuration = "configs:\n- config_name: default\n  data_files:\n  - split: {}\n    path: {}\n"
    about = folder / "README.md"
    about.write_text("---\n" + configuration.format("held_out", "good.csv") + "---\n")
    assert rows_of(load_pairs(folder)) == rows_of(load_pairs(folder, split="held_out")) == ROWS
    # Another encoding and separator.
    (folder / "latin.txt").rename(folder / "latin.csv")
    about.write_text(
        "---\n" + configuration.format("train", "latin.csv") + '  sep: ";"\n  encoding: latin-1\n' + "---\n"
    )
    assert [row["text_b"] for row in rows_of(load_pairs(folder))] == ["007", "b,c"]
    (folder / "latin.csv").write_bytes("text_a;text_b;label\né;a;b;1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="line 2 has 4 fields"):
        load_pairs(folder)
    # Types that the configuration declares do not change texts either.
    about.write_text(
        "---\ndataset_info:\n  features:\n  - name: text_a\n    dtype: string\n  - name: text_b\n    dtype: string\n"
        "  - name: label\n    dtype: int64\n" + configuration.format("train", "good.csv") + "---\n"
    )
    assert rows_of(load_pairs(folder)) == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_the_names_of_the_classes_may_be_declared(kind, tmp_path):
    """Texts stay texts: a number is cast to the declared string by `datasets`, and is no text."""
    folder = tmp_path / "many"
    named = [row | {"label": ("different", "same")[row["label"]]} for row in ROWS]
    path = write_many(folder, kind, "train", named)
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text_a\n    dtype: string\n  - name: text_b\n    dtype: string\n"
        "  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': different\n"
        "          '1': same\n---\n"
    )
    assert rows_of(load_pairs(folder)) == ROWS
    os.utime(path, ns=(1, 1))
    write_many(folder, kind, "train", named[::-1])
    os.utime(path, ns=(1, 1))
    assert rows_of(load_pairs(folder)) == ROWS[::-1]
    if kind == "jsonl":
        write_many(folder, kind, "train", [*ROWS, ROWS[0] | {"text_a": 7}])
        with pytest.raises(ValueError, match=r"row 4 .*'text_a' is 7 \(int\)"):
            load_pairs(folder)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_a_folder_may_hold_compressed_files(kind, tmp_path):
    path = write_many(tmp_path / "many", kind, "train", ROWS)
    (tmp_path / "many" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert rows_of(load_pairs(tmp_path / "many")) == ROWS


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


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_set_of_the_hub_is_read_as_a_folder_is(kind, tmp_path, monkeypatch):
    """A folder stands for the Hub. It is asked for data only: for no code, and for no file by name."""
    rows = [ROWS[0] | {"text_a": "2020-01-01", "text_b": "007"}, *ROWS]
    write_many(tmp_path / "many", kind, "train", rows)
    write_many(tmp_path / "many", kind, "test", ROWS)
    asked = []

    def there(call, path, *, revision, **options):
        assert path == "owner/pairs"
        asked.append({"revision": revision, **options})
        return call(str(tmp_path / "many"), **options)

    for name in ("loading.load_dataset", "loading.load_dataset_builder", "pair_files.load_dataset"):
        monkeypatch.setattr(f"flipped_kd.data.{name}", partial(there, getattr(datasets, name.split(".")[1])))
    assert rows_of(load_pairs("owner/pairs", split="train", revision="v1")) == rows
    assert rows_of(load_pairs("owner/pairs", split="test[:2]", revision="v1")) == ROWS[:2]
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\] and split is None"):
        load_pairs("owner/pairs", revision="v1")
    assert {options["revision"] for options in asked} == {"v1"}
    assert {key for options in asked for key in options} <= {
        *("revision", "name", "split", "usecols", "converters", "keep_default_na")
    }
    # Types that the set declares do not change texts either.
    declared = "".join(f"  - name: {name}\n    dtype: {kind.dtype}\n" for name, kind in PAIR_FEATURES.items())
    (tmp_path / "many" / "README.md").write_text(f"---\ndataset_info:\n  features:\n{declared}---\n")
    assert rows_of(load_pairs("owner/pairs", split="train", revision="v1")) == rows
    (tmp_path / "many" / "train.csv").write_text("text_a,text_b,label\na,b,c,1\n")
    if kind == "csv":
        with pytest.raises(ValueError, match="train.csv.* line 2 has 4 fields"):
            load_pairs("owner/pairs", split="train", revision="v1")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_set_of_the_hub_that_was_read_once_is_read_without_a_connection(kind, tmp_path, monkeypatch):
    write_many(tmp_path / "pairs", kind, "train", ROWS)

    def there(call, path, *, revision, **options):
        return call(str(tmp_path / "pairs"), **options)

    with monkeypatch.context() as patch:
        for name in ("loading.load_dataset", "loading.load_dataset_builder", "pair_files.load_dataset"):
            patch.setattr(f"flipped_kd.data.{name}", partial(there, getattr(datasets, name.split(".")[1])))
        assert rows_of(load_pairs("owner/pairs")) == ROWS
    (tmp_path / "cache" / "pairs").rename(tmp_path / "cache" / "owner___pairs")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert rows_of(load_pairs("owner/pairs")) == rows_of(load_pairs("owner/pairs", split="train")) == ROWS


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("gone.jsonl", None, "does not exist"),
        ("pairs.txt", "a", "unknown ending '.txt'.*give one of"),
        ("pairs.jsonl", "", "is empty"),
        ("pairs.jsonl", "\n\n", "cannot be read as json"),
        ("pairs.csv", "text_a,text_b,label\n", "cannot be read as csv"),
        (
            "pairs.csv",
            "text_a,b,label\nx,y,1\n",
            r"no column \['text_b'\]; its columns are \['b', 'label', 'text_a'\]",
        ),
        ("pairs.csv", "text_a,text_a,text_b,label\nx,x,y,1\n", "names a column twice"),
        ("pairs.csv", "label,text_a,text_b\n1,x,y\n0,x,one, two\n", "line 3 has 4 fields and the header 3"),
        ("pairs.csv", b"text_a,text_b,label\n\xff,y,1\n", "cannot be read as CSV in UTF-8"),
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


def test_a_missing_relative_file_is_not_looked_up_on_the_hub():
    with pytest.raises(ValueError, match="does not exist"):
        load_pairs("some/where/pairs")
    with pytest.raises(ValueError, match="does not exist"):
        load_pairs("pairs.jsonl")


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 1, 0],
        [True, False, True, False],
        ["1", "0", "1", "0"],
        [1.0, 0.0, 1.0, 0.0],
        ["true", "False", "1.0", "0.0"],
        pa.array([1, 0, 1, 0], pa.uint8()),
        pa.array([1, 0, 1, 0], pa.float16()),
        pa.array(["1", "0", "1", "0"], pa.large_string()),
    ],
    ids=str,
)
def test_every_form_of_label_becomes_0_or_1(labels):
    assert validate_pairs(pairs(label=labels))["label"][:] == [1, 0, 1, 0]


def test_class_labels_become_integers():
    features = Features(PAIR_FEATURES | {"label": ClassLabel(names=["no", "yes"])})
    assert rows_of(validate_pairs(pairs().cast(features))) == ROWS


@pytest.mark.parametrize("label", [2, -1, 0.5, None, "yes", "", "2", float("nan"), 2**53 + 1, [1], {"a": 1}])
def test_other_labels_are_refused(label):
    with pytest.raises(ValueError, match=r"test: row 0 .*column 'label' is .*a label is 0 or 1.*4 of 4 rows are bad"):
        validate_pairs(pairs(label=[label] * 4), name="test")


@pytest.mark.parametrize("text", ["", " ", "\t\n\u3000\xa0", None, 3, 2.5, True, ["x"]])
@pytest.mark.parametrize("column", ["text_a", "text_b"])
def test_texts_that_say_nothing_are_refused(text, column, tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[2][column] = text
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(ValueError, match=rf"row 2 .*column '{column}' is .*1 of 4 rows .*skip_bad_rows=True"):
        load_pairs(path)
    kept = load_pairs(path, skip_bad_rows=True, require_both_classes=False)
    assert rows_of(kept) == ROWS[:2] + ROWS[3:]


OTHER_TEXTS = [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", OTHER_TEXTS, ids=str)
def test_other_arrow_strings_are_texts(kind, tmp_path):
    """`pyarrow.table` makes views of a frame of polars."""
    table = pa.table({column: [row[column] for row in ROWS] for column in PAIR_FEATURES})
    label = pa.array([str(row["label"]) for row in ROWS]).cast(kind)
    for changed in (0, 1, 2):
        values = label if changed == 2 else table.column(changed).cast(kind)
        other = table.set_column(changed, table.column_names[changed], values)
        assert rows_of(validate_pairs(Dataset(other))) == ROWS
        assert rows_of(validate_pairs(Dataset(other).select([3, 0, 1]))) == [ROWS[3], ROWS[0], ROWS[1]]
        pq.write_table(other, tmp_path / f"{changed}.parquet")
        assert rows_of(load_pairs(tmp_path / f"{changed}.parquet")) == ROWS
    bad = table.set_column(0, "text_a", pa.array(["x", " ", None, "y"]).cast(kind))
    with pytest.raises(ValueError, match="row 1 .*'text_a' is ' '.*2 of 4 rows are bad"):
        validate_pairs(Dataset(bad))
    kept = validate_pairs(Dataset(bad), skip_bad_rows=True, require_both_classes=False)
    assert kept["text_a"][:] == ["x", "y"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_bytes_are_no_texts_and_the_reason_says_so(kind):
    table = pa.table({column: [row[column] for row in ROWS] for column in PAIR_FEATURES})
    table = table.set_column(0, "text_a", pa.array([b"x"] * 4, kind))
    with pytest.raises(ValueError, match=r"row 0 .*'text_a' is b'x' \(bytes\), but a text must be a string"):
        validate_pairs(Dataset(table))


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


def slow_good(row: dict) -> bool:
    texts = all(isinstance(row[column], str) and row[column].strip() != "" for column in ("text_a", "text_b"))
    return texts and row["label"] in (0, 1)


ANY_TEXT = st.none() | st.text(st.sampled_from(["a", " ", "\n", "\x1c", "\x85", "\u3000", "\u200b", "é"]), max_size=3)
ANY_ROW = st.fixed_dictionaries({"text_a": ANY_TEXT, "text_b": ANY_TEXT, "label": st.none() | st.integers(-1, 2)})


@settings(deadline=None, max_examples=30)
@given(st.lists(ANY_ROW, min_size=1, max_size=12))
def test_exactly_the_good_rows_are_kept_in_order(rows):
    features = Features({"text_a": Value("string"), "text_b": Value("string"), "label": Value("int64")})
    dataset = Dataset.from_list(rows, features=features)
    good = [row for row in rows if slow_good(row)]
    if len(good) < len(rows):
        with pytest.raises(ValueError, match=f"row {[slow_good(row) for row in rows].index(False)} .* (is null|but)"):
            validate_pairs(dataset, require_both_classes=False)
    if good:
        assert rows_of(validate_pairs(dataset, skip_bad_rows=True, require_both_classes=False)) == good
    else:
        with pytest.raises(ValueError, match="train is empty without them"):
            validate_pairs(dataset, skip_bad_rows=True)


def test_skipped_rows_are_counted_in_the_log(caplog):
    with caplog.at_level(logging.WARNING, logger="flipped_kd.data.validation"):
        validate_pairs(pairs(text_a=["x", "", "y", None], label=[1, 0, 0, 0]), skip_bad_rows=True, name="dev")
    (record,) = caplog.records
    assert "dev: row 1" in record.message and "2 of 4 rows are bad" in record.message


@pytest.mark.parametrize(
    "scores, threshold, expected",
    [
        ([0.5, 0.49, 3, -1], 0.5, [1, 0, 1, 0]),
        ([4, 3, 5, 0], 4, [1, 0, 1, 0]),
        (["4.0", "3", " 5", "-1"], 4, [1, 0, 1, 0]),
        (pa.array([0.7, 0.69, 1, 0], pa.float32()), 0.7, [1, 0, 1, 0]),
    ],
    ids=str,
)
def test_scores_from_the_threshold_on_are_matches(scores, threshold, expected):
    assert validate_pairs(pairs(label=scores), label_threshold=threshold)["label"][:] == expected


@pytest.mark.parametrize("score", [None, float("nan"), float("inf"), "high"])
def test_scores_must_be_finite_numbers(score):
    with pytest.raises(ValueError, match="with label_threshold it must be a finite number"):
        validate_pairs(pairs(label=[score] * 4), label_threshold=0.5)


def test_columns_are_mapped_and_the_rest_is_dropped():
    dataset = pairs().rename_columns({"text_a": "q1", "text_b": "text_a"}).add_column("id", [1, 2, 3, 4])
    mapping = {"text_a": "q1", "text_b": "text_a"}
    assert rows_of(validate_pairs(dataset, columns=mapping)) == ROWS
    assert rows_of(validate_pairs(dataset, columns=PairColumns(**mapping))) == ROWS
    swapped = validate_pairs(pairs(), columns={"text_a": "text_b", "text_b": "text_a"})
    assert swapped["text_a"][:] == [row["text_b"] for row in ROWS]


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"text_a": "q1"}, r"no column \['q1'\]; its columns are \['label', 'text_a', 'text_b'\]"),
        ({"question": "text_a"}, r"maps \['question'\], but only"),
        ({"text_a": "text_b"}, "three different column names"),
        ({"text_a": ""}, "three different column names"),
    ],
)
def test_wrong_mappings_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        validate_pairs(pairs(), columns=columns)


@pytest.mark.parametrize("label", [0, 1])
def test_a_single_class_is_refused_unless_allowed(label):
    one = pairs(label=[label] * 4)
    with pytest.raises(ValueError, match=f"single class: all 4 labels are {label}"):
        validate_pairs(one)
    assert validate_pairs(one, require_both_classes=False)["label"][:] == [label] * 4


def test_an_empty_split_and_other_types_are_refused():
    with pytest.raises(ValueError, match="dev is empty"):
        validate_pairs(pairs().select([]), name="dev")
    for other in (ROWS, DatasetDict(train=pairs()), pairs().to_iterable_dataset()):
        with pytest.raises(TypeError, match="not a datasets.Dataset"):
            validate_pairs(other)
    with pytest.raises(ValueError, match="label_threshold is nan"):
        validate_pairs(pairs(), label_threshold=float("nan"))


def test_a_checked_set_passes_unchanged_and_formats_do_not_matter():
    once = validate_pairs(pairs().with_format("numpy").select([3, 1, 0]))
    assert rows_of(once) == [ROWS[3], ROWS[1], ROWS[0]]
    assert rows_of(validate_pairs(once)) == rows_of(once)


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


def test_many_rows_are_scanned_in_batches(monkeypatch):
    labels = np.arange(1000) % 2
    dataset = Dataset.from_dict({"text_a": ["x"] * 1000, "text_b": ["y"] * 1000, "label": labels})
    dataset = dataset.select(range(999, -1, -1))
    monkeypatch.setattr("flipped_kd.data.validation._BATCH", 7)
    assert validate_pairs(dataset)["label"][:] == labels[::-1].tolist()
    bad = dataset.add_column("score", np.where(np.arange(1000) == 941, np.nan, 0.5))
    with pytest.raises(ValueError, match="row 941 .*1 of 1000 rows"):
        validate_pairs(bad, columns={"label": "score"}, label_threshold=0.1)


@pytest.mark.skipif(not (SHARED / "data/banking77").is_dir(), reason=f"no real pairs at {SHARED.name}/data/banking77")
def test_real_splits_load_and_share_no_text():
    splits = {name: load_pairs(SHARED / f"data/banking77/{name}.jsonl") for name in ("train", "validation", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 8000, "validation": 1000, "test": 2000}
    assert [found for found in shared_texts(**splits) if found.second == "test"] == []
