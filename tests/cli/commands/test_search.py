"""search gives what the matcher gives, goes on, and minds its corpus."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flipped_kd.data.table_jobs import TableJob
from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.inference.search_index import SearchIndex
from tests.cli.helpers import (
    NEAR,
    failing_at,
    quietly,
    read_rows,
    write_rows,
)


@pytest.mark.parametrize("rerank", [0, 8])
def test_search_is_the_matchers(
    rerank: int,
    adapter: Path,
    matcher: FlippedMatcher,
    rows: list[dict[str, Any]],
    documents: list[dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", documents)
    queries = write_rows(tmp_path / "queries.jsonl", rows)
    texts = [row["text"] for row in documents]
    expected = matcher.search([row["text_a"] for row in rows], texts, 4, rerank=rerank, return_documents=True)
    flags = ("--query-column", "text_a", "--top-k", 4, "--rerank", rerank, "--part-rows", 5)
    index = tmp_path / "index"
    assert quietly("search", adapter, queries, corpus, *flags, "--save-index", index) == 0
    found = read_rows(capsys.readouterr().out)
    assert [(row["query_id"], row["rank"]) for row in found] == [(n, k) for n in range(13) for k in (1, 2, 3, 4)]
    hits = [hit for each in expected for hit in each]
    assert [(row["corpus_id"], row["text"]) for row in found] == [(hit["corpus_id"], hit["text"]) for hit in hits]
    np.testing.assert_allclose([row["score"] for row in found], [hit["score"] for hit in hits], **NEAR)
    # The kept index is used again for the same corpus, by its folder or beside the file.
    made = (index / "search_index.json").stat().st_mtime_ns
    assert quietly("search", adapter, queries, index, *flags) == 0
    assert read_rows(capsys.readouterr().out) == found
    assert quietly("search", adapter, queries, corpus, *flags, "--save-index", index) == 0
    assert read_rows(capsys.readouterr().out) == found
    assert (index / "search_index.json").stat().st_mtime_ns == made
    target = tmp_path / "out.jsonl"
    named = ("--id-column", "key", "--query-id-column", "number", "--save-index", index, "-o", target)
    assert quietly("search", adapter, queries, corpus, *flags, *named) == 0
    assert [row["corpus_id"] for row in read_rows(target)] == [f"doc-{row['corpus_id']}" for row in found]
    assert [row["query_id"] for row in read_rows(target)] == [str(row["query_id"]) for row in found]
    other = write_rows(tmp_path / "other.jsonl", documents[1:])
    assert quietly("search", adapter, queries, other, *flags, "--save-index", index) == 2
    assert "another corpus" in capsys.readouterr().err


def test_an_index_that_cannot_be_kept_costs_no_answer(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", [{"text": "cash"}, {"text": "my card"}])
    queries = write_rows(tmp_path / "queries.jsonl", [{"text": "the card"}])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SearchIndex, "save", full)
    assert quietly("search", adapter, queries, corpus, "--save-index", tmp_path / "index") != 0
    answered, told = capsys.readouterr()
    assert len(read_rows(answered)) == 2 and "No space left" in told


def test_search_goes_on_and_minds_its_corpus(
    adapter: Path, rows: list[dict[str, Any]], documents: list[dict[str, str]], tmp_path: Path, capsys
) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", documents)
    queries = write_rows(tmp_path / "queries.jsonl", rows)
    target = tmp_path / "out.jsonl"
    flags = ("--query-column", "text_a", "--part-rows", 5, "-o", target)
    assert quietly("search", adapter, queries, corpus, *flags) == 0
    whole = target.read_bytes()
    target.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TableJob, "_write", failing_at(1))
        assert quietly("search", adapter, queries, corpus, *flags) == 1
    other = write_rows(tmp_path / "other.jsonl", documents[1:])
    capsys.readouterr()
    assert quietly("search", adapter, queries, other, *flags) == 2
    assert "corpus was" in capsys.readouterr().err
    assert quietly("search", adapter, queries, corpus, *flags) == 0
    assert target.read_bytes() == whole


@pytest.mark.parametrize("named", [False, True])
def test_an_index_keeps_the_names_of_its_texts(
    named: bool, adapter: Path, rows: list[dict[str, Any]], documents: list[dict[str, str]], tmp_path: Path, capsys
) -> None:
    listed = [{"text": " ", "code": "blank"}, *({**row, "code": f"d{n}"} for n, row in enumerate(documents))]
    corpus = write_rows(tmp_path / "corpus.jsonl", listed)  # its first row is bad, so row numbers are no places
    queries = write_rows(tmp_path / "queries.jsonl", rows[:4])
    found = [tmp_path / "of_file.jsonl", tmp_path / "of_index.jsonl"]
    flags = ("--query-column", "text_a", "--top-k", 2, "--quiet")
    naming = ("--id-column", "code") if named else ()
    kept = ("--skip-bad-rows", "--save-index", tmp_path / "index")
    assert quietly("search", adapter, queries, corpus, *flags, *naming, *kept, "-o", found[0]) == 0
    assert capsys.readouterr().err == "flipped-kd: corpus.jsonl: 1 bad rows are left out\n"
    assert quietly("search", adapter, queries, tmp_path / "index", *flags, "-o", found[1]) == 0
    first, second = map(read_rows, found)
    assert first == second and all(isinstance(row["corpus_id"], str if named else int) for row in first)
    assert all(listed[row["corpus_id"]]["text"] == row["text"] for row in first if not named)


def test_new_names_of_the_same_texts_are_kept(
    adapter: Path, rows: list[dict[str, Any]], documents: list[dict[str, str]], tmp_path: Path, capsys
) -> None:
    queries = write_rows(tmp_path / "queries.jsonl", rows[:4])
    flags = ("--query-column", "text_a", "--top-k", 2, "--quiet")
    for letter in ("a", "b", None):
        listed = [{**row, "code": f"{letter}{n}"} for n, row in enumerate(documents)]
        corpus = write_rows(tmp_path / "corpus.jsonl", listed)
        naming = () if letter is None else ("--id-column", "code")
        found = [tmp_path / f"of_{kind}_{letter}.jsonl" for kind in ("file", "index")]
        kept = ("--save-index", tmp_path / "index")
        assert quietly("search", adapter, queries, corpus, *flags, *naming, *kept, "-o", found[0]) == 0
        assert quietly("search", adapter, queries, tmp_path / "index", *flags, "-o", found[1]) == 0
        first, second = map(read_rows, found)
        assert first == second
        names = {row["corpus_id"] for row in first}
        assert all(isinstance(name, int) if letter is None else name.startswith(letter) for name in names)


def test_an_index_that_a_kill_left_without_its_name_is_found(
    adapter: Path, rows: list[dict[str, Any]], documents: list[dict[str, str]], tmp_path: Path, capsys
) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", documents)
    queries = write_rows(tmp_path / "queries.jsonl", rows[:4])
    index, aside = tmp_path / "index", tmp_path / ".index.partial-0-replaced"
    flags = ("--query-column", "text_a", "--top-k", 2)
    assert quietly("search", adapter, queries, corpus, *flags, "--save-index", index) == 0
    found = capsys.readouterr().out
    made = (index / "search_index.json").stat().st_mtime_ns
    for given in ([index], [corpus, "--save-index", index]):
        index.rename(aside)
        assert quietly("search", adapter, queries, *given, *flags) == 0
        assert capsys.readouterr().out == found and (index / "search_index.json").stat().st_mtime_ns == made


def test_the_kind_of_index_is_chosen_once(
    adapter: Path, rows: list[dict[str, Any]], documents: list[dict[str, str]], tmp_path: Path, capsys
) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", documents)
    queries = write_rows(tmp_path / "queries.jsonl", rows[:4])
    kept, flags = tmp_path / "index", ("--query-column", "text_a", "--top-k", 3)
    assert quietly("search", adapter, queries, corpus, *flags, "-o", tmp_path / "exact.jsonl") == 0
    approximate = ("--index-kind", "hnsw", "--save-index", kept)
    assert quietly("search", adapter, queries, corpus, *flags, *approximate, "-o", tmp_path / "hnsw.jsonl") == 0
    assert SearchIndex.load(kept).kind == "hnsw"
    assert quietly("search", adapter, queries, kept, *flags, "-o", tmp_path / "kept.jsonl") == 0
    exact, *others = (
        [(row["query_id"], row["rank"], pytest.approx(row["score"], abs=1e-5)) for row in read_rows(tmp_path / name)]
        for name in ("exact.jsonl", "hnsw.jsonl", "kept.jsonl")
    )
    assert others == [exact, exact]
    capsys.readouterr()
    other = ("--index-kind", "ivf", "--save-index", kept, "-o", tmp_path / "ivf.jsonl")
    assert quietly("search", adapter, queries, corpus, *flags, *other) == 2
    assert "holds an index of kind hnsw, not ivf" in capsys.readouterr().err
    assert quietly("search", adapter, queries, kept, *flags, "--index-kind", "ivf", "-o", tmp_path / "ivf.jsonl") == 2
    assert "--index-kind is for a CORPUS file" in capsys.readouterr().err
