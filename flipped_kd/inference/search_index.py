"""A corpus with its vectors, kept on disk: what `FlippedMatcher.search` looks through."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.special import expit
from sentence_transformers.util import dot_score, semantic_search
from torch import Tensor

from ..utils.atomic import check_target, whole_or_absent
from ..utils.choices import IndexKind
from ..utils.digests import file_sha256
from ..utils.json_files import read_versioned
from .nearest import ApproximateSearch, has_faiss, resolved_kind

INDEX_FILE = "search_index.json"
TEXTS_FILE = "texts.jsonl"
EMBEDDINGS_FILE = "embeddings.safetensors"
FAISS_FILE = "index.faiss"
FILES = (INDEX_FILE, TEXTS_FILE, EMBEDDINGS_FILE, FAISS_FILE)
FORMAT_VERSION = 1

logger = logging.getLogger(__name__)


class SearchIndex:
    """Texts and their vectors. Made by `FlippedMatcher.index`.

    Args:
        texts: N texts.
        embeddings: (N, D) float32 unit vectors, row i that of text i.
        encoder: definition of the encoder that made them, as plain JSON values.
        ids: names of the texts, numbers or str, kept beside them; `FlippedMatcher.search` gives places, not names.
        approximate: an index of FAISS over the same vectors, for corpora in which comparing with all takes too long.

    Raises:
        TypeError: one str in the place of a list.
        ValueError: numbers of texts, names and vectors differ.

    Examples:
        >>> import torch
        >>> index = SearchIndex(["my card", "a refund"], torch.eye(2), encoder={}, ids=["q17", "q4"])
        >>> index.save(folder / "index")
        >>> SearchIndex.load(folder / "index").ids
        ['q17', 'q4']
    """

    def __init__(
        self,
        texts: Sequence[str],
        embeddings: Tensor,
        encoder: dict[str, Any],
        ids: Sequence[int] | Sequence[str] | None = None,
        approximate: ApproximateSearch | None = None,
    ) -> None:
        if isinstance(texts, str) or isinstance(ids, str):
            raise TypeError("texts and ids must be lists, got one str: put it into a list.")
        if ids is not None and len(ids) != len(texts):
            raise ValueError(f"{len(texts)} texts need as many ids, got {len(ids)}.")
        if embeddings.ndim != 2 or len(texts) != len(embeddings):
            raise ValueError(
                f"{len(texts)} texts need vectors of shape ({len(texts)}, D), got {tuple(embeddings.shape)}."
            )
        self.texts = list(texts)
        # NumPy's numbers cannot be written as JSON.
        self.ids = None if ids is None else [name.item() if isinstance(name, np.generic) else name for name in ids]
        self.embeddings = embeddings
        self.encoder = encoder
        self.approximate = approximate
        # Matchers whose encoder is known to give these vectors.
        self.known_to: WeakSet[Any] = WeakSet()
        self._placed = embeddings

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: neither matchers, nor vectors on a device that its reader may lack."""
        return {name: value for name, value in vars(self).items() if name not in ("known_to", "_placed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is known to no matcher: each tries it anew."""
        vars(self).update(state)
        self.known_to, self._placed = WeakSet(), self.embeddings

    @classmethod
    def of_matcher(cls, matcher: Any, texts: Sequence[str], vectors: np.ndarray, kind: IndexKind) -> SearchIndex:
        """An index of vectors (N, D) float32 that are known to be a matcher's; reads no text.

        Args:
            matcher: whose `encode` gave the vectors.
            texts: N texts.
            vectors: theirs.
            kind: how they are searched, see `FlippedMatcher.index`.
        """
        kind = resolved_kind(kind, len(texts))
        approximate = None if kind == "exact" else ApproximateSearch.build(vectors, kind)
        index = cls(texts, torch.from_numpy(vectors), matcher.vector_definition(), approximate=approximate)
        index.known_to.add(matcher)
        return index

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def kind(self) -> str:
        """How it is searched: "exact", "hnsw" or "ivf"."""
        return "exact" if self.approximate is None else self.approximate.kind

    def nearest(self, vectors: Tensor, top_k: int) -> list[list[dict[str, Any]]]:
        """The nearest texts of each query.

        Args:
            vectors: (M, D) unit vectors of the queries.
            top_k: how many for each.

        Returns:
            For each query dicts with corpus_id and score, the cosine, best first.
        """
        if self.approximate is None:
            return self._exactly(vectors, top_k)
        wanted = min(top_k, len(self))
        found = self.approximate.search(vectors.float().cpu().numpy(), wanted)
        rows = [
            [_hit(place, score) for score, place in zip(*row, strict=True) if place >= 0]
            for row in zip(*found, strict=True)
        ]
        # The part that was looked at may hold fewer, as where top_k is large or many vectors are equal.
        short = [number for number, row in enumerate(rows) if len(row) < wanted]
        for number, row in zip(short, self._exactly(vectors[short], top_k) if short else [], strict=True):
            rows[number] = row
        return rows

    def _exactly(self, vectors: Tensor, top_k: int) -> list[list[dict[str, Any]]]:
        self._placed = self._placed.to(vectors.device)  # the copy there is kept for the next search
        found = semantic_search(vectors, self._placed, top_k=top_k, score_function=dot_score)
        return [[_hit(hit["corpus_id"], hit["score"]) for hit in row] for row in found]

    @property
    def names(self) -> list[Any]:
        """What the texts are called: their ids, else their positions."""
        return list(range(len(self))) if self.ids is None else list(self.ids)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write search_index.json, texts.jsonl, embeddings.safetensors and, if it is approximate, index.faiss.

        The folder appears whole or not at all.

        Args:
            folder: absent or empty.
            overwrite: replace an index that is there.

        Raises:
            ValueError: something else is there.
            OSError: no space left.
        """
        target = Path(folder)
        check_place(target, overwrite)
        header = {"format_version": FORMAT_VERSION, "count": len(self), "encoder": self.encoder}
        size = self.embeddings.nbytes * (1 if self.approximate is None else 2)
        with whole_or_absent(target, size) as partial:
            if self.approximate is not None:
                header["approximate"] = self.approximate.save(partial / FAISS_FILE)
            (partial / INDEX_FILE).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
            with (partial / TEXTS_FILE).open("w", encoding="utf-8") as file:
                for place, text in enumerate(self.texts):
                    row = {"text": text} | ({} if self.ids is None else {"id": self.ids[place]})
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            # A reader may open the texts of one index and the vectors of the one that takes its place.
            belongs = {"texts_sha256": file_sha256(partial / TEXTS_FILE)}
            save_file({"embeddings": self.embeddings.contiguous()}, partial / EMBEDDINGS_FILE, belongs)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SearchIndex:
        """Read a saved index; without FAISS an approximate one is searched exactly.

        Give folders that you trust: FAISS reads its file without many checks.

        Args:
            folder: what `save` has written.

        Raises:
            ValueError: a file is absent or broken, the files do not belong together, or a newer release wrote them.
        """
        place = Path(folder)
        if not (place / INDEX_FILE).is_file():
            raise ValueError(f"{place} holds no {INDEX_FILE}: give a folder that SearchIndex.save has written.")
        header = read_versioned(place / INDEX_FILE, FORMAT_VERSION, "make the index again")
        try:
            digest = hashlib.sha256()
            with (place / TEXTS_FILE).open("rb") as file:
                rows = []
                for line in file:
                    digest.update(line)
                    rows.append(json.loads(line))
            ids = [row["id"] for row in rows] if rows and "id" in rows[0] else None
            texts = [row["text"] for row in rows]
            with safe_open(place / EMBEDDINGS_FILE, framework="pt") as vectors_file:
                told = (vectors_file.metadata() or {}).get("texts_sha256", digest.hexdigest())
                index = cls(texts, vectors_file.get_tensor("embeddings"), header["encoder"], ids)
            if told != digest.hexdigest():
                raise ValueError("its vectors are of other texts; if it was replaced meanwhile, load it once more")
            if len(index) != header["count"]:
                raise ValueError(f"{header['count']} texts expected, {len(index)} found")
            approximate = header.get("approximate")
            if approximate is not None and has_faiss():
                vectors = index.embeddings.numpy()
                index.approximate = ApproximateSearch.load(place / FAISS_FILE, approximate, vectors)
            elif approximate is not None:
                logger.warning(
                    "%s is an index of FAISS, which is not installed, so each search compares with all %d texts: "
                    "pip install 'flipped_kd[search]'.",
                    place,
                    len(index),
                )
            return index
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the index in {place} is broken ({error}): make it again.") from error


def checked_vectors(vectors: Any, count: int, dimension: int) -> np.ndarray:
    """Vectors as float32, also those that were read from JSON; ValueError unless they are (count, dimension)."""
    vectors = vectors.detach().float().cpu().numpy() if isinstance(vectors, Tensor) else vectors
    found = np.array(vectors, dtype=np.float32, order="C")  # a copy: what becomes of theirs must not change the index
    if found.shape != (count, dimension):
        raise ValueError(f"vectors of shape {found.shape}: {(count, dimension)} are needed, one for each text.")
    return found


def check_place(folder: Path, overwrite: bool = False) -> None:
    """Raise ValueError unless an index can be saved there: nothing is there or, with `overwrite`, an index alone."""
    check_target(folder, INDEX_FILE if overwrite else None)
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if others:
        raise ValueError(f"{folder} holds {others[0]!r} beside an index, which would be lost: give another folder.")


def best_hits(log_odds: np.ndarray, ids: Sequence[int], top_k: int | None) -> list[dict[str, Any]]:
    """The likeliest matches of (n,) log-odds, dicts with corpus_id and probability as score.

    The order is that of the log-odds, since probabilities of the surest round to 1; equal ones stay in that of `ids`.
    """
    order = np.argsort(-log_odds, kind="stable")[:top_k]
    return [{"corpus_id": int(ids[i]), "score": float(expit(log_odds[i]))} for i in order]


def with_texts(hits: list[dict[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The hits with their texts."""
    return [hit | {"text": texts[hit["corpus_id"]]} for hit in hits]


def _hit(place: float, score: float) -> dict[str, Any]:
    """Products of unit vectors may pass 1 by rounding; a cosine does not."""
    return {"corpus_id": int(place), "score": min(1.0, max(-1.0, float(score)))}
