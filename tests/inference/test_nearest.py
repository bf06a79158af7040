"""Approximate search: what it finds is near what an exact search finds, in memory, from disk and in a copy."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flipped_kd import FlippedMatcher, SearchIndex
from flipped_kd.inference import nearest
from flipped_kd.inference.nearest import ApproximateSearch, resolved_kind
from flipped_kd.inference.search_index import FAISS_FILE, INDEX_FILE
from tests.adapters import make_adapter, make_base

KINDS = ("hnsw", "ivf")


def unit_vectors(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def matcher(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> FlippedMatcher:
    folder = tmp_path_factory.mktemp("nearest")
    base = make_base(folder / "base", "qwen2", tokenizer, tied=True)
    return FlippedMatcher.from_pretrained(make_adapter(folder / "adapter", base, tokenizer), device="cpu")


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return [f"where is my {word} number {number}" for number in range(40) for word in ("card", "loan", "fee")]


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_the_nearest_and_states_how_many(kind: str) -> None:
    """The recall that it states, of the corpus's own vectors, is that of other queries within a few hundredths."""
    vectors, queries = unit_vectors(5000), unit_vectors(200, seed=1)
    built = ApproximateSearch.build(vectors, kind)
    scores, places = built.search(queries, 10)
    cosines = queries @ vectors.T
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, places, axis=1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    true = np.argsort(-cosines, axis=1)[:, :10]
    recall = np.mean([len(set(row) & set(best)) / 10 for row, best in zip(places, true, strict=True)])
    assert built.recall >= nearest.RECALL and recall > 0.93
    # At its shallowest it finds fewer: the recall is measured, not assumed.
    shallow = ApproximateSearch(kind, 1, 0.0, built.faiss_index)
    assert (
        np.mean([len(set(a) & set(b)) for a, b in zip(shallow.search(queries, 10)[1], true, strict=True)])
        < 10 * recall
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_corpus_is_searched_as_exactly(matcher: FlippedMatcher, corpus: list[str], kind: Any) -> None:
    exact, index = matcher.index(corpus), matcher.index(corpus, kind=kind)
    assert (exact.kind, index.kind) == ("exact", kind)
    for options in ({}, {"rerank": 6, "score": "similarity"}, {"return_documents": True}):
        for found, wanted in zip(
            matcher.search(["my card", "the fee", "my card"], index, 5, **options),
            matcher.search(["my card", "the fee", "my card"], exact, 5, **options),
            strict=True,
        ):
            np.testing.assert_allclose([hit["score"] for hit in found], [hit["score"] for hit in wanted], atol=1e-5)
            assert all(set(hit) == set(wanted[0]) for hit in found)
    # No more than there are, and none twice.
    (hits,) = matcher.search("my card", index, 500)
    assert len({hit["corpus_id"] for hit in hits}) == len(hits) == len(corpus)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_and_copied_it_finds_the_same(
    matcher: FlippedMatcher, corpus: list[str], tmp_path: Path, kind: Any
) -> None:
    index = matcher.index(corpus, kind=kind)
    index.save(tmp_path / "index")
    expected = matcher.search("my card", index)
    for other in (SearchIndex.load(tmp_path / "index"), pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert other.kind == kind and other.approximate is not None and index.approximate is not None
        assert (other.approximate.depth, other.approximate.recall) == (
            index.approximate.depth,
            index.approximate.recall,
        )
        assert matcher.search("my card", other) == expected


def test_a_broken_or_foreign_file_of_faiss_is_refused(
    matcher: FlippedMatcher, corpus: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    index = matcher.index(corpus, kind="hnsw")
    index.save(folder)
    whole = (folder / FAISS_FILE).read_bytes()
    for content in (b"", whole[:-1], whole[:40] + b"\xff" * 8 + whole[48:]):
        (folder / FAISS_FILE).write_bytes(content)
        with pytest.raises(
            ValueError, match=r"broken \(index\.faiss is not the file that was written\): make it again"
        ):
            SearchIndex.load(folder)
    (folder / FAISS_FILE).unlink()
    with pytest.raises(ValueError, match=r"broken .*make it again"):
        SearchIndex.load(folder)
    # An index of other vectors, with its own sum.
    matcher.index(corpus[:60], kind="hnsw").save(tmp_path / "other")
    (folder / FAISS_FILE).write_bytes((tmp_path / "other" / FAISS_FILE).read_bytes())
    header = json.loads((folder / INDEX_FILE).read_text())
    header["approximate"] = json.loads((tmp_path / "other" / INDEX_FILE).read_text())["approximate"]
    (folder / INDEX_FILE).write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"holds 60 vectors of \d+ numbers, not \(120, "):
        SearchIndex.load(folder)


def test_the_kind_follows_the_number_of_texts(
    matcher: FlippedMatcher, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    assert resolved_kind("auto", nearest.EXACT_UP_TO) == "exact"
    assert resolved_kind("auto", nearest.EXACT_UP_TO + 1) == "ivf"
    assert resolved_kind("exact", 10**9) == "exact"
    with pytest.raises(ValueError, match="kind='flat' is not one of"):
        matcher.index(corpus, kind="flat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs at least one text"):
        matcher.index([], kind="hnsw")
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 100)
    with caplog.at_level(logging.INFO, logger="flipped_kd"):
        index = matcher.index(corpus)
    assert index.kind == "ivf" and "recall@10 " in caplog.text
    index.save(tmp_path / "index")
    # Without FAISS: exact, with a warning; what was asked for by name is an error before anything is encoded.
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("flipped_kd.inference.nearest.has_faiss", lambda: False)
    monkeypatch.setattr("flipped_kd.inference.search_index.has_faiss", lambda: False)
    caplog.clear()
    assert matcher.index(corpus).kind == "exact" and "pip install 'flipped_kd[search]'" in caplog.text
    caplog.clear()
    loaded = SearchIndex.load(tmp_path / "index")
    assert loaded.kind == "exact" and "pip install 'flipped_kd[search]'" in caplog.text
    assert torch.equal(loaded.embeddings, index.embeddings)
    monkeypatch.setattr(matcher, "encode", lambda *_, **__: pytest.fail("encoded before the check"))
    with pytest.raises(ImportError, match=r"flipped_kd\[search\].*kind='exact'"):
        matcher.index(corpus, kind="ivf")
