"""predict, encode, rank and search give what the matcher gives, in every format, and go on where they were killed."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

from flipped_kd.cli.main import main
from flipped_kd.data.table_jobs import TableJob
from flipped_kd.evaluation.match_score import KINDS
from flipped_kd.inference.matcher import FlippedMatcher
from tests.cli.helpers import (
    ODDS,
    ROOT,
    adapter_with_scores,
    environment,
    pair_rows,
    read_rows,
    start,
    write_rows,
)

NEAR: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def adapter(student_dir: Path, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_with_scores(tmp_path_factory.mktemp("adapter") / "adapter", student_dir, tokenizer)


@pytest.fixture(scope="module")
def matcher(adapter: Path) -> FlippedMatcher:
    return FlippedMatcher.from_pretrained(adapter, device="cpu")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return pair_rows(13)


@pytest.fixture
def pairs(rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", rows)


def run(*arguments: object) -> int:
    return main([*(str(argument) for argument in arguments), "--quiet"])


def tuples(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["text_a"], row["text_b"]) for row in rows]


# ---- predict ----


@pytest.mark.parametrize("score", [None, *KINDS])
def test_predict_is_the_matchers(
    score: Any, adapter: Path, matcher: FlippedMatcher, rows: list[dict[str, Any]], pairs: Path, tmp_path: Path
) -> None:
    flags = [] if score is None else ["--score", score]
    assert run("predict", adapter, pairs, "-o", tmp_path / "out.jsonl", "--part-rows", 4, *flags) == 0
    found = read_rows(tmp_path / "out.jsonl")
    assert [{key: row[key] for key in row if key != "score"} for row in found] == rows
    expected = matcher.predict(tuples(rows), score=score)
    np.testing.assert_allclose([row["score"] for row in found], expected, **NEAR)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("place", [0, 1, -1])
def test_predict_skips_a_row_without_a_text_wherever_it_stands(
    place: int, adapter: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with_bad = list(rows)
    with_bad.insert(place % (len(rows) + 1), {"text_b": "x"})
    source = write_rows(tmp_path / "in.jsonl", with_bad)
    flags = ("--part-rows", 1, "--skip-bad-rows")
    assert run("predict", adapter, source, *flags, "-o", tmp_path / "out.jsonl") == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    capsys.readouterr()
    assert run("predict", adapter, "-", *flags) == 0
    for found in (read_rows(tmp_path / "out.jsonl"), read_rows(capsys.readouterr().out)):
        assert tuples(found) == tuples(rows)
    assert run("predict", adapter, source) == 2
    assert f"row {with_bad.index({'text_b': 'x'})} (the first is row 0): column 'text_a' is null" in (
        capsys.readouterr().err
    )


def test_every_format_holds_the_same_scores(adapter: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    sources = {ending: tmp_path / f"in.{ending}" for ending in ("jsonl", "csv", "parquet")}
    write_rows(sources["jsonl"], rows)
    pq.write_table(pa.Table.from_pylist(rows), sources["parquet"])
    with open(sources["csv"], "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    scores = []
    for source in sources.values():
        for ending in ("jsonl", "csv", "parquet", "tsv"):
            target = tmp_path / f"{source.suffix[1:]}.{ending}"
            assert run("predict", adapter, source, "-o", target) == 0
            if ending == "jsonl":
                scores.append([row["score"] for row in read_rows(target)])
            elif ending == "parquet":
                scores.append(pq.read_table(target)["score"].to_pylist())
            else:
                with open(target, newline="") as file:
                    table = csv.DictReader(file, delimiter="," if ending == "csv" else "\t")
                    scores.append([float(row["score"]) for row in table])
    assert len(scores) == 12 and all(each == scores[0] for each in scores)


def test_all_scores_and_the_tuned_threshold(
    adapter: Path, matcher: FlippedMatcher, rows: list[dict[str, Any]], pairs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.parquet"
    flags = ("--all-scores", "--threshold", "tuned", "--column-prefix", "my_")
    assert run("predict", adapter, pairs, "-o", target, *flags) == 0
    found = pq.read_table(target)
    answer, similarity = matcher.scores(tuples(rows))
    np.testing.assert_allclose(found["my_answer_log_odds"].to_numpy(), answer, **NEAR)
    np.testing.assert_allclose(found["my_cosine"].to_numpy(), similarity, **NEAR)
    for kind, odds in ODDS.items():
        np.testing.assert_allclose(found[f"my_score_{kind}"].to_numpy(), expit(odds(answer, similarity)), **NEAR)
    both = ODDS["both"](answer, similarity)
    assert found["my_match"].to_pylist() == (both >= 1.1).tolist()
    assert len({*(both >= 1.1)}) == 2 and ((both >= 1.1) != (both >= 0)).any()
    assert run("predict", adapter, pairs, "-o", tmp_path / "half.parquet", "--threshold", "0.5") == 0
    assert pq.read_table(tmp_path / "half.parquet")["match"].to_pylist() == (both >= 0).tolist()


def test_an_adapter_without_match_score_has_the_answer_alone(
    adapter: Path, matcher: FlippedMatcher, rows: list[dict[str, Any]], pairs: Path, tmp_path: Path, capsys
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(adapter, bare, ignore=shutil.ignore_patterns("match_score.json"))
    assert run("predict", bare, pairs, "--all-scores") == 0
    found = read_rows(capsys.readouterr().out)
    assert set(found[0]) - set(rows[0]) == {"score", "score_answer", "answer_log_odds", "cosine"}
    answer, _ = matcher.scores(tuples(rows))
    np.testing.assert_allclose([row["score"] for row in found], expit(answer), **NEAR)
    for flags, message in (
        (["--score", "both"], "--score both"),
        (["--threshold", "tuned"], "no match_score.json"),
    ):
        assert run("predict", bare, pairs, *flags) == 2
        assert message in capsys.readouterr().err


def test_columns_are_named_and_taken_ones_kept(
    adapter: Path, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = [{"q": row["text_a"], "d": row["text_b"], "score": "mine"} for row in rows]
    source = write_rows(tmp_path / "in.jsonl", renamed)
    names = ("--text-a-column", "q", "--text-b-column", "d")
    for output in ([], ["-o", tmp_path / "out.jsonl"]):
        assert run("predict", adapter, source, *names, *output) == 2
        assert "column 'score'" in capsys.readouterr().err
    assert run("predict", adapter, source, *names, "--column-prefix", "new_") == 0
    assert all(row["score"] == "mine" and 0 <= row["new_score"] <= 1 for row in read_rows(capsys.readouterr().out))


def test_through_a_pipe(
    adapter: Path, rows: list[dict[str, Any]], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Standard input to standard output; and to a file, for which it is read twice."""
    data = pairs.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("predict", adapter, "-", "--part-rows", 4) == 0
    found = read_rows(capsys.readouterr().out)
    assert [row["number"] for row in found] == [row["number"] for row in rows]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("predict", adapter, "-", "-o", tmp_path / "out.jsonl", "--part-rows", 4) == 0
    assert read_rows(tmp_path / "out.jsonl") == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl"]


