"""The loss of flipped distillation, composed of its three terms. Nothing here knows of a model.

All maths is done in float32 or wider with autocast off, because angles lose their gradient in lower precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..utils.angles import angle_matrix, cosine_matrix, paired_angles, paired_cosines
from ..utils.checks import check_choice, check_range, check_same_shape
from .answer import AnswerLoss
from .base import Compared, SimilarityObjective, own_pairs
from .citations import FLIPPED_CITATION
from .contrastive import MarginAwareContrastiveLoss
from .dual_threshold import DualThreshold
from .similarity import SimilarityDistillationLoss

ContrastFilter = Literal["assumed", "all"]
CONTRAST_FILTERS = get_args(ContrastFilter)


@dataclass
class SimilarityTerms:
    """What a batch's representations give: L_dist, L_MCL and how many of its own pairs the thresholds dropped.

    Attributes:
        dist: L_dist, unweighted, a scalar with gradient.
        mcl: L_MCL, the same.
        dropped: counts of the batch's own pairs by class, "dropped_positive" and "dropped_negative".
    """

    dist: Tensor
    mcl: Tensor
    dropped: dict[str, Tensor]


@dataclass
class LossOutput:
    """What one batch gives: the weighted sum, the unweighted terms by name, and how many pairs the thresholds dropped.

    Attributes:
        total: weighted sum, a scalar with gradient.
        terms: "sup", "dist" and "mcl", unweighted scalars.
        dropped: as in `SimilarityTerms`.
    """

    total: Tensor
    terms: dict[str, Tensor]
    dropped: dict[str, Tensor]


class FlippedDistillationLoss(nn.Module):
    """L = w_sup L_sup + w_dist L_dist + w_mcl L_MCL (arXiv 2507.05617).

    Terms of weight 0 are computed and multiplied by 0, so that every parameter stays in the graph (DDP needs that) and
    the log stays comparable.

    Args:
        dist: L_dist, or another objective in its place (see `alternatives`).
        mcl: L_MCL.
        threshold: which pairs L_dist sees, and L_MCL as `contrast_filter` says.
        weights: (w_sup, w_dist, w_mcl), each finite and >= 0.
        contrast_filter: what the threshold drops from L_MCL: only pairs off the diagonal, whose label 0 is "assumed"
            (our reading), or "all" on which teacher and label disagree, as the paper does. A labelled pair on which
            the teacher errs is the first to learn from the label; docs/choices.md has what it gave.
        sup: L_sup.

    Raises:
        ValueError: a weight is out of range, or there are not three.

    Examples:
        Two pairs, the first a match; the student's second vectors are not told apart yet:

        >>> labels, logits = torch.tensor([1, 0]), torch.zeros(2, 3)
        >>> vectors_a, vectors_b = torch.eye(2), torch.eye(2)[[0, 0]]
        >>> similarity = torch.tensor([[0.9, 0.1], [0.2, 0.1]])  # the teacher's cosines, row a, column b
        >>> output = FlippedDistillationLoss()(logits, (0, 1), labels, vectors_a, vectors_b, similarity, similarity)
        >>> {name: round(term.item(), 3) for name, term in output.terms.items()}
        {'sup': 0.693, 'dist': 2.175, 'mcl': 0.07}
    """

    citation = FLIPPED_CITATION

    def __init__(
        self,
        dist: SimilarityObjective | None = None,
        mcl: MarginAwareContrastiveLoss | None = None,
        threshold: DualThreshold | None = None,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        contrast_filter: ContrastFilter = "assumed",
        sup: AnswerLoss | None = None,
    ) -> None:
        super().__init__()
        if len(weights) != 3:
            raise ValueError(f"weights={weights!r}: give three, (sup, dist, mcl).")
        for name, weight in zip(("sup_weight", "dist_weight", "mcl_weight"), weights, strict=True):
            check_range(name, weight, 0.0)
        self.sup = sup or AnswerLoss()
        self.dist = dist or SimilarityDistillationLoss()
        self.mcl = mcl or MarginAwareContrastiveLoss()
        self.threshold = threshold or DualThreshold()
        check_choice("contrast_filter", contrast_filter, CONTRAST_FILTERS)
        self.weights = weights
        self.contrast_filter = contrast_filter

    def forward(
        self,
        logits: Tensor,
        answer_ids: tuple[int, int],
        labels: Tensor,
        vectors_a: Tensor,
        vectors_b: Tensor,
        similarity: Tensor,
        probability: Tensor,
        excluded: Tensor | None = None,
        joint_b: Tensor | None = None,
    ) -> LossOutput:
        """The three terms of a batch of N pairs: `compose` of L_sup and `compare`.

        Args:
            logits: (N, V) at the answer position.
            answer_ids: token ids of "no" and "yes".
            labels: (N,), as in `compare`.
            vectors_a: (N, D), as in `compare`.
            vectors_b: (N, D), as in `compare`.
            similarity: (N, N) or (N,), as in `compare`.
            probability: same shape, as in `compare`.
            excluded: same shape, as in `compare`.
            joint_b: (N, D), as in `compare`.

        Returns:
            The weighted sum, its terms, and how many pairs the thresholds dropped.

        Raises:
            ValueError: the shapes do not fit each other, or a part that needs a matrix is given pairs only.
        """
        comparison = self.compare(labels, vectors_a, vectors_b, similarity, probability, excluded, joint_b)
        return self.compose(self.sup(logits, labels, answer_ids, own_pairs(probability)), comparison)

    def compare(
        self,
        labels: Tensor,
        vectors_a: Tensor,
        vectors_b: Tensor,
        similarity: Tensor,
        probability: Tensor,
        excluded: Tensor | None = None,
        joint_b: Tensor | None = None,
    ) -> SimilarityTerms:
        """L_dist and L_MCL of N pairs' representations, which may come from several forwards and several ranks.

        With `joint_b` the second texts are represented twice: alone (`vectors_b`, compared as `similarity` says) and
        as read in their pair, after the first text (`joint_b`, compared with their own first text only). L_dist and
        L_MCL are then the sum of the two (our reading): with the mean the answer learned less (docs/choices.md).

        Args:
            labels: (N,) gold labels 0/1.
            vectors_a: (N, D) unit representations of the first texts.
            vectors_b: (N, D) of the second.
            similarity: the teacher's T: (N, N), or (N,) where only the pairs themselves are compared.
            probability: the teacher's P, same shape.
            excluded: True where two texts are known to match off the diagonal, same shape.
            joint_b: (N, D) unit representations of the second texts as read in their pairs.

        Returns:
            L_dist and L_MCL, and how many of the batch's own pairs the thresholds dropped.

        Raises:
            ValueError: the shapes do not fit each other, or a part that needs a matrix is given pairs only.
        """
        check_same_shape(similarity=similarity, probability=probability, excluded=excluded)
        matrix = similarity.ndim == 2
        own_similarity, own_probability = own_pairs(similarity), own_pairs(probability)
        own = self.threshold(labels, own_probability)
        selection = self.threshold(torch.diag(labels), probability, excluded) if matrix else own
        cosines = (cosine_matrix if matrix else paired_cosines)(vectors_a, vectors_b)
        angles = (angle_matrix if matrix else paired_angles)(vectors_a, vectors_b)
        dist = self.dist.align(Compared(cosines, similarity, selection.kept, selection.positive, vectors_a, vectors_b))
        contrasted, own_contrasted = selection, own
        if self.contrast_filter == "assumed":
            contrasted, own_contrasted = selection.with_labels(labels), own.with_labels(labels)
        mcl = self.mcl(angles, probability, contrasted)
        if joint_b is not None:
            in_pair = Compared(
                *(paired_cosines(vectors_a, joint_b), own_similarity, own.kept, own.positive, vectors_a, joint_b)
            )
            dist = dist + self.dist.align(in_pair)
            mcl = mcl + self.mcl(paired_angles(vectors_a, joint_b), own_probability, own_contrasted)
        dropped = {
            "dropped_positive": (~own.kept & (labels == 1)).sum(),
            "dropped_negative": (~own.kept & (labels == 0)).sum(),
        }
        return SimilarityTerms(dist, mcl, dropped)

    def weighted(self, comparison: SimilarityTerms) -> Tensor:
        """All of the loss that depends on the representations.

        Args:
            comparison: what `compare` gave.

        Returns:
            w_dist L_dist + w_mcl L_MCL, a scalar.
        """
        return self.weights[1] * comparison.dist + self.weights[2] * comparison.mcl

    def compose(self, sup: Tensor, comparison: SimilarityTerms) -> LossOutput:
        """The loss from its parts.

        Args:
            sup: L_sup, a scalar.
            comparison: what `compare` gave.

        Returns:
            The weighted sum and its terms.
        """
        terms = {"sup": sup, "dist": comparison.dist, "mcl": comparison.mcl}
        return LossOutput(self.weights[0] * sup + self.weighted(comparison), terms, comparison.dropped)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values; each part's are the arguments that rebuild it."""
        return {
            "weights": dict(zip(("sup", "dist", "mcl"), self.weights, strict=True)),
            "sup": self.sup.get_config_dict(),
            "dist": self.dist.get_config_dict(),
            "mcl": self.mcl.get_config_dict(),
            "threshold": self.threshold.get_config_dict(),
            "contrast_filter": self.contrast_filter,
        }
