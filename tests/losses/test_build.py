"""From settings to the loss: each setting reaches the part that it names."""

from __future__ import annotations

from typing import Any

import pytest

from flipped_kd.losses.answer import AnswerLoss
from flipped_kd.losses.build import OBJECTIVES, build_loss
from flipped_kd.losses.contrastive import MarginAwareContrastiveLoss
from flipped_kd.losses.dual_threshold import DualThreshold
from flipped_kd.losses.flipped import FlippedDistillationLoss
from flipped_kd.losses.similarity import SimilarityDistillationLoss
from flipped_kd.training.config import FlippedDistillationConfig

# None is at its default, and no two numbers are equal.
SETTINGS: dict[str, Any] = {
    "dist_loss": "kl",
    "temperature": 0.4,
    "contrast": "infonce",
    "margin": 0.2,
    "positive_margin": "constant",
    "negative_margin": "none",
    "positive_threshold": 0.3,
    "negative_threshold": 0.65,
    "contrast_filter": "all",
    "sup_weight": 0.1,
    "dist_weight": 0.25,
    "mcl_weight": 0.35,
    "answer_teacher_weight": 0.6,
    "answer_vocabulary_weight": 0.7,
}


def test_every_setting_reaches_its_part() -> None:
    built = build_loss(SETTINGS)
    by_hand = FlippedDistillationLoss(
        dist=SimilarityDistillationLoss(kind="kl", temperature=0.4),
        mcl=MarginAwareContrastiveLoss(
            contrast="infonce", margin=0.2, positive_margin="constant", negative_margin="none", temperature=0.4
        ),
        threshold=DualThreshold(positive=0.3, negative=0.65),
        weights=(0.1, 0.25, 0.35),
        contrast_filter="all",
        sup=AnswerLoss(teacher_weight=0.6, vocabulary_weight=0.7),
    )
    assert built.get_config_dict() == by_hand.get_config_dict()
    assert [type(part) for part in built.children()] == [type(part) for part in by_hand.children()]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_says_of_every_setting_that_it_is_another(name: str) -> None:
    """Without which the test above would see nothing."""
    default = getattr(FlippedDistillationConfig, name)
    assert default != SETTINGS[name]
    assert build_loss(SETTINGS | {name: default}).get_config_dict() != build_loss(SETTINGS).get_config_dict()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_takes_the_temperature(name: str) -> None:
    assert build_loss(SETTINGS | {"dist_loss": name}).dist.temperature == 0.4
