"""Other ways to learn from the same teacher, in the place of L_dist: `dist_loss=NAME`, usually with `mcl_weight=0`.

Published objectives, restated for lists of similarities: the rows and the columns of a matrix, and the batch itself
where there are only pairs; entries that are not kept take no part. As in `contrastive`, factors make the gradient for
one similarity of order one at any temperature. A new one is a class here, with a line in `build.OBJECTIVES`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.angles import distance_matrix, wide
from ..utils.checks import check_range
from . import citations
from .base import Compared, SimilarityObjective

EPSILON = 1e-8
# Of the similarities that `Pearson` compares.
MIN_VARIANCE = 1e-10


class AlternativeObjective(SimilarityObjective):
    """Shares temperature, scale and float32.

    Args:
        temperature: t in (0, 100].
        scale: constant factor >= 0.

    Raises:
        ValueError: a setting is out of range.
    """

    default_scale = 1.0

    def __init__(self, temperature: float = 0.05, scale: float | None = None) -> None:
        super().__init__()
        scale = self.default_scale if scale is None else scale
        check_range("temperature", temperature, 0.0, 100.0, open_low=True)
        check_range("scale", scale, 0.0)
        self.temperature = temperature
        self.scale = scale

    def align(self, compared: Compared) -> Tensor:
        """See the class."""
        with torch.autocast(compared.student.device.type, enabled=False):
            return self.scale * self._align(compared)

    @abstractmethod
    def _align(self, compared: Compared) -> Tensor: ...

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, by argument name."""
        return {"temperature": self.temperature, "scale": self.scale}


class MarginMSE(AlternativeObjective):
    """MarginMSE (Hofstätter et al., arXiv 2010.02666): margins between matches and others as the teacher has them.

    `scale` * sum over lists, kept positives p and kept negatives n of ((S_p - S_n) - (T_p - T_n))^2 / number of such
    (list, p, n). Zero if there are none. No temperature; the scale, 5, is half of L_dist's, since a margin holds two
    similarities.
    """

    citation = citations.MARGIN_MSE
    default_scale = 5.0

    def _align(self, compared: Compared) -> Tensor:
        student, teacher, kept, positive = _lists(compared)
        gap = student - teacher
        ups, downs = (kept & positive).to(gap.dtype), (kept & ~positive).to(gap.dtype)
        p, n = ups.sum(-1), downs.sum(-1)
        # sum over p, n of (x_p - x_n)^2, without the P x N matrix
        squares = n * (ups * gap.square()).sum(-1) + p * (downs * gap.square()).sum(-1)
        total = squares - 2 * (ups * gap).sum(-1) * (downs * gap).sum(-1)
        return total.sum() / (p * n).sum().clamp(min=1)


class PairwiseLogistic(AlternativeObjective):
    """RankNet (Burges et al., ICML 2005) on the teacher's order.

    `scale` * t * sum over lists and kept i, j with T_i > T_j of log(1 + exp(-(S_i - S_j) / t)) / number of such
    (list, i, j). Zero if there are none. Takes 2 N^3 floats of memory for a matrix: meant for batches up to some 256.
    """

    citation = citations.RANKNET

    def _align(self, compared: Compared) -> Tensor:
        student, teacher, kept, _ = _lists(compared)
        above = (teacher[:, :, None] > teacher[:, None, :]) & kept[:, :, None] & kept[:, None, :]
        lead = (student[:, :, None] - student[:, None, :]) / self.temperature
        return self.temperature * (nn.functional.softplus(-lead) * above).sum() / above.sum().clamp(min=1)


class PlackettLuce(AlternativeObjective):
    """PLD, a Plackett-Luce likelihood of the teacher's ranking (arXiv 2506.12542).

    Each list is ranked as its teacher-optimal permutation: kept positives first, then by falling T. With w the
    teacher's softmax(T / t) over the kept entries: `scale` * t * sum over lists and ranks k of
    w_k * [log sum over ranks l >= k of exp(S_l / t) - S_k / t] / number of lists that are ranked: those with two kept
    entries of different T, or a positive beside another. Zero if there are none. Entries of one T stay in the batch's
    order.
    """

    citation = citations.PLACKETT_LUCE

    def _align(self, compared: Compared) -> Tensor:
        student, teacher, kept, positive = _lists(compared)
        floor = torch.finfo(student.dtype).min / 4
        # Cosines lie in [-1, 1]: + 4 puts positives first, entries left out come last.
        worth = torch.where(kept, teacher + 4 * positive.to(teacher.dtype), floor)
        rank = worth.argsort(dim=-1, descending=True, stable=True)
        logits = (student / self.temperature).masked_fill(~kept, floor).gather(-1, rank)
        weights = (teacher / self.temperature).masked_fill(~kept, floor).softmax(-1).gather(-1, rank)
        rest = logits.flip(-1).logcumsumexp(-1).flip(-1)  # over this rank and all below
        usable = worth.amax(-1) > worth.masked_fill(~kept, -floor).amin(-1)
        shown = kept.gather(-1, rank) & usable[:, None]
        losses = (weights * (rest - logits)).masked_fill(~shown, 0.0)
        return self.temperature * losses.sum() / usable.sum().clamp(min=1)


