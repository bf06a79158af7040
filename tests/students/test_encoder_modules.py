"""Which adapted layers make the encoder: those that are asked for by layer and by name; others are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2ForCausalLM

from flipped_kd.students.encoder_modules import adapted_modules, resolve_layers
from flipped_kd.students.lora_encoder import LoraEncoder
from tests.adapters import LINEAR, with_lora


@pytest.fixture
def model(student: Qwen2ForCausalLM) -> PeftModel:
    return with_lora(student)


@pytest.mark.parametrize(
    ("layers", "present", "expected"),
    [
        ("first:50%", list(range(30)), set(range(15))),
        ("first:50%", [0, 1, 2], {0}),
        ("first:10%", [0, 1, 2], {0}),  # at least one
        ("last:34%", [0, 1, 2], {2}),
        ("first:100%", [3, 5], {3, 5}),
    ],
)
def test_a_share_of_the_layers(layers: str, present: list[int], expected: set[int]) -> None:
    assert resolve_layers(layers, present) == expected


@pytest.mark.parametrize("layers", ["first:0%", "first:101%", "first:%", "first:-5%", "half"])
def test_a_share_is_a_percentage(layers: str) -> None:
    with pytest.raises(ValueError, match="is none of 'all'.*a share such as 50%"):
        resolve_layers(layers, [0, 1, 2])


def test_the_widest_input_of_a_layer_is_that_of_the_feed_forward_networks_last(model: PeftModel) -> None:
    encoder = LoraEncoder.from_model(model, modules=["widest"])
    assert [module.ending for module in encoder.modules] == ["mlp.down_proj", "mlp.down_proj"]
    everything = LoraEncoder.from_model(model, modules=["all"])
    assert len(everything.modules) == 14


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", {0, 1}), ("last:1", {1}), ("first:1", {0}), ("last:2", {0, 1}), ("0", {0}), ("0,1", {0, 1})]
    + [([1], {1}), ([-1], {1}), ("-2,-1", {0, 1}), ((0,), {0})],
)
def test_layers_are_chosen_by_name_or_number(model: PeftModel, layers: Any, expected: set[int]) -> None:
    encoder = LoraEncoder.from_model(model, layers=layers)
    assert {module.layer for module in encoder.modules} == expected
    assert len(encoder.modules) == len(expected) * len(LINEAR)


def test_modules_are_chosen_by_endings_at_a_dot(model: PeftModel) -> None:
    encoder = LoraEncoder.from_model(model, layers="last:1", modules=["mlp.down_proj", "q_proj"])
    assert [module.name for module in encoder.modules] == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    ]


def test_each_module_keeps_its_own_rank(student: Qwen2ForCausalLM) -> None:
    model = with_lora(student, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 5})
    encoder = LoraEncoder.from_model(model, layers="last:1")
    assert [module.rank for module in encoder.modules] == [3, 5]
    with encoder.capture() as captured:
        model(input_ids=torch.arange(10, 17)[None])
    assert encoder.pool(captured, torch.ones(1, 7)).shape == (1, 8) == (1, encoder.dimension)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layers": "last:3"}, r"encoder_layers='last:3' .*N from 1 to 2"),
        ({"layers": "last:0"}, r"encoder_layers='last:0' "),
        ({"layers": "some"}, r"encoder_layers='some' is none of 'all'"),
        ({"layers": ""}, r"encoder_layers='' "),
        ({"layers": "1,2"}, r"encoder_layers=\[1, 2\] .*adapted layers are \[0, 1\]"),
        ({"layers": [-3]}, r"encoder_layers=\[-3\] "),
        ({"layers": []}, r"encoder_layers=\[\] "),
        ({"modules": ["proj"]}, r"encoder_modules=\['proj'\].*self_attn.q_proj"),
        ({"modules": ["q_proj", "query"]}, r"\['query'\] matches no adapted module.*mlp.down_proj"),
        ({"modules": []}, r"encoder_modules=\[\]"),
        ({"modules": "q_proj"}, r"encoder_modules='q_proj'.*give a list"),
        ({"adapter_name": "other"}, r"'other' adapts no linear layer.*target_modules"),
    ],
)
def test_a_choice_that_matches_nothing_is_refused(model: PeftModel, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraEncoder.from_model(model, **choice)


def test_layers_from_the_end_are_counted_among_the_adapted_ones() -> None:
    assert resolve_layers([-2], [0, 4, 8]) == {4} and resolve_layers("-2,-1", [0, 4, 8]) == resolve_layers(
        "last:2", [0, 4, 8]
    )


@given(st.text(st.sampled_from("0123456789,:-lastfirn ²"), max_size=8) | st.lists(st.integers(-5, 5), max_size=3))
def test_any_layers_give_adapted_ones_or_a_clear_refusal(layers: str | list[int]) -> None:
    try:
        chosen = resolve_layers(layers, [0, 2, 3])
    except ValueError as error:
        assert str(error).startswith(f"encoder_layers={layers!r} ") or "the adapted layers are [0, 2, 3]" in str(error)
    else:
        assert chosen and chosen <= {0, 2, 3}


def test_an_adapter_outside_the_decoder_layers_is_refused(student: Qwen2ForCausalLM) -> None:
    model = get_peft_model(student, LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="adapts no linear layer inside the numbered decoder layers"):
        LoraEncoder.from_model(model)


def test_adapted_modules_lists_every_linear_layer_in_order(model: PeftModel) -> None:
    assert [module.name.rsplit(".", 1)[-1] for module in adapted_modules(model)] == LINEAR * 2
    assert {(module.layer, module.rank) for module in adapted_modules(model)} == {(0, 3), (1, 3)}


def test_a_layer_that_runs_twice_is_left_out(student: Qwen2ForCausalLM) -> None:
    """A pass that is left early would take its first output, training its last."""
    student.model.layers.append(student.model.layers[0])
    student.config.num_hidden_layers = 3
    student.config.layer_types = ["full_attention"] * 3
    encoder = LoraEncoder.from_model(with_lora(student))
    assert {module.layer for module in encoder.modules} == {1}