# ---- Interrupted ----


def failing_at(number: int) -> Callable[..., None]:
    """A `TableJob._write` to which the disk says no at part `number`."""
    write = TableJob._write

    def failing(self: TableJob, chunk: Any, result: pa.Table) -> None:
        if chunk.number == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(self, chunk, result)

    return failing


def wait_for_parts(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while len(list(folder.glob("part-*"))) < count:
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        assert time.monotonic() < until
        time.sleep(0.005)


def test_killed_and_repeated(adapter: Path, tmp_path: Path) -> None:
    """kill -9 in the middle; the same command computes the rest and gives the same bytes."""
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(600))
    target = tmp_path / "out.parquet"
    command = ("predict", adapter, pairs, "-o", target, "--part-rows", 3, "--batch-size", 2, "--quiet")
    process = start(*command)
    wait_for_parts(tmp_path / "out.parquet.partial", 3, process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    folder = tmp_path / "out.parquet.partial"
    finished = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert 3 <= len(finished) < 200 and not target.exists()
    # Before it goes on: other options, another model, other input are refused and touch nothing.
    assert run(*command[:-1], "--score", "answer") == 2
    other = write_rows(tmp_path / "other.jsonl", pair_rows(600, seed=1))
    assert run("predict", adapter, other, *command[3:-1]) == 2
    changed = tmp_path / "changed"
    shutil.copytree(adapter, changed)
    contract = json.loads((changed / "match_score.json").read_text())
    contract["log_odds"]["both"]["bias"] += 1
    (changed / "match_score.json").write_text(json.dumps(contract))
    assert run("predict", changed, *command[2:-1]) == 2
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")} == finished
    # A smaller batch is allowed: that is what one does after running out of memory.
    assert main([*map(str, command)]) == 0
    assert not folder.exists()
    whole = tmp_path / "whole.parquet"
    assert run("predict", adapter, pairs, "-o", whole, *command[5:-1]) == 0
    assert target.read_bytes() == whole.read_bytes()
    assert pq.read_table(target)["number"].to_pylist() == list(range(600))


# ---- encode ----


def test_encode_is_the_matchers(
    adapter: Path, matcher: FlippedMatcher, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [row["text_a"] for row in rows]
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts) + "\n", encoding="utf-8")
    expected = matcher.encode(texts)
    for ending in ("npy", "parquet", "jsonl"):
        target = tmp_path / f"out.{ending}"
        assert run("encode", adapter, source, "-o", target, "--part-rows", 5) == 0
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


