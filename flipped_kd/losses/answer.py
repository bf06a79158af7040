"""L_sup: the answer taught by the gold label, and by the teacher where asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..utils.angles import wide
from ..utils.checks import check_range
from .citations import FLIPPED_CITATION


class AnswerLoss(nn.Module):
    """L_sup: cross-entropy of the answer at the answer position, over "no" and "yes".

    -log P(answer | "no" or "yes") + v (-log (P("no") + P("yes"))). What is scored is logit("yes") - logit("no"), which
    the first part teaches alone. The second teaches to say one of the two at all. With v = 1 the sum is the
    cross-entropy over the whole vocabulary, which arXiv 2507.05617 writes down. Our default is 0: on a real LLM the
    second part was steep in the first steps, and cost the answer some .03 in AUC (docs/choices.md).

    With `teacher_weight` w > 0 gold label y and teacher P are taught together: the target is "yes" by (1 - w) y + w P
    and "no" by the rest, the soft targets of Hinton et al. (arXiv 1503.02531) over the two answers (our reading; arXiv
    2507.05617 has w = 0). Divisor: the number of rows.

    Args:
        teacher_weight: w in [0, 1].
        vocabulary_weight: v in [0, 1].

    Raises:
        ValueError: w or v is out of range.

    Examples:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0]])  # one pair, three tokens: "no" is 1, "yes" is 2
        >>> AnswerLoss()(logits, labels=torch.tensor([1]), answer_ids=(1, 2))
        tensor(1.3133)
        >>> AnswerLoss(vocabulary_weight=1.0)(logits, labels=torch.tensor([1]), answer_ids=(1, 2))
        tensor(1.4076)
    """

    citation = FLIPPED_CITATION

    def __init__(self, teacher_weight: float = 0.0, vocabulary_weight: float = 0.0) -> None:
        super().__init__()
        check_range("answer_teacher_weight", teacher_weight, 0.0, 1.0)
        check_range("answer_vocabulary_weight", vocabulary_weight, 0.0, 1.0)
        self.teacher_weight = teacher_weight
        self.vocabulary_weight = vocabulary_weight

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
        with torch.autocast(logits.device.type, enabled=False):
            answers = wide(logits[:, list(answer_ids)])
            yes = labels.to(answers.dtype)
            if probability is not None and self.teacher_weight:
                yes = torch.lerp(yes, probability.to(yes.dtype), self.teacher_weight)
            loss = nn.functional.binary_cross_entropy_with_logits(answers[:, 1] - answers[:, 0], yes)
            if self.vocabulary_weight:
                others = wide(logits).logsumexp(-1) - answers.logsumexp(-1)
                loss = loss + self.vocabulary_weight * others.mean()
            return loss

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, by argument name."""
        return {"teacher_weight": self.teacher_weight, "vocabulary_weight": self.vocabulary_weight}
