"""L_dist: the student's similarities aligned with the teacher's."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..utils.angles import wide
from ..utils.checks import check_choice, check_range, check_same_shape
from .base import Compared, SimilarityObjective
from .citations import FLIPPED_CITATION


class SimilarityDistillationLoss(SimilarityObjective):
    """L_dist: aligns the student's similarities S with the teacher's T over the kept pairs (arXiv 2507.05617).

    The paper says "aligned" and no more. Two forms (our reading):

    - `mse`: `scale` * sum over kept (S - T)^2 / number of kept pairs. Zero if nothing is kept.
    - `kl`: `scale` * t^2 * [sum of KL(softmax(T/t) || softmax(S/t)) over the rows and the columns with at least two
      kept pairs, softmax over the kept pairs] / number of such rows and columns. Zero if there are none. t^2 keeps the
      size of the gradient independent of t (Hinton et al., arXiv 1503.02531). Pairs alone are one row.

    Args:
        kind: "mse" or "kl".
        temperature: t in (0, 100] of `kl`.
        scale: constant factor >= 0, so that weight 1 is right beside the other terms.

    Raises:
        ValueError: a setting is out of range.

    Examples:
        >>> student, teacher = torch.tensor([0.5, 0.0]), torch.tensor([0.9, 0.1])
        >>> SimilarityDistillationLoss()(student, teacher, kept=torch.tensor([True, True]))
        tensor(0.8500)
    """

    citation = FLIPPED_CITATION

    def __init__(self, kind: Literal["mse", "kl"] = "mse", temperature: float = 0.05, scale: float = 10.0) -> None:
        super().__init__()
        check_choice("dist_loss", kind, ("mse", "kl"))
        check_range("temperature", temperature, 0.0, 100.0, open_low=True)
        check_range("scale", scale, 0.0)
        self.kind = kind
        self.temperature = temperature
        self.scale = scale

    def forward(self, student: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
        """L_dist of a batch.

        Args:
            student: cosines S, (N, M) or, of the pairs alone, (N,).
            teacher: cosines T, same shape.
            kept: which of them take part, same shape, boolean.

        Returns:
            A scalar.

        Raises:
            ValueError: the shapes differ.
        """
        check_same_shape(student=student, teacher=teacher, kept=kept)
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = wide(student), wide(teacher)
            if self.kind == "mse":
                return self.scale * ((student - teacher).square() * kept).sum() / kept.sum().clamp(min=1)
            if student.ndim == 1:
                total, count = self._divergence(student[None], teacher[None], kept[None])
                return self.scale * self.temperature**2 * total / count.clamp(min=1)
            row_sum, row_count = self._divergence(student, teacher, kept)
            column_sum, column_count = self._divergence(student.T, teacher.T, kept.T)
            lists = (row_count + column_count).clamp(min=1)
            return self.scale * self.temperature**2 * (row_sum + column_sum) / lists

    def align(self, compared: Compared) -> Tensor:
        """`forward` of a comparison.

        Args:
            compared: cosines, the teacher's T and the kept pairs.

        Returns:
            A scalar.
        """
        return self(compared.student, compared.teacher, compared.kept)

    def _divergence(self, student: Tensor, teacher: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the rows' KL divergences, and the number of rows with something to compare."""
        usable = kept.sum(-1) >= 2
        kept = kept & usable[:, None]
        # A finite floor: rows with nothing kept would give NaN from an all -inf softmax, also in the gradient.
        floor = torch.finfo(student.dtype).min / 2
        log_s = torch.log_softmax((student / self.temperature).masked_fill(~kept, floor), -1)
        log_t = torch.log_softmax((teacher / self.temperature).masked_fill(~kept, floor), -1)
        return (log_t.exp() * (log_t - log_s)).masked_fill(~kept, 0.0).sum(), usable.sum()

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, by argument name."""
        return {"kind": self.kind, "temperature": self.temperature, "scale": self.scale}
