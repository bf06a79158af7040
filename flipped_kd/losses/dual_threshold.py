"""Which pairs take part in L_dist and in L_MCL: the dual threshold of arXiv 2507.05617."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.checks import check_range, check_same_shape


@dataclass(frozen=True)
class PairSelection:
    """Which pairs take part in a term: two disjoint boolean masks of one shape, (N, M) or (N,)."""

    positive: Tensor
    negative: Tensor

    @property
    def kept(self) -> Tensor:
        """Pairs of either class."""
        return self.positive | self.negative

    def with_labels(self, labels: Tensor) -> PairSelection:
        """The selection with all labelled pairs in it, whatever a threshold says.

        Args:
            labels: (N,) gold labels 0/1: of the diagonal where the masks are (N, N), of all pairs where they are (N,).
        """
        positive = labels.bool()
        if self.positive.ndim == 1:
            return PairSelection(positive, ~positive)
        labelled = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        return PairSelection(
            torch.where(labelled, positive[:, None], self.positive),
            torch.where(labelled, ~positive[:, None], self.negative),
        )


class DualThreshold(nn.Module):
    """Drops pairs on which teacher and gold label disagree (arXiv 2507.05617: both thresholds 0.5).

    A positive is kept if its teacher probability P >= `positive`, a negative if P < `negative`.

    Args:
        positive: tau_pos in [0, 1]; 0 keeps every positive.
        negative: tau_neg in [0, 1]; 1 keeps every negative, 0 drops every one.

    Raises:
        ValueError: a threshold is outside [0, 1].

    Examples:
        >>> labels, probability = torch.tensor([1, 1, 0]), torch.tensor([0.9, 0.3, 0.2])
        >>> DualThreshold()(labels, probability).kept  # the teacher denies the second match
        tensor([ True, False,  True])
    """

    def __init__(self, positive: float = 0.5, negative: float = 0.5) -> None:
        super().__init__()
        check_range("positive_threshold", positive, 0.0, 1.0)
        check_range("negative_threshold", negative, 0.0, 1.0)
        self.positive = positive
        self.negative = negative

    def forward(self, gold: Tensor, probability: Tensor, excluded: Tensor | None = None) -> PairSelection:
        """Select pairs.

        Args:
            gold: 1 for matching pairs, 0 for others; (N, M) or (N,).
            probability: the teacher's P in [0, 1], same shape.
            excluded: True where the pair must not take part whatever the teacher says (texts known to match), same
                shape.

        Returns:
            The kept positives and the kept negatives, two masks shaped as `gold`.

        Raises:
            ValueError: the shapes differ.
        """
        check_same_shape(gold=gold, probability=probability, excluded=excluded)
        is_positive = gold.bool()
        positive = is_positive & (probability >= self.positive)
        # A saturated sigmoid gives P = 1 exactly, which a threshold of 1 must not drop.
        negative = ~is_positive & ((probability < self.negative) | (self.negative == 1.0))
        if excluded is not None:
            positive, negative = positive & ~excluded, negative & ~excluded
        return PairSelection(positive, negative)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, by argument name."""
        return {"positive": self.positive, "negative": self.negative}
