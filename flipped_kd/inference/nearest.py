"""Nearest vectors in large corpora by an approximate index of FAISS, and how many of the true nearest it finds."""

from __future__ import annotations

import errno
import importlib.util
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.checks import check_choice
from ..utils.choices import INDEX_KINDS, IndexKind
from ..utils.digests import file_sha256

# Up to so many texts "auto" compares a query with every one: that takes some milliseconds there.
EXACT_UP_TO = 100_000
# Recall is measured on so many of the corpus's vectors, each moved by the distance of its nearest other: what is in a
# graph finds itself and its neighbours too easily (recall .98 where new queries had .92).
PROBES, NEAREST = 1000, 10
# An index looks at more candidates until it finds this share of the true nearest, or looks at _DEEPEST.
RECALL = 0.95
_SHALLOWEST, _DEEPEST = 16, 2048
# Links of a vector in the graph, and candidates looked at when it is put in: FAISS's usual values for few dimensions.
_LINKS, _BUILD_DEPTH = 32, 80
# FAISS asks for so many training vectors a cell.
_VECTORS_A_CELL = 39

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ApproximateSearch:
    """An approximate index over N unit vectors: a graph ("hnsw") or cells ("ivf").

    Args:
        kind: "hnsw" or "ivf".
        depth: candidates of the graph, or cells, that a search looks at.
        recall: share in [0, 1] of the true ten nearest that it finds, of vectors near those of a sample.
        faiss_index: the index, by inner product.
    """

    kind: str
    depth: int
    recall: float
    faiss_index: Any

    @classmethod
    def build(cls, vectors: np.ndarray, kind: str) -> ApproximateSearch:
        """Build an index of (N, D) float32 unit vectors, and measure it.

        Args:
            vectors: (N, D) float32, unit length.
            kind: "hnsw" or "ivf"; the latter is built sooner.

        Raises:
            ImportError: FAISS is not installed.
            ValueError: no vectors.
        """
        faiss = _faiss()
        count, dimension = vectors.shape
        if count == 0:
            raise ValueError(f"kind={kind!r} needs at least one text: leave kind out for an empty corpus.")
        if kind == "hnsw":
            index = faiss.IndexHNSWFlat(dimension, _LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = _BUILD_DEPTH
        else:
            cells = max(1, min(round(4 * count**0.5), count // _VECTORS_A_CELL))
            index = faiss.index_factory(dimension, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
        index.add(vectors)
        found = cls(kind, 0, 0.0, index)._deep_enough(vectors)
        logger.info("%s index of %d vectors: recall@%d %.3f", kind, count, NEAREST, found.recall)
        return found

    def _deep_enough(self, vectors: np.ndarray) -> ApproximateSearch:
        """This index at the least depth, of powers of two, that finds `RECALL` of the true nearest."""
        faiss = _faiss()
        places = np.random.default_rng(0).choice(len(vectors), min(PROBES, len(vectors)), replace=False)
        exact = faiss.IndexFlatIP(vectors.shape[1])
        exact.add(vectors)
        moved = _moved(vectors[places], exact)
        wanted = min(NEAREST, len(vectors))
        true, _ = exact.search(moved, wanted)
        found = replace(self, depth=_SHALLOWEST)
        while True:
            scores, _ = found.search(moved, wanted)
            # By score: of equally near texts any will do.
            found = replace(found, recall=float((scores >= true[:, -1:] - 1e-6).mean()))
            if found.recall >= RECALL or found.depth >= _DEEPEST:
                return found
            found = replace(found, depth=2 * found.depth)

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors of each query.

        Args:
            queries: (M, D) float32 unit vectors.
            top_k: how many for each.

        Returns:
            Cosines, and places in the corpus, (M, top_k), best first; a place is -1 where fewer were found.
        """
        faiss = _faiss()
        if self.kind == "hnsw":
            asked = faiss.SearchParametersHNSW(efSearch=max(self.depth, top_k))
        else:
            asked = faiss.SearchParametersIVF(nprobe=self.depth)
        scores, places = self.faiss_index.search(np.ascontiguousarray(queries, np.float32), top_k, params=asked)
        return scores, places

    def save(self, path: Path) -> dict[str, Any]:
        """Write the index to `path`; gives what `load` needs besides, as plain JSON values."""
        try:
            _faiss().write_index(self.faiss_index, str(path))
        except RuntimeError as error:  # FAISS has no other
            raise OSError(
                errno.ENOSPC if "No space left" in str(error) else errno.EIO, str(error), str(path)
            ) from error
        return {"kind": self.kind, "depth": self.depth, "recall": self.recall, "sha256": file_sha256(path)}

    @classmethod
    def load(cls, path: Path, header: dict[str, Any], vectors: np.ndarray) -> ApproximateSearch:
        """Read what `save` has written.

        Raises:
            ImportError: FAISS is not installed.
            ValueError: the file is not the one that was written, or not that of these vectors.
        """
        faiss = _faiss()
        # Before FAISS reads it: its reader trusts the sizes that a file states.
        if file_sha256(path) != header["sha256"]:
            raise ValueError(f"{path.name} is not the file that was written")
        index = faiss.read_index(str(path))
        if (index.ntotal, index.d) != vectors.shape:
            raise ValueError(f"{path.name} holds {index.ntotal} vectors of {index.d} numbers, not {vectors.shape}")
        return cls(header["kind"], int(header["depth"]), float(header["recall"]), index)

    def __getstate__(self) -> dict[str, Any]:
        """FAISS's objects are C++: a copy gets their bytes."""
        return vars(self) | {"faiss_index": _faiss().serialize_index(self.faiss_index)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "faiss_index", _faiss().deserialize_index(state["faiss_index"]))


def _moved(vectors: np.ndarray, exact: Any) -> np.ndarray:
    """Unit vectors that far from the given ones as their nearest others in `exact` are."""
    cosines = exact.search(vectors, min(2, exact.ntotal))[0][:, -1:]
    distances = np.sqrt(np.maximum(2 - 2 * cosines, 0))
    noise = np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
    moved = vectors + noise * distances / np.linalg.norm(noise, axis=1, keepdims=True)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def resolved_kind(kind: IndexKind, count: int) -> IndexKind:
    """The kind of index for a corpus of `count` texts: "exact", "hnsw" or "ivf".

    Raises:
        ImportError: FAISS was asked for and is not installed.
        ValueError: an unknown kind.
    """
    check_choice("kind", kind, INDEX_KINDS)
    if kind != "auto":
        if kind != "exact":
            _faiss()  # before a large corpus is encoded
        return kind
    if count <= EXACT_UP_TO:
        return "exact"
    if has_faiss():
        return "ivf"  # as quick to search as "hnsw" in few dimensions, and built in a third of its time
    logger.warning(
        "FAISS is not installed, so each search compares with all %d texts: pip install 'flipped_kd[search]' makes "
        "searches in so many faster.",
        count,
    )
    return "exact"


def has_faiss() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "an approximate index needs FAISS, which is not installed: pip install 'flipped_kd[search]', or take "
            "kind='exact'."
        ) from error
    return faiss
