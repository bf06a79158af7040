"""Bootstrap and Holm: each draw is scikit-learn's metric with weights, and what is nothing is not starred."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from flipped_kd.evaluation.comparison import SplitScores, combine
from flipped_kd.evaluation.metrics import best_f1_threshold
from flipped_kd.experiments.ablation import significance
from flipped_kd.experiments.ablation.pair_scores import packed_splits, unpacked_splits
from flipped_kd.experiments.ablation.plan import Group
from flipped_kd.experiments.ablation.significance import bootstrap, holm, shared_scores
from flipped_kd.experiments.ablation.tables import compare, of_set

PAIRS = 120


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "DRAWS", 400)
    monkeypatch.setattr(significance, "BLOCK", 50 * PAIRS)
    for cached in (significance._drawn, significance._times_drawn):
        cached.cache_clear()


def rows_of(name: str, quality: float, seeds: int = 3, spread: float = 0.0) -> list[dict[str, Any]]:
    """Rows whose answer tells the classes apart by `quality` standard deviations, more or less by seed."""
    labels = np.tile([0, 1, 1, 0, 0], PAIRS // 5)
    rows = []
    for seed in range(seeds):
        # The same pairs are hard for every seed and run; each adds something of its own.
        shared, own = np.random.default_rng(0), np.random.default_rng([seed, *name.encode()])
        gain = quality + spread * own.standard_normal()
        splits = {
            system: SplitScores(
                *(labels * gain + shared.standard_normal(PAIRS) + own.normal(scale=0.2, size=PAIRS) for _ in "vt")
            )
            for system in ("answer", "similarity", "teacher")
        } | {"label": SplitScores(labels, labels)}
        scores = packed_splits(splits)
        metrics = {
            system: {"auc": roc_auc_score(labels, splits[system].test), "f1": 0.5} for system in ("answer", "teacher")
        }
        rows.append({"set": "tiny", "name": name, "seed": seed, "scores": scores, "metrics": metrics})
    return rows


def with_labels(rows: list[dict[str, Any]], matches: int) -> list[dict[str, Any]]:
    """The rows, with so many matches among their test pairs."""
    for row in rows:
        kept = unpacked_splits(row["scores"])
        label = SplitScores(kept["label"].validation, (np.arange(PAIRS) < matches).astype(float))
        row["scores"] = packed_splits(kept | {"label": label})
        row["metrics"] = {}  # of other labels
    return rows


def best_threshold(scores: np.ndarray, labels: np.ndarray, times: np.ndarray) -> float:
    """The cut with the best weighted F1, found by trying all; of equal ones the highest."""
    cuts = np.unique(scores)[::-1]
    best = np.argmax([f1_score(labels, scores >= cut, sample_weight=times) for cut in cuts])
    return float(cuts[best : best + 2].astype(float).mean())


def test_pairs_drawn_once_each_have_the_threshold_of_evaluation() -> None:
    random = np.random.default_rng(0)
    for scores in (random.normal(size=40), random.integers(0, 6, 40).astype(float)):
        labels = random.integers(0, 2, 40)
        (found,) = significance._thresholds(scores, labels, np.ones((1, 40), np.uint8))
        assert found == pytest.approx(best_f1_threshold(scores, labels))
    (none,) = significance._thresholds(scores, np.zeros(40, int), np.ones((1, 40), np.uint8))
    assert np.isnan(none)


@pytest.mark.parametrize("system", ["answer", "both", "teacher", "answer_plus_teacher"])
def test_a_draw_is_the_metric_with_weights(system: str) -> None:
    (row,) = rows_of("full", 1.0, seeds=1)
    splits = unpacked_splits(row["scores"])
    labels = splits["label"].test.astype(int)
    if system == "both":
        scores = combine(splits["answer"], splits["similarity"], labels)
    elif system == "answer_plus_teacher":
        scores = combine(splits["answer"], splits["teacher"], labels)
    else:
        scores = splits[system]
    key = significance._key(row, {})
    times, of_validation = (significance._times_drawn(PAIRS, seed).astype(float) for seed in (0, 2))
    for draw in (0, 17, 399):
        threshold = best_threshold(scores.validation, labels, of_validation[draw])
        for metric, expected in (
            ("auc", roc_auc_score(labels, scores.test, sample_weight=times[draw])),
            ("f1", f1_score(labels, scores.test >= threshold, sample_weight=times[draw])),
        ):
            assert significance._drawn(key, system, metric)[1][draw] == pytest.approx(expected, abs=1e-6)


def test_ties_count_half() -> None:
    scores, labels = np.array([1.0, 2.0, 2.0, 3.0, 2.0]), np.array([0, 1, 0, 1, 0])
    times = np.array([[1, 1, 1, 1, 1], [2, 1, 3, 1, 2]], np.float32)
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in times]
    np.testing.assert_allclose(significance._auc(scores, labels, times), expected)


def test_a_better_run_is_told_from_an_equal_one() -> None:
    full, plain, same = rows_of("full", 1.5), rows_of("plain", 0.3), rows_of("same", 1.5)
    shared = shared_scores(full)
    better = bootstrap(full, plain, ("answer", "answer"), "auc", shared)
    assert better is not None and 0 < better.low < better.high and better.p < 0.02
    equal = bootstrap(full, same, ("answer", "answer"), "auc", shared)
    assert equal is not None and equal.low < 0 < equal.high and equal.p > 0.05
    itself = bootstrap(full, full, ("answer", "answer"), "f1", shared)
    assert itself is not None and (itself.low, itself.high, itself.p) == (0, 0, 1)
    turned = bootstrap(plain, full, ("answer", "answer"), "auc", shared)
    assert turned is not None and (turned.low, turned.high) == pytest.approx((-better.high, -better.low))


def test_an_interval_is_of_the_rows_own_values() -> None:
    """Scores are rounded, and F1 may choose another threshold by them: the spread is theirs, the place is not."""
    full, plain = rows_of("full", 1.5), rows_of("plain", 0.3)
    shared = shared_scores(full)
    for part in (full, plain):
        for row in part:
            row["metrics"]["answer"]["f1"] = significance._drawn(significance._key(row, shared or {}), "answer", "f1")[
                0
            ]
    same = bootstrap(full, plain, ("answer", "answer"), "f1", shared)
    for row in full:
        row["metrics"]["answer"]["f1"] -= 0.02
    moved = bootstrap(full, plain, ("answer", "answer"), "f1", shared)
    assert same is not None and moved is not None
    assert (moved.low, moved.high) == pytest.approx((same.low - 0.02, same.high - 0.02))


def test_seeds_widen_the_interval_as_pairs_do() -> None:
    steady, moving = rows_of("steady", 1.0, seeds=6), rows_of("moving", 1.0, seeds=6, spread=1.0)
    base = rows_of("plain", 0.5, seeds=6)
    widths = []
    for rows in (steady, moving):
        found = bootstrap(rows, base, ("answer", "answer"), "auc", shared_scores(base))
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[1] > 1.3 * widths[0]


def test_seeds_have_the_spread_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pairs to draw, draws of two seeds lie as far apart as their standard error says."""
    gaps = iter([np.full(400, 0.1), np.full(400, 0.3), np.zeros(400), np.zeros(400)])
    monkeypatch.setattr(significance, "_around_exact", lambda *_: next(gaps))
    full, plain = rows_of("full", 1.0, seeds=2), rows_of("plain", 1.0, seeds=2)
    found = bootstrap(full, plain, ("answer", "answer"), "auc", shared_scores(full))
    assert found is not None and (found.low, found.high) == pytest.approx((0.2 - 0.1 * 2**0.5, 0.2 + 0.1 * 2**0.5))