# ---- rank and search ----


@pytest.fixture(scope="module")
def documents() -> list[dict[str, str]]:
    texts = list(dict.fromkeys(row["text_b"] for row in pair_rows(60, seed=3)))
    return [{"text": text, "key": f"doc-{place}"} for place, text in enumerate(texts)]


def test_rank_is_the_matchers(
    adapter: Path, matcher: FlippedMatcher, documents: list[dict[str, str]], tmp_path: Path, capsys
) -> None:
    source = write_rows(tmp_path / "documents.jsonl", documents)
    texts = [row["text"] for row in documents]
    query = "where is my card"
    assert run("rank", adapter, query, source, "--part-rows", 7) == 0
    found = read_rows(capsys.readouterr().out)
    expected = matcher.rank(query, texts, return_documents=True)
    assert [row["corpus_id"] for row in found] == [row["corpus_id"] for row in expected]
    assert [row["text"] for row in found] == [row["text"] for row in expected]
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in expected], **NEAR)
    assert len(found) == len(texts) > 20
    flags = ("--top-k", 3, "--score", "answer", "--id-column", "key")
    assert run("rank", adapter, query, source, "-o", tmp_path / "out.csv", *flags) == 0
    best = matcher.rank(query, texts, 3, score="answer")
    with open(tmp_path / "out.csv", newline="") as file:
        assert [row["corpus_id"] for row in csv.DictReader(file)] == [f"doc-{row['corpus_id']}" for row in best]


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
    assert run("search", adapter, queries, corpus, *flags, "--save-index", index) == 0
    found = read_rows(capsys.readouterr().out)
    assert [(row["query_id"], row["rank"]) for row in found] == [(n, k) for n in range(13) for k in (1, 2, 3, 4)]
    hits = [hit for each in expected for hit in each]
    assert [(row["corpus_id"], row["text"]) for row in found] == [(hit["corpus_id"], hit["text"]) for hit in hits]
    np.testing.assert_allclose([row["score"] for row in found], [hit["score"] for hit in hits], **NEAR)
    # The kept index is used again for the same corpus, by its folder or beside the file.
    made = (index / "search_index.json").stat().st_mtime_ns
    assert run("search", adapter, queries, index, *flags) == 0
    assert read_rows(capsys.readouterr().out) == found
    target = tmp_path / "out.jsonl"
    named = ("--id-column", "key", "--query-id-column", "number", "--save-index", index, "-o", target)
    assert run("search", adapter, queries, corpus, *flags, *named) == 0
    assert [row["corpus_id"] for row in read_rows(target)] == [f"doc-{row['corpus_id']}" for row in found]
    assert [row["query_id"] for row in read_rows(target)] == [str(row["query_id"]) for row in found]
    assert (index / "search_index.json").stat().st_mtime_ns == made
    other = write_rows(tmp_path / "other.jsonl", documents[1:])
    assert run("search", adapter, queries, other, *flags, "--save-index", index) == 2
    assert "another corpus" in capsys.readouterr().err


