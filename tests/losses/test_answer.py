"""L_sup against a slow reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flipped_kd.losses.answer import AnswerLoss
from tests.losses.references import reference_answer

LABELS, IDS = torch.tensor([0, 1, 1, 0, 1, 0]), (8, 3)


@pytest.fixture
def logits() -> Tensor:
    return (torch.randn(6, 9, dtype=torch.float64) * 5).requires_grad_()


@pytest.fixture
def probability() -> Tensor:
    return torch.rand(6, dtype=torch.float64)


@pytest.mark.parametrize("vocabulary", [False, True])
def test_answer_loss_equals_the_reference(vocabulary: bool, logits: Tensor) -> None:
    expected = reference_answer(logits, LABELS.tolist(), IDS, vocabulary)
    # A teacher changes nothing that does not listen to it, or that it agrees with.
    for weight, teacher in ((0.0, None), (0.0, torch.rand(6)), (0.7, LABELS.float()), (0.7, None)):
        loss = AnswerLoss(weight, float(vocabulary))(logits, LABELS, IDS, teacher)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("vocabulary", [False, True])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_answer_taught_by_label_and_teacher_equals_the_reference(
    weight: float, vocabulary: bool, logits: Tensor, probability: Tensor
) -> None:
    targets = (1 - weight) * LABELS.double() + weight * probability
    loss = AnswerLoss(weight, float(vocabulary))(logits, LABELS, IDS, probability)
    assert loss.item() == pytest.approx(reference_answer(logits, targets.tolist(), IDS, vocabulary), rel=1e-12)
    # The gradient is what a softmax is off its target by.
    (gradient,) = torch.autograd.grad(loss, logits)
    seen = list(range(9)) if vocabulary else list(IDS)
    off = torch.zeros_like(logits)
    off[:, seen] = logits.detach()[:, seen].softmax(-1)
    off[:, IDS[1]] -= targets
    off[:, IDS[0]] -= 1 - targets
    torch.testing.assert_close(gradient, off / 6)


def test_the_rest_of_the_vocabulary_counts_in_proportion(logits: Tensor, probability: Tensor) -> None:
    none, some, all_ = (AnswerLoss(0.5, share)(logits, LABELS, IDS, probability) for share in (0.0, 0.25, 1.0))
    torch.testing.assert_close(some, torch.lerp(none, all_, 0.25))


def test_half_precision_is_widened(logits: Tensor) -> None:
    rounded = logits.detach().bfloat16()
    for share in (0.0, 1.0):
        torch.testing.assert_close(
            AnswerLoss(0.0, share)(rounded, LABELS, IDS), AnswerLoss(0.0, share)(rounded.float(), LABELS, IDS)
        )


def test_wrong_shares_are_refused() -> None:
    with pytest.raises(ValueError, match=r"answer_teacher_weight=1\.5"):
        AnswerLoss(1.5)
    with pytest.raises(ValueError, match=r"answer_vocabulary_weight=-0\.1"):
        AnswerLoss(0.0, -0.1)