def test_rows_without_scores_have_the_t_test() -> None:
    full, plain = rows_of("full", 1.5), rows_of("plain", 0.3)
    found = compare(full, plain, ("answer", "answer"), "auc")
    assert found is not None and found.interval is not None and found.chance == found.interval.p
    # The labels may stand in any row of the set.
    for row in full[1:] + plain:
        for name in ("label", "teacher"):
            row["scores"].pop(name)
    again = compare(plain, full, ("answer", "answer"), "auc")
    assert again is not None and again.interval is not None and again.interval.high < 0
    for row in full:
        row.pop("scores")
    found = compare(full, plain, ("answer", "answer"), "auc")
    values = [[row["metrics"]["answer"]["auc"] for row in part] for part in (full, plain)]
    assert found is not None and found.interval is None
    assert found.chance == pytest.approx(stats.ttest_rel(*values).pvalue)


def test_a_run_without_the_first_seed_has_intervals_as_well() -> None:
    """Rows of the first seed keep labels and teacher for all."""
    full, late = rows_of("full", 1.5), rows_of("late", 0.3)
    whole = compare(full[1:], late[1:], ("answer", "answer"), "auc")
    for row in full[1:] + late:
        row["scores"] = {name: row["scores"][name] for name in ("answer", "similarity")}
    group = Group("Main", ("tiny",), (0, 1, 2), ("full", "late"), "full")
    found = of_set(full + late[1:], group, "tiny")
    assert [row["seed"] for row in found["full"]] == [1, 2]
    again = compare(found["full"], found["late"], ("answer", "answer"), "auc")
    assert whole is not None and again is not None and again.interval == whole.interval is not None


def test_a_row_with_a_teacher_of_its_own_is_judged_by_that() -> None:
    (full,), (late,) = rows_of("full", 1.5, seeds=1), rows_of("late", 0.3, seeds=1)
    assert shared_scores([full]) != shared_scores([late])
    assert significance._key(late, shared_scores([full]) or {}) == significance._key(late, {})


@pytest.mark.parametrize("matches", [2, PAIRS - 2])
def test_a_draw_of_one_class_is_left_out(matches: int) -> None:
    """Of 120 pairs with two matches every seventh draw has none."""
    full, plain = (with_labels(rows_of(name, 1.0, seeds=2), matches) for name in ("full", "plain"))
    found = bootstrap(full, plain, ("answer", "answer"), "auc", shared_scores(full))
    assert found is not None and -1 <= found.low <= found.high <= 1 and found.p <= 1
    found = bootstrap(full, plain, ("answer", "answer"), "f1", shared_scores(full))
    assert found is not None and -1 <= found.low <= found.high <= 1


def test_pairs_of_one_class_have_no_interval_of_their_auc() -> None:
    """They had a p-value of .0002, and a star."""
    full, plain = (with_labels(rows_of(name, 1.0, seeds=2), 0) for name in ("full", "plain"))
    assert bootstrap(full, plain, ("answer", "answer"), "auc", shared_scores(full)) is None


def test_holm_by_hand() -> None:
    """Of .001, .012, .02, .04: .001 < .05/4, .012 < .05/3, .02 < .05/2, .04 < .05; with .013 in the place of .012 too;
    with .03 for .02 it stops there."""
    assert holm([0.02, 0.001, None, 0.012, 0.04]) == [True, True, False, True, True]
    assert holm([0.03, 0.001, None, 0.012, 0.04]) == [False, True, False, True, False]
    assert holm([0.013, 0.014, 0.03, 0.5]) == [False] * 4
    assert holm([]) == [] and holm([None]) == [False]
