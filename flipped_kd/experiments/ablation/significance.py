"""Whether a difference is more than chance: a bootstrap over test pairs and seeds together, and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ...evaluation.comparison import SplitScores, combine
from .pair_scores import unpacked_splits

SIGNIFICANT = 0.05
DRAWS = 10_000
# Draws times pairs that are looked at in one go: all at once, 20,000 test pairs would take 6 GB.
BLOCK = 2_000_000
METRICS = ("auc", "f1")
SYSTEMS = ("teacher", "answer", "similarity", "both", "answer_plus_teacher", "both_plus_teacher")


@dataclass(frozen=True)
class Interval:
    """What the bootstrap says of a difference.

    Attributes:
        low: 2.5th percentile of the resampled difference.
        high: 97.5th percentile.
        p: two-sided p-value against no difference: twice the share of draws on the other side of 0.
    """

    low: float
    high: float
    p: float


def bootstrap(
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    systems: tuple[str, str],
    metric: str,
    shared: Mapping[str, Any] | None,
) -> Interval | None:
    """Resample seeds and test pairs together: each draw takes the same seeds and pairs of both.

    Seeds say how far another training would differ, pairs how far another test set would. For F1 validation pairs are
    drawn too, and each draw chooses its threshold on them; how answer and similarity are weighed stays. Drawn seeds
    differ too little from their mean, by a factor of sqrt((S - 1) / S), which is put right. Simulated with normal
    noise, 95 % intervals hold the truth in 87 to 92 % of cases with two seeds, in 91 to 94 % with three and in 94 to
    95 % with five, where seeds differ twice or just as much as test sets; less where one run in a few fails. Of one
    seed they are over pairs alone. A draw without pairs of both classes is left out.

    Args:
        rows: S rows of the one run, in the order of their seeds.
        others: S rows of the other, same seeds in the same order.
        systems: which system of each (`SYSTEMS`).
        metric: "auc" or "f1", at the threshold with the best F1 on validation.
        shared: the scores that rows of a set share: "label" and "teacher". None where no row has them.

    Returns:
        None where a row keeps no scores, or the test pairs are of one class and the metric is "auc".
    """
    if shared is None or not all(row.get("scores") for row in (*rows, *others)) or metric not in METRICS:
        return None
    if not set(systems) <= set(SYSTEMS):
        return None
    first, second = (
        np.stack([_around_exact(row, shared, system, metric) for row in part])
        for part, system in ((rows, systems[0]), (others, systems[1]))
    )
    gaps = first - second
    count, means = len(gaps), gaps.mean(axis=0)
    if count > 1:
        seeds = np.random.default_rng(1).integers(0, count, (count, DRAWS))
        drawn = np.take_along_axis(gaps, seeds, axis=0).mean(axis=0)
        means = means + (count / (count - 1)) ** 0.5 * (drawn - means)
    means = means[np.isfinite(means)]
    if not len(means):
        return None
    low, high = np.quantile(means, (0.025, 0.975))
    # One draw is added to either side, so that no p is 0.
    share = (min((means <= 0).sum(), (means >= 0).sum()) + 1) / (len(means) + 1)
    return Interval(float(low), float(high), min(1.0, 2 * float(share)))


def holm(p_values: Sequence[float | None]) -> list[bool]:
    """Which of several differences are significant at .05 together (Holm 1979); None is never one.

    The smallest p is compared with .05 / m, the next with .05 / (m - 1), and so on to the first that is not below.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    stars = [False] * len(p_values)
    for rank, (p, place) in enumerate(order):
        if p >= SIGNIFICANT / (len(order) - rank):
            break
        stars[place] = True
    return stars


def shared_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The teacher's scores and the labels of a set: the first row that has them keeps them for others."""
    for row in rows:
        scores = row.get("scores") or {}
        if "label" in scores and "teacher" in scores:
            return {name: scores[name] for name in ("label", "teacher")}
    return None


def _around_exact(row: Mapping[str, Any], shared: Mapping[str, Any], system: str, metric: str) -> np.ndarray:
    """A metric in every draw, (DRAWS,), moved to where the row's own value is.

    Scores are kept in half precision. F1 is flat near its best threshold, so that rounding may choose another one and
    move the value by .01; the spread of the draws is what is wanted of them.
    """
    value, drawn = _drawn(_key(row, shared), system, metric)
    exact = row.get("metrics", {}).get(system, {}).get(metric)
    moved: np.ndarray = drawn if exact is None else drawn + (exact - value)
    return moved


# What the scores of one row depend on, as hashable text: name, packed validation scores, packed test scores.
_Key = tuple[tuple[str, str, str], ...]


