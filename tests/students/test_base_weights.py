"""What is kept of an adapter's base: rounding passes, a merge, however small, does not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.students.base_weights import BASE_FILE, BaseWeights, check_same_base
from flipped_kd.students.loading import load_student
from tests.adapters import LINEAR, make_adapter, make_base


@pytest.fixture(scope="module")
def base(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), "qwen2", tokenizer, tied=True)


@pytest.fixture(scope="module")
def adapter(base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On embeddings too, and with a head of its own."""
    folder = tmp_path_factory.mktemp("adapter")
    return make_adapter(folder, base, tokenizer, target_modules=[*LINEAR, "embed_tokens"], modules_to_save=["lm_head"])


def weights_of(model: Any) -> BaseWeights:
    found = BaseWeights.of(model)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_base_in_any_precision_passes(base: Path, dtype: str) -> None:
    one, other = weights_of(load_student(base)), weights_of(load_student(base, dtype=dtype))
    assert len(one.tensors) == 15  # of seven linear layers in two decoder layers, and the embeddings
    assert one.difference(other) is None and other.difference(one) is None


def test_an_adapter_leaves_the_record_as_it_is(base: Path, adapter: Path, tmp_path: Path) -> None:
    alone = weights_of(load_student(base, dtype="float32"))
    model = PeftModel.from_pretrained(load_student(base, dtype="float32"), str(adapter))
    adapted = weights_of(model)
    assert adapted.difference(alone) is None and alone.tensors.keys() <= adapted.tensors.keys()
    adapted.save_pretrained(tmp_path)
    assert BaseWeights.from_pretrained(tmp_path) == adapted
    check_same_base(tmp_path, load_student(base, dtype="float32"), base)


@pytest.mark.parametrize("share", [1.0, 1e-3])
def test_a_merge_does_not_pass(base: Path, adapter: Path, tmp_path: Path, share: float) -> None:
    before = load_student(base, dtype="float32")
    weights_of(before).save_pretrained(tmp_path)
    merged: Any = PeftModel.from_pretrained(copy.deepcopy(before), str(adapter)).merge_and_unload()
    for weight, old in zip(merged.model.layers.parameters(), before.model.layers.parameters(), strict=True):
        weight.data = old.data + share * (weight.data - old.data)
    with pytest.raises(ValueError, match=r"is not what the adapter in .* was trained on: \d+ of \d+ weights differ"):
        check_same_base(tmp_path, merged, base)


def test_other_shapes_and_quantised_weights_are_passed_over(base: Path, tmp_path: Path) -> None:
    weights_of(load_student(base)).save_pretrained(tmp_path)
    wide = Qwen2ForCausalLM(Qwen2Config.from_pretrained(base, hidden_size=64))
    check_same_base(tmp_path, wide, "wide")
    for mark in ("is_quantized", "gguf_base"):
        other = Qwen2ForCausalLM(Qwen2Config.from_pretrained(base))
        setattr(other, mark, True)
        assert BaseWeights.of(other) is None
        check_same_base(tmp_path, other, "rounded")


def test_adapters_of_earlier_releases_have_no_record(tmp_path: Path) -> None:
    assert BaseWeights.from_pretrained(tmp_path) is None
    check_same_base(tmp_path, torch.nn.Linear(2, 2), "any")


def test_newer_and_broken_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / BASE_FILE
    for content, message in (
        ({"format_version": 99}, "version 99.*upgrade flipped_kd"),
        ({"format_version": 1}, "no record of a base"),
        ({"format_version": 1, "tensors": {"x": [1]}}, "no record of a base"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            BaseWeights.from_pretrained(tmp_path)


# ---- Through the trainer ----


def merged_in_memory(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def test_a_student_merged_in_memory_is_found_out_when_it_is_loaded(
    build: Any, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    earlier = make_adapter(tmp_path / "earlier", base, tokenizer)
    trainer = build(model=merged_in_memory(base, earlier), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    with pytest.raises(ValueError, match=r"is not what the adapter in .*/trained was trained on.*base_model="):
        FlippedMatcher.from_pretrained(tmp_path / "trained", device="cpu")
    merged_in_memory(base, earlier).save_pretrained(tmp_path / "merged")
    pair = [("cash", "refund")]
    found = FlippedMatcher.from_pretrained(tmp_path / "trained", base_model=tmp_path / "merged", device="cpu")
    matcher = FlippedMatcher(trainer.model, trainer.processing_class, trainer.prompt, trainer.encoder)
    assert float(found.scores(pair)[0][0]) == pytest.approx(float(matcher.scores(pair)[0][0]), abs=1e-4)
    # Without the record, as an earlier release has saved it, it loads as before.
    (tmp_path / "trained" / BASE_FILE).unlink()
    FlippedMatcher.from_pretrained(tmp_path / "trained", device="cpu")


def test_the_base_as_it_is_loads_in_any_precision(build: Any, base: Path, tmp_path: Path) -> None:
    trainer = build(model=str(base), max_steps=1)
    trainer.save_model(str(tmp_path / "trained"))
    assert (tmp_path / "trained" / BASE_FILE).is_file()  # there is a record to be compared with
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = FlippedMatcher.from_pretrained(tmp_path / "trained", device="cpu", dtype=str(dtype)[6:])
        assert found.model.get_input_embeddings().weight.dtype == dtype


def test_a_run_is_not_resumed_on_other_weights(
    build: Any, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    steps = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    build(model=str(base), **steps).train()
    earlier = make_adapter(tmp_path / "earlier", base, tokenizer)
    with pytest.raises(ValueError, match="was trained on other weights than this student's"):
        build(model=merged_in_memory(base, earlier), **steps).train(resume_from_checkpoint=True)
