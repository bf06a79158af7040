"""mteb reads a matcher as it reads any model: its metrics are those of the matcher's own search and scores."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flipped_kd import FlippedMatcher
from tests.cli.helpers import adapter_with_scores

pytest.importorskip("mteb", reason="mteb is not installed")

THINGS = ("card", "loan", "pin", "fee")
CORPUS = [f"how do I {verb} my {thing}" for verb in ("block", "find", "renew") for thing in THINGS]


@pytest.fixture(scope="module")
def folder(student_dir: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mteb")
    adapter_with_scores(folder / "adapter", student_dir, tokenizer)
    rows = [{"_id": f"d{n}", "title": "FAQ" if n % 2 else "", "text": text} for n, text in enumerate(CORPUS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{n}", "text": f"{text} please"} for n, text in enumerate(CORPUS)] + [
        {"_id": "idle", "text": "x"}
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    qrels = [f"q{n}\td{n}\t1" for n in range(len(CORPUS))]
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]) + "\n")
    return folder


def test_its_metrics_are_those_of_our_own_search(folder: Path) -> None:
    from evaluate_mteb import evaluate, local_task

    matcher = FlippedMatcher.from_pretrained(folder / "adapter", device="cpu")
    task = local_task(*(folder / name for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")))
    found = evaluate(matcher, "tiny", task, rerank=4)
    assert list(found) == ["vectors", "4 nearest by answer", "4 nearest by both"]
    texts = [f"FAQ {text}" if n % 2 else text for n, text in enumerate(CORPUS)]
    queries = [f"{text} please" for text in CORPUS]
    for way, options in (
        ("vectors", {"top_k": len(texts)}),
        ("4 nearest by answer", {"top_k": 4, "rerank": 4, "score": "answer"}),
        ("4 nearest by both", {"top_k": 4, "rerank": 4, "score": "both"}),
    ):
        ranks = []
        for place, hits in enumerate(matcher.search(queries, texts, **options)):
            order = [hit["corpus_id"] for hit in hits]
            ranks.append(order.index(place) + 1 if place in order else np.inf)
        ranks = np.array(ranks)
        expected = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean()
        assert found[way]["ndcg_at_10"] == pytest.approx(expected, abs=1e-4)
        assert found[way]["mrr_at_10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean(), abs=1e-4)


def test_what_cannot_be_told_at_the_end_is_refused_before(folder: Path) -> None:
    from evaluate_mteb import evaluate, local_task, metrics_of

    matcher = FlippedMatcher.from_pretrained(folder / "adapter", device="cpu")
    task = local_task(*(folder / name for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")))
    matcher.match_score = None
    with pytest.raises(ValueError, match="has no match score.*--rerank 0"):
        evaluate(matcher, "tiny", task, rerank=4)
    assert list(evaluate(matcher, "tiny", task, rerank=0)) == ["vectors"]
    # Some of mteb's tasks have their queries in "train" or "dev".
    judged = SimpleNamespace(task_results=[SimpleNamespace(scores={"train": [{"ndcg_at_10": 0.5, "more": 1}]})])
    assert metrics_of(judged) == {"ndcg_at_10": 0.5}
    several = SimpleNamespace(metadata=SimpleNamespace(name="Two", eval_splits=["dev", "test"]), hf_subsets=["en"])
    with pytest.raises(ValueError, match=r"'Two' has the splits \['dev', 'test'\]"):
        evaluate(matcher, "tiny", several)


def test_lines_end_where_json_lines_do(folder: Path, tmp_path: Path) -> None:
    """Not at a line separator (U+2028) or next line (U+0085) in a text, which JSON need not escape."""
    from evaluate_mteb import local_task

    text = "one\u2028two\x85three"
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"_id": f"d{n}", "text": text} for n in range(len(CORPUS))]
    corpus.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n", encoding="utf-8")
    task = local_task(corpus, folder / "queries.jsonl", folder / "qrels.tsv")
    task.load_data()
    assert [row["text"] for row in task.dataset["default"]["test"]["corpus"]] == [text] * len(CORPUS)


def test_the_command_prints_a_line_a_way_and_refuses_broken_files(
    folder: Path, teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluate_mteb import local_task, main

    files = {
        name: folder / f"{name}.{end}" for name, end in (("corpus", "jsonl"), ("queries", "jsonl"), ("qrels", "tsv"))
    }

    def command(**changes: Path) -> list[str]:
        return [
            str(folder / "adapter"),
            *(str(one) for name, path in {**files, **changes}.items() for one in (f"--{name}", path)),
        ]

    main([*command(), "--rerank", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == ["vectors", "3 nearest by answer", "3 nearest by both"]
    main([*command(), "--rerank", "0", "--max-queries", "2", "--teacher", str(teacher_dir)])
    lines = capsys.readouterr().out.splitlines()
    assert "2 of 12 queries" in lines
    assert [line.split("  ")[0] for line in lines[-2:]] == ["teacher's vectors", "vectors"]
    task = local_task(*files.values(), max_queries=2)
    task.load_data()
    assert sorted(task.dataset["default"]["test"]["queries"]["id"]) == ["q0", "q1"]
    for few in (["--max-queries", "0"], ["--max-queries", "x"]):
        with pytest.raises(SystemExit):
            main([*command(), *few])
    for name, content, message in (
        ("corpus", '{"_id": "d0"}\n', "corpus.jsonl, line 1 needs `_id` and `text`"),
        ("corpus", '{"_id": "d0", "text": "x"}\n{"_id"\n', "'corpus.jsonl', line 2 is not JSON"),
        ("qrels", "head\nq0 d0 1\n", "qrels.tsv, line 2 is 'q0 d0 1'"),
        ("qrels", "head\nq0\tnowhere\t1\n", "give query id, id of a document"),
        ("qrels", "head\nwho\td0\t1\n", "names queries that queries.jsonl lacks, such as 'who'"),
    ):
        path = tmp_path / files[name].name
        path.write_text(content)
        with pytest.raises(SystemExit, match=message):
            main(command(**{name: path}))
    with pytest.raises(
        SystemExit, match=r"^error: --task: 'NFCorpu' not found. Did you mean: 'NFCorpus'\? Give one of"
    ):
        main([str(folder / "adapter"), "--task", "NFCorpu"])
    with pytest.raises(SystemExit):
        main([str(folder / "adapter"), "--task", "NFCorpus", "--corpus", "x"])
    assert "give --corpus, --queries and --qrels, or --task" in capsys.readouterr().err
