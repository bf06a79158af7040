"""`flipped-kd encode`: add vectors to a table of texts."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pyarrow as pa
from accelerate import PartialState

from ...data.text_tables import Chunk
from ..models import open_matcher
from ..runtime import Work, run_table_job


def encode(options: Namespace) -> None:
    """Add vectors to a table of texts."""
    name = f"{options.column_prefix}vector"

    def open_work(state: PartialState) -> Work:
        matcher, digest = open_matcher(options, state)
        dimension = matcher.encoder.dimension
        schema = pa.schema([(name, pa.list_(pa.float32(), dimension))])

        def compute(chunk: Chunk) -> pa.Table:
            vectors = matcher.encode(chunk.texts[0], batch_size=options.batch_size, show_progress_bar=False)
            flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
            return pa.table([pa.FixedSizeListArray.from_arrays(flat, dimension)], schema=schema)

        return Work(compute, schema, digest)

    columns = {"--text-column": options.text_column}
    depends_on = {"column_prefix": options.column_prefix}
    run_table_job(options, options.texts, columns, depends_on, [name], open_work, vectors=True)
