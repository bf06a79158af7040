"""LoraEncoder on a merged model: the vectors of the adapter before the merge; misfits are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from flipped_kd.students.encoder_modules import EncoderModule
from flipped_kd.students.loading import load_student
from flipped_kd.students.lora_encoder import MATRICES_FILE, LoraEncoder
from tests.adapters import LINEAR, make_adapter, make_base

TARGETS: dict[str, Any] = {"qwen2": LINEAR, "gpt2": ["c_attn", "c_proj", "c_fc"], "bert": ["query", "dense"]}
SPANS = torch.tensor([[0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0, 0]])


def vectors(model: Any, encoder: LoraEncoder) -> Tensor:
    ids = torch.randint(10, model.config.vocab_size, SPANS.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with encoder.capture() as captured:
            model(input_ids=ids)
        return encoder.pool(captured, SPANS)


def adapted(folder: Path, kind: str, tokenizer: Any, **options: Any) -> tuple[PeftModel, LoraEncoder]:
    """A base of random weights with an adapter and its encoder, attached."""
    base = make_base(folder / "base", kind, tokenizer, tied=True)
    adapter = make_adapter(folder / "adapter", base, tokenizer, target_modules=TARGETS[kind], **options)
    model = PeftModel.from_pretrained(load_student(base, dtype=torch.float32), str(adapter)).eval()
    encoder = LoraEncoder.from_pretrained(adapter)
    encoder.attach(model)
    return model, encoder


@pytest.fixture
def merged(tmp_path: Path, tokenizer: Any) -> tuple[Any, LoraEncoder, Path]:
    """A merged model, the definition of its encoder, and the folder of the matrices."""
    model, encoder = adapted(tmp_path, "qwen2", tokenizer)
    encoder.save_matrices(model, tmp_path / "merged")
    return model.merge_and_unload(), LoraEncoder(encoder.modules), tmp_path / "merged"


@pytest.mark.parametrize("layers", ["all", "last:1"])
@pytest.mark.parametrize("kind", TARGETS)
def test_vectors_stay(tmp_path: Path, tokenizer: Any, kind: str, layers: str) -> None:
    """Also after the merged model was saved and loaded, and with GPT-2's transposed weights."""
    model, encoder = adapted(tmp_path, kind, tokenizer, encoder_layers=layers)
    before = vectors(model, encoder)
    folder = tmp_path / "merged"
    encoder.save_matrices(model, folder)
    encoder.save_pretrained(folder)
    model.merge_and_unload().save_pretrained(folder)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".tmp-")]
    loaded = LoraEncoder.from_pretrained(folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loaded.attach_merged(reloaded, folder)
    torch.testing.assert_close(vectors(reloaded, loaded), before, atol=1e-5, rtol=0)
    assert len({tuple(vector) for vector in before.tolist()}) == len(before)


def test_matrices_keep_their_dtype(tmp_path: Path, tokenizer: Any) -> None:
    model, encoder = adapted(tmp_path, "qwen2", tokenizer)
    encoder.save_matrices(model.to(torch.bfloat16), tmp_path / "half")
    saved = load_file(tmp_path / "half" / MATRICES_FILE)
    assert list(saved) == sorted(module.name for module in encoder.modules)
    assert {matrix.dtype for matrix in saved.values()} == {torch.bfloat16}


def test_the_merged_model_computes_nothing_more_outside_capture(merged: tuple[Any, LoraEncoder, Path]) -> None:
    model, encoder, folder = merged
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    encoder.attach_merged(model, folder)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert encoder._captured is None and not [name for name in model.state_dict() if "lora" in name]


def test_a_copy_is_read_by_an_encoder_of_its_own(merged: tuple[Any, LoraEncoder, Path]) -> None:
    model, encoder, folder = merged
    encoder.attach_merged(model, folder)
    twin, other = copy.deepcopy(model), LoraEncoder(encoder.modules)
    other.attach_merged(twin, folder)
    assert torch.equal(vectors(twin, other), vectors(model, encoder))


def test_misfits_are_refused_and_leave_everything_as_it_was(merged: tuple[Any, LoraEncoder, Path]) -> None:
    model, encoder, folder = merged
    encoder.attach_merged(model, folder)
    before = vectors(model, encoder)
    first = encoder.modules[0]
    path = folder / MATRICES_FILE
    whole = load_file(path)

    with pytest.raises(ValueError, match=r"no lora_encoder\.safetensors.*merge_adapter"):
        encoder.attach_merged(model, folder.parent)
    for broken, message in (
        ({name: matrix for name, matrix in whole.items() if name != first.name}, "no matrix"),
        (whole | {first.name: whole[first.name][:, 1:].contiguous()}, "inputs of size 32"),
        (whole | {first.name: whole[first.name][1:].contiguous()}, "rank 4"),
    ):
        save_file(broken, path)
        with pytest.raises(ValueError, match=message):
            encoder.attach_merged(model, folder)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="download it again"):
        encoder.attach_merged(model, folder)
    save_file(whole | {"model.norm": torch.zeros(3, 32)}, path)
    with pytest.raises(ValueError, match="no linear layer"):
        LoraEncoder([EncoderModule("model.norm", 0, 3)]).attach_merged(model, folder)
    assert torch.equal(vectors(model, encoder), before)


def test_only_an_adapter_has_matrices_to_save(merged: tuple[Any, LoraEncoder, Path]) -> None:
    model, encoder, folder = merged
    with pytest.raises(TypeError, match="add a LoRA adapter first"):
        encoder.save_matrices(model, folder)
