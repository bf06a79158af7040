"""Attention that drops weights by the faster dropout is scaled_dot_product_attention with dropout."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from flipped_kd.students import attention
from flipped_kd.students.attention import NAME, attend, speed_up_attention
from flipped_kd.training.packing import find_layout
from tests.invariants.decoders import BERT, DECODERS, GPT2, LLAMA, Decoder

ROWS, WIDTH, P = 12, 16, 0.25


def inputs(key_heads: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (3, 4, ROWS, WIDTH), keys and values of as many heads as asked for."""
    torch.manual_seed(0)
    shapes = ((3, heads, ROWS, WIDTH) for heads in (4, key_heads, key_heads))
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return query, key, value


def masks() -> dict[str, Tensor | None]:
    """What models hand on: nothing (causal), booleans, numbers to add, as low as float32 goes."""
    visible = torch.ones(ROWS, ROWS, dtype=torch.bool).tril().repeat(3, 1, 1, 1)
    visible[1, :, :, 7:] = False
    visible[2, :, 3] = False  # a row that sees nothing
    added = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    return {"causal": None, "boolean": visible, "additive": added}


@pytest.mark.parametrize(("key_heads", "scaling"), [(4, None), (2, 0.4)])
@pytest.mark.parametrize("name", ["causal", "boolean", "additive"])
def test_it_is_the_softmax_of_sdpa_with_weights_dropped(name: str, key_heads: int, scaling: float | None) -> None:
    query, key, value = inputs(key_heads)
    module = nn.Module()
    module.num_key_value_groups = 4 // key_heads  # type: ignore[assignment]

    # Read against unit vectors, the output is the weights themselves.
    units = torch.eye(ROWS).expand(3, key_heads, ROWS, ROWS)
    torch.manual_seed(1)
    dropped = attend(module, query, key, units, masks()[name], P, scaling)[0].transpose(1, 2)
    whole = sdpa_attention_forward(module, query, key, units, masks()[name], scaling=scaling)[0].transpose(1, 2)
    sighted = torch.ones(ROWS, dtype=torch.bool)
    sighted[3] = name == "causal"  # sdpa gives rows that see nothing zeros or NaN, ours a mean: padding only
    kept = dropped != 0
    assert torch.allclose(dropped[:, :, sighted], (whole * kept / (1 - P))[:, :, sighted], atol=1e-6)
    visible = whole[:, :, sighted] > 0
    share = float(kept[:, :, sighted][visible].double().mean())
    assert share == pytest.approx(1 - P, abs=4 * (P * (1 - P) / int(visible.sum())) ** 0.5)

    torch.manual_seed(1)
    found = attend(module, query, key, value, masks()[name], P, scaling)[0]
    assert found.shape == (3, ROWS, 4, WIDTH) and found.is_contiguous() and torch.isfinite(found).all()
    again = (dropped @ value.repeat_interleave(4 // key_heads, 1)).transpose(1, 2)
    assert torch.allclose(found, again, atol=1e-6)
    direction = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * direction).sum(), (query, key, value)),
        torch.autograd.grad((again * direction).sum(), (query, key, value)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_newest_query_sees_all_that_is_cached() -> None:
    """As in decoding with a model that was left in training mode."""
    query, key, _ = inputs()
    units = torch.eye(ROWS).expand(3, 4, ROWS, ROWS)
    torch.manual_seed(1)
    dropped = attend(nn.Module(), query[:, :, -1:], key, units, None, P)[0]
    whole = sdpa_attention_forward(nn.Module(), query[:, :, -1:], key, units, None)[0]
    assert torch.allclose(dropped, whole * (dropped != 0) / (1 - P), atol=1e-6)
    assert bool((dropped != 0).any(0).any(1).all())


@pytest.mark.parametrize("name", ["boolean", "additive"])
def test_masks_hold_in_bfloat16(name: str) -> None:
    """float32's lowest number is minus infinity there."""
    query, key, value = inputs(dtype=torch.bfloat16)
    torch.manual_seed(1)
    found = attend(nn.Module(), query, key, value, masks()[name], P)[0]
    assert found.dtype == torch.bfloat16 and torch.isfinite(found).all()
    torch.manual_seed(1)
    value.data[1, :, 7:] = 1e9  # out of sight
    assert torch.equal(attend(nn.Module(), query, key, value, masks()[name], P)[0], found)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", ["causal", "boolean", "additive"])
def test_gradients_in_bfloat16_are_those_of_sdpa(name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout: plain products take the fused kernel's place, up to so many weights."""
    found = []
    for most in (2**22, 0):
        monkeypatch.setattr(attention, "MAX_WEIGHTS", most)
        query, key, value = inputs(2, torch.float32 if autocast else torch.bfloat16)
        module = nn.Module()
        module.num_key_value_groups = 2  # type: ignore[assignment]
        fused: list[object] = []
        monkeypatch.setattr(
            attention,
            "sdpa_attention_forward",
            lambda *args, seen=fused, **options: seen.append(args) or sdpa_attention_forward(*args, **options),
        )
        mask = masks()[name]
        # A row that sees nothing is padding: sdpa gives it zeros or NaN, plain products a mean.
        mask = None if mask is None else (mask | torch.eye(ROWS, dtype=torch.bool) if name == "boolean" else mask)
        if name == "additive":
            assert mask is not None
            mask = mask.masked_fill(torch.eye(ROWS, dtype=torch.bool), 0.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = attend(module, query, key, value, mask, scaling=0.4)[0]
        assert output.dtype == torch.bfloat16 and len(fused) == (most == 0)
        output.float().square().sum().backward()
        found.append((output.detach(), query.grad, key.grad, value.grad))
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        assert float((one - other).float().norm() / other.float().norm()) < 0.02


def test_without_dropout_it_is_sdpa_itself() -> None:
    for mask in masks().values():
        found, wanted = (run(nn.Module(), *inputs(), mask, scaling=0.4)[0] for run in (attend, sdpa_attention_forward))
        assert torch.equal(found, wanted) or mask is not None and torch.allclose(found, wanted, equal_nan=True)


@pytest.mark.parametrize(
    ("kind", "options", "rate"),
    [
        ("GPT2LMHeadModel", GPT2 | {"embd_pdrop": 0.0, "resid_pdrop": 0.0}, "attn_pdrop"),
        ("BertLMHeadModel", BERT | {"is_decoder": True, "hidden_dropout_prob": 0.0}, "attention_probs_dropout_prob"),
        ("LlamaForCausalLM", LLAMA, "attention_dropout"),
    ],
)
def test_models_that_drop_weights_are_switched(kind: str, options: dict, rate: str, tmp_path: Path) -> None:
    model = Decoder(kind, kind, options, "").build(**{rate: 0.2}).train()
    plain = copy.deepcopy(model)
    speed_up_attention(model)
    assert model.config._attn_implementation == NAME and plain.config._attn_implementation == "sdpa"
    ids = torch.arange(3, 51).view(2, 24)
    real = torch.ones_like(ids)
    real[1, :10] = 0

    def read(model: PreTrainedModel) -> Tensor:
        return model(input_ids=ids, attention_mask=real).logits[real.bool()]

    # On average it is the same model: the mean over draws differs by no more than that of two halves of sdpa's.
    torch.manual_seed(0)
    means = [torch.stack([read(part).detach() for _ in range(60)]).mean(0) for part in (model, plain, plain)]
    assert float((means[0] - means[1]).norm() / (means[2] - means[1]).norm()) < 1.5
    assert torch.equal(read(model.eval()), read(plain.eval()))
    assert find_layout(model, 40) == find_layout(plain, 40)

    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


class AsksByName(GPT2LMHeadModel):
    """A model in whose module, this one, "sdpa" stands."""


def test_other_models_stay_as_they_are() -> None:
    by_name = {decoder.kind: decoder for decoder in DECODERS}
    eager = by_name["GPT2LMHeadModel"].build(attn_implementation="eager")
    for model in (eager, AsksByName(GPT2Config(**GPT2))):
        before = model.config._attn_implementation
        speed_up_attention(model)
        assert model.config._attn_implementation == before != NAME
