"""L_sup against a slow reference."""

from __future__ import annotations

import pytest
import torch

from flipped_kd.losses.answer import AnswerLoss
from tests.losses.references import reference_answer


def test_answer_loss_equals_the_reference() -> None:
    logits = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    labels, ids = torch.tensor([0, 1, 1, 0, 1, 0]), (8, 3)
    expected = reference_answer(logits, labels.tolist(), ids)
    assert AnswerLoss()(logits, labels, ids).item() == pytest.approx(expected, rel=1e-12)
    # A teacher changes nothing that does not listen to it, or that it agrees with.
    for weight, probability in ((0.0, torch.rand(6)), (0.7, labels.float()), (0.7, None)):
        assert AnswerLoss(weight)(logits, labels, ids, probability).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_answer_taught_by_label_and_teacher_equals_the_reference(weight: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(6, 9, dtype=torch.float64, generator=generator) * 5).requires_grad_()
    labels, ids = torch.tensor([0, 1, 1, 0, 1, 0]), (8, 3)
    probability = torch.rand(6, dtype=torch.float64, generator=generator)
    targets = ((1 - weight) * labels.double() + weight * probability).tolist()
    loss = AnswerLoss(weight)(logits, labels, ids, probability)
    assert loss.item() == pytest.approx(reference_answer(logits, targets, ids), rel=1e-12)
    # The gradient is what a softmax is off its target by.
    (gradient,) = torch.autograd.grad(loss, logits)
    off = logits.detach().softmax(-1)
    off[:, ids[1]] -= torch.tensor(targets, dtype=torch.float64)
    off[:, ids[0]] -= 1 - torch.tensor(targets, dtype=torch.float64)
    torch.testing.assert_close(gradient, off / 6)
    with pytest.raises(ValueError, match=r"answer_teacher_weight=1\.5"):
        AnswerLoss(1.5)
