"""What a good pair is: the columns, the rules for a row, and `validate_pairs`, which holds a whole set to them."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from ..utils.checks import is_number
from .tables import separator_hint

logger = logging.getLogger(__name__)

PAIR_FEATURES = Features({"text_a": Value("string"), "text_b": Value("string"), "label": Value("int64")})
_LABEL_WORDS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_BATCH = 10_000  # rows read at a time
IN_MEMORY = 1 << 30  # bytes of a set that may be converted in memory


@dataclasses.dataclass(frozen=True)
class PairColumns:
    """The names a source uses for the three columns of a pair set.

    Args:
        text_a: column of the first texts.
        text_b: column of the second texts.
        label: column of the labels.

    Raises:
        ValueError: they are not three different names.

    Examples:
        >>> PairColumns(text_a="question1", text_b="question2")
        PairColumns(text_a='question1', text_b='question2', label='label')
    """

    text_a: str = "text_a"
    text_b: str = "text_b"
    label: str = "label"

    def __post_init__(self) -> None:
        names = dataclasses.astuple(self)
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < 3:
            raise ValueError(f"columns {names} must be three different column names: give each role one")

    @classmethod
    def of(cls, columns: "PairColumns | Mapping[str, str] | None") -> "PairColumns":
        """Complete a mapping to the names that a source uses.

        Args:
            columns: names by text_a, text_b and label, all or some; None takes these.

        Raises:
            ValueError: something else is mapped, or the names are not different.
        """
        if isinstance(columns, PairColumns):
            return columns
        names = dict(columns or {})
        unknown = sorted(set(names) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"columns maps {unknown}, but only text_a, text_b and label can be mapped: "
                "write the roles on the left and the names in the data on the right"
            )
        return cls(**names)


def validate_pairs(
    dataset: Dataset,
    *,
    columns: PairColumns | Mapping[str, str] | None = None,
    label_threshold: float | None = None,
    skip_bad_rows: bool = False,
    require_both_classes: bool = True,
    name: str = "train",
) -> Dataset:
    """Check every row of a pair set and bring it into the form the library works on.

    A good row has two texts, strings with at least one character that is not white space, and a label: 0 or 1, also as
    bool, as 0.0 or 1.0, as a decimal, or as text ("0", "1", "0.0", "1.0", "true", "false" in any case). Reads Arrow
    batches, so a million rows take seconds and no more memory than their labels.

    Args:
        dataset: the pairs; columns beyond the three are dropped.
        columns: names of the columns in `dataset` where they are not text_a, text_b and label; a mapping may be
            partial, such as ``{"text_a": "question1", "text_b": "question2"}``.
        label_threshold: if given, the label column holds scores: finite numbers, 1 from this value on and 0 below.
        skip_bad_rows: drop bad rows and log how many, instead of raising.
        require_both_classes: refuse pairs of a single class, from which nothing can be learned.
        name: name of the split in messages.

    Returns:
        The pairs with exactly the columns text_a, text_b (string) and label (int64, 0 or 1), in the order of the rows.

    Raises:
        TypeError: `dataset` is not a `datasets.Dataset`.
        ValueError: a column is missing, a row is bad, the split is empty or has a single class. The message names
            the row (the first is row 0), the value and the remedy.

    Examples:
        >>> rows = [{"question": "my card", "text_b": "where is my card", "label": "true"}]
        >>> rows += [{"question": "my card", "text_b": "a refund", "label": "false"}]
        >>> validate_pairs(Dataset.from_list(rows), columns={"text_a": "question"})[1]
        {'text_a': 'my card', 'text_b': 'a refund', 'label': 0}
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}, not a datasets.Dataset: "
            "choose one split of a DatasetDict, make lists into one by Dataset.from_list"
        )
    if label_threshold is not None and not (is_number(label_threshold) and math.isfinite(label_threshold)):
        raise ValueError(
            f"label_threshold is {label_threshold}; it must be a finite number: choose one among the scores"
        )
    columns = PairColumns.of(columns)
    check_columns(dataset.column_names, columns, name)
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty: a pair set needs at least one row")
    for column in (columns.text_a, columns.text_b):
        if is_json(dataset.data.schema.field(column).type):
            raise ValueError(
                f"{name}: column {column!r} holds values of several types, which datasets stores as JSON and alters "
                "(the text '007' becomes 7): build the Dataset from strings only, or use load_pairs on the file"
            )
    names = dataclasses.astuple(columns)
    dataset = dataset.with_format(None).select_columns(list(names))
    labels = _scan(dataset, columns, label_threshold, name)
    good = labels >= 0
    if not good.all():
        row = int(np.argmin(good))
        fault = row_fault(dataset[row], columns, label_threshold) or _type_fault(dataset.data.schema, columns)
        first = f"row {row} (the first is row 0): {fault}"
        report_bad_rows(first, len(good) - int(good.sum()), len(good), skip=skip_bad_rows, name=name)
        dataset, labels = dataset.select(np.flatnonzero(good)), labels[good]
    if require_both_classes:
        check_both_classes(labels, name)
    return _canonical(dataset.rename_columns(dict(zip(names, PAIR_FEATURES, strict=True))), labels, label_threshold)


