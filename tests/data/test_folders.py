"""Folders of files and sets of the Hub: they give the pairs that their files give, and a bad file is named."""

import gzip
import os
from functools import partial

import datasets
import pytest

from flipped_kd.data.loading import load_pairs
from flipped_kd.data.validation import PAIR_FEATURES
from tests.data.pair_sets import ROWS, rows_of, write_lines, write_many


def test_a_folder_of_files_has_their_splits(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_lines(tmp_path / "test.jsonl", ROWS[2:])
    assert rows_of(load_pairs(tmp_path, split="test")) == ROWS[2:]


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
        ("xyz", "a", r"'many' cannot be read: .*: give a file, or a folder with files that end in .*\.csv"),
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
