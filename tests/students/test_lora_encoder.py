"""LoraEncoder: vectors equal to a slow reference, capture, checkpointing, saving."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.students.attention import additive_mask
from flipped_kd.students.encoder_inputs import EncoderInputs
from flipped_kd.students.encoder_modules import EncoderModule
from flipped_kd.students.lora_encoder import ENCODER_FILE, LoraEncoder
from flipped_kd.students.probing import can_be_stopped, unwrapped
from flipped_kd.training.collator import TeacherScoringCollator
from flipped_kd.training.packing import find_layout
from tests.adapters import LINEAR, with_lora


@pytest.fixture
def model(student: Qwen2ForCausalLM) -> PeftModel:
    return with_lora(student)


@pytest.fixture(scope="module")
def ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    return torch.randint(10, len(tokenizer), (3, 7), generator=torch.Generator().manual_seed(0))


SPANS = torch.tensor([[0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0, 0]])


def test_summed_vectors_equal_a_slow_reference(model: PeftModel, ids: Tensor) -> None:
    encoder = LoraEncoder.from_model(model, modules=["q_proj", "down_proj"], pooling="sum")
    assert encoder.dimension == 3 and len(encoder.modules) == 4
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj.lora_A.default", "down_proj.lora_A.default")):
            module.register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out.double()}))
    with torch.no_grad():
        vectors = encode(model, encoder, ids)
    for row, spans in enumerate(SPANS):
        total = sum(out[row][spans.bool()].mean(0) for out in outputs.values())
        assert isinstance(total, Tensor)
        torch.testing.assert_close(vectors[row].double(), total / total.norm(), atol=1e-6, rtol=0)


def test_a_summed_encoder_is_saved_as_such(model: PeftModel, tmp_path: Path) -> None:
    LoraEncoder.from_model(model, pooling="sum").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / ENCODER_FILE).read_text(encoding="utf-8"))
    assert saved["format_version"] == 2 and saved["encoder_pooling"] == "sum" and saved["dimension"] == 3
    again = LoraEncoder.from_pretrained(tmp_path)
    assert again.pooling == "sum" and again.dimension == 3
    LoraEncoder.from_model(model).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / ENCODER_FILE).read_text(encoding="utf-8"))
    assert saved["format_version"] == 1 and "encoder_pooling" not in saved  # as earlier releases read it
    assert LoraEncoder.from_pretrained(tmp_path).pooling == "concat"


def test_what_cannot_be_summed_is_refused() -> None:
    modules = [EncoderModule("model.layers.0.a", 0, 4), EncoderModule("model.layers.0.b", 0, 2)]
    with pytest.raises(ValueError, match=r"ranks \[2, 4\]"):
        LoraEncoder(modules, pooling="sum")
    with pytest.raises(ValueError, match="encoder_pooling='mean'"):
        LoraEncoder(modules, pooling="mean")  # type: ignore[arg-type]


def encode(model: torch.nn.Module, encoder: LoraEncoder, ids: Tensor, spans: Tensor = SPANS, **inputs: Any) -> Tensor:
    with encoder.capture() as captured:
        model(input_ids=ids, **inputs)
    return encoder.pool(captured, spans)


# ---- Vectors ---------------------------------------------------------------------------------------------


def test_vectors_equal_a_slow_reference_from_the_inputs_and_weights_of_a(model: PeftModel, ids: Tensor) -> None:
    encoder = LoraEncoder.from_model(model, modules=["q_proj", "down_proj"])
    inputs: dict[str, list[list[list[float]]]] = {}
    weights: dict[str, list[list[float]]] = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj.lora_A.default", "down_proj.lora_A.default")):
            weights[name] = module.get_parameter("weight").tolist()
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].tolist()}))
    with torch.no_grad():
        vectors = encode(model, encoder, ids)

    def unit(values: list[float]) -> list[float]:
        norm = math.sqrt(math.fsum(value * value for value in values))
        return [value / norm for value in values]

    assert list(weights) == [f"base_model.model.{module.name}.lora_A.default" for module in encoder.modules]
    for row, span in enumerate(SPANS.tolist()):
        parts: list[float] = []
        for name, matrix in weights.items():
            tokens = [x for x, inside in zip(inputs[name][row], span, strict=True) if inside]
            outputs = [[math.fsum(w * v for w, v in zip(line, x, strict=True)) for line in matrix] for x in tokens]
            parts += unit([math.fsum(column) / len(outputs) for column in zip(*outputs, strict=True)])
        assert vectors[row].tolist() == pytest.approx(unit(parts), abs=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_vectors_are_unit_and_float32(model: PeftModel, ids: Tensor, autocast: bool) -> None:
    encoder = LoraEncoder.from_model(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        vectors = encode(model, encoder, ids)
    assert vectors.shape == (3, encoder.dimension) == (3, 3 * 2 * len(LINEAR))
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.detach().norm(dim=-1), torch.ones(3))


def test_text_a_has_the_same_vector_alone_in_a_pair_and_packed(
    model: PeftModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = PairPrompt.from_preset(tokenizer, max_length=64)
    encoder = LoraEncoder.from_model(model)
    texts = ["where is my card", "a refund", "how long does the transfer take, please?", "cash"]
    others = ["why was my salary refused", "the app", "cancel", "an invoice has not arrived for weeks and weeks"]
    pairs = [{"text_a": a, "text_b": b} for a, b in zip(texts, others, strict=True)]
    swapped = [{"text_a": b, "text_b": a} for a, b in zip(texts, others, strict=True)]
    separate = TeacherScoringCollator(prompt, 0)
    layout = find_layout(model, 64)
    assert layout is not None
    vectors = []
    with torch.no_grad():
        batch = separate(pairs)
        vectors.append(
            encode(model, encoder, batch["input_ids"], batch["span_a"], attention_mask=batch["attention_mask"])
        )
        batch = separate(swapped)
        vectors.append(
            encode(
                model,
                encoder,
                batch["alone_input_ids"],
                batch["alone_span"],
                attention_mask=batch["alone_attention_mask"],
            )
        )
        shared = TeacherScoringCollator(prompt, 0, layout=layout)(swapped)
        with encoder.capture() as captured:
            model(
                input_ids=shared["input_ids"],
                attention_mask=additive_mask(shared["attention_mask"], torch.float32),
                position_ids=shared["position_ids"],
            )
        vectors.append(encoder.pool(captured, shared["alone_span"], shared["alone_row"]))
    torch.testing.assert_close(vectors[1], vectors[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(vectors[2], vectors[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_vector_does_not_depend_on_padding_or_on_the_rest_of_the_batch(
    model: PeftModel, tokenizer: PreTrainedTokenizerFast, side: Any
) -> None:
    collator = TeacherScoringCollator(PairPrompt.from_preset(tokenizer, max_length=64), 0, padding_side=side)
    encoder = LoraEncoder.from_model(model)
    rows = [{"text_a": "a", "text_b": "my card"}, {"text_a": "where is the transfer " * 3, "text_b": "cash"}]

    def vectors(rows: list[dict[str, str]], span: str) -> Tensor:
        batch = collator(rows)
        with torch.no_grad():
            return encode(model, encoder, batch["input_ids"], batch[span], attention_mask=batch["attention_mask"])

    for span in ("span_a", "span_b"):
        single = torch.cat([vectors([row], span) for row in rows])
        torch.testing.assert_close(vectors(rows, span), single, rtol=0, atol=1e-6)


# ---- Capture ---------------------------------------------------------------------------------------------


def test_only_the_forward_inside_the_context_is_recorded(model: PeftModel, ids: Tensor) -> None:
    encoder = LoraEncoder.from_model(model)
    with torch.no_grad():
        expected = encode(model, encoder, ids)
        with encoder.capture() as captured:
            model(input_ids=ids)
        model(input_ids=ids.flip(1))
        assert torch.equal(encoder.pool(captured, SPANS), expected)


def test_nested_contexts_record_apart(model: PeftModel, ids: Tensor) -> None:
    encoder = LoraEncoder.from_model(model)
    with torch.no_grad():
        first, second = encode(model, encoder, ids), encode(model, encoder, ids.flip(1))
        with encoder.capture() as outer:
            with encoder.capture() as inner:
                model(input_ids=ids.flip(1))
            assert not outer
            model(input_ids=ids)
        assert torch.equal(encoder.pool(outer, SPANS), first)
        assert torch.equal(encoder.pool(inner, SPANS), second)
        assert not torch.equal(first, second)


def test_hooks_survive_train_and_eval_and_leave_the_output_alone(model: PeftModel, ids: Tensor) -> None:
    with torch.no_grad():
        bare = model(input_ids=ids).logits
        encoder = LoraEncoder.from_model(model)
        expected = encode(model, encoder, ids)
        assert torch.equal(encode(model.train().eval(), encoder, ids), expected)
        with encoder.capture():
            assert torch.equal(model(input_ids=ids).logits, bare)
        encoder.detach()
    with pytest.raises(RuntimeError, match="attach"), encoder.capture():
        pass


@pytest.mark.parametrize("merged", [False, True])
def test_a_text_alone_is_read_up_to_the_encoders_last_layer(
    model: PeftModel, ids: Tensor, merged: bool, tmp_path: Path
) -> None:
    """The vectors are the same, and nothing above that layer runs."""
    encoder = LoraEncoder.from_model(model, layers="first:1", modules=["down_proj"])
    inputs = EncoderInputs(model, encoder.modules)
    read: Any = model
    if merged:
        encoder.save_matrices(model, tmp_path)
        read = copy.deepcopy(model).merge_and_unload()
        encoder.attach_merged(read, tmp_path)
    assert can_be_stopped(read) and not can_be_stopped(torch.nn.parallel.DataParallel(read))
    layers = unwrapped(read).model.layers
    above: list[int] = []
    layers[1].register_forward_hook(lambda *_: above.append(1))
    readers: list[Any] = [encoder] if merged else [encoder, inputs]
    for reader in readers:
        found = []
        for stop in (False, True):
            with torch.no_grad(), reader.capture(stop=stop) as captured:
                read(input_ids=ids)
                assert not stop, "left before its end"
            with torch.no_grad():
                found.append(reader.pool(captured, SPANS))
        assert torch.equal(*found)
    assert len(above) == len(readers)
    with torch.no_grad(), encoder.capture() as captured:  # the next pass is a whole one
        assert read(input_ids=ids).logits.isfinite().all() and captured


def test_a_pass_that_others_wait_for_is_not_stopped(model: PeftModel) -> None:
    assert can_be_stopped(model)
    model.train()
    model.base_model.model.activation_checkpointing_enable({"use_reentrant": False})
    assert not can_be_stopped(model) and can_be_stopped(model.eval())
    assert not can_be_stopped(torch.compile(model, backend="eager"))
    unwrapped(model).hf_device_map = {"": "cpu"}  # type: ignore[assignment]
    assert not can_be_stopped(model)


def test_a_deepcopy_needs_an_encoder_of_its_own(model: PeftModel, ids: Tensor) -> None:
    encoder = LoraEncoder.from_model(model)
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.mul_(1.5)
    other = LoraEncoder(encoder.modules)
    other.attach(twin)
    with torch.no_grad():
        expected = encode(model, encoder, ids)
        with other.capture() as captured:
            twin(input_ids=ids)
            model(input_ids=ids)  # records into the first encoder, which captures nothing now
        assert not torch.equal(other.pool(captured, SPANS), expected)
        assert torch.equal(encode(model, encoder, ids), expected)


def test_attaching_to_another_model_lets_go_of_the_first(model: PeftModel, ids: Tensor) -> None:
    encoder, twin = LoraEncoder.from_model(model), copy.deepcopy(model)
    encoder.attach(twin)
    with torch.no_grad(), encoder.capture() as captured:
        model(input_ids=ids)
    assert not captured


def test_an_a_that_did_not_run_is_reported(model: PeftModel, ids: Tensor) -> None:
    encoder = LoraEncoder.from_model(model)
    with model.disable_adapter(), pytest.raises(RuntimeError, match="did not run.*disabled"):
        encode(model, encoder, ids)


def test_a_frozen_adapter_is_reported_where_a_gradient_is_wanted(model: PeftModel, ids: Tensor) -> None:
    encoder = LoraEncoder.from_model(model)
    model.requires_grad_(False)
    with pytest.raises(RuntimeError, match="without gradient.*is_trainable=True"):
        encode(model, encoder, ids)
    with torch.no_grad():
        assert encode(model, encoder, ids).isfinite().all()


# ---- Activation checkpointing ----------------------------------------------------------------------------


def gradients(model: PeftModel, ids: Tensor, checkpointing: dict[str, bool] | None) -> dict[str, Tensor]:
    encoder = LoraEncoder.from_model(model)
    base: Any = model.get_base_model()
    if checkpointing is not None:
        base.activation_checkpointing_enable(checkpointing)
        model.enable_input_require_grads()
    vectors = encode(model.train(), encoder, ids, use_cache=False)
    (vectors[0] @ vectors[1] + vectors[1] @ vectors[2]).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_non_reentrant_checkpointing_gives_the_gradient_of_none(model: PeftModel, ids: Tensor) -> None:
    plain = gradients(copy.deepcopy(model), ids, None)
    checkpointed = gradients(model, ids, {"use_reentrant": False})
    assert plain.keys() == checkpointed.keys()
    assert any("lora_A" in name and gradient.abs().sum() > 0 for name, gradient in plain.items())
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_reentrant_checkpointing_is_reported_with_its_remedy(model: PeftModel, ids: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"without gradient.*\{'use_reentrant': False\}"):
        gradients(model, ids, {"use_reentrant": True})


# ---- Saving, attaching -----------------------------------------------------------------------------------


def test_a_saved_encoder_gives_the_same_vectors(model: PeftModel, ids: Tensor, tmp_path: Path) -> None:
    encoder = LoraEncoder.from_model(model, layers="last:1", modules=["v_proj", "o_proj"])
    encoder.save_pretrained(tmp_path / "new")
    loaded = LoraEncoder.from_pretrained(tmp_path / "new")
    assert loaded.to_dict() == encoder.to_dict() == json.loads((tmp_path / "new" / ENCODER_FILE).read_text())
    assert [path.name for path in (tmp_path / "new").iterdir()] == [ENCODER_FILE]
    with torch.no_grad():
        expected = encode(model, encoder, ids)
        loaded.attach(model)
        assert torch.equal(encode(model, loaded, ids), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved | {"format_version": 3}, "format_version 3.*upgrade"),
        (lambda saved: {k: v for k, v in saved.items() if k != "modules"}, "no saved LoraEncoder.*modules"),
        (lambda saved: saved | {"modules": []}, "at least one"),
        (lambda saved: saved | {"modules": [{"name": "x"}]}, "no saved LoraEncoder"),
        (lambda saved: saved | {"format_version": None}, "format_version None"),
        (lambda saved: [saved], "holds a list, not a JSON object"),
    ],
)
def test_a_broken_or_newer_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    encoder = LoraEncoder([EncoderModule("model.layers.0.self_attn.q_proj", 0, 3)])
    (tmp_path / ENCODER_FILE).write_text(json.dumps(change(encoder.to_dict())))
    with pytest.raises(ValueError, match=message):
        LoraEncoder.from_pretrained(tmp_path)


def test_an_absent_or_cut_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"holds no {ENCODER_FILE}"):
        LoraEncoder.from_pretrained(tmp_path)
    (tmp_path / ENCODER_FILE).write_text('{"format_version": 1, "mod')
    with pytest.raises(ValueError, match="no valid JSON"):
        LoraEncoder.from_pretrained(tmp_path)


def test_an_encoder_does_not_attach_to_a_model_without_its_modules(
    student: Qwen2ForCausalLM, model: PeftModel, ids: Tensor
) -> None:
    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(ValueError, match="'model.layers.7.self_attn.q_proj'.*load the adapter"):
        LoraEncoder([EncoderModule("model.layers.7.self_attn.q_proj", 7, 3)]).attach(model)
    with pytest.raises(ValueError, match="rank 3, the encoder was saved with 4"):
        LoraEncoder([EncoderModule(name, 0, 4)]).attach(model)
    with pytest.raises(TypeError, match="reads a PeftModel, got Qwen2ForCausalLM"):
        LoraEncoder([EncoderModule(name, 0, 3)]).attach(student)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        LoraEncoder([])
    # A refusal leaves what was attached as it was.
    encoder = LoraEncoder.from_model(model)
    base = copy.deepcopy(model).unload()
    bare = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj"], layers_to_transform=[0]))
    with pytest.raises(ValueError, match="does not have"):
        encoder.attach(bare)
    with torch.no_grad():
        assert encode(model, encoder, ids).isfinite().all()
