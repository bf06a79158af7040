"""The recipes beside finance, with tiny models: medicine, FAQ retrieval with its rankings, Chinese."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import train_faq
import train_fin
import train_med
from mini_student import MiniStudentSettings, build_mini_student
from mini_teacher import MiniTeacherSettings, build_mini_teacher
from sklearn.metrics import roc_auc_score

from flipped_kd.data.faq import read_faq
from flipped_kd.evaluation.comparison import SYSTEMS
from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.experiments.faq_ranking import answer_retrieval
from flipped_kd.experiments.parsing import parse_settings
from flipped_kd.experiments.splits import SPLITS, load_split
from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.teachers.suitability import warnings_of
from flipped_kd.training.config import FlippedDistillationConfig
from tests.cli.helpers import QUICK
from tests.json_files import report_of

ROOT = Path(__file__).parents[2]
DATA = ROOT / "recipes" / "data"


def test_medicine(student_dir: Path, teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--student", str(student_dir), "--teacher", str(teacher_dir), "--output_dir", str(tmp_path)]
    limits = {"max_train_pairs": 40, "max_validation_pairs": 60, "max_test_pairs": 48}
    train_med.main([*flags, *QUICK, *(f"--{name}={count}" for name, count in limits.items())])
    report = report_of(tmp_path)
    assert report["data"]["test"] == 48 and "retrieval" not in report
    screen, loud = capsys.readouterr()
    # The check comes before the first run is trained, which ends with a line of its run time.
    assert screen.index("The teacher on the validation pairs") < screen.index("train_runtime")
    check = report["teacher_check"]
    files: Any = {f"{split}_file": str(DATA / "med_mini" / f"{split}.jsonl") for split in SPLITS}
    labels = load_split(DataArguments(**files, **limits), "validation")["label"]
    assert len(labels) == 60
    with np.load(tmp_path / "runs" / "seed-42" / "llm_sft" / "scores.npz") as scores:
        assert check["student"]["roc_auc"] == pytest.approx(roc_auc_score(labels, scores["before_validation"]))
    said = [line.removeprefix("WARNING: ") for line in loud.splitlines() if line.startswith("WARNING: ")]
    assert said == warnings_of(check) != []  # this teacher knows other words


def test_faq_ranks_all_questions(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    test_file = tmp_path / "test.jsonl"
    rows = (DATA / "faq_mini" / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:12]
    test_file.write_text("".join(rows), encoding="utf-8")
    flags = ["--student", str(student_dir), "--teacher", str(teacher_dir), "--output_dir", str(tmp_path / "out")]
    for name in ("train", "validation", "questions"):
        flags += [f"--{name}_file", str(DATA / "faq_mini" / f"{name}.jsonl")]
    limits = ["--max_train_pairs", "40", "--max_eval_queries", "4"]
    train_faq.main([*flags, "--test_file", str(test_file), *QUICK, *limits])
    report = report_of(tmp_path / "out")
    assert report["data"] == {
        **{"train": 40, "validation": 20, "test": 20},
        "positive_share": pytest.approx({"train": 0.2, "validation": 0.2, "test": 0.2}, abs=0.15),
    }
    assert list(report["retrieval"]) == [
        name for name in SYSTEMS if name not in ("llm_sft_plus_teacher", "llm_flipped_start")
    ]
    assert "all questions ranked for each query" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    # All 12 test queries are ranked, whatever the pairs were made of; as the saved adapter ranks.
    faq = read_faq(test_file, DATA / "faq_mini" / "questions.jsonl")
    matcher = FlippedMatcher.from_pretrained(tmp_path / "out", device="cpu")
    ids, texts = list(faq.questions), list(faq.questions.values())
    kinds: dict[str, Any] = {"": "answer", "_similarity": "similarity", "_both": "both"}
    for system, kind in kinds.items():
        ranks = [
            [ids[hit["corpus_id"]] for hit in matcher.rank(query, texts, score=kind)].index(gold) + 1
            for query, gold in zip(faq.queries, faq.gold, strict=True)
        ]
        found = report["retrieval"][f"llm_flipped{system}"]
        assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]), abs=0.02)


def test_many_answers_are_not_read() -> None:
    def refuse(pairs: Any) -> Any:
        raise AssertionError(f"{len(pairs)} pairs were read")

    names = {"test_file": "test", "questions_file": "questions"}
    files: Any = {field: str(DATA / "faq_mini" / f"{name}.jsonl") for field, name in names.items()}
    trainer: Any = SimpleNamespace(score_pairs=refuse)
    few = DataArguments(**files, max_answer_rankings=216 * 36 - 1)
    assert answer_retrieval(trainer, few, trained=True) == {}
    with pytest.raises(AssertionError, match="7776 pairs were read"):
        answer_retrieval(trainer, DataArguments(**files), trained=True)
    assert answer_retrieval(trainer, DataArguments(test_file=files["test_file"]), trained=True) == {}


@pytest.mark.slow
def test_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = ["--config", "recipes/configs/fin_zh_mini.yaml"]
    _, data, settings = parse_settings((StudentArguments, DataArguments, FlippedDistillationConfig), config)
    pairs = load_split(data, "train")
    assert sum(pairs["label"]) / len(pairs) == pytest.approx(0.18, abs=0.001)
    texts = [*pairs["text_a"], *pairs["text_b"]][:200]
    student = build_mini_student(
        texts, tmp_path / "student", settings=MiniStudentSettings(900, 32, 64, 2, 2, max_steps=2)
    )
    teacher = build_mini_teacher(pairs, tmp_path / "teacher", settings=MiniTeacherSettings(max_steps=2))
    flags = ["--student", str(student), "--teacher", str(teacher), "--output_dir", str(tmp_path / "out")]
    for split in ("validation", "test"):
        lines = Path(f"recipes/data/zh_mini/{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
        flags += [f"--{split}_file", str(tmp_path / f"{split}.jsonl")]
    train_fin.main([*config, *flags, *QUICK, "--max_train_pairs", "40"])
    assert report_of(tmp_path / "out")["teacher_check"]["agreement"]["n"] == 40
    assert settings.prompt == "zh"
    contract = json.loads((tmp_path / "out" / "pair_prompt.json").read_text(encoding="utf-8"))
    assert "否" in json.dumps(contract, ensure_ascii=False)
    matcher = FlippedMatcher.from_pretrained(tmp_path / "out", device="cpu")
    assert matcher.predict([("怎么退款", "退款什么时候到账")], score="answer").shape == (1,)
