"""Load labelled text pairs from files or the Hub, and refuse at once what would fail in the middle of training."""

import glob
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, load_dataset, load_dataset_builder, load_from_disk
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError
from datasets.packaged_modules.cache.cache import Cache

from ..utils.checks import is_whole
from .pair_files import PairFiles, as_text, cache_of, pick_split, split_names
from .tables import csv_separator
from .validation import PairColumns, check_both_classes, validate_pairs

FILE_KINDS = {
    **{".jsonl": "json", ".ndjson": "json", ".json": "json"},
    **{".csv": "csv", ".tsv": "csv", ".parquet": "parquet"},
}


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
        source: a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file; a folder written by `Dataset.save_to_disk` or
            with such files; or the id of a data set on the Hub (data files only: code in a data set is never run).
            Folders and data sets of the Hub have the splits that `datasets` finds, by the names of the files or a
            README.md; their files are read as single ones are. CSV and TSV files have a header line, are UTF-8, quote
            with ``"`` and are read as text, so "NA" and "12" are texts.
        split: name of the split, or a slice such as ``"train[:1000]"``. May be left out if there is only one.
        columns: names of the columns in the source, see `validate_pairs`.
        label_threshold: see `validate_pairs`.
        skip_bad_rows: see `validate_pairs`. A line of a file that cannot be parsed at all is an error even so.
        require_both_classes: see `validate_pairs`.
        revision: branch, tag or commit of a data set on the Hub.
        max_rows: keep a random subset of this many of the good rows, in their original order.
        seed: seed of that subset; the same rows, `max_rows` and `seed` give the same subset everywhere.

    Returns:
        The pairs, with exactly the columns text_a, text_b (str) and label (0 or 1), memory-mapped from the cache of
        `datasets`; in memory where JSON holds values whose types `datasets` would change.

    Raises:
        ValueError: the source or split does not exist, a file cannot be parsed, or `validate_pairs` refuses it.

    Examples:
        >>> rows = [("my card", "where is my card", 0.9), ("my card", "a refund", 0.2)]
        >>> named = [dict(zip(("question", "text_b", "score"), row)) for row in rows]
        >>> _ = Dataset.from_list(named).to_csv(folder / "pairs.csv")
        >>> names = {"text_a": "question", "label": "score"}
        >>> load_pairs(folder / "pairs.csv", columns=names, label_threshold=0.5)["label"][:]
        [1, 0]
    """
    if max_rows is not None and not (is_whole(max_rows) and max_rows >= 1):
        raise ValueError(
            f"max_rows is {max_rows!r}; it must be a whole number from 1: leave it out (None) to keep every row"
        )
    columns = PairColumns.of(columns)
    name = Path(source).name if split is None else f"{Path(source).name} ({split})"
    path = Path(source).expanduser()
    found = _find(source, path, split, revision, columns)
    if isinstance(found, PairFiles):
        dataset = found.read(split, columns, label_threshold, skip_bad_rows)
    else:
        dataset = found
    checked = validate_pairs(
        dataset,
        columns=columns,
        label_threshold=label_threshold,
        skip_bad_rows=skip_bad_rows,
        require_both_classes=require_both_classes,
        name=name,
    )
    subset = random_part(checked, max_rows, seed)
    if require_both_classes and subset is not checked:
        check_both_classes(np.asarray(subset["label"][:]), f"{name}, max_rows={max_rows}, seed={seed}")
    return subset


def random_part(pairs: Dataset, size: int | None, seed: int) -> Dataset:
    """A random part of the rows, in their order; all of them if `size` is None or larger."""
    if size is None or size >= len(pairs):
        return pairs
    rows = np.random.default_rng(seed).choice(len(pairs), size=size, replace=False)
    return pairs.select(np.sort(rows))


def _find(
    source: str | Path, path: Path, split: str | None, revision: str | None, columns: PairColumns
) -> PairFiles | Dataset:
    """The files of a source; or its rows, where they have types of their own and need no care."""
    if path.is_file():
        return _file(path, split)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = load_from_disk(str(path))
        if split is not None and isinstance(saved, Dataset):
            raise ValueError(f"{path.name!r} holds a single, unnamed split and split is {split!r}: leave split out")
        return pick_split(saved, split, str(source))
    if path.is_dir():
        return _folder(path, split)
    looks_local = isinstance(source, Path) or path.is_absolute() or str(source).startswith((".", "~"))
    if looks_local or path.suffix.lower() in FILE_KINDS or str(source).count("/") > 1:
        raise ValueError(f"{str(source)!r} does not exist: give a file, a folder or a data set id of the Hub")
    return _of_hub({"path": str(source), "revision": revision}, split, columns)


def _file(path: Path, split: str | None) -> PairFiles:
    kind = FILE_KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path.name!r} has an unknown ending {path.suffix!r}: give one of {sorted(FILE_KINDS)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name!r} is empty: a pair set needs at least one row")
    split_names(split, ["train"], path.name)
    return PairFiles(path.name, kind, {"train": [path]}, {"sep": csv_separator(path)} if kind == "csv" else {})


def _folder(path: Path, split: str | None) -> PairFiles | Dataset:
    with _clear_folder_error(path):
        builder = load_dataset_builder(str(path))
    files = [Path(file) for paths in (builder.config.data_files or {}).values() for file in paths]
    about = [path / name for name in ("README.md", ".huggingface.yaml")]
    cache = cache_of(file for file in [*files, *about] if file.is_file())
    place = {"path": str(path), "cache_dir": cache}
    found = PairFiles.of(builder, path.name, split, place, local=True)
    if found is not None:
        return found
    with _clear_folder_error(path):
        return pick_split(load_dataset(**place, split=split), split, path.name)


def _of_hub(place: Mapping[str, Any], split: str | None, columns: PairColumns) -> PairFiles | Dataset:
    name, builder = place["path"], None
    try:
        builder = load_dataset_builder(**place)
    except ValueError:
        if not datasets.config.HF_HUB_OFFLINE:
            raise
    if builder is None or isinstance(builder, Cache):
        # Without a connection `datasets` has what it made of earlier loads, and tells them by their options alone.
        try:
            return pick_split(load_dataset(**place, split=split, **as_text(columns)), split, name)
        except ValueError:
            if builder is None:
                raise
    found = PairFiles.of(builder, name, split, place, local=False)
    return found or pick_split(load_dataset(**place, split=split), split, name)


@contextmanager
def _clear_folder_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (DatasetGenerationError, EmptyDatasetError, DataFilesNotFoundError, ValueError) as error:
        remedy = ""
        if isinstance(error, EmptyDatasetError | DataFilesNotFoundError):
            remedy = f": give a file, or a folder with files that end in {', '.join(FILE_KINDS)}"
            if glob.has_magic(str(path.resolve())):
                remedy += ", in a path without [, * and ?, which `datasets` takes for patterns"
        raise ValueError(f"the folder {path.name!r} cannot be read: {error.__cause__ or error}{remedy}") from error
