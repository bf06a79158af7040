"""Metrics against slow definitions and sentence-transformers, and as `evaluate.Metric` objects without a network."""

import math
import multiprocessing
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flipped_kd.evaluation.evaluate_metrics import PairMatching, Retrieval
from flipped_kd.evaluation.metrics import best_f1_threshold, matching_metrics, precision_threshold
from flipped_kd.evaluation.ranking import ranking_metrics

# Few distinct scores, so that ties are common.
SCORE = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(-1e300, 1e300)
SCORED = st.lists(st.tuples(SCORE, st.integers(0, 1)), min_size=1, max_size=12)


def slow_at(pairs: list[tuple[float, int]], threshold: float) -> dict[str, float]:
    true_positives = sum(score >= threshold and label == 1 for score, label in pairs)
    predicted = sum(score >= threshold for score, _ in pairs)
    positives = sum(label for _, label in pairs)
    return {
        "f1": 2 * true_positives / (predicted + positives) if predicted + positives else 0.0,
        "precision": true_positives / predicted if predicted else 0.0,
        "recall": true_positives / positives if positives else 0.0,
        "accuracy": sum((score >= threshold) == label for score, label in pairs) / len(pairs),
    }


def slow_auc(pairs: list[tuple[float, int]]) -> float:
    """The share of (positive, negative) in the right order, ties counting half."""
    wins = [(p > n) + (p == n) / 2 for p, label in pairs if label for n, other in pairs if not other]
    return sum(wins) / len(wins) if wins else math.nan


def slow_average_precision(pairs: list[tuple[float, int]]) -> float:
    """The sum over the cuts, from the top, of precision times the recall gained."""
    if not any(label for _, label in pairs):
        return math.nan
    area, recall = 0.0, 0.0
    for cut in sorted({score for score, _ in pairs}, reverse=True):
        at = slow_at(pairs, cut)
        area, recall = area + at["precision"] * (at["recall"] - recall), at["recall"]
    return area


@settings(deadline=None, max_examples=40)
@given(SCORED, st.sampled_from([-0.5, 0.0, 0.3, 0.5]), st.sampled_from([0.25, 0.6]))
def test_matching_metrics_equal_their_definitions(pairs, threshold, tuned):
    scores, labels = zip(*pairs, strict=True)
    expected = slow_at(pairs, threshold) | {f"{name}_tuned": value for name, value in slow_at(pairs, tuned).items()}
    expected |= {"roc_auc": slow_auc(pairs), "average_precision": slow_average_precision(pairs)}
    results = matching_metrics(scores, labels, threshold=threshold, tuned_threshold=tuned)
    assert results == pytest.approx(expected, nan_ok=True)
    assert all(type(value) is float for value in results.values())
    assert set(matching_metrics(scores, labels, threshold=None)) == {"roc_auc", "average_precision"}


@settings(deadline=None, max_examples=80)
@given(SCORED.filter(lambda pairs: any(label for _, label in pairs)))
def test_no_threshold_beats_the_best(pairs):
    scores, labels = zip(*pairs, strict=True)
    best = best_f1_threshold(scores, labels)
    # Every way to cut the pairs in two is a cut at one of the scores.
    f1 = {cut: slow_at(pairs, cut)["f1"] for cut in scores}
    assert slow_at(pairs, best)["f1"] == max(f1.values())
    highest = max(cut for cut in scores if f1[cut] == max(f1.values()))
    assert [score >= best for score in scores] == [score >= highest for score in scores]


def test_the_best_threshold_lies_midway():
    assert best_f1_threshold([0.9, 0.7, 0.3, 0.1], [1, 1, 0, 0]) == pytest.approx(0.5)
    assert best_f1_threshold([4, 2, 1], [1, 0, 0]) == 3.0
    assert best_f1_threshold([0.9, 0.2], [0, 1]) == 0.2  # everything matches: the lowest score