def check_columns(present: Sequence[str], columns: PairColumns, name: str) -> None:
    missing = [column for column in dataclasses.astuple(columns) if column not in present]
    if missing:
        raise ValueError(
            f"{name} has no column {missing}; its columns are {sorted(present)}: name those that hold the texts "
            "and the label by --text-a-column, --text-b-column, --label-column (Python: columns={'text_a': 'a_name'})."
            + separator_hint(present)
        )


def check_both_classes(labels: np.ndarray, name: str) -> None:
    if labels.min() == labels.max():
        raise ValueError(
            f"{name} has a single class: all {len(labels)} labels are {labels[0]}; matching needs pairs of both: "
            "add pairs of the other class, take more rows, or check label_threshold"
        )


def _scan(dataset: Dataset, columns: PairColumns, threshold: float | None, name: str) -> np.ndarray:
    """The label of each row as int8: 0 or 1, or -1 where any of the three values is bad."""
    labels: list[np.ndarray] = []
    for number, batch in enumerate(dataset.with_format("arrow").iter(batch_size=_BATCH)):
        good = np.ones(len(batch), dtype=bool)
        for column in (columns.text_a, columns.text_b):
            try:
                good &= _has_text(batch.column(column))
            except pa.ArrowInvalid as error:
                row, text = next(_not_utf8(batch.column(column)))
                raise ValueError(
                    f"{name}: row {number * _BATCH + row} (the first is row 0): column {column!r} is {_short(text)}, "
                    "which is not UTF-8: convert the source to UTF-8"
                ) from error
        labels.append(np.where(good, _labels(batch.column(columns.label), threshold), -1).astype(np.int8))
    return np.concatenate(labels)


def _not_utf8(column: pa.ChunkedArray) -> Iterator[tuple[int, bytes]]:
    """The places and bytes of the strings that are not UTF-8; some readers let them through unchecked."""
    for row, text in enumerate(column.cast(pa.binary()).to_pylist()):
        if text is not None and text.decode("utf-8", "ignore").encode("utf-8") != text:
            yield row, text