def test_search_goes_on_and_minds_its_corpus(
    adapter: Path, rows: list[dict[str, Any]], documents: list[dict[str, str]], tmp_path: Path, capsys
) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", documents)
    queries = write_rows(tmp_path / "queries.jsonl", rows)
    target = tmp_path / "out.jsonl"
    flags = ("--query-column", "text_a", "--part-rows", 5, "-o", target)
    assert run("search", adapter, queries, corpus, *flags) == 0
    whole = target.read_bytes()
    target.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TableJob, "_write", failing_at(1))
        assert run("search", adapter, queries, corpus, *flags) == 1
    other = write_rows(tmp_path / "other.jsonl", documents[1:])
    capsys.readouterr()
    assert run("search", adapter, queries, other, *flags) == 2
    assert "corpus was" in capsys.readouterr().err
    assert run("search", adapter, queries, corpus, *flags) == 0
    assert target.read_bytes() == whole


@pytest.mark.parametrize("named", [False, True])
def test_an_index_keeps_the_names_of_its_texts(
    named: bool, adapter: Path, rows: list[dict[str, Any]], documents: list[dict[str, str]], tmp_path: Path
) -> None:
    listed = [{"text": " ", "code": "blank"}, *({**row, "code": f"d{n}"} for n, row in enumerate(documents))]
    corpus = write_rows(tmp_path / "corpus.jsonl", listed)  # its first row is bad, so row numbers are no places
    queries = write_rows(tmp_path / "queries.jsonl", rows[:4])
    found = [tmp_path / "of_file.jsonl", tmp_path / "of_index.jsonl"]
    flags = ("--query-column", "text_a", "--top-k", 2, "--quiet")
    naming = ("--id-column", "code") if named else ()
    kept = ("--skip-bad-rows", "--save-index", tmp_path / "index")
    assert run("search", adapter, queries, corpus, *flags, *naming, *kept, "-o", found[0]) == 0
    assert run("search", adapter, queries, tmp_path / "index", *flags, "-o", found[1]) == 0
    first, second = map(read_rows, found)
    assert first == second and all(isinstance(row["corpus_id"], str if named else int) for row in first)
    assert all(listed[row["corpus_id"]]["text"] == row["text"] for row in first if not named)


# ---- Several processes ----


def test_several_processes_need_files(adapter: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("predict", adapter, pairs) == 2
    assert "give both input and --output a name" in capsys.readouterr().err


@pytest.mark.distributed
def test_two_processes_go_on_where_one_has_stopped(adapter: Path, tmp_path: Path) -> None:
    """accelerate launch with two ranks on the CPU gives the bytes of one process; parts belong to no rank."""
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(43))
    target, folder = tmp_path / "two.jsonl", tmp_path / "two.jsonl.partial"
    command = ["predict", adapter, pairs, "--part-rows", 4]
    assert run(*command, "-o", tmp_path / "one.jsonl") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TableJob, "_write", failing_at(3))
        assert run(*command, "-o", target) == 1
    begun = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert len(begun) == 3
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("-m", "flipped_kd", *map(str, command), "-o", str(target)),
    ]
    found = subprocess.run(
        launch, cwd=ROOT, env=environment(ACCELERATE_USE_CPU="true"), capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert target.read_bytes() == (tmp_path / "one.jsonl").read_bytes() and not folder.exists()
    assert found.stderr.count("two.jsonl: 43 rows") == 1  # said by the main process alone