@settings(deadline=None, max_examples=80)
@given(SCORED.filter(lambda pairs: any(label for _, label in pairs)), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_no_threshold_of_that_precision_has_more_recall(pairs, precision):
    scores, labels = zip(*pairs, strict=True)
    at = {cut: slow_at(pairs, cut) for cut in scores}
    allowed = [cut for cut in scores if at[cut]["precision"] >= precision]
    if not allowed:
        best = max(values["precision"] for values in at.values())
        with pytest.raises(ValueError, match=f"no threshold has a precision of {precision}.*the best has {best:.3f}"):
            precision_threshold(scores, labels, precision)
        return
    threshold = precision_threshold(scores, labels, precision)
    found = slow_at(pairs, threshold)
    assert found["precision"] >= precision and found["recall"] == max(at[cut]["recall"] for cut in allowed)


@pytest.mark.parametrize("precision", [0, -0.1, 1.1, float("nan")])
def test_a_precision_lies_above_0_and_up_to_1(precision):
    with pytest.raises(ValueError, match=r"precision=.* must lie in \(0, 1\]"):
        precision_threshold([0.1, 0.2], [0, 1], precision)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("low", [0.1, 0.7, 1.0, 1e-45, 0.0])
def test_neighbouring_scores_are_still_parted(low, dtype):
    low = dtype(low)
    high = np.nextafter(low, dtype(np.inf))
    scores = np.array([low, high], dtype=dtype)
    threshold = best_f1_threshold(scores, [0, 1])
    assert (scores >= threshold).tolist() == [False, True]
    assert matching_metrics(scores, [0, 1], threshold=threshold)["f1"] == 1.0
    assert float(dtype(threshold)) == threshold


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auc_and_no_crash(label):
    results = matching_metrics([0.2, 0.8], [label] * 2)
    assert math.isnan(results["roc_auc"])
    assert results["accuracy"] == 0.5
    assert math.isnan(results["average_precision"]) if label == 0 else results["average_precision"] == 1.0


@pytest.mark.parametrize(
    "scores, labels, message",
    [
        ([0.1, math.nan], [0, 1], "score 1 is nan"),
        ([math.inf, 0.1], [0, 1], "score 0 is inf"),
        ([0.1, 0.2], [0, 2], "label 1 is .*a label is 0 or 1"),
        ([0.1, 0.2], [0.5, 1], "label 0 is .*a label is 0 or 1"),
        ([0.1, 0.2], [None, 1], "label 0 is .*a label is 0 or 1"),
        ([0.1, 0.2], [0], r"shapes \(2,\) and \(1,\)"),
        ([[0.1, 0.2]], [[0, 1]], "one of each per pair"),
        ([], [], "at least one pair"),
    ],
)
def test_wrong_scores_and_labels_are_refused(scores, labels, message):
    for judge in (matching_metrics, best_f1_threshold):
        with pytest.raises(ValueError, match=message):
            judge(scores, labels)


def test_wrong_thresholds_are_refused():
    with pytest.raises(ValueError, match="threshold is nan"):
        matching_metrics([0.1, 0.2], [0, 1], tuned_threshold=math.nan)
    with pytest.raises(ValueError, match="none of the 2 labels is 1"):
        best_f1_threshold([0.1, 0.2], [0, 0])


SCORES, LABELS = np.array([0.9, 0.4, 0.6, 0.1]), np.array([1, 1, 0, 0])


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_metric_objects_give_what_the_functions_give(no_network):
    matching, retrieval = PairMatching(), Retrieval()
    expected = matching_metrics(SCORES, LABELS, threshold=0.3, tuned_threshold=0.7)
    given = {"predictions": SCORES, "references": LABELS}
    assert matching.compute(**given, threshold=0.3, tuned_threshold=0.7) == expected
    assert matching.compute(**given) == matching_metrics(SCORES, LABELS)  # the same object again
    rankings, relevant = [["a", "b"], ["c"]], [["b"], ["a", "c"]]
    results = retrieval.compute(predictions=rankings, references=relevant, cutoffs=[2])
    assert results == ranking_metrics(rankings, relevant, cutoffs=[2])


def test_metric_objects_collect_batches_apart(no_network):
    first, second = PairMatching(), PairMatching()
    for start in (0, 2):
        first.add_batch(predictions=SCORES[start : start + 2], references=LABELS[start : start + 2])
        second.add_batch(predictions=1 - SCORES[start : start + 2], references=LABELS[start : start + 2])
    second.add(prediction=0.5, reference=1)
    assert first.compute() == matching_metrics(SCORES, LABELS)
    assert second.compute() == matching_metrics([*(1 - SCORES), 0.5], [*LABELS, 1])


@pytest.mark.parametrize(
    "scores, labels", [([0.1, math.nan], [0, 1]), ([0.1, None], [0, 1]), ([0.1, 0.2], [0.5, 1]), ([0.1], [0, 1])]
)
def test_a_refused_input_leaves_the_metric_usable(scores, labels):
    metric = PairMatching()
    with pytest.raises(ValueError):
        metric.compute(predictions=scores, references=labels)
    assert metric.compute(predictions=SCORES, references=LABELS) == matching_metrics(SCORES, LABELS)


def test_metric_objects_leave_no_files(tmp_path):
    metric = PairMatching(cache_dir=str(tmp_path))
    metric.add_batch(predictions=SCORES, references=LABELS)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert metric.compute() == matching_metrics(SCORES, LABELS)


def _compute(cache_dir: str, seed: int) -> bool:
    scores = np.random.default_rng(seed).random(100)
    labels = np.arange(100) % 2
    metrics = [PairMatching(cache_dir=cache_dir) for _ in range(3)]
    for metric in metrics:
        metric.add_batch(predictions=scores, references=labels)
    return all(metric.compute() == matching_metrics(scores, labels) for metric in metrics)


def test_processes_that_share_a_cache_do_not_meet(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_compute, [(str(tmp_path), seed) for seed in range(4)]) == [True] * 4
