"""Files of pairs read by `datasets`, which maps them into memory, but with texts that stay what they are.

Nothing is left to its guesses: CSV is read as text, with the fields of every record counted, and JSON row by row with
Python's own types wherever guesses change values.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, DownloadManager, Features, ReadInstruction, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import JsonConfig

from .parquet_columns import columns_alone
from .tables import csv_records, json_rows
from .validation import PairColumns, check_columns, label_of, report_bad_rows, row_fault

_BATCH = 10_000  # rows read at a time
_JSON_PART = 10 << 20  # bytes of a JSON file whose types `datasets` guesses together
_PLAIN_TYPES = (pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
# How a number, a truth value, an object or a time looks as text, where `datasets` took a part of the files for that.
_GUESSED = r"(?s)^(-?[0-9.]+(e[-+]?[0-9]+)?|true|false|\{.*\}|[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]{8,}Z?)$"
# What a configuration says of its files and not of how they are read.
_PLACES = ("name", "version", "data_dir", "data_files", "description")
_COUNTED = {"sep", "encoding"}  # what it may say of CSV files whose fields can be counted here


@dataclasses.dataclass(frozen=True)
class PairFiles:
    """Files of one kind, found and not yet read.

    Attributes:
        name: what messages call them.
        kind: "csv", "json" or "parquet", as `datasets` calls the reader.
        files: the files on this machine by split: those of the splits asked for.
        options: how the reader is told to read them, where it is not told what is usual.
        place: where `datasets` finds them again with what is declared of them: arguments of `load_dataset`. None of
            files of this machine of which nothing is declared.
        declared: the types of the columns, where they are declared.
    """

    name: str
    kind: str
    files: Mapping[str, Sequence[Path]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    place: Mapping[str, Any] | None = None
    declared: Features | None = None

    @classmethod
    def of(
        cls, builder: datasets.DatasetBuilder, name: str, split: str | None, place: Mapping[str, Any], local: bool
    ) -> PairFiles | None:
        """The CSV or JSON files that `datasets` has found for a split; None of other kinds, whose types are no guess.

        `place` is the arguments of `load_dataset` that find the same. ValueError: no such split, or several and none
        named.
        """
        config = builder.config
        found = {str(key): list(files) for key, files in (config.data_files or {}).items()}
        names = split_names(split, list(found), name) if found else []
        kind = {CsvConfig: "csv", JsonConfig: "json"}.get(type(config))
        if kind is None or not found:
            return None
        manager = DownloadManager()
        files = {
            key: [Path(path) for path in manager.iter_files(manager.download_and_extract(found[key]))] for key in names
        }
        usual = type(config)()
        options = {
            field.name: value
            for field in dataclasses.fields(config)
            if (value := getattr(config, field.name)) != getattr(usual, field.name) and field.name not in _PLACES
        }
        for alias in ("delimiter", "column_names", "features"):  # the first two are `sep` and `names` too
            options.pop(alias, None)
        declared = builder.info.features
        if local and declared is None:
            return cls(name, kind, files, options)
        return cls(name, kind, files, options, {**place, "name": config.name}, declared)

    def read(
        self, split: str | None, columns: PairColumns, label_threshold: float | None, skip_bad_rows: bool
    ) -> Dataset:
        """The rows of a split, or of a slice such as "train[:100]"; without a split those of the only one.

        Raises:
            ValueError: a file cannot be read or lacks a column; of JSON that is read row by row, also for a bad row.
        """
        split = split or next(iter(self.files))
        if self.kind == "csv":
            return self._load(split, **self._csv_options(columns))
        if self.kind == "json":
            return self._read_json(split, columns, label_threshold, skip_bad_rows)
        found = itertools.chain.from_iterable(self.files.values())
        return self._load(split, **columns_alone(found, dataclasses.astuple(columns)))

    def _load(self, split: str, **options: Any) -> Dataset:
        try:
            if self.place is not None:
                return load_dataset(**self.place, split=split, **options)
            return load_dataset(
                self.kind,
                # Escaped, as `datasets` takes data_files for patterns.
                data_files={key: [glob.escape(str(path)) for path in paths] for key, paths in self.files.items()},
                split=split,
                cache_dir=cache_of(itertools.chain.from_iterable(self.files.values())),
                **self.options,
                **options,
            )
        except (DatasetGenerationError, ValueError) as error:
            if "corresponds to no data" in str(error):
                raise ValueError(f"{self.name!r} has no rows: a pair set needs at least one row") from error
            raise ValueError(f"{self.name!r} cannot be read as {self.kind}: {error.__cause__ or error}") from error

    def _csv_options(self, columns: PairColumns) -> dict[str, Any]:
        """Make `datasets` read CSV files as text: guessed types would change texts such as "NA" or "007".

        Counts the fields of every record first: pandas drops surplus fields in silence, and so would cut unquoted
        texts. Not where the configuration gives other rules than a header line and a separator.
        """
        wanted = list(dataclasses.astuple(columns))
        separator = self.options.get("sep", ",")
        for path in itertools.chain.from_iterable(self.files.values()):
            if not set(self.options) <= _COUNTED or len(separator) > 1:
                break
            records = csv_records(path, separator, self.options.get("encoding") or "utf-8-sig")
            header = next(records)
            for _ in records:
                pass
            check_columns(header, columns, path.name)
            if any(header.count(column) > 1 for column in wanted):
                raise ValueError(f"{path.name!r} names a column twice in its header {header}: rename one")
        return as_text(columns, self.declared)

    def _read_json(
        self, split: str, columns: PairColumns, label_threshold: float | None, skip_bad_rows: bool
    ) -> Dataset:
        """Read JSON through `datasets`, or row by row where its guesses at types change values.

        Where a column has values of several types it fails, or turns the text "007" into 7; dates become times.
        """
        try:
            dataset = self._load(split)
            check_columns(dataset.column_names, columns, self.name)
            if self._kept(dataset, columns):
                return dataset
        except ValueError as error:
            if not isinstance(error.__cause__, DatasetGenerationError):
                raise
        if self.options:
            raise ValueError(
                f"{self.name!r} holds values of unexpected types, which cannot be read with {dict(self.options)}: "
                "write it as JSON Lines in UTF-8"
            )
        rows, kind = self._json_rows(split), _class_label(self.declared, columns)
        if kind is not None:
            classes = {name: number for number, name in enumerate(kind.names)}
            # Numbers, and what is no name, are left to the rules for a label.
            rows = (
                row | {columns.label: classes[value]} if (value := str(row.get(columns.label))) in classes else row
                for row in rows
            )
        return _dataset_of(rows, columns, label_threshold, skip_bad_rows, self.name)

    def _kept(self, dataset: Dataset, columns: PairColumns) -> bool:
        """Whether the values are those of the files: `datasets` casts later parts to the types of the first."""
        types = [dataset.data.schema.field(column).type for column in dataclasses.astuple(columns)]
        if not all(any(is_type(kind) for is_type in _PLAIN_TYPES) for kind in types):
            return False
        paths = list(itertools.chain.from_iterable(self.files.values()))
        if self.declared is None and len(paths) == 1 and paths[0].stat().st_size <= _JSON_PART:
            return True
        both = (columns.text_a, columns.text_b)
        texts = [column for column in both if pa.types.is_string(dataset.data.schema.field(column).type)]
        return not any(
            pc.any(pc.match_substring_regex(batch[column], _GUESSED, ignore_case=True)).as_py()
            for batch in dataset.with_format("arrow").select_columns(texts).iter(batch_size=_BATCH)
            for column in texts
        )

    def _json_rows(self, split: str) -> Iterator[dict[str, Any]]:
        def rows(names: Iterable[str]) -> Iterator[dict[str, Any]]:
            return itertools.chain.from_iterable(json_rows(path) for name in names for path in self.files[name])

        if split in self.files or split == "all":
            yield from rows(self.files)
            return
        sizes = {name: sum(1 for _ in rows([name])) for name in self.files}
        for part in ReadInstruction.from_spec(split).to_absolute(sizes):
            yield from itertools.islice(rows([part.splitname]), part.from_, part.to)


def as_text(columns: PairColumns, declared: Features | None = None) -> dict[str, Any]:
    """The options by which `datasets` reads the columns of a pair from CSV as text, all of it.

    Args:
        columns: the names of the columns.
        declared: the types that are declared for the files, which are overridden, but for the names of a label's
            classes. Without a connection `datasets` does not find again what it has read with types.
    """
    wanted = list(dataclasses.astuple(columns))
    types = {column: Value("string") for column in wanted}
    if (kind := _class_label(declared, columns)) is not None:
        types[columns.label] = kind
    return {
        **({"converters": dict.fromkeys(wanted, str)} if declared is None else {"features": Features(types)}),
        "usecols": wanted,
        "keep_default_na": False,
    }


def _class_label(declared: Features | None, columns: PairColumns) -> ClassLabel | None:
    """The declared names of the label's classes."""
    kind = None if declared is None else declared.get(columns.label)
    return kind if isinstance(kind, ClassLabel) else None


