"""Whether a difference is more than chance: a bootstrap over test pairs and seeds together, and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ...evaluation.comparison import SplitScores, combine
from ...evaluation.metrics import best_f1_threshold
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

    Seeds say how far another training would differ, pairs how far another test set would. With few seeds the spread
    between them is drawn too small, by a factor of sqrt((S - 1) / S). Simulated with normal noise, 95 % intervals
    hold the truth in 84 to 91 % of cases with two seeds, and in 90 to 93 % with three, where seeds differ twice or
    just as much as test sets; of one seed they are over test pairs alone. A draw without pairs of both classes has no
    AUC and is left out.

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
    seeds = np.random.default_rng(1).integers(0, len(gaps), (len(gaps), DRAWS))
    means = np.take_along_axis(gaps, seeds, axis=0).mean(axis=0)
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
    if metric == "auc":
        of_draws = partial(_auc, scores.test, labels[1])
    else:
        of_draws = partial(_f1, scores.test >= best_f1_threshold(scores.validation, labels[0]), labels[1])
    times = _times_drawn(len(labels[1]))
    size = max(1, BLOCK // len(labels[1]))
    drawn = [of_draws(times[start : start + size]) for start in range(0, len(times), size)]
    return float(of_draws(np.ones((1, len(labels[1])), np.uint8))[0]), np.concatenate(drawn)


def _system(splits: Mapping[str, SplitScores], system: str, validation_labels: np.ndarray) -> SplitScores:
    name, *teacher = system.split("_plus_")
    scores = splits[name] if name != "both" else combine(splits["answer"], splits["similarity"], validation_labels)
    return combine(scores, splits["teacher"], validation_labels) if teacher else scores


@lru_cache(maxsize=2)
def _times_drawn(count: int) -> np.ndarray:
    """How often each test pair is drawn, (DRAWS, count) uint8; the same for all that is compared."""
    random, shares = np.random.default_rng(0), np.full(count, 1 / count)
    times = np.empty((DRAWS, count), np.uint8)
    for draw in times:
        draw[:] = random.multinomial(count, shares)
    return times


def _f1(found: np.ndarray, labels: np.ndarray, times: np.ndarray) -> np.ndarray:
    """F1 with each pair counted so many times, (draws,); 0 where nothing is found or to be found, as everywhere."""
    times = times.astype(np.float32)
    hits, counted = times @ (found & (labels == 1)), times @ (found.astype(np.float32) + labels)
    return np.divide(2 * hits, counted, out=np.zeros_like(counted), where=counted > 0)


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
