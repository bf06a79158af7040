"""Whatever the student computes in, angles and losses are float32 and what is trained moves; see docs/adapters.md."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.students.cpu_dropout import speed_up_dropout
from flipped_kd.students.loading import load_student
from flipped_kd.students.lora import default_lora, keep_input_precision
from flipped_kd.training.config import FlippedDistillationConfig
from flipped_kd.training.trainer import FlippedDistillationTrainer
from tests.invariants.training import logged, lora, settings, trainable

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "bf16 autocast": ("bf16", {}),
    "bf16 weights": ("bf16", {"dtype": "bfloat16"}),
    "bf16 weights, fp32 compute": ("fp32", {"dtype": "bfloat16"}),
}
BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not BITSANDBYTES, reason="bitsandbytes is not installed (extra qlora)")


@pytest.fixture
def make(
    student_dir: Path,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> Any:
    def make(
        precision: str, out: str = "run", peft_config: Any = None, name: Path = student_dir, **load: Any
    ) -> FlippedDistillationTrainer:
        # Pearson divides by the spread of similarities, which is small in a tiny student: rounding then shows more.
        args = settings(tmp_path / out, precision=precision, max_steps=4, weight_decay=0.0, dist_loss="mse")
        student = load_student(name, **load)
        return FlippedDistillationTrainer(
            student, str(teacher_dir), args, pairs, held_out, tokenizer, peft_config or lora()
        )

    return make


@pytest.mark.parametrize("name", CASES)
def test_losses_are_float32_and_near_those_of_float32(name: str, make: Any) -> None:
    precision, load = CASES[name]
    trainer = make(precision, **load)
    reference = make("fp32", "reference")
    seen: list[torch.Tensor] = []
    compare = trainer.loss.compare

    def watched(labels: torch.Tensor, *tensors: Any, **more: Any) -> Any:
        output = compare(labels, *tensors, **more)
        seen.extend(tensor for tensor in (*tensors, output.dist, output.mcl) if isinstance(tensor, torch.Tensor))
        return output

    trainer.loss.compare = watched
    start = {key: value.clone() for key, value in trainable(trainer.model).items()}
    assert {value.dtype for value in start.values()} == {torch.float32}
    for one in (trainer, reference):
        one.train()
    assert seen and {tensor.dtype for tensor in seen if tensor.is_floating_point()} == {torch.float32}
    assert not [key for key, value in trainable(trainer.model).items() if torch.equal(value, start[key])]
    for term in ("loss", "loss_sup", "loss_dist", "loss_mcl"):
        np.testing.assert_allclose(logged(trainer, term), logged(reference, term), rtol=0.05, atol=0.02)


def test_the_answer_is_finer_than_bfloat16(make: Any, held_out: datasets.Dataset) -> None:
    """A wrapped head (modules_to_save) computes in float32 too."""
    wrapped = default_lora(4, 8, 0.0)
    wrapped.modules_to_save = ["lm_head"]
    for peft_config in (lora(), wrapped):
        trainer = make("bf16", peft_config=peft_config)
        answer, similarity = trainer.score_pairs(held_out)
        for scores in (answer, similarity):
            rounded = torch.tensor(scores).bfloat16().double().numpy()
            assert (rounded != scores).mean() > 0.9


def test_the_head_leaves_autocast_and_returns_to_it(make: Any) -> None:
    """Its logits are bit for bit those without autocast, and what follows runs as before, after an error too."""
    trainer = make("bf16")
    head = trainer.model.get_output_embeddings()
    states = torch.randn(2, 3, head.in_features)
    wanted = head(states)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert torch.equal(head(states), wanted)
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                head(states[:, :, 1:])
            assert (states @ states.mT).dtype == torch.bfloat16
    assert (states @ states.mT).dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has float16 training")
@pytest.mark.parametrize("autocast", [False, True])
def test_adapted_layers_without_the_cast_compute_the_same(autocast: bool, student: Qwen2ForCausalLM) -> None:
    """PEFT's cast to A's precision, which autocast takes back, is spared; nothing else changes."""
    model = get_peft_model(student, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    ids = torch.arange(3, 35).view(2, 16)
    results, given = [], []
    # After attention, whose products autocast gives in bfloat16.
    (read,) = (module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.o_proj"))
    assert isinstance(read, LoraLayer)
    read.lora_dropout["default"].register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0].dtype))
    for _ in range(2):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids).logits
        logits.float().square().sum().backward()
        gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        results.append((logits.detach(), gradient))
        keep_input_precision(model)
    assert given == [torch.float32, torch.bfloat16 if autocast else torch.float32]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_outside_autocast_the_cast_stays(student: Qwen2ForCausalLM) -> None:
    """Weights may be cast, and adapters in another precision loaded, after training."""
    model = get_peft_model(student, LoraConfig(r=4, target_modules="all-linear"))
    keep_input_precision(model)
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(torch.float32 if "lora_" in name else torch.bfloat16)
    ids = torch.arange(3, 9)[None]
    for each in (model, copy.deepcopy(model)):
        assert each(input_ids=ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_a_dora_adapter_starts_as_the_base_under_autocast(dropout: float, student: Qwen2ForCausalLM) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", use_dora=True, lora_dropout=dropout)
    ids = torch.arange(3, 35).view(2, 16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        wanted = student(input_ids=ids).logits
        model = get_peft_model(student, config).train()
        speed_up_dropout(model)
        keep_input_precision(model)
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, atol=1e-6, rtol=0)


def test_fp16_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a CPU has no float16 training"):
        FlippedDistillationConfig(output_dir=str(tmp_path), precision="fp16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 with loss scaling needs a GPU")
def test_fp16_scales_its_loss(make: Any) -> None:
    trainer = make("fp16")
    trainer.args.use_cpu = False
    start = {key: value.clone() for key, value in trainable(trainer.model).items()}
    trainer.train()
    assert trainer.accelerator.scaler is not None
    assert np.isfinite(logged(trainer)).all()
    assert any(not torch.equal(value, start[key]) for key, value in trainable(trainer.model).items())


# ---- QLoRA ----


@needs_bitsandbytes
def test_a_student_in_4_bits_trains_and_its_adapter_serves_the_whole_one(
    make: Any, tmp_path: Path, held_out: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(tokenizer), **shape, num_key_value_heads=4)  # 4 bits come in blocks of 64
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trainer = make("bf16", name=tmp_path / "base", load_in_4bit=True)
    layer: Any = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
    assert type(layer.base_layer).__name__ == "Linear4bit" and layer.base_layer.weight.dtype == torch.uint8
    packed = layer.base_layer.weight.detach().clone()
    start = {key: value.clone() for key, value in trainable(trainer.model).items()}
    trainer.train()
    assert torch.equal(layer.base_layer.weight, packed)
    assert not [key for key, value in trainable(trainer.model).items() if torch.equal(value, start[key])]
    trainer.save_model()
    texts = list(zip(held_out["text_a"], held_out["text_b"], strict=True))
    found = FlippedMatcher.from_pretrained(tmp_path / "run", device="cpu").scores(texts)
    # The matcher's base is not rounded to 4 bits: near, not equal.
    for one, other in zip(found, trainer.score_pairs(held_out), strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.9


@pytest.mark.skipif(BITSANDBYTES, reason="bitsandbytes is installed")
def test_4_bits_without_bitsandbytes_say_what_to_install(student_dir: Path) -> None:
    with pytest.raises(ImportError, match=r"flipped_kd\[qlora\]"):
        load_student(student_dir, load_in_4bit=True)
