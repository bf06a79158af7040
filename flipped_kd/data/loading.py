"""Load labelled text pairs from files or the Hub.

A pair set is a `datasets.Dataset` with exactly the columns ``text_a``, ``text_b`` (strings that are not blank) and
``label`` (0 or 1). What would fail later, in the middle of training, is refused here, with row, value and remedy.

The rules for a pair are in `validation`.
"""

import dataclasses
import glob
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetGenerationError

from ..utils.checks import is_whole
from .tables import csv_records, csv_separator, json_rows
from .validation import (
    PairColumns,
    check_both_classes,
    check_columns,
    label_of,
    report_bad_rows,
    row_fault,
    validate_pairs,
)

FILE_KINDS = {
    **{".jsonl": "json", ".ndjson": "json", ".json": "json"},
    **{".csv": "csv", ".tsv": "csv", ".parquet": "parquet"},
}
_BATCH = 10_000  # rows read at a time
_PLAIN_TYPES = (pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_null)


def load_pairs(
    source: str | Path,
    *,
    split: str | None = None,
    columns: PairColumns | Mapping[str, str] | None = None,
    label_threshold: float | None = None,
    skip_bad_rows: bool = False,
    require_both_classes: bool = True,
    revision: str | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load and check a pair set from a local file, a local folder or the Hub.

    Args:
        source: A .jsonl, .ndjson, .json, .csv, .tsv or .parquet file; a folder written by `Dataset.save_to_disk` or
            with such files; or the id of a data set on the Hub (data files only: code in a data set is never run). CSV
            and TSV files have a header line, are UTF-8, quote with ``"`` and are read as text, so "NA" and "12" are
            texts.
        split: Name of the split, or a slice such as ``"train[:1000]"``. May be left out if there is only one.
        columns: Names of the columns in the source, see `validate_pairs`.
        label_threshold: See `validate_pairs`.
        skip_bad_rows: See `validate_pairs`. A line of a file that cannot be parsed at all is an error even so.
        require_both_classes: See `validate_pairs`.
        revision: Branch, tag or commit of a data set on the Hub.
        max_rows: Keep a random subset of this many of the good rows, in their original order.
        seed: Seed of that subset; the same rows, `max_rows` and `seed` give the same subset everywhere.

    Returns:
        The pairs, with exactly the columns text_a, text_b (str) and label (0 or 1), memory-mapped from the cache of
        `datasets`.

    Raises:
        ValueError: If the source or split does not exist, a file cannot be parsed, or `validate_pairs` refuses it.
    """
    if max_rows is not None and not (is_whole(max_rows) and max_rows >= 1):
        raise ValueError(
            f"max_rows is {max_rows!r}; it must be a whole number from 1: leave it out (None) to keep every row"
        )
    columns = PairColumns.of(columns)
    name = Path(source).name if split is None else f"{Path(source).name} ({split})"
    path = Path(source).expanduser()
    if path.is_file() and FILE_KINDS.get(path.suffix.lower()) == "json":
        dataset = _read_json(path, split, columns, label_threshold, skip_bad_rows)
    elif path.is_file():
        dataset = _read_file(path, split, columns)
    else:
        dataset = _pick_split(_read(source, split, revision), source, split)
    checked = validate_pairs(
        dataset,
        columns=columns,
        label_threshold=label_threshold,
        skip_bad_rows=skip_bad_rows,
        require_both_classes=require_both_classes,
        name=name,
    )
    if max_rows is None or max_rows >= len(checked):
        return checked
    rows = np.random.default_rng(seed).choice(len(checked), size=max_rows, replace=False)
    subset = checked.select(np.sort(rows))
    if require_both_classes:
        check_both_classes(np.asarray(subset["label"][:]), f"{name}, max_rows={max_rows}, seed={seed}")
    return subset


def _read(source: str | Path, split: str | None, revision: str | None) -> Dataset | DatasetDict:
    """Open a folder or a data set of the Hub."""
    path = Path(source).expanduser()
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = load_from_disk(str(path))
        if split is not None and isinstance(saved, Dataset):
            raise ValueError(f"{path.name!r} holds a single, unnamed split and split is {split!r}: leave split out")
        return saved
    if path.is_dir():
        try:
            return load_dataset(str(path), split=split)
        except (DatasetGenerationError, EmptyDatasetError, ValueError) as error:
            raise ValueError(f"the folder {path.name!r} cannot be read: {error.__cause__ or error}") from error
    looks_local = isinstance(source, Path) or path.is_absolute() or str(source).startswith((".", "~"))
    if looks_local or path.suffix.lower() in FILE_KINDS or str(source).count("/") > 1:
        raise ValueError(f"{str(source)!r} does not exist: give a file, a folder or a data set id of the Hub")
    return load_dataset(str(source), split=split, revision=revision)


def _pick_split(dataset: Dataset | DatasetDict, source: str | Path, split: str | None) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        raise ValueError(f"{str(source)!r} has the splits {sorted(dataset)} and split is {split!r}: name one of them")
    return dataset[split]


def _read_file(path: Path, split: str | None, columns: PairColumns) -> Dataset:
    kind = FILE_KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path.name!r} has an unknown ending {path.suffix!r}: give one of {sorted(FILE_KINDS)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name!r} is empty: a pair set needs at least one row")
    options = _csv_options(path, columns) if kind == "csv" else {}
    try:
        # Escaped, as `datasets` takes data_files for a pattern.
        return load_dataset(kind, data_files=glob.escape(str(path)), split=split or "train", **options)
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"{path.name!r} cannot be read as {kind}: {error.__cause__ or error}") from error


def _csv_options(path: Path, columns: PairColumns) -> dict[str, Any]:
    """Make `datasets` read a CSV file as text: guessed types would change texts such as "NA" or "007".

    Counts the fields of every record first: pandas drops surplus fields in silence, and so would cut unquoted texts.
    """
    records = csv_records(path)
    header = next(records)
    for _ in records:
        pass
    check_columns(header, columns, path.name)
    wanted = [column for column in header if column in dataclasses.astuple(columns)]
    if len(wanted) != len(set(wanted)):
        raise ValueError(f"{path.name!r} names a column twice in its header {header}: rename one")
    features = Features({column: Value("string") for column in wanted})
    return {"sep": csv_separator(path), "usecols": wanted, "features": features, "keep_default_na": False}


def _read_json(
    path: Path, split: str | None, columns: PairColumns, label_threshold: float | None, skip_bad_rows: bool
) -> Dataset:
    """Read JSON through `datasets`, which maps it into memory, or row by row where its guesses at types change values.

    Where a column has values of several types it fails, or turns the text "007" into 7; dates become times.
    """
    try:
        dataset = _read_file(path, split, columns)
        check_columns(dataset.column_names, columns, path.name)
        types = [dataset.data.schema.field(column).type for column in dataclasses.astuple(columns)]
        if all(any(is_type(kind) for is_type in _PLAIN_TYPES) for kind in types):
            return dataset
    except ValueError as error:
        if not isinstance(error.__cause__, DatasetGenerationError):
            raise
    if split not in (None, "train"):
        raise ValueError(
            f"{path.name!r} cannot be cut to {split!r}, as it holds values of unexpected types: use max_rows instead"
        )
    return _read_json_rows(path, columns, label_threshold, skip_bad_rows)


def _read_json_rows(path: Path, columns: PairColumns, label_threshold: float | None, skip_bad_rows: bool) -> Dataset:
    """Read JSON with Python's own types, keep the good rows; in memory, as Arrow."""
    tables, first, bad, total = [], "", 0, 0
    rows = json_rows(path)
    while batch := list(itertools.islice(rows, _BATCH)):
        faults = [row_fault(row, columns, label_threshold) for row in batch]
        good = [row for row, fault in zip(batch, faults, strict=True) if fault is None]
        if not bad and len(good) < len(batch):
            row, fault = next((row, fault) for row, fault in enumerate(faults) if fault is not None)
            first = f"row {total + row} (the first is row 0): {fault}"
        bad, total = bad + len(batch) - len(good), total + len(batch)
        as_label = float if label_threshold is not None else lambda value: label_of(value, None)
        tables.append(
            pa.table(
                {
                    columns.text_a: pa.array([row[columns.text_a] for row in good], pa.string()),
                    columns.text_b: pa.array([row[columns.text_b] for row in good], pa.string()),
                    columns.label: [as_label(row[columns.label]) for row in good],
                }
            )
        )
    if bad:
        report_bad_rows(first, bad, total, skip=skip_bad_rows, name=path.name)
    return Dataset(pa.concat_tables(tables, promote_options="default"))
