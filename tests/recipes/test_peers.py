"""sentence-transformers' CrossEncoderTrainer as a peer: it trains our student, and is judged by the same code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import PEERS, gold_labels, teacher_labels, teacher_margins
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainer
from sklearn.metrics import roc_auc_score

from flipped_kd.experiments.ablation.pair_scores import unpacked_splits
from flipped_kd.experiments.ablation.plan import Job
from flipped_kd.experiments.ablation.run import run_job
from tests.cli.helpers import pair_rows, read_rows, write_rows
from tests.conftest import make_pairs


@pytest.fixture
def job(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> Job:
    for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
        write_rows(tmp_path / f"{name}.jsonl", pair_rows(24, seed=seed))
    settings: dict[str, Any] = {
        **{f"{name}_file": str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")},
        **{"student": str(student_dir), "teacher": str(teacher_dir), "lora_r": 4, "use_cpu": True},
        **{"per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 0.01},
    }
    return Job("tiny", "peer", 3, settings, {})


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_makes_a_row_of_a_trained_student(
    name: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    trainer = SentenceTransformerTrainer if name == "embedding_mnrl" else CrossEncoderTrainer
    step = trainer.training_step

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        assert type(self.loss).__name__ == getattr(PEERS[name], "loss", "MultipleNegativesRankingLoss")
        loss = step(self, *arguments, **options)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(trainer, "training_step", watched)
    job = replace(job, settings={**job.settings, "num_train_epochs": 6})
    row = run_job(job, tmp_path / "out", PEERS[name])
    system = "similarity" if name == "embedding_mnrl" else "answer"
    combined = set() if name == "embedding_mnrl" else {"answer_plus_teacher"}
    assert {"teacher", system, "validation_auc", "run", *combined} == row["metrics"].keys()
    assert {"teacher", system} == row["metrics"]["validation_auc"].keys()
    assert all(np.isfinite(list(metrics.values())).all() for metrics in row["metrics"].values())
    kept = unpacked_splits(row["scores"])[system]
    labels = [one["label"] for one in read_rows(tmp_path / "test.jsonl")]
    assert roc_auc_score(labels, kept.test) == pytest.approx(row["metrics"][system]["auc"], abs=0.02)
    assert row["metrics"]["run"]["steps"] == len(losses)
    half = len(losses) // 2
    assert half >= 2 and np.mean(losses[half:]) < np.mean(losses[:half])


def test_untrained_it_scores_as_our_student(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same prompt, same answer tokens: before training both are the bare LLM."""
    import peers

    monkeypatch.setattr(peers, "_train", lambda *arguments: None)
    theirs = run_job(job, tmp_path / "theirs", PEERS["cross_encoder_bce"])
    plain = {"dist_weight": 0.0, "mcl_weight": 0.0, "max_steps": 1}
    ours = run_job(Job("tiny", "plain", 3, {**job.settings, **plain}, plain, looks_before=True), tmp_path / "ours")
    assert theirs["metrics"]["answer"] == pytest.approx(ours["metrics"]["llm"], abs=1e-5)
    assert theirs["metrics"]["teacher"] == pytest.approx(ours["metrics"]["teacher"])


def test_columns_hold_what_each_loss_reads() -> None:
    pairs = make_pairs(20)

    def log_odds(text_a: list[str], text_b: list[str]) -> np.ndarray:
        return np.array([len(a) - 2.0 * len(b) for a, b in zip(text_a, text_b, strict=True)])

    assert gold_labels(pairs, log_odds, 0)["label"] == [float(label) for label in pairs["label"]]
    rows = teacher_labels(pairs, log_odds, 0)
    assert rows["label"] == log_odds(rows["text_a"], rows["text_b"]).tolist()  # type: ignore[arg-type]
    triples = teacher_margins(pairs, log_odds, 0)
    assert len(triples["query"]) == sum(pairs["label"])
    expected = log_odds(triples["query"], triples["passage_one"]) - log_odds(triples["query"], triples["passage_two"])  # type: ignore[arg-type]
    np.testing.assert_array_equal(triples["label"], expected)
    assert triples == teacher_margins(pairs, log_odds, 0) != teacher_margins(pairs, log_odds, 1)