def _has_text(column: pa.ChunkedArray) -> np.ndarray:
    """True where a text is a string with a character that is not white space; shape (n,)."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())  # Arrow cannot trim views
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return np.zeros(len(column), dtype=bool)
    lengths = pc.binary_length(pc.utf8_trim_whitespace(column))
    return pc.greater(lengths, 0).fill_null(False).to_numpy()


def _labels(column: pa.ChunkedArray, threshold: float | None) -> np.ndarray:
    """Labels 0 or 1 of one column, -1 where the value is no label; shape (n,)."""
    if pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
        # safe=False: an integer beyond 2^53 loses digits, but does not become 0 or 1.
        column = column.cast(pa.float64(), safe=False)
    if not pa.types.is_floating(column.type):
        if is_json(column.type):
            column = column.cast(pa.string())
        return np.array([label_of(value, threshold) for value in column.to_pylist()], dtype=np.int8)
    values = column.fill_null(math.nan).to_numpy()
    if threshold is None:
        return np.select([values == 0, values == 1], [0, 1], default=-1)
    return np.where(np.isfinite(values), values >= threshold, -1)


def label_of(value: Any, threshold: float | None) -> int:
    """Label 0 or 1 of one value of the label column, or of a score where there is a threshold; -1 if it is neither."""
    if threshold is not None:
        try:
            score = float(value)
        except (TypeError, ValueError, OverflowError):
            return -1
        return int(score >= threshold) if math.isfinite(score) else -1
    if isinstance(value, str):
        return _LABEL_WORDS.get(value.strip().lower(), -1)
    return int(value) if isinstance(value, bool | int | float | Decimal) and value in (0, 1) else -1


def row_fault(row: Mapping[str, Any], columns: PairColumns, threshold: float | None) -> str | None:
    """What is wrong with one row, in words; None if nothing is."""
    for column in (columns.text_a, columns.text_b):
        fault = text_fault(row.get(column), column)
        if fault is not None:
            return fault
    label = row.get(columns.label)
    if label_of(label, threshold) >= 0:
        return None
    if threshold is not None:
        return f"column {columns.label!r} is {_short(label)}, but with label_threshold it must be a finite number"
    remedy = "write 1 for a match and 0 for none, or where labels are scores give (validate_pairs) a label_threshold"
    return f"column {columns.label!r} is {_short(label)}, but a label is 0 or 1: {remedy}"


def _type_fault(schema: pa.Schema, columns: PairColumns) -> str:
    """What is wrong where each value looks right: the types that Arrow holds them in."""
    types = ", ".join(f"{column!r} {schema.field(column).type}" for column in dataclasses.astuple(columns))
    return f"the columns have the Arrow types {types}, but texts are read from string and large_string: cast them"


def text_fault(text: Any, column: str) -> str | None:
    """What keeps the value of `column` from being a text, in words; None if nothing does."""
    if not isinstance(text, str):
        return f"column {column!r} is {_short(text)}, but a text must be a string"
    if not text.strip():
        return f"column {column!r} is {_short(text)}, but a text needs a character that is not white space"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"column {column!r} is {_short(text)}, but a text must be Unicode without lone surrogates"
    return None


def report_bad_rows(first: str, bad: int, total: int, *, skip: bool, name: str) -> None:
    """Raise ValueError for bad rows, or log them where they are to be skipped and some are left."""
    message = f"{name}: {first}. {bad} of {total} rows are bad"
    if not skip:
        remedy = ", or leave them out by --skip-bad-rows (in Python: validate_pairs(data, skip_bad_rows=True))"
        others = remedy if bad < total else ""
        raise ValueError(f"{message}: correct them{others}")
    if bad == total:
        raise ValueError(f"{message}, so {name} is empty without them: check that columns names the right ones")
    logger.warning("%s and dropped", message)


def is_json(kind: pa.DataType) -> bool:
    """Whether `datasets` stored a column as JSON, which it does with values of several types."""
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def _short(value: Any) -> str:
    text = repr(value)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return "null" if value is None else f"{shown} ({type(value).__name__})"


def _canonical(dataset: Dataset, labels: np.ndarray, threshold: float | None) -> Dataset:
    """Give a checked set the types of `PAIR_FEATURES`; rewrites only the columns that have others."""
    if threshold is not None or dataset.features["label"] != PAIR_FEATURES["label"]:
        dataset = dataset.remove_columns("label").add_column("label", labels.astype(np.int64))
    if dataset.features != PAIR_FEATURES:
        # `map` would write beside the user's files, where it may not.
        small = dataset.data.nbytes < IN_MEMORY
        dataset = dataset.map(
            _as_strings, batched=True, features=PAIR_FEATURES, desc="Converting texts", keep_in_memory=small
        )
    return dataset


def _as_strings(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {column: batch[column] for column in PAIR_FEATURES}
