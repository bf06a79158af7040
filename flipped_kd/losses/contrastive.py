"""L_MCL: the margin-aware contrast in angular space."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..utils.angles import extended_cosine, wide
from ..utils.checks import check_choice, check_range, check_same_shape
from .citations import FLIPPED_CITATION
from .dual_threshold import PairSelection

Contrast = Literal["pairwise", "infonce"]
Margin = Literal["teacher", "constant", "none"]
CONTRASTS, MARGINS = get_args(Contrast), get_args(Margin)


class MarginAwareContrastiveLoss(nn.Module):
    """L_MCL: a contrast in angular space with a margin region on either side (arXiv 2507.05617).

    Positives are judged at theta + m * w, negatives at theta - m * w. w is P for positives and 1 - P for negatives
    ("teacher": our reading, after AdapACSE, arXiv 2403.17486), 1 ("constant") or 0 ("none"). The paper leaves the
    contrast open; with s = cos of the judged angle (continued linearly outside [0, pi]) and temperature t there are
    two (our reading):

    - `pairwise`: `scale` * t * log(1 + sum over kept positives p and kept negatives n of exp((s_n - s_p) / t)), as
      CoSENT. One value per batch: divisor 1. Zero if either class is empty.
    - `infonce`: `scale` * t * sum over kept positives p of [-log softmax of p among itself and the kept negatives of
      its row] and the same of its column, divided by 2 * number of kept positives. Zero if there are none. Needs a
      matrix.

    The factor t expresses both in units of cosine: the gradient for a similarity is of order one at any temperature.
    Without it (t = 0.05) the contrast is twenty times larger and drowns the answer.

    Args:
        contrast: "pairwise" or "infonce".
        margin: m in [0, pi] radians (m_c of the paper: 0.06).
        positive_margin: how m is scaled for positives: "teacher", "constant" or "none".
        negative_margin: the same for negatives.
        temperature: t in (0, 100].
        scale: constant factor >= 0.

    Raises:
        ValueError: a setting is out of range.

    Examples:
        >>> angles, probability = torch.tensor([0.9, 1.0]), torch.tensor([0.8, 0.1])  # radians: a match, and none
        >>> selection = PairSelection(torch.tensor([True, False]), torch.tensor([False, True]))
        >>> MarginAwareContrastiveLoss()(angles, probability, selection)
        tensor(0.0355)
        >>> MarginAwareContrastiveLoss(margin=0.0)(angles, probability, selection)
        tensor(0.0090)
    """

    citation = FLIPPED_CITATION

    def __init__(
        self,
        contrast: Contrast = "pairwise",
        margin: float = 0.06,
        positive_margin: Margin = "teacher",
        negative_margin: Margin = "teacher",
        temperature: float = 0.05,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("contrast", contrast, CONTRASTS)
        check_choice("positive_margin", positive_margin, MARGINS)
        check_choice("negative_margin", negative_margin, MARGINS)
        check_range("margin", margin, 0.0, math.pi)
        check_range("temperature", temperature, 0.0, 100.0, open_low=True)
        check_range("scale", scale, 0.0)
        self.contrast = contrast
        self.margin = margin
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin
        self.temperature = temperature
        self.scale = scale

    @classmethod
    def preset(cls, name: Literal["mcl", "arccse", "kdmcse"], **settings: Any) -> MarginAwareContrastiveLoss:
        """The published forms of the margins.

        Args:
            name: "arccse" (ArcCSE, ACL 2022: constant positive margin only), "kdmcse" (arXiv 2403.17486: adaptive
                negative margin only) or "mcl" (both adaptive).
            **settings: the other arguments of the class.

        Raises:
            ValueError: no such preset, or a setting is out of range.
        """
        margins: dict[str, tuple[Margin, Margin]] = {
            "mcl": ("teacher", "teacher"),
            "arccse": ("constant", "none"),
            "kdmcse": ("none", "teacher"),
        }
        check_choice("preset", name, margins)
        positive, negative = margins[name]
        return cls(positive_margin=positive, negative_margin=negative, **settings)

    def judged(self, angles: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Scores with the margins applied.

        Args:
            angles: theta in [0, pi] radians, any shape.
            probability: the teacher's P, same shape.

        Returns:
            The score of every pair as a positive, and as a negative.
        """
        up = self.margin * _margin_weight(self.positive_margin, probability)
        down = self.margin * _margin_weight(self.negative_margin, 1 - probability)
        return extended_cosine(angles + up), extended_cosine(angles - down)

    def forward(self, angles: Tensor, probability: Tensor, selection: PairSelection) -> Tensor:
        """L_MCL of a batch.

        Args:
            angles: theta in [0, pi] radians, (N, M) or, for `pairwise`, (N,).
            probability: the teacher's P, same shape.
            selection: the positives and negatives that take part, same shape.

        Returns:
            A scalar.

        Raises:
            ValueError: the shapes differ, or `infonce` is given pairs only.
        """
        check_same_shape(
            angles=angles, probability=probability, positive=selection.positive, negative=selection.negative
        )
        if self.contrast == "infonce" and angles.ndim != 2:
            raise ValueError(
                "contrast='infonce' compares rows and columns of a similarity matrix, but only paired similarities "
                "are given (representation 'joint' or 'both', or a cross-encoder teacher): use contrast='pairwise', "
                "or representation='independent' with a bi-encoder teacher."
            )
        contrast = self._pairwise if self.contrast == "pairwise" else self._infonce
        with torch.autocast(angles.device.type, enabled=False):
            as_positive, as_negative = self.judged(wide(angles), wide(probability))
            return self.scale * self.temperature * contrast(as_positive, as_negative, selection)

    def _pairwise(self, as_positive: Tensor, as_negative: Tensor, selection: PairSelection) -> Tensor:
        # Two log-sum-exps, never the P x N matrix. The finite floor keeps an empty class at loss and gradient 0.
        floor = torch.finfo(as_positive.dtype).min / 4
        negatives = (as_negative / self.temperature).masked_fill(~selection.negative, floor).flatten().logsumexp(0)
        positives = (-as_positive / self.temperature).masked_fill(~selection.positive, floor).flatten().logsumexp(0)
        return nn.functional.softplus(negatives + positives)

    def _infonce(self, as_positive: Tensor, as_negative: Tensor, selection: PairSelection) -> Tensor:
        floor = torch.finfo(as_positive.dtype).min / 4
        negative = (as_negative / self.temperature).masked_fill(~selection.negative, floor)
        positive = as_positive / self.temperature
        # -log(e^p / (e^p + sum of e^n)) = softplus(log-sum-exp of n, less p)
        rows = nn.functional.softplus(negative.logsumexp(1, keepdim=True) - positive)
        columns = nn.functional.softplus(negative.logsumexp(0, keepdim=True) - positive)
        return ((rows + columns) * selection.positive).sum() / (2 * selection.positive.sum().clamp(min=1))

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, by argument name."""
        return {
            "contrast": self.contrast,
            "margin": self.margin,
            "positive_margin": self.positive_margin,
            "negative_margin": self.negative_margin,
            "temperature": self.temperature,
            "scale": self.scale,
        }


def _margin_weight(kind: Margin, teacher: Tensor) -> Tensor | float:
    """w of the margin m * w; `teacher` is the teacher's probability of the pair's own class."""
    if kind == "teacher":
        return teacher
    return 1.0 if kind == "constant" else 0.0
