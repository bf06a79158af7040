"""Pair sets for the tests of loading: rows that readers like to change, and files of every kind."""

import json
import os
from pathlib import Path

from datasets import Dataset

from flipped_kd.data.validation import PAIR_FEATURES

# Texts that readers like to change: quotes, separators, line ends, and words that pandas takes for missing values.
ROWS = [
    {"text_a": 'he said "hi", twice', "text_b": "NA", "label": 1},
    {"text_a": "007", "text_b": "null\tand\nvoid", "label": 0},
    {"text_a": "卡在哪里 🙂", "text_b": " padded ", "label": 1},
    {"text_a": "1.0", "text_b": "None", "label": 0},
]


SHARED = Path(os.environ.get("FLIPPED_KD_SHARED", Path(__file__).resolve().parents[3] / "shared"))


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
