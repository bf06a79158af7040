"""The objectives of `flipped_kd.losses.alternatives` once more, by loops over Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from flipped_kd.losses.alternatives import EPSILON
from flipped_kd.losses.base import Compared

Entries = list[tuple[float, float, bool]]  # S, T, positive of the kept entries of a list


def lists(compared: Compared) -> Iterator[Entries]:
    s, t, k, p = (part.tolist() for part in (compared.student, compared.teacher, compared.kept, compared.positive))
    if compared.student.ndim == 1:
        yield [(s[i], t[i], p[i]) for i in range(len(s)) if k[i]]
        return
    n = len(s)
    for i in range(n):
        yield [(s[i][j], t[i][j], p[i][j]) for j in range(n) if k[i][j]]
    for j in range(n):
        yield [(s[i][j], t[i][j], p[i][j]) for i in range(n) if k[i][j]]


def margin_mse(compared: Compared, t: float) -> float:
    squares = [
        ((sp - sn) - (tp - tn)) ** 2
        for entries in lists(compared)
        for sp, tp, p in entries
        if p
        for sn, tn, n in entries
        if not n
    ]
    return 5 * sum(squares) / len(squares)


def pairwise_logistic(compared: Compared, t: float) -> float:
    losses = [
        math.log1p(math.exp(-(si - sj) / t))
        for entries in lists(compared)
        for si, ti, _ in entries
        for sj, tj, _ in entries
        if ti > tj
    ]
    return t * sum(losses) / len(losses)


def plackett_luce(compared: Compared, t: float) -> float:
    total, count = 0.0, 0
    for entries in lists(compared):
        if len(entries) < 2:
            continue
        count += 1
        ranked = sorted(entries, key=lambda entry: (entry[2], entry[1]), reverse=True)
        norm = sum(math.exp(teacher / t) for _, teacher, _ in ranked)
        for place, (student, teacher, _) in enumerate(ranked):
            rest = math.log(sum(math.exp(other / t) for other, _, _ in ranked[place:]))
            total += math.exp(teacher / t) / norm * (rest - student / t)
    return t * total / count


def sinkhorn(compared: Compared, t: float) -> float:
    s, teacher, k = (part.tolist() for part in (compared.student, compared.teacher, compared.kept))
    if compared.student.ndim == 1:
        ours, theirs = ([[row] for row, kept in zip(rows, k, strict=True) if kept] for rows in (s, teacher))
    else:
        n = len(s)
        ours, theirs = [], []
        for columns in (False, True):
            for i in range(n):
                places = [(j, i) if columns else (i, j) for j in range(n)]
                if sum(k[x][y] for x, y in places) < 2:
                    continue
                for rows, out in ((s, ours), (teacher, theirs)):
                    weights = [math.exp(rows[x][y] / t) if k[x][y] else 0.0 for x, y in places]
                    out.append([weight / sum(weights) for weight in weights])
    size = len(ours)
    cost = [
        [sum(abs(x - y) for x, y in zip(theirs[i], ours[j], strict=True)) for j in range(size)] for i in range(size)
    ]
    plan = [[math.exp(-cost[i][j] / 0.1) for j in range(size)] for i in range(size)]
    for _ in range(20):
        plan = [[value / sum(row) for value in row] for row in plan]
        sums = [sum(plan[i][j] for i in range(size)) for j in range(size)]
        plan = [[plan[i][j] / sums[j] for j in range(size)] for i in range(size)]
    return sum(plan[i][j] * cost[i][j] for i in range(size) for j in range(size)) / size


def own(compared: Compared) -> list[tuple[float, float, list[float], list[float]]]:
    """S, T and both vectors of the kept pairs themselves."""
    pairs = compared.own_pairs()
    rows = zip(
        *(part.tolist() for part in (pairs.student, pairs.teacher, pairs.vectors_a, pairs.vectors_b, pairs.kept)),
        strict=True,
    )
    return [(s, t, a, b) for s, t, a, b, kept in rows if kept]


def ordered(scores: list[float], teacher: list[float], t: float) -> float:
    total = sum(
        math.exp((scores[j] - scores[i]) / t)
        for i in range(len(scores))
        for j in range(len(scores))
        if teacher[i] > teacher[j]
    )
    return t * math.log1p(total)


def cosent(compared: Compared, t: float) -> float:
    pairs = own(compared)
    return ordered([pair[0] for pair in pairs], [pair[1] for pair in pairs], t)


def angle(compared: Compared, t: float) -> float:
    pairs = own(compared)
    scores = []
    for _, _, a, b in pairs:
        half = len(a) // 2
        first = [complex(*parts) for parts in zip(a[:half], a[half:], strict=True)]
        second = [complex(*parts) for parts in zip(b[:half], b[half:], strict=True)]
        length = sum(abs(z) ** 2 for z in second) + EPSILON
        quotient = [x * y.conjugate() / length for x, y in zip(first, second, strict=True)]
        ratio = math.sqrt((sum(abs(z) ** 2 for z in first) + EPSILON) / length)
        scores.append(abs(sum((z / ratio).real + (z / ratio).imag for z in quotient)))
    return cosent(compared, t) + ordered(scores, [pair[1] for pair in pairs], t)


def pearson(compared: Compared, t: float) -> float:
    s, teacher, k = (part.flatten().tolist() for part in (compared.student, compared.teacher, compared.kept))
    pairs = [(x, y) for x, y, kept in zip(s, teacher, k, strict=True) if kept]
    mean_s, mean_t = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    covariance = sum((x - mean_s) * (y - mean_t) for x, y in pairs)
    variances = sum((x - mean_s) ** 2 for x, _ in pairs) * sum((y - mean_t) ** 2 for _, y in pairs)
    return (1 - covariance / math.sqrt(variances)) / 2


REFERENCES: dict[str, Callable[[Compared, float], float]] = {
    "margin_mse": margin_mse,
    "pairwise_logistic": pairwise_logistic,
    "plackett_luce": plackett_luce,
    "sinkhorn": sinkhorn,
    "cosent": cosent,
    "angle": angle,
    "pearson": pearson,
}
