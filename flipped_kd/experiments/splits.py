"""The three pair sets of an experiment, from files, the Hub, or an FAQ's queries and questions."""

from __future__ import annotations

from dataclasses import dataclass

import datasets

from ..data.faq import faq_pairs, read_faq, subset
from ..data.loading import load_pairs, random_part
from ..data.unlabelled import read_unlabelled
from ..data.validation import PairColumns
from .arguments import DataArguments

SPLITS = ("train", "validation", "test")


@dataclass
class Splits:
    """The three checked pair sets."""

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset


def load_splits(data: DataArguments, max_rows_seed: int = 0) -> Splits:
    """Load and check all three splits; `max_train_pairs` draws a random subset of the training pairs.

    Raises:
        ValueError: a split is not named, or its rows are unusable.
    """
    return Splits(**{split: load_split(data, split, max_rows_seed) for split in SPLITS})


def unlabelled_texts(data: DataArguments) -> list[str]:
    """The texts of `unlabelled_file`; none where there is no such file. Errors as in `read_unlabelled`."""
    if data.unlabelled_file is None:
        return []
    return read_unlabelled(data.unlabelled_file, data.unlabelled_column, data.label_column, data.skip_bad_rows)


def load_split(data: DataArguments, split: str, seed: int = 0) -> datasets.Dataset:
    """One of the splits, checked; `seed` draws the subset of the training pairs.

    Raises:
        ValueError: as `load_splits`.
    """
    file = getattr(data, f"{split}_file")
    source = file or data.dataset_name
    if source is None:
        raise ValueError(f"no {split} pairs are named: give --{split}_file or --dataset_name.")
    if data.questions_file is not None:
        queries = read_faq(source, data.questions_file)
        pairs = faq_pairs(queries if split == "train" else subset(queries, data.max_eval_queries))
        return random_part(pairs, data.max_train_pairs, seed) if split == "train" else pairs
    return load_pairs(
        source,
        split=split if file is None else None,
        columns=PairColumns(data.text_a_column, data.text_b_column, data.label_column),
        label_threshold=data.label_threshold,
        skip_bad_rows=data.skip_bad_rows,
        max_rows=getattr(data, f"max_{split}_pairs"),
        seed=seed if split == "train" else 0,
    )