def split_names(split: str | None, present: Sequence[str], name: str) -> list[str]:
    """The splits that a split or a slice such as "train[:100]" or "train+test" names; without one the only split.

    Raises:
        ValueError: one of them is not `present`, or several are and none is named.
    """
    if split == "all" or (split is None and len(present) == 1):
        return list(present)
    asked = [] if split is None else [part.partition("[")[0].strip() for part in split.split("+")]
    if not asked or not set(asked) <= set(present):
        raise ValueError(f"{name!r} has the splits {sorted(present)} and split is {split!r}: name one of them")
    return list(dict.fromkeys(asked))


def cache_of(paths: Iterable[Path]) -> str:
    """The folder where `datasets` keeps what it has made of files with this content.

    It knows a file by path and time alone, and both stay where an image or an archive fixes the times.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "by_content" / digest.hexdigest())


def _dataset_of(
    rows: Iterator[dict[str, Any]],
    columns: PairColumns,
    label_threshold: float | None,
    skip_bad_rows: bool,
    name: str,
) -> Dataset:
    """The good ones of rows with Python's own types; in memory, as Arrow."""
    tables, first, bad, total = [], "", 0, 0
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
        report_bad_rows(first, bad, total, skip=skip_bad_rows, name=name)
    return Dataset(pa.concat_tables(tables, promote_options="default"))


def pick_split(dataset: Dataset | DatasetDict, split: str | None, name: str) -> Dataset:
    """What a split, a slice or a sum of them names in what `datasets` has read. Raises ValueError as `split_names`."""
    if isinstance(dataset, Dataset):
        return dataset
    names = split_names(split, list(dataset), name)
    if split is None or split in dataset:
        return dataset[names[0]]
    if split == "all":
        return datasets.concatenate_datasets([dataset[one] for one in names])
    lengths = {one: len(part) for one, part in dataset.items()}
    parts = ReadInstruction.from_spec(split).to_absolute(lengths)
    return datasets.concatenate_datasets(
        [dataset[part.splitname].select(range(part.from_, part.to)) for part in parts]
    )
