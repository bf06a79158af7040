"""predict gives what the matcher gives, in every format and through a pipe."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.utils.choices import SCORE_KINDS
from tests.cli.helpers import (
    NEAR,
    ODDS,
    quietly,
    read_rows,
    tuples,
    write_rows,
)


@pytest.mark.parametrize("score", [None, *SCORE_KINDS])
def test_predict_is_the_matchers(
    score: Any, adapter: Path, matcher: FlippedMatcher, rows: list[dict[str, Any]], pairs: Path, tmp_path: Path
) -> None:
    flags = [] if score is None else ["--score", score]
    assert quietly("predict", adapter, pairs, "-o", tmp_path / "out.jsonl", "--part-rows", 4, *flags) == 0
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
    target = tmp_path / "out.jsonl"
    for given, output in (("in.jsonl", ["-o", target]), ("in.jsonl", []), ("standard input", [])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
        assert quietly("predict", adapter, "-" if given == "standard input" else source, *flags, *output) == 0
        out, err = capsys.readouterr()
        assert tuples(read_rows(target if output else out)) == tuples(rows)
        assert err == f"flipped-kd: {given}: 1 bad rows are left out\n"
    assert quietly("predict", adapter, source) == 2
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
            assert quietly("predict", adapter, source, "-o", target) == 0
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
    assert quietly("predict", adapter, pairs, "-o", target, *flags) == 0
    found = pq.read_table(target)
    answer, similarity = matcher.scores(tuples(rows))
    np.testing.assert_allclose(found["my_answer_log_odds"].to_numpy(), answer, **NEAR)
    np.testing.assert_allclose(found["my_cosine"].to_numpy(), similarity, **NEAR)
    for kind, odds in ODDS.items():
        np.testing.assert_allclose(found[f"my_score_{kind}"].to_numpy(), expit(odds(answer, similarity)), **NEAR)
    both = ODDS["both"](answer, similarity)
    assert found["my_match"].to_pylist() == (both >= 1.1).tolist()
    assert len({*(both >= 1.1)}) == 2 and ((both >= 1.1) != (both >= 0)).any()
    assert quietly("predict", adapter, pairs, "-o", tmp_path / "half.parquet", "--threshold", "0.5") == 0
    assert pq.read_table(tmp_path / "half.parquet")["match"].to_pylist() == (both >= 0).tolist()


def test_an_adapter_without_match_score_has_the_answer_alone(
    adapter: Path, matcher: FlippedMatcher, rows: list[dict[str, Any]], pairs: Path, tmp_path: Path, capsys
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(adapter, bare, ignore=shutil.ignore_patterns("match_score.json"))
    assert quietly("predict", bare, pairs, "--all-scores") == 0
    found = read_rows(capsys.readouterr().out)
    assert set(found[0]) - set(rows[0]) == {"score", "score_answer", "answer_log_odds", "cosine"}
    answer, _ = matcher.scores(tuples(rows))
    np.testing.assert_allclose([row["score"] for row in found], expit(answer), **NEAR)
    for flags, message in (
        (["--score", "both"], "--score both"),
        (["--threshold", "tuned"], "no match_score.json"),
    ):
        assert quietly("predict", bare, pairs, *flags) == 2
        assert message in capsys.readouterr().err


def test_columns_are_named_and_taken_ones_kept(
    adapter: Path, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = [{"q": row["text_a"], "d": row["text_b"], "score": "mine"} for row in rows]
    source = write_rows(tmp_path / "in.jsonl", renamed)
    names = ("--text-a-column", "q", "--text-b-column", "d")
    for output in ([], ["-o", tmp_path / "out.jsonl"]):
        assert quietly("predict", adapter, source, *names, *output) == 2
        assert "column 'score'" in capsys.readouterr().err
    assert quietly("predict", adapter, source, *names, "--column-prefix", "new_") == 0
    assert all(row["score"] == "mine" and 0 <= row["new_score"] <= 1 for row in read_rows(capsys.readouterr().out))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_what_is_wrong_with_a_file_is_said_before_the_model_is_loaded(
    ending: str, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here there is none: a column that is not there, or taken, and a bad row are found first."""
    files = {name: tmp_path / f"{name}.{ending}" for name in ("good", "taken", "bad")}
    last = {"text_a": "", "text_b": "x", "label": 0, "number": 13}
    for name, written in (("good", rows), ("taken", [row | {"score": 1} for row in rows]), ("bad", [*rows, last])):
        table = pa.Table.from_pylist(written)
        if ending == "parquet":
            pq.write_table(table, files[name])
        elif ending == "csv":
            pa_csv.write_csv(table, files[name])
        else:
            write_rows(files[name], written)
    for name, flags, message in (
        ("good", ["--text-b-column", "q"], "has no column 'q'"),
        ("taken", [], "already has a column 'score'"),
        ("bad", [], "row 13 (the first is row 0): column 'text_a'"),
    ):
        for output in ([], ["-o", tmp_path / "out.jsonl"]):
            assert quietly("predict", tmp_path / "absent", files[name], *flags, *output) == 2
            out, err = capsys.readouterr()
            assert out == "" and message in err


def test_through_a_pipe(
    adapter: Path, rows: list[dict[str, Any]], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Standard input to standard output; and to a file, for which it is read twice."""
    data = pairs.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert quietly("predict", adapter, "-", "--part-rows", 4) == 0
    found = read_rows(capsys.readouterr().out)
    assert [row["number"] for row in found] == [row["number"] for row in rows]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert quietly("predict", adapter, "-", "-o", tmp_path / "out.jsonl", "--part-rows", 4) == 0
    assert read_rows(tmp_path / "out.jsonl") == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl"]


def test_a_table_without_rows_is_told_of(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "header.csv").write_text("text_a,text_b\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    for given, name in ((tmp_path / "header.csv", "header.csv"), ("-", "standard input")):
        assert quietly("predict", adapter, given) == 0
        assert capsys.readouterr() == ("", f"flipped-kd: {name} holds no rows\n")