class Sinkhorn(AlternativeObjective):
    """SinKD, the Sinkhorn distance of a batch of teacher distributions to the student's (arXiv 2402.17110).

    Each list gives a distribution, softmax(T / t) and softmax(S / t) over its kept entries. The cost of moving the
    teacher's list i to the student's list j is the sum of the absolute differences; the plan has uniform marginals and
    comes from `iterations` Sinkhorn steps with entropy weight `regularisation`, in the log domain. `scale` * sum of
    plan x cost: the plan sums to 1, so there is no other divisor. Zero if no two lists have two kept entries.

    Of pairs alone, which are one list, the cost is |T_i - S_j| between kept pairs, zero if fewer than two are kept.
    The student is then drawn to the teacher's values as a set: which pair has which is left to the plan.
    """

    citation = citations.SINKHORN
    iterations = 20
    regularisation = 0.1

    def _align(self, compared: Compared) -> Tensor:
        if compared.student.ndim == 1:
            kept = compared.kept
            student, teacher = wide(compared.student)[:, None], wide(compared.teacher)[:, None]
            usable = kept
        else:
            lists, others, kept, _ = _lists(compared)
            floor = torch.finfo(lists.dtype).min / 4
            student, teacher = (
                (part / self.temperature).masked_fill(~kept, floor).softmax(-1) for part in (lists, others)
            )
            usable = kept.sum(-1) >= 2
        student, teacher = student[usable], teacher[usable]
        if len(student) < 2:
            return 0 * wide(compared.student).sum()
        cost = distance_matrix(teacher, student, p=1)
        plan = -cost / self.regularisation
        for _ in range(self.iterations):
            plan = plan - plan.logsumexp(1, keepdim=True)
            plan = plan - plan.logsumexp(0, keepdim=True)
        return (plan.exp() * cost).sum() / len(cost)


class CoSENT(AlternativeObjective):
    """CoSENT (Su, 2022) on the teacher's order of the batch's own pairs.

    `scale` * t * log(1 + sum over kept pairs i, j with T_i > T_j of exp((S_j - S_i) / t)). One value a batch, divisor
    1. Zero without two pairs that the teacher orders.
    """

    citation = citations.COSENT

    def _align(self, compared: Compared) -> Tensor:
        pairs = compared.own_pairs()
        return _ordered(wide(pairs.student), pairs, self.temperature)


class AnglE(AlternativeObjective):
    """AnglE (Li and Li, arXiv 2309.12871) on the teacher's order of the batch's own pairs: CoSENT and its angle term.

    The halves of a vector are read as real and imaginary parts. With z = a / b, divided by the ratio of the lengths:
    the score of a pair is |sum of the real and imaginary parts of z|, 1 for equal texts, compared as cosines are in
    CoSENT. `scale` * [CoSENT + the same over these scores].
    """

    citation = citations.ANGLE

    def _align(self, compared: Compared) -> Tensor:
        pairs = compared.own_pairs()
        score = _angle_score(wide(pairs.vectors_a), wide(pairs.vectors_b))
        return _ordered(wide(pairs.student), pairs, self.temperature) + _ordered(score, pairs, self.temperature)


class Pearson(AlternativeObjective):
    """Correlation distance, as in DIST (Huang et al., arXiv 2205.10536), of similarities.

    `scale` * (1 - r) / 2 with r over the kept entries of the matrix, or of the pairs. Zero with fewer than two kept
    entries, or where either has no spread. It asks for the teacher's order and distances, not for its offset: cosines
    of a teacher lie around some mean that means nothing. No temperature.
    """

    citation = citations.DIST

    def _align(self, compared: Compared) -> Tensor:
        kept = compared.kept.to(compared.student.dtype)
        count = kept.sum().clamp(min=1)
        student, teacher = wide(compared.student), wide(compared.teacher)
        student, teacher = ((part - (part * kept).sum() / count) * kept for part in (student, teacher))
        squares = student.square().sum(), teacher.square().sum()
        # Below, similarities differ by rounding alone.
        usable = (compared.kept.sum() >= 2) & (torch.stack(squares).min() > MIN_VARIANCE * count)
        student, teacher = (
            part / torch.where(usable, square, 1.0).sqrt()
            for part, square in zip((student, teacher), squares, strict=True)
        )
        # (1 - r) / 2 without the difference of two numbers that are nearly one.
        distance = (student - teacher).square().sum() / 4
        return torch.where(usable, distance, 0 * distance)


def _angle_score(a: Tensor, b: Tensor) -> Tensor:
    width = a.shape[-1] // 2 * 2  # an odd last entry has no partner
    (a_re, a_im), (b_re, b_im) = a[:, :width].chunk(2, -1), b[:, :width].chunk(2, -1)
    length = (b_re.square() + b_im.square()).sum(-1, keepdim=True) + EPSILON
    real, imaginary = (a_re * b_re + a_im * b_im) / length, (a_im * b_re - a_re * b_im) / length
    ratio = ((a_re.square() + a_im.square()).sum(-1, keepdim=True) + EPSILON).sqrt() / length.sqrt()
    return torch.cat([real, imaginary], -1).div(ratio).sum(-1).abs()


def _ordered(score: Tensor, pairs: Compared, temperature: float) -> Tensor:
    """t log(1 + sum of exp((score_j - score_i) / t)) over kept i, j with T_i > T_j."""
    teacher, kept = wide(pairs.teacher), pairs.kept
    above = (teacher[:, None] > teacher[None, :]) & kept[:, None] & kept[None, :]
    floor = torch.finfo(score.dtype).min / 4
    behind = ((score[None, :] - score[:, None]) / temperature).masked_fill(~above, floor)
    return temperature * nn.functional.softplus(behind.flatten().logsumexp(0))


def _lists(compared: Compared) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(similarities, T, kept, positive) of all lists, each (L, M): rows and columns, or the batch's pairs as one."""
    parts = wide(compared.student), wide(compared.teacher), compared.kept, compared.positive
    if compared.student.ndim == 1:
        student, teacher, kept, positive = (part[None] for part in parts)
    else:
        student, teacher, kept, positive = (torch.cat([part, part.T]) for part in parts)
    return student, teacher, kept, positive
