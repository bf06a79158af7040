"""The corpus: read, encoded beside the requests, exchanged while it is served, and kept."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flipped_kd import FlippedMatcher, SearchIndex
from flipped_kd.inference.search_index import INDEX_FILE
from flipped_kd.serving.corpus import PART_SECONDS, CorpusSource, _encode
from tests.adapters import make_adapter, make_base
from tests.serving.running import Running, running, wait_for

TOKEN = "a-token-of-tests"
FIRST = ["where is my card", "how long does a refund take", "cancel the loan"]
SECOND = ["why was my salary refused", *FIRST[1:], "an invoice has not arrived"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "faq.jsonl", FIRST)


def write(path: Path, texts: list[str]) -> Path:
    rows = (json.dumps({"text": text, "name": f"name of {text}"}) for text in texts)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def served(server: Running) -> list[str]:
    """The texts that a search can find."""
    found = server.answer("/search", {"query": "card", "top_k": 1000})["results"]
    return [hit["text"] for hit in sorted(found, key=lambda hit: hit["index"])]


def test_a_reload_encodes_what_is_new_and_serves_what_the_matcher_would(
    load: Any, path: Path, matcher: FlippedMatcher
) -> None:
    with running(load, CorpusSource(str(path), id_column="name"), token=TOKEN) as server:
        assert served(server) == FIRST
        write(path, SECOND)
        assert served(server) == FIRST
        found = server.answer("/corpus/reload", {})
        assert found["texts"] == 4 and found["encoded"] == 2 and found["seconds"] > 0
        assert served(server) == SECOND and server.client.get("/info").json()["corpus"] == 4
        hits = server.answer("/search", {"query": "card", "top_k": 4})["results"]
        (expected,) = matcher.search("card", SECOND, top_k=4)
        assert [hit["index"] for hit in hits] == [hit["corpus_id"] for hit in expected]
        np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in expected], atol=1e-5)
        assert all(hit["id"] == f"name of {hit['text']}" for hit in hits)
        assert 'flipped_kd_corpus_reloads_total{result="done"} 1.0' in server.client.get("/metrics").text


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_text('{"text": "a"}\n{"text": ""}\n'), "'faq.jsonl', row 1"),
        (lambda path: path.write_text("{"), "'faq.jsonl', line 1 is not JSON"),
        (lambda path: path.write_text(""), "'faq.jsonl' holds no texts"),
        (lambda path: path.write_text('{"question": "a"}\n'), "has no column 'text'"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_a_broken_corpus_keeps_the_one_that_is_served_and_says_why(
    load: Any, path: Path, spoil: Callable[[Path], Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(load, CorpusSource(str(path)), token=TOKEN) as server:
        spoil(path)
        refused = server.post("/corpus/reload", {})
        assert refused.status_code == 422 and reason in refused.json()["error"], refused.text
        assert "the one before is served still" in refused.json()["error"]
        assert reason in caplog.text and served(server) == FIRST
        assert 'flipped_kd_corpus_reloads_total{result="failed"} 1.0' in server.client.get("/metrics").text
        write(path, SECOND)
        assert server.answer("/corpus/reload", {})["texts"] == 4 and served(server) == SECOND


def test_reloading_needs_a_token_even_where_nothing_else_does(load: Any, path: Path) -> None:
    with running(load, CorpusSource(str(path))) as server:
        refused = server.post("/corpus/reload", {})
        assert refused.status_code == 403 and "start the server with one, or send its process SIGHUP" in refused.text


def test_the_old_corpus_serves_while_the_new_one_is_encoded(load: Any, path: Path) -> None:
    with running(load, CorpusSource(str(path)), token=TOKEN) as server, ThreadPoolExecutor() as pool:
        may_encode, encodes = threading.Event(), threading.Event()
        matcher = server.service.engine.matcher
        encode = matcher.encode

        def slowly(texts: Any, **options: Any) -> Any:
            if len(texts) > 1 or texts[0].startswith("new"):
                encodes.set()
            return encode(texts, **options)

        matcher.encode = slowly  # type: ignore[method-assign]
        between = server.service.batcher.between

        async def held(function: Any) -> Any:
            while encodes.is_set() and not may_encode.is_set():
                await asyncio.sleep(0.005)
            return await between(function)

        server.service.batcher.between = held  # type: ignore[method-assign]
        new = [f"new text {number}" for number in range(40)]
        write(path, new)
        reloading = pool.submit(server.answer, "/corpus/reload", {})
        wait_for(encodes.is_set)
        for _ in range(3):
            assert served(server) == FIRST
            assert server.answer("/embed", {"inputs": "cash"})
        again = server.post("/corpus/reload", {})
        assert again.status_code == 409 and "being read already" in again.json()["error"]
        may_encode.set()
        assert reloading.result()["encoded"] == 40 and served(server) == new


def test_an_index_that_is_kept_saves_the_encoding(load: Any, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    source = CorpusSource(str(path), index_folder=folder)
    with running(load, source, token=TOKEN) as server:
        assert SearchIndex.load(folder).texts == FIRST
        assert server.answer("/corpus/reload", {})["encoded"] == 0
        write(path, SECOND)
        assert server.answer("/corpus/reload", {})["encoded"] == 2
        assert SearchIndex.load(folder).texts == SECOND
    write(path, SECOND[1:])
    with running(load, source, token=TOKEN) as server:
        assert served(server) == SECOND[1:] and server.answer("/corpus/reload", {})["encoded"] == 0
        assert SearchIndex.load(folder).texts == SECOND[1:]
    # The folder itself is a corpus, too.
    with running(load, CorpusSource(str(folder))) as server:
        assert served(server) == SECOND[1:]


def test_a_kept_index_that_is_damaged_is_made_again(load: Any, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    source = CorpusSource(str(path), index_folder=folder)
    with running(load, source):
        assert SearchIndex.load(folder).texts == FIRST
    (folder / INDEX_FILE).write_text("{")
    with running(load, source) as server:
        assert served(server) == FIRST and SearchIndex.load(folder).texts == FIRST


def test_the_end_does_not_wait_for_a_corpus_that_is_read(load: Any, path: Path) -> None:
    with running(load, CorpusSource(str(path)), token=TOKEN) as server, ThreadPoolExecutor() as pool:
        begun = threading.Event()

        async def held(*_: Any, **__: Any) -> Any:
            begun.set()
            await asyncio.sleep(600)

        server.service.corpus.load = held
        asked = pool.submit(server.post, "/corpus/reload", {})
        wait_for(begun.is_set)
        start = time.monotonic()
        server.stop()
        refused = asked.result()
        assert refused.status_code == 503 and "being closed" in refused.json()["error"]
        assert time.monotonic() - start < 10


def test_an_index_that_is_kept_has_the_names_of_the_file(load: Any, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    source = CorpusSource(str(path), id_column="name", index_folder=folder)
    with running(load, source, token=TOKEN) as server:
        made = (folder / INDEX_FILE).stat().st_mtime_ns
        assert server.answer("/corpus/reload", {})["encoded"] == 0
        assert (folder / INDEX_FILE).stat().st_mtime_ns == made  # nothing has changed
        path.write_text(path.read_text(encoding="utf-8").replace("name of", "new name of"), encoding="utf-8")
        assert server.answer("/corpus/reload", {})["encoded"] == 0
        kept = SearchIndex.load(folder)
        assert kept.texts == FIRST and kept.ids == [f"new name of {text}" for text in FIRST]


def test_an_index_without_names_has_row_numbers(
    load: Any, path: Path, tmp_path: Path, matcher: FlippedMatcher
) -> None:
    """As `SearchIndex.save` writes one; those of a file without an id column are the same."""
    folder = tmp_path / "index"
    matcher.index(FIRST).save(folder)
    made = (folder / INDEX_FILE).stat().st_mtime_ns
    with running(load, CorpusSource(str(path), index_folder=folder)) as server:
        assert served(server) == FIRST and (folder / INDEX_FILE).stat().st_mtime_ns == made


def test_corpus_and_queries_are_read_in_batches_of_the_size_asked_for(load: Any, path: Path) -> None:
    sizes: list[int] = []

    def recorded() -> FlippedMatcher:
        matcher = load()
        encode = matcher.encode

        def encode_and_tell(texts: Any, **options: Any) -> Any:
            sizes.append(options.get("batch_size", 32))
            return encode(texts, **options)

        matcher.encode = encode_and_tell
        return matcher

    with running(recorded, CorpusSource(str(path)), batch_size=2) as server:
        before = len(sizes)
        assert before and served(server) == FIRST and len(sizes) > before
    assert set(sizes) == {2}


def test_a_bad_id_is_a_bad_row(load: Any, path: Path) -> None:
    """Without --skip-bad-rows the corpus is refused; a search could not have been answered."""
    rows = [{"text": text, "name": name} for text, name in zip(FIRST, ("one", "\ud800", "three"), strict=True)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match="'faq.jsonl', row 1 .*column 'name' is .*lone surrogates"):
        CorpusSource(str(path), id_column="name").read()
    with running(load, CorpusSource(str(path), id_column="name", skip_bad_rows=True)) as server:
        found = server.answer("/search", {"query": "card", "top_k": 9})["results"]
        assert sorted(hit["id"] for hit in found) == ["one", "three"]


def test_the_index_of_another_model_is_made_again_or_refused(
    load: Any, path: Path, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_base(tmp_path / "base", "qwen2", tokenizer, tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, seed=2)
    other = FlippedMatcher.from_pretrained(adapter, device="cpu")
    other.index(FIRST).save(tmp_path / "index")
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    with running(load, CorpusSource(str(path), index_folder=tmp_path / "index"), token=TOKEN) as server:
        assert served(server) == FIRST
        expected = server.service.engine.matcher.encode(FIRST)
    np.testing.assert_allclose(SearchIndex.load(tmp_path / "index").embeddings, expected, atol=1e-5)
    assert "another encoder's: it is made again" in caplog.text
    with pytest.raises(AssertionError, match="the index 'copy' is another encoder's: make it again"):
        with running(load, CorpusSource(str(tmp_path / "copy"))):
            pass


def test_wrong_sources_are_refused_at_once(path: Path, tmp_path: Path, matcher: FlippedMatcher) -> None:
    matcher.index(FIRST).save(tmp_path / "index")
    for options in ({"id_column": "name"}, {"index_folder": tmp_path / "other"}, {"kind": "exact"}):
        with pytest.raises(ValueError, match="for a CORPUS file, not for a folder with an index"):
            CorpusSource(str(tmp_path / "index"), **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear all")
    with pytest.raises(ValueError, match="is there and not empty"):
        CorpusSource(str(path), index_folder=tmp_path / "full")
    with pytest.raises(ValueError, match="lies in the folder of --save-index, which is replaced as a whole"):
        CorpusSource(str(tmp_path / "new" / "faq.jsonl"), index_folder=tmp_path / "new")


def test_an_index_that_cannot_be_kept_is_served(
    load: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(SearchIndex, "save", full)
    with running(load, CorpusSource(str(path), index_folder=tmp_path / "kept")) as server:
        assert served(server) == FIRST
    assert "the index is served, but cannot be kept (No space left on device)" in caplog.text


def test_the_size_of_a_part_goes_by_the_time_of_its_encoding(matcher: FlippedMatcher) -> None:
    """Not by that of the requests which it had to wait for."""
    sizes: list[int] = []

    class Busy:
        async def between(self, function: Callable[[], Any]) -> Any:
            await asyncio.sleep(2 * PART_SECONDS)
            sizes.append(len(function.args[1]))  # type: ignore[attr-defined]
            return function()

    vectors = asyncio.run(_encode(matcher, Busy(), [f"text {number}" for number in range(60)], 32))  # type: ignore[arg-type]
    assert len(vectors) == 60 and sizes[0] < max(sizes[:-1])


def test_an_index_that_needs_faiss_is_refused_at_once_without_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the corpus is encoded, which may take hours."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    for kind in ("hnsw", "ivf"):
        with pytest.raises(ImportError, match="needs FAISS, which is not installed"):
            CorpusSource(str(path), kind=kind)
    for kind in ("auto", "exact"):
        CorpusSource(str(path), kind=kind)  # type: ignore[arg-type]


def test_an_index_that_a_kill_left_aside_is_found(load: Any, path: Path, tmp_path: Path) -> None:
    """Killed between the two renamings of a replacement: the old one has not its name, but is whole."""
    folder = tmp_path / "index"
    with running(load, CorpusSource(str(path), index_folder=folder)):
        pass
    folder.rename(tmp_path / ".index.partial-0123-replaced")
    source = CorpusSource(str(path), index_folder=folder)
    assert SearchIndex.load(folder).texts == FIRST
    assert source.read()[2] is not None and not list(tmp_path.glob(".index*"))
