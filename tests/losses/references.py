"""The losses once more, slowly: loops over Python floats, no tensor arithmetic; and batches to compare on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flipped_kd.losses.contrastive import MarginAwareContrastiveLoss
from flipped_kd.losses.dual_threshold import DualThreshold, PairSelection
from flipped_kd.losses.similarity import SimilarityDistillationLoss

Cell = tuple[int, ...]


def cells(tensor: Tensor) -> dict[Cell, float]:
    """The entries of a matrix or a row by index."""
    return {index: float(tensor[index]) for index in itertools.product(*(range(size) for size in tensor.shape))}


def reference_cosine(angle: float) -> float:
    if angle < 0:
        return 1 - angle
    return math.cos(angle) if angle <= math.pi else -1 - (angle - math.pi)


def reference_judged(loss: MarginAwareContrastiveLoss, angle: float, p: float, positive: bool) -> float:
    kind = loss.positive_margin if positive else loss.negative_margin
    weight = {"teacher": p if positive else 1 - p, "constant": 1.0, "none": 0.0}[kind]
    return reference_cosine(angle + loss.margin * weight if positive else angle - loss.margin * weight)


def reference_mcl(loss: MarginAwareContrastiveLoss, angles: Tensor, p: Tensor, selection: PairSelection) -> float:
    theta, probability, t = cells(angles), cells(p), loss.temperature
    judged = {c: [reference_judged(loss, theta[c], probability[c], kind) for kind in (False, True)] for c in theta}
    positives = {c: judged[c][1] for c, kept in cells(selection.positive).items() if kept}
    negatives = {c: judged[c][0] for c, kept in cells(selection.negative).items() if kept}
    if loss.contrast == "pairwise":
        # Explicitly through the P x N matrix.
        matrix = [[math.exp((n - p) / t) for n in negatives.values()] for p in positives.values()]
        return loss.scale * t * math.log(1 + sum(sum(row) for row in matrix))
    total = 0.0
    for place, score in positives.items():
        for axis in (0, 1):
            others = [value for other, value in negatives.items() if other[axis] == place[axis]]
            exponentials = [math.exp(value / t) for value in [score, *others]]
            total += -math.log(exponentials[0] / sum(exponentials))
    return loss.scale * t * total / (2 * len(positives)) if positives else 0.0


def reference_softmax(values: list[float]) -> list[float]:
    top = max(values)
    exponentials = [math.exp(value - top) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def reference_dist(loss: SimilarityDistillationLoss, student: Tensor, teacher: Tensor, kept: Tensor) -> float:
    s, t = cells(student), cells(teacher)
    inside = [c for c, keep in cells(kept).items() if keep]
    if loss.kind == "mse":
        return loss.scale * sum((s[c] - t[c]) ** 2 for c in inside) / max(len(inside), 1)
    divergences = []
    lines = [inside]  # pairs alone are one row
    if student.ndim == 2:
        lines = [[c for c in inside if c[axis] == number] for axis in (0, 1) for number in range(student.shape[axis])]
    for line in lines:
        if len(line) >= 2:
            target = reference_softmax([t[c] / loss.temperature for c in line])
            found = reference_softmax([s[c] / loss.temperature for c in line])
            divergences.append(sum(p * math.log(p / q) for p, q in zip(target, found, strict=True) if p > 0))
    return loss.scale * loss.temperature**2 * sum(divergences) / max(len(divergences), 1)


def reference_answer(
    logits: Tensor, targets: Sequence[float], answer_ids: tuple[int, int], vocabulary: bool = False
) -> float:
    """`targets`: how much of each answer is to be yes. Over the two answers, or the whole vocabulary."""
    no_id, yes_id = answer_ids if vocabulary else (0, 1)
    rows = [reference_softmax((row if vocabulary else row[list(answer_ids)]).tolist()) for row in logits]
    pairs = zip(rows, targets, strict=True)
    return -sum(yes * math.log(row[yes_id]) + (1 - yes) * math.log(row[no_id]) for row, yes in pairs) / len(rows)


def problem(seed: int, matrix: bool, count: int = 5) -> dict[str, Any]:
    """Cells in float64: both classes, some dropped, and angles that the margins push out of [0, pi]."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    shape = (count, count) if matrix else (count,)
    angles = random(*shape) * math.pi
    angles.view(-1)[:2] = torch.tensor([0.01, math.pi - 0.01])
    gold = (random(*shape) < 0.5).long()
    gold.view(-1)[2:4] = torch.tensor([0, 1])
    p = random(*shape)
    selection = DualThreshold(0.2, 0.8)(gold, p)
    return {"angles": angles, "p": p, "selection": selection, "t": random(*shape) * 2 - 1, "s": random(*shape) * 2 - 1}


def whole_batch(seed: int, matrix: bool, count: int = 4, size: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, count) if matrix else (count,)
    batch: dict[str, Any] = {
        "logits": torch.randn(count, 7, generator=generator, dtype=torch.float64),
        "answer_ids": (1, 2),
        "labels": torch.tensor([0, 1, 1, 0])[:count],
        "vectors_a": torch.randn(count, size, generator=generator, dtype=torch.float64),
        "vectors_b": torch.randn(count, size, generator=generator, dtype=torch.float64),
        "similarity": torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1,
        "probability": torch.rand(*shape, generator=generator, dtype=torch.float64),
    }
    if matrix:
        batch["excluded"] = torch.rand(shape, generator=generator) < 0.2
        batch["excluded"].fill_diagonal_(False)
    return batch
