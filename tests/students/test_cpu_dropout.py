"""The faster dropout is dropout: same rate, same mean, same gradient, and it replays."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from flipped_kd.students.cpu_dropout import CpuDropout, speed_up_dropout


def test_plain_dropouts_are_replaced_and_nothing_else() -> None:
    class Own(nn.Dropout):
        pass

    inner = nn.Sequential(nn.Dropout(0.2))
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), inner, Own(0.3), nn.AlphaDropout())
    names = set(model.state_dict())
    speed_up_dropout(model)
    assert [type(module) for module in model] == [nn.Linear, CpuDropout, nn.Sequential, Own, nn.AlphaDropout]
    assert isinstance(inner[0], CpuDropout) and inner[0].p == 0.2
    assert set(model.state_dict()) == names
    assert isinstance(copy.deepcopy(model)[1], CpuDropout)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_rate_and_mean(p: float) -> None:
    torch.manual_seed(0)
    values = torch.ones(1_000_003)
    found = CpuDropout(p)(values)
    kept = found != 0
    error = (p * (1 - p) / values.numel()) ** 0.5
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=4 * error + 1e-5)
    assert float(found.double().mean()) == pytest.approx(1, abs=4 * error / (1 - p))
    assert torch.allclose(found[kept], torch.tensor(1 / (1 - p)), rtol=2e-4)
    # Neighbours share one number and must not share their fate: 16 bits of it are each one's own.
    fours = kept[: 4 * (len(kept) // 4)].view(-1, 4).double()
    correlation = torch.corrcoef(fours.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradient_is_that_of_the_same_mask(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 7, 3, dtype=dtype, requires_grad=True)
    found = CpuDropout(0.3)(values)
    assert found.dtype == dtype and found.shape == values.shape
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), values)
    mask = (found != 0).to(dtype) * (65536 / (65536 - round(0.3 * 65536)))
    near = {"rtol": 1e-2 if dtype == torch.bfloat16 else 1e-5}
    assert torch.allclose(gradient, weights * mask, **near) and torch.allclose(found, values.detach() * mask, **near)


def test_infinity_is_dropped_too() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        torch.manual_seed(0)
        found = CpuDropout(0.5)(torch.full((64,), torch.inf, dtype=dtype))
        assert set(found.tolist()) == {0.0, torch.inf}


def test_calls_draw_masks_of_their_own() -> None:
    torch.manual_seed(0)
    masks = torch.stack([CpuDropout(0.5)(torch.ones(20_000)) for _ in range(8)]) != 0
    correlation = torch.corrcoef(masks.double()) - torch.eye(8)
    assert 0 < float(correlation.abs().max()) < 0.035  # 5 standard errors


def test_any_layout_is_dropped_alike() -> None:
    whole = torch.randn(6, 8, 4)
    for values in (whole.transpose(0, 2), whole[:, ::2], torch.randn(1, 4).expand(5, 4)):
        results = []
        for one in (values, values.contiguous()):
            torch.manual_seed(0)
            leaf = one.detach().requires_grad_()
            found = CpuDropout(0.5)(leaf)
            found.square().sum().backward()
            results.append((found, leaf.grad))
        for strided, plain in zip(*results, strict=True):
            assert torch.equal(strided, plain)


def test_inputs_of_a_are_cast_before_the_drop_under_autocast(student: PreTrainedModel) -> None:
    """A reads the same numbers as from a drop before the cast, but for one more rounding."""
    model = get_peft_model(student, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3))
    speed_up_dropout(model)
    dropouts = [module for module in model.modules() if isinstance(module, CpuDropout)]
    assert {module.before_linear for module in dropouts if module.p == 0.3} == {True}
    assert not any(module.before_linear for module in dropouts if module.p != 0.3)
    dropout = next(module for module in dropouts if module.p == 0.3)
    values = torch.randn(50, 8, requires_grad=True)
    torch.manual_seed(0)
    wanted = dropout(values)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = dropout(values)
    assert wanted.dtype == torch.float32 and found.dtype == torch.bfloat16
    assert torch.equal(found != 0, wanted != 0) and torch.allclose(found.float(), wanted, rtol=2**-7)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert gradient.dtype == torch.float32


def test_off_in_evaluation_and_at_zero_and_everything_at_one() -> None:
    values = torch.randn(4, 4)
    assert torch.equal(CpuDropout(0.5).eval()(values), values)
    assert torch.equal(CpuDropout(0.0)(values), values)
    assert torch.equal(CpuDropout(1.0)(values), torch.zeros(4, 4))
    assert CpuDropout(0.5)(torch.empty(0, 3)).shape == (0, 3)


def test_it_replays_from_torchs_seed_and_under_checkpointing() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), CpuDropout(0.5), nn.Linear(8, 8))
    values = torch.randn(3, 8, requires_grad=True)
    results = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(1)
        found = run(values)
        results.append((found, *torch.autograd.grad(found.sum(), [values, *layer.parameters()])))
    for once, again in zip(*results, strict=True):
        assert torch.equal(once, again)
