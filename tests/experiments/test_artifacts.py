"""What runs leave for the report: norms and vectors of the saved adapter, a bounded sample, examples of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flipped_kd.evaluation.comparison import SplitScores
from flipped_kd.evaluation.metrics import best_f1_threshold
from flipped_kd.evaluation.mistakes import EXAMPLES, LONGEST, Judged, choose_examples, judge_systems
from flipped_kd.evaluation.run_files import ARTIFACTS_FILE, EXAMPLES_FILE
from flipped_kd.experiments.artifacts import Adapted, keep_seed, take_snapshot, update_norm, write_artifacts
from flipped_kd.experiments.splits import Splits
from flipped_kd.experiments.text_sample import GROUPS, sample_pairs
from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.teachers.loading import load_teacher
from tests.conftest import make_pairs
from tests.invariants.training import lora

SCALING = 2.0  # of tests.invariants.training.lora: alpha 8, rank 4


@pytest.fixture
def finished(build: Any, held_out: datasets.Dataset, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """(folder of a run of a few steps with its evidence, A and B before it by their names in the adapter)."""
    trainer = build()
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_" in name}
    before = take_snapshot(trainer, held_out)
    trainer.train()
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    write_artifacts(folder, before, take_snapshot(trainer, held_out))
    return folder, {name.replace(".default", ""): value for name, value in start.items()}


def test_norms_are_those_of_the_saved_adapter(finished: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, start = finished
    saved = load_file(folder / "adapter_model.safetensors")
    arrays = np.load(folder / ARTIFACTS_FILE)
    assert len(arrays["modules"]) == len(saved) / 2 > 0
    for place, name in enumerate(arrays["modules"]):
        a, b = (f"base_model.model.{name}.lora_{matrix}.weight" for matrix in "AB")
        expected = {
            "a_start": start[a],
            "a_moved": saved[a] - start[a],
            "b_moved": saved[b] - start[b],
            "update": SCALING * (saved[b].double() @ saved[a].double()),  # B is 0 at the start
        }
        for norm, matrix in expected.items():
            assert arrays[norm][place] == pytest.approx(float(torch.linalg.norm(matrix)), rel=1e-5), (name, norm)
    assert (arrays["a_moved"] > 0).all() and (arrays["update"] > 0).all()


def test_an_adapted_embedding_counts_too(build: Any, held_out: datasets.Dataset, tmp_path: Path) -> None:
    config = lora()
    config.target_modules = ["embed_tokens", "q_proj"]
    trainer = build(peft_config=config)
    before = take_snapshot(trainer, held_out)
    trainer.train()
    write_artifacts(tmp_path, before, take_snapshot(trainer, held_out))
    arrays = np.load(tmp_path / ARTIFACTS_FILE)
    place = list(arrays["modules"]).index("model.embed_tokens")
    embedding = trainer.model.get_base_model().model.embed_tokens
    assert arrays["update"][place] == pytest.approx(
        float(embedding.get_delta_weight("default").detach().norm()), rel=1e-5
    )
    assert arrays["a_start"][place] == 0 < arrays["a_moved"][place]


def test_update_of_a_carried_adapter_is_the_difference_of_products() -> None:
    torch.manual_seed(0)
    before = Adapted(torch.randn(4, 9), torch.randn(7, 4), 0.5)
    after = Adapted(before.a + 0.1 * torch.randn(4, 9), before.b + 0.1 * torch.randn(7, 4), 0.5)
    change = 0.5 * (after.b @ after.a - before.b @ before.a)
    assert update_norm(before, after) == pytest.approx(float(torch.linalg.norm(change)), rel=1e-5)
    assert update_norm(before, before) == pytest.approx(0, abs=1e-6)


def test_vectors_are_those_of_the_saved_adapter(
    finished: tuple[Path, dict[str, torch.Tensor]], student_dir: Path, held_out: datasets.Dataset
) -> None:
    folder, _ = finished
    arrays = np.load(folder / ARTIFACTS_FILE)
    matcher = FlippedMatcher.from_pretrained(folder, base_model=str(student_dir), device="cpu")
    texts = list(sample_pairs(held_out).texts)
    np.testing.assert_allclose(arrays["after"], matcher.encode(texts, show_progress_bar=False), atol=1e-5)
    assert np.abs(arrays["before"] - arrays["after"]).max() > 1e-3


def test_looking_changes_nothing(build: Any, held_out: datasets.Dataset) -> None:
    """A run that is looked at is the run that is not, bit for bit."""
    weights = []
    for looked in (True, False):
        trainer = build()
        state = torch.get_rng_state()
        if looked:
            take_snapshot(trainer, held_out)
        assert torch.equal(torch.get_rng_state(), state)
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.model.parameters() if p.requires_grad])
    assert all(torch.equal(first, second) for first, second in zip(*weights, strict=True))


def test_who_does_not_save_does_not_look(build: Any, held_out: datasets.Dataset, monkeypatch: Any) -> None:
    trainer = build()
    monkeypatch.setattr(type(trainer.args), "should_save", property(lambda self: False))
    assert take_snapshot(trainer, held_out) is None


# ---- The sample ----


def test_sample_is_bounded_balanced_and_always_the_same() -> None:
    pairs = make_pairs(900)
    sample, again = sample_pairs(pairs), sample_pairs(pairs)
    assert len(sample.pairs) == 200 and sample.labels.sum() == 100
    assert sample.texts == again.texts and (sample.pairs == again.pairs).all()
    assert len(set(sample.texts)) == len(sample.texts) == len(sample.groups)
    rows = {(row["text_a"], row["text_b"], row["label"]) for row in pairs}
    for (a, b), label in zip(sample.pairs, sample.labels, strict=True):
        assert (sample.texts[a], sample.texts[b], label) in rows


@pytest.mark.parametrize("matches", [0, 1, 30, 299, 300])
def test_a_rare_class_is_there_as_far_as_it_goes(matches: int) -> None:
    rows = [{"text_a": f"a{n}", "text_b": f"b{n}", "label": int(n < matches)} for n in range(300)]
    sample = sample_pairs(datasets.Dataset.from_list(rows))
    assert len(sample.labels) == 200
    assert sample.labels.sum() == {0: 0, 1: 1, 30: 30, 299: 199, 300: 200}[matches]


def test_groups_are_the_largest_sets_joined_by_matches() -> None:
    sizes = [9, 2, 5, 3, 7, 4, 6, 1, 1]
    rows = []
    for number, size in enumerate(sizes):  # chains: the ends are joined over others
        texts = [f"topic {number}, text {place}" for place in range(size)]
        rows += [{"text_a": a, "text_b": b, "label": 1} for a, b in zip(texts, texts[1:], strict=False)]
        rows.append({"text_a": texts[0], "text_b": f"other {number}", "label": 0})
    sample = sample_pairs(datasets.Dataset.from_list(rows))
    by_group: dict[int, set[str]] = {}
    for text, group in zip(sample.texts, sample.groups, strict=True):
        by_group.setdefault(int(group), set()).add(text.partition(",")[0])
    largest = [f"topic {sizes.index(size)}" for size in sorted(sizes, reverse=True)[:GROUPS]]
    assert [by_group[group] for group in range(GROUPS)] == [{topic} for topic in largest]
    assert [(sample.groups == group).sum() for group in range(GROUPS)] == sorted(sizes, reverse=True)[:GROUPS]


def test_what_nothing_joins_is_in_no_group() -> None:
    sample = sample_pairs(datasets.Dataset.from_list([{"text_a": "a", "text_b": "b", "label": 0}] * 3))
    assert sample.groups.tolist() == [-1, -1]


# ---- Examples ----


def test_systems_are_judged_as_in_the_table() -> None:
    draw = np.random.default_rng(0)
    labels, test_labels = draw.integers(0, 2, 80), draw.integers(0, 2, 60)
    teacher = SplitScores(labels + draw.normal(size=80), test_labels + draw.normal(size=60))
    student = tuple(SplitScores(labels + draw.normal(size=80), test_labels + draw.normal(size=60)) for _ in range(2))
    judged = judge_systems(labels, teacher, {"llm_flipped": student})  # type: ignore[dict-item]
    cut = best_f1_threshold(teacher.validation, labels)
    np.testing.assert_array_equal(judged["teacher"].predicted, teacher.test >= cut)
    order = np.argsort(teacher.test)
    assert (np.diff(judged["teacher"].probability[order]) >= 0).all()
    assert all(((one.probability > 0) & (one.probability < 1)).all() for one in judged.values())


def test_examples_are_the_most_confident_ones() -> None:
    test = make_pairs(60)
    gold = np.asarray(test["label"]).astype(bool)
    draw = np.random.default_rng(1)
    judged = {}
    for name in ("teacher", "llm_sft", "llm_flipped"):
        probability = draw.random(60)
        judged[name] = Judged(probability, probability >= 0.4)
    found = choose_examples(judged, test)
    for name, one in judged.items():
        wrong = one.predicted != gold
        part = found["mistakes"][name]
        assert part["count"] == wrong.sum() and len(part["pairs"]) == min(EXAMPLES, wrong.sum())
        assert all((pair["probability"][name] >= 0.4) != bool(pair["label"]) for pair in part["pairs"])
        sure = [
            pair["probability"][name] if not pair["label"] else 1 - pair["probability"][name] for pair in part["pairs"]
        ]
        assert sure == sorted(sure, reverse=True)
        assert sure[0] == pytest.approx(np.abs(one.probability - gold)[wrong].max(), abs=1e-4)
    right = {name: one.predicted == gold for name, one in judged.items()}
    alone = right["llm_flipped"] & ~right["llm_sft"] & ~right["teacher"]
    assert found["only_flipped"]["count"] == alone.sum() > 0
    for pair in found["only_flipped"]["pairs"]:
        decided = {name: value >= 0.4 for name, value in pair["probability"].items()}
        assert decided["llm_flipped"] == bool(pair["label"]) != decided["teacher"] == decided["llm_sft"]


def test_seed_files_are_bounded_and_hold_the_teachers_vectors(build: Any, teacher_dir: Path, tmp_path: Path) -> None:
    long = {"text_a": "card " * 500, "text_b": "cash", "label": 1}
    test = datasets.concatenate_datasets([make_pairs(40), datasets.Dataset.from_list([long])])
    splits, teacher = Splits(test, make_pairs(30, seed=3), test), load_teacher(str(teacher_dir))
    args = build().args
    args.teacher_cache_dir = str(tmp_path / "cache")
    draw = np.random.default_rng(0)
    scores = SplitScores(draw.normal(size=30), draw.normal(size=41))
    students = {name: (scores, scores) for name in ("llm_sft", "llm_flipped")}
    keep_seed(tmp_path / "seed", splits, teacher, scores, students, args)
    assert sorted(path.name for path in (tmp_path / "seed").iterdir()) == [EXAMPLES_FILE, ARTIFACTS_FILE]
    arrays = np.load(tmp_path / "seed" / ARTIFACTS_FILE)
    texts = list(sample_pairs(test).texts)
    np.testing.assert_allclose(arrays["vectors"], teacher.model.encode(texts, normalize_embeddings=True), atol=1e-5)
    np.testing.assert_array_equal(arrays["labels_test"], test["label"])
    content = (tmp_path / "seed" / EXAMPLES_FILE).read_text(encoding="utf-8")
    assert max(len(text) for text in json.loads(content)["groups"]) <= LONGEST
    assert str(tmp_path) not in content and "card " * 100 not in content


def test_a_cross_encoder_has_no_vectors_to_keep(build: Any, cross_encoder_dir: Path, tmp_path: Path) -> None:
    test = make_pairs(20)
    teacher, scores = load_teacher(str(cross_encoder_dir)), SplitScores(np.arange(20.0), np.arange(20.0))
    keep_seed(tmp_path, Splits(test, test, test), teacher, scores, {}, build().args)
    assert "vectors" not in np.load(tmp_path / ARTIFACTS_FILE).files
