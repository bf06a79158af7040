"""SearchIndex: what is saved is what is loaded, and only the encoder that made it may search in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flipped_kd import FlippedMatcher, SearchIndex
from flipped_kd.inference.nearest import ApproximateSearch
from flipped_kd.inference.search_index import EMBEDDINGS_FILE, INDEX_FILE, TEXTS_FILE
from flipped_kd.publishing.merge import merge_adapter
from tests.adapters import make_adapter, tied_adapter

CORPUS = ["where is my card", "我的卡在哪里", 'a "quoted"\nline\u2028and another', "", "where is my card"]


@pytest.fixture
def adapter(tmp_path: Path, tokenizer: Any) -> Path:
    return tied_adapter(tmp_path, tokenizer)


@pytest.fixture
def matcher(adapter: Path) -> FlippedMatcher:
    return FlippedMatcher.from_pretrained(adapter, device="cpu")


def test_round_trip(matcher: FlippedMatcher, adapter: Path, tmp_path: Path) -> None:
    """Also into the merged model, whose vectors are the same."""
    corpus = [text or "empty" for text in CORPUS[:-1]]  # without equal texts, whose order is open
    index = matcher.index(corpus)
    index.save(tmp_path / "index")
    loaded = SearchIndex.load(tmp_path / "index")
    assert len(loaded) == len(corpus) and loaded.texts == corpus
    assert torch.equal(loaded.embeddings, index.embeddings)
    expected = matcher.search("where is", index)
    assert FlippedMatcher.search(matcher, "where is", loaded) == expected
    merged = merge_adapter(adapter, tmp_path / "merged", sentence_transformers=False).folder
    found = FlippedMatcher.from_pretrained(merged, device="cpu").search("where is", loaded)
    assert [hit["corpus_id"] for hit in found[0]] == [hit["corpus_id"] for hit in expected[0]]


def test_an_index_of_another_encoder_is_refused(
    matcher: FlippedMatcher, adapter: Path, tmp_path: Path, tokenizer: Any
) -> None:
    """By its definition, and, where that is the same, by its vectors; so is one whose texts were changed."""
    base = adapter.parent / "base"
    for name, options in (
        ("other weights", {"seed": 2}),
        ("other layers", {"encoder_layers": "last:1"}),
        ("another prompt", {"instruction": "Same?"}),
        ("another cut", {"max_length": 64}),
    ):
        other = FlippedMatcher.from_pretrained(make_adapter(tmp_path / name, base, tokenizer, **options), device="cpu")
        other.index(CORPUS[:2]).save(tmp_path / "index", overwrite=True)
        with pytest.raises(ValueError, match=r"another encoder.*matcher\.index"):
            matcher.search("where is", SearchIndex.load(tmp_path / "index"))
    matcher.index(CORPUS[:2]).save(tmp_path / "index", overwrite=True)
    texts = tmp_path / "index" / TEXTS_FILE
    texts.write_text(texts.read_text().replace("card", "salary"))
    with pytest.raises(ValueError, match="its vectors are of other texts"):
        SearchIndex.load(tmp_path / "index")
    vectors = SearchIndex.load(matcher.index(CORPUS[:2]).save(tmp_path / "other") or tmp_path / "other").embeddings
    save_file({"embeddings": vectors}, tmp_path / "index" / EMBEDDINGS_FILE)  # as older releases wrote them
    with pytest.raises(ValueError, match="another encoder"):
        matcher.search("where is", SearchIndex.load(tmp_path / "index"))


def test_nothing_of_anothers_is_overwritten(matcher: FlippedMatcher, tmp_path: Path) -> None:
    index = matcher.index(CORPUS[:2])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not empty"):
            index.save(tmp_path / "mine", overwrite=overwrite)
    index.save(tmp_path / "index")
    with pytest.raises(ValueError, match="not empty"):
        index.save(tmp_path / "index")
    matcher.index(CORPUS[:1]).save(tmp_path / "index", overwrite=True)
    assert len(SearchIndex.load(tmp_path / "index")) == 1
    (tmp_path / "index" / "corpus.csv").write_text("keep")
    with pytest.raises(ValueError, match=r"holds 'corpus.csv' beside an index, which would be lost"):
        index.save(tmp_path / "index", overwrite=True)
    assert (tmp_path / "index" / "corpus.csv").read_text() == "keep"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_broken_indexes(matcher: FlippedMatcher, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with pytest.raises(ValueError, match=r"no search_index\.json"):
        SearchIndex.load(folder)
    index = matcher.index(CORPUS[:2])

    def broken(name: str, content: str) -> None:
        index.save(folder, overwrite=True)
        (folder / name).write_text(content)

    header = {"format_version": 1, "count": 2, "encoder": index.encoder}
    for name, content in (
        (TEXTS_FILE, '{"text": "one"}\n'),
        (TEXTS_FILE, '{"text": "one"}\n{"te'),
        (EMBEDDINGS_FILE, "no tensors"),
        (INDEX_FILE, "{"),
        (INDEX_FILE, json.dumps(header | {"count": 3})),
    ):
        broken(name, content)
        with pytest.raises(ValueError, match=r"index.* is (broken|no valid JSON).*make (it|the index) again"):
            SearchIndex.load(folder)
    broken(INDEX_FILE, json.dumps(header | {"format_version": 2}))
    with pytest.raises(ValueError, match="upgrade flipped_kd"):
        SearchIndex.load(folder)
    with pytest.raises(ValueError, match=r"3 texts need vectors of shape \(3, D\)"):
        SearchIndex(["a", "b", "c"], index.embeddings, index.encoder)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("distinct", [1, 20, 2000])
def test_an_approximate_index_finds_as_many_as_there_are(kind: Any, distinct: int) -> None:
    """Also beyond the cells that it looks at, and among equal vectors, out of which HNSW finds no way."""
    pytest.importorskip("faiss", reason="faiss is not installed")
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(distinct, 16), dim=1).repeat(2000 // distinct, 1)
    approximate = ApproximateSearch.build(vectors.numpy(), kind)
    index = SearchIndex([str(n) for n in range(2000)], vectors, {}, approximate=approximate)
    queries = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    for top_k in (10, 100, 2000, 3000):
        for hits, exact in zip(index.nearest(queries, top_k), queries @ vectors.T, strict=True):
            assert len({hit["corpus_id"] for hit in hits}) == len(hits) == min(top_k, 2000)
            scores = [hit["score"] for hit in hits]
            assert scores == sorted(scores, reverse=True) and max(scores) <= 1
            assert top_k < 2000 or scores == pytest.approx(exact.sort(descending=True).values.tolist(), abs=1e-5)
