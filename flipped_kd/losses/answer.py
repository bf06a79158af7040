"""L_sup: the answer taught by the gold label, and by the teacher where asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..utils.angles import wide
from ..utils.checks import check_range
from .citations import FLIPPED_CITATION


class AnswerLoss(nn.Module):
    """L_sup: cross-entropy of the answer token at the answer position, over the whole vocabulary.

    With `teacher_weight` w > 0 gold label y and teacher P are taught together: the target is "yes" by (1 - w) y + w P
    and "no" by the rest, the soft targets of Hinton et al. (arXiv 1503.02531) over the two answers (our reading; arXiv
    2507.05617 has w = 0). Divisor: the number of rows.

    Args:
        teacher_weight: w in [0, 1].

    Raises:
        ValueError: w is out of range.

    Examples:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0]])  # one pair, three tokens: "no" is 1, "yes" is 2
        >>> AnswerLoss()(logits, labels=torch.tensor([1]), answer_ids=(1, 2))
        tensor(1.4076)
    """

    citation = FLIPPED_CITATION

    def __init__(self, teacher_weight: float = 0.0) -> None:
        super().__init__()
        check_range("answer_teacher_weight", teacher_weight, 0.0, 1.0)
        self.teacher_weight = teacher_weight

    def forward(
        self, logits: Tensor, labels: Tensor, answer_ids: tuple[int, int], probability: Tensor | None = None
    ) -> Tensor:
        """L_sup of B pairs.

        Args:
            logits: (B, V) at the answer position.
            labels: (B,) gold labels 0/1.
            answer_ids: token ids of "no" and "yes".
            probability: (B,) the teacher's P; None teaches the labels alone.

        Returns:
            The mean over the pairs, a scalar.
        """
        no_id, yes_id = answer_ids
        with torch.autocast(logits.device.type, enabled=False):
            logits = wide(logits)
            if probability is None or not self.teacher_weight:
                return nn.functional.cross_entropy(logits, torch.where(labels.bool(), yes_id, no_id))
            yes = torch.lerp(labels.to(logits.dtype), probability.to(logits.dtype), self.teacher_weight)
            by_answer = logits.log_softmax(-1)[:, [no_id, yes_id]]
            return -(by_answer * torch.stack([1 - yes, yes], -1)).sum(-1).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, by argument name."""
        return {"teacher_weight": self.teacher_weight}
