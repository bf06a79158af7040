"""Which columns `datasets` reads of Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features


def columns_alone(files: Iterable[Path], names: Sequence[str]) -> dict[str, Any]:
    """What `load_dataset` is told to read these columns alone: others may be large, or of a type that it lacks.

    Nothing where the first file is broken, or has not each of them once: then the reading says what is wrong.
    """
    path = next(iter(files), None)
    if path is None:
        return {}
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return {}
    if any(schema.names.count(name) != 1 for name in names):
        return {}
    # Its metadata has the names of classes, where it is a data set of `datasets`.
    kept = pa.schema([schema.field(name) for name in names], schema.metadata)
    return {"features": Features.from_arrow_schema(kept), "columns": list(names)}