def _key(row: Mapping[str, Any], shared: Mapping[str, Any]) -> _Key:
    return tuple((name, one["validation"], one["test"]) for name, one in sorted({**shared, **row["scores"]}.items()))


@lru_cache(maxsize=1024)  # a system is compared with several others
def _drawn(key: _Key, system: str, metric: str) -> tuple[float, np.ndarray]:
    """A metric of one row's system: of the test pairs as they are, and in every draw of them, (DRAWS,)."""
    splits = unpacked_splits({name: {"validation": first, "test": second} for name, first, second in key})
    labels = splits["label"].validation.astype(int), splits["label"].test.astype(int)
    scores = _system(splits, system, labels[0])
    counts = len(labels[0]), len(labels[1])

    def of_draws(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
        if metric == "auc":
            return _auc(scores.test, labels[1], test)
        return _f1(scores.test, labels[1], test, _thresholds(scores.validation, labels[0], validation))

    times = _times_drawn(counts[0], 2), _times_drawn(counts[1], 0)
    size = max(1, BLOCK // max(counts))
    drawn = [of_draws(*(part[start : start + size] for part in times)) for start in range(0, DRAWS, size)]
    once = (np.ones((1, count), np.uint8) for count in counts)
    return float(of_draws(*once)[0]), np.concatenate(drawn)


def _system(splits: Mapping[str, SplitScores], system: str, validation_labels: np.ndarray) -> SplitScores:
    name, *teacher = system.split("_plus_")
    scores = splits[name] if name != "both" else combine(splits["answer"], splits["similarity"], validation_labels)
    return combine(scores, splits["teacher"], validation_labels) if teacher else scores


@lru_cache(maxsize=4)
def _times_drawn(count: int, seed: int) -> np.ndarray:
    """How often each of so many pairs is drawn, (DRAWS, count) uint8; the same for all that is compared."""
    random, shares = np.random.default_rng(seed), np.full(count, 1 / count)
    times = np.empty((DRAWS, count), np.uint8)
    for draw in times:
        draw[:] = random.multinomial(count, shares)
    return times


def _thresholds(scores: np.ndarray, labels: np.ndarray, times: np.ndarray) -> np.ndarray:
    """`best_f1_threshold` with each pair counted so many times, (draws,); NaN of draws without a match."""
    order = np.argsort(-scores, kind="stable")
    ordered, counted = scores[order].astype(np.float64), times[:, order].astype(np.float32)
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of equal scores
    hits = np.cumsum(counted * (labels[order] == 1), axis=1)[:, last]
    total = np.cumsum(counted, axis=1)[:, last] + hits[:, -1:]
    f1 = np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0)
    cuts = np.append((ordered[last[:-1]] + ordered[last[1:]]) / 2, ordered[-1])
    return np.where(hits[:, -1] > 0, cuts[np.argmax(f1, axis=1)], np.nan)


def _f1(scores: np.ndarray, labels: np.ndarray, times: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """F1 with each pair counted so many times, each draw at its threshold, (draws,); NaN where that is NaN.

    0 where nothing is found or to be found, as everywhere.
    """
    order = np.argsort(-scores, kind="stable")
    counted = times[:, order].astype(np.float32)
    of_matches = counted * (labels[order] == 1)
    found = np.searchsorted(-scores[order].astype(np.float64), -thresholds, side="right")[:, None]

    def of_found(values: np.ndarray) -> np.ndarray:
        sums = np.concatenate([np.zeros((len(values), 1), values.dtype), np.cumsum(values, axis=1)], axis=1)
        return np.take_along_axis(sums, found, axis=1)[:, 0]

    total = of_found(counted) + of_matches.sum(axis=1)
    f1 = np.divide(2 * of_found(of_matches), total, out=np.zeros_like(total), where=total > 0)
    return np.where(np.isnan(thresholds), np.nan, f1)


def _auc(scores: np.ndarray, labels: np.ndarray, times: np.ndarray) -> np.ndarray:
    """ROC AUC with each pair counted so many times, (draws,); ties count half. NaN of draws of one class."""
    matches, others = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    others = others[np.argsort(scores[others])]
    # How many of the drawn others stand among the first 0, 1, 2, ... of all.
    drawn = np.zeros((len(times), len(others) + 1))
    np.cumsum(times[:, others], axis=1, out=drawn[:, 1:])
    places = [np.searchsorted(scores[others], scores[matches], side) for side in ("left", "right")]
    of_matches = times[:, matches].astype(np.float64)
    wins = (of_matches * (drawn[:, places[0]] + drawn[:, places[1]])).sum(axis=1) / 2
    compared = of_matches.sum(axis=1) * drawn[:, -1]
    return np.divide(wins, compared, out=np.full(len(times), np.nan), where=compared > 0)
