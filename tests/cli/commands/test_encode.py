"""encode gives the matcher's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from flipped_kd.inference.matcher import FlippedMatcher
from tests.cli.helpers import (
    NEAR,
    quietly,
    read_rows,
)


def test_encode_is_the_matchers(
    adapter: Path, matcher: FlippedMatcher, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [row["text_a"] for row in rows]
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts) + "\n", encoding="utf-8")
    expected = matcher.encode(texts)
    for ending in ("npy", "parquet", "jsonl"):
        target = tmp_path / f"out.{ending}"
        assert quietly("encode", adapter, source, "-o", target, "--part-rows", 5) == 0
        if ending == "npy":
            found = np.load(target)
        elif ending == "parquet":
            table = pq.read_table(target)
            assert table["text"].to_pylist() == texts
            found = np.array(table["vector"].to_pylist(), np.float32)
        else:
            found = np.array([row["vector"] for row in read_rows(target)], np.float32)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, **NEAR)
