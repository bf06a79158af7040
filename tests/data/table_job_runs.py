"""A small job on tables for the tests: its scores, its inputs, and how to run it."""

from __future__ import annotations

import csv
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from flipped_kd.data.table_jobs import TableJob
from flipped_kd.data.table_writers import WRITABLE
from flipped_kd.data.tables import TableSource, format_of
from flipped_kd.data.text_tables import Chunk, TextTable

SCORES = pa.schema([("score", pa.float64()), ("match", pa.bool_())])
COLUMNS = {"--text-a-column": "text_a", "--text-b-column": "text_b"}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda text: text.strip())
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
pairs = st.fixed_dictionaries({"text_a": texts, "text_b": texts})
more = st.dictionaries(st.sampled_from(["x", "y", ""]), anything, max_size=2)
json_tables = st.lists(st.builds(dict.__or__, pairs, more), max_size=9)
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


class Killed(BaseException):
    """What a process dies of here; nothing catches it."""


def score(chunk: Chunk) -> pa.Table:
    """A score of each pair that depends on nothing but its texts."""
    return score_texts(chunk.texts)


def score_texts(columns: tuple[list[str], ...]) -> pa.Table:
    numbers = [zlib.crc32("\0".join(pair).encode()) / 2**32 for pair in zip(*columns, strict=True)]
    return pa.table({"score": numbers, "match": [number >= 0.5 for number in numbers]}, schema=SCORES)


def job(source: Path, target: Path, *, part_rows: int = 2, **options: Any) -> TableJob:
    table = TextTable(TableSource(source), COLUMNS, part_rows, options.pop("skip_bad_rows", False))
    settings = options.pop("options", {"score": "both"})
    return TableJob(table, target, format_of(target, WRITABLE), settings, **options)


def run(source: Path, target: Path, compute: Any = score, model: str = "m", **options: Any) -> None:
    """A whole job in one process."""
    work = job(source, target, **options)
    work.start(SCORES.names)
    if work.begin(model):
        work.fill(compute)
        work.join(SCORES)


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)


def read_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def read_json(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def scores_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return score_texts(([row["text_a"] for row in rows], [row["text_b"] for row in rows])).to_pylist()


def never(chunk: Chunk) -> pa.Table:
    raise AssertionError("computed again")
