"""Checks of rows: every form of label and text that is one passes, every other is refused with row and reason."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from flipped_kd.data.loading import load_pairs
from flipped_kd.data.validation import PAIR_FEATURES, PairColumns, label_of, validate_pairs
from tests.data.pair_sets import ROWS, pairs, rows_of, write_lines


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
        pa.array([1, 0, 1, 0], pa.decimal128(38, 0)),  # an integer, as some databases export it
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
    with pytest.raises(
        ValueError,
        match=r"test: row 0 .*column 'label' is .*a label is 0 or 1: write 1 .*4 of 4 rows are bad: correct them$",
    ):
        validate_pairs(pairs(label=[label] * 4), name="test")


@pytest.mark.parametrize("text", ["", " ", "\t\n\u3000\xa0", None, 3, 2.5, True, ["x"]])
@pytest.mark.parametrize("column", ["text_a", "text_b"])
def test_texts_that_say_nothing_are_refused(text, column, tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[2][column] = text
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(
        ValueError, match=rf"row 2 .*column '{column}' is .*1 of 4 rows .*--skip-bad-rows .*skip_bad_rows=True"
    ):
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


def test_converting_writes_nothing_beside_the_users_files(tmp_path):
    """They may lie where nobody may write."""
    table = pa.table({column: [row[column] for row in ROWS] for column in PAIR_FEATURES})
    table = table.set_column(0, "text_a", table.column(0).cast(pa.large_string()))
    Dataset(table).save_to_disk(tmp_path / "set")
    before = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert rows_of(validate_pairs(Dataset.load_from_disk(tmp_path / "set"))) == ROWS
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == before


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_bytes_are_no_texts_and_the_reason_says_so(kind):
    table = pa.table({column: [row[column] for row in ROWS] for column in PAIR_FEATURES})
    table = table.set_column(0, "text_a", pa.array([b"x"] * 4, kind))
    with pytest.raises(ValueError, match=r"row 0 .*'text_a' is b'x' \(bytes\), but a text must be a string"):
        validate_pairs(Dataset(table))


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


def test_a_score_that_no_float_holds_is_refused():
    assert label_of(10**400, 0.5) == -1


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


def test_many_rows_are_scanned_in_batches(monkeypatch):
    labels = np.arange(1000) % 2
    dataset = Dataset.from_dict({"text_a": ["x"] * 1000, "text_b": ["y"] * 1000, "label": labels})
    dataset = dataset.select(range(999, -1, -1))
    monkeypatch.setattr("flipped_kd.data.validation._BATCH", 7)
    assert validate_pairs(dataset)["label"][:] == labels[::-1].tolist()
    bad = dataset.add_column("score", np.where(np.arange(1000) == 941, np.nan, 0.5))
    with pytest.raises(ValueError, match="row 941 .*1 of 1000 rows"):
        validate_pairs(bad, columns={"label": "score"}, label_threshold=0.1)
