"""From settings to the loss: every objective by its name, and the whole loss from a mapping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..utils.checks import check_choice
from .alternatives import AnglE, CoSENT, MarginMSE, PairwiseLogistic, Pearson, PlackettLuce, Sinkhorn
from .answer import AnswerLoss
from .base import SimilarityObjective
from .contrastive import MarginAwareContrastiveLoss
from .dual_threshold import DualThreshold
from .flipped import FlippedDistillationLoss
from .similarity import SimilarityDistillationLoss

OBJECTIVES: dict[str, Callable[[float], SimilarityObjective]] = {
    "mse": lambda temperature: SimilarityDistillationLoss("mse", temperature),
    "kl": lambda temperature: SimilarityDistillationLoss("kl", temperature),
    "margin_mse": MarginMSE,
    "pairwise_logistic": PairwiseLogistic,
    "plackett_luce": PlackettLuce,
    "sinkhorn": Sinkhorn,
    "cosent": CoSENT,
    "angle": AnglE,
    "pearson": Pearson,
}


def build_objective(name: str, temperature: float) -> SimilarityObjective:
    """The objective of that name.

    Raises:
        ValueError: there is none, or the temperature is out of range.
    """
    check_choice("dist_loss", name, OBJECTIVES)
    return OBJECTIVES[name](temperature)


def build_loss(settings: Mapping[str, Any]) -> FlippedDistillationLoss:
    """The loss that settings describe.

    Args:
        settings: by the names of `FlippedDistillationConfig`'s fields: dist_loss, temperature, contrast, margin,
            positive_margin, negative_margin, positive_threshold, negative_threshold, contrast_filter, sup_weight,
            dist_weight, mcl_weight, answer_teacher_weight, answer_vocabulary_weight. Other names are left
            alone.

    Raises:
        KeyError: a setting is missing.
        ValueError: a setting is out of range.
    """
    return FlippedDistillationLoss(
        build_objective(settings["dist_loss"], settings["temperature"]),
        MarginAwareContrastiveLoss(
            settings["contrast"],
            settings["margin"],
            settings["positive_margin"],
            settings["negative_margin"],
            settings["temperature"],
        ),
        DualThreshold(settings["positive_threshold"], settings["negative_threshold"]),
        (settings["sup_weight"], settings["dist_weight"], settings["mcl_weight"]),
        settings["contrast_filter"],
        AnswerLoss(settings["answer_teacher_weight"], settings["answer_vocabulary_weight"]),
    )
