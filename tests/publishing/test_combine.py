"""Several adapters as one: what PEFT's methods do to the weights, the scores, the encoder and the contracts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from flipped_kd.inference.matcher import FlippedMatcher
from flipped_kd.publishing.combine import combine_adapters
from flipped_kd.publishing.merge import merge_adapter
from flipped_kd.publishing.merge_weights import merge_weights
from flipped_kd.students.base_weights import BaseWeights
from flipped_kd.students.loading import load_student
from flipped_kd.students.lora_encoder import LoraEncoder
from tests.adapters import LINEAR, MIXED_PAIRS, make_adapter, make_base

TEXTS = sorted({text for pair in MIXED_PAIRS for text in pair})


@pytest.fixture
def base(tmp_path: Path, tokenizer: Any) -> Path:
    return make_base(tmp_path / "base", "qwen2", tokenizer, tied=True)


@pytest.fixture
def two(tmp_path: Path, tokenizer: Any, base: Path) -> list[Path]:
    """Two adapters of the same kind."""
    return [make_adapter(tmp_path / f"adapter-{seed}", base, tokenizer, seed=seed) for seed in (1, 2)]


def change(base: Path, adapter: Path) -> dict[str, Tensor]:
    """What an adapter adds to each weight of the base."""
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    model, _ = merge_weights(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)))
    return {name: weight - before[name] for name, weight in model.state_dict().items()}


@pytest.mark.parametrize(
    ("ranks", "options"),
    [((4, 4), {}), ((4, 2), {"target_modules": [*LINEAR, "embed_tokens"]}), ((4, 2), {"use_rslora": True})],
)
def test_cat_adds_the_changes(
    tmp_path: Path, tokenizer: Any, base: Path, ranks: tuple[int, int], options: dict[str, Any]
) -> None:
    """Exactly, for any ranks; the ranks of the encoder are those of the new matrices."""
    adapters = [
        make_adapter(tmp_path / f"adapter-{seed}", base, tokenizer, seed=seed, r=rank, **options)
        for seed, rank in enumerate(ranks)
    ]
    weights = (0.75, -0.5)
    combined = combine_adapters(adapters, tmp_path / "combined", weights=weights, method="cat")
    first, second = (change(base, adapter) for adapter in adapters)
    for name, found in change(base, combined).items():
        expected = weights[0] * first[name] + weights[1] * second[name]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert {module.rank for module in LoraEncoder.from_pretrained(combined).modules} == {sum(ranks)}
    # It is an adapter like any other: it encodes, scores and merges.
    matcher = FlippedMatcher.from_pretrained(combined, device="cpu")
    assert matcher.encode(TEXTS).shape == (len(TEXTS), sum(ranks) * len(matcher.encoder.modules))
    report = merge_adapter(combined, tmp_path / "merged")
    assert report.sentence_transformers and report.answer_difference < 1e-4


@pytest.mark.parametrize(("method", "weight", "rank"), [("linear", 0.25, 4), ("cat", 0.5, 8), ("svd", 0.5, 4)])
def test_an_adapter_with_itself_is_itself(
    tmp_path: Path, two: list[Path], method: str, weight: float, rank: int
) -> None:
    folder = combine_adapters([two[0], two[0]], tmp_path / "combined", method=method, weights=[weight, weight])
    one, other = (FlippedMatcher.from_pretrained(name, device="cpu") for name in (two[0], folder))
    expected = one.scores(MIXED_PAIRS)[0]
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(other.scores(MIXED_PAIRS)[0], expected, atol=2e-5 * scale, rtol=0)
    assert {module.rank for module in other.encoder.modules} == {rank}
    if method != "svd":  # which turns A
        similarity = one.similarity(TEXTS, TEXTS)
        torch.testing.assert_close(other.similarity(TEXTS, TEXTS), similarity, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "weight"), [("linear", 0.25), ("ties", 1.0), ("cat", 0.5), ("svd", 0.5)])
def test_modules_may_have_ranks_of_their_own(
    tmp_path: Path, tokenizer: Any, base: Path, method: str, weight: float
) -> None:
    """As `encoder_rank` gives them: PEFT writes one rank for all, whatever the matrices have."""
    options = {"r": 2, "lora_alpha": 4, "rank_pattern": {"down_proj": 6}, "alpha_pattern": {"down_proj": 12}}
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, **options)
    extra = {"density": 1.0} if method == "ties" else {}
    folder = combine_adapters([adapter] * 2, tmp_path / "combined", method=method, weights=[weight] * 2, **extra)
    found = change(base, folder)
    for name, expected in change(base, adapter).items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=0)
    modules = {module.name: module.rank for module in LoraEncoder.from_pretrained(folder).modules}
    matrices = FlippedMatcher.from_pretrained(folder, device="cpu").model.state_dict()
    assert {name: len(matrices[f"base_model.model.{name}.lora_A.default.weight"]) for name in modules} == modules
    if method == "cat":  # nothing but the sum of the parts' own ranks
        ranks = {name: len(value) for name, value in matrices.items() if "lora_A" in name}
        assert set(ranks.values()) == {4, 12} and {r for n, r in ranks.items() if "down_proj" in n} == {12}


def test_contracts_of_the_combined_adapter(tmp_path: Path, two: list[Path], base: Path) -> None:
    folder = combine_adapters(two, tmp_path / "combined")
    names = {path.name for path in folder.iterdir()}
    contracts = {"pair_prompt.json", "lora_encoder.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    # No match score: that of the parts was fitted on other log-odds.
    assert names == contracts | {"adapter_config.json", "adapter_model.safetensors", "base_weights.json"}
    assert (folder / "pair_prompt.json").read_bytes() == (two[0] / "pair_prompt.json").read_bytes()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert str(tmp_path) not in (folder / "README.md").read_text()


def test_an_adapter_of_other_weights_is_not_combined(
    tmp_path: Path, two: list[Path], base: Path, tokenizer: Any
) -> None:
    """It names the same base, which was another one in memory, or has been overwritten since."""
    other = Path(shutil.copytree(two[1], tmp_path / "other"))
    model = load_student(base, dtype="float32")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    record = BaseWeights.of(model)
    assert record is not None
    record.save_pretrained(other)
    with pytest.raises(ValueError, match=r"is not what the adapter in .*/other was trained on: 1 of \d+ weights"):
        combine_adapters([two[0], other], tmp_path / "combined")
    assert not (tmp_path / "combined").exists()


def test_methods_with_options(tmp_path: Path, two: list[Path]) -> None:
    folder = combine_adapters(two, tmp_path / "ties", method="ties", density=0.5, weights=[1, 1])
    matcher = FlippedMatcher.from_pretrained(folder, device="cpu")
    assert np.isfinite(matcher.scores(MIXED_PAIRS)[0]).all()


def test_summed_encoders_stay_summed(tmp_path: Path, tokenizer: Any, base: Path) -> None:
    adapters = [
        make_adapter(tmp_path / f"{seed}", base, tokenizer, seed=seed, encoder_pooling="sum") for seed in (1, 2)
    ]
    matcher = FlippedMatcher.from_pretrained(combine_adapters(adapters, tmp_path / "combined"), device="cpu")
    assert matcher.encoder.pooling == "sum" and matcher.encode(["cash"]).shape == (1, 8)


def test_what_does_not_go_together_is_refused(tmp_path: Path, tokenizer: Any, base: Path, two: list[Path]) -> None:
    def other(name: str, **options: Any) -> Path:
        return make_adapter(tmp_path / name, base, tokenizer, **options)

    moved = make_base(tmp_path / "base-2", "qwen2", tokenizer, tied=True)
    elsewhere = make_adapter(tmp_path / "elsewhere", moved, tokenizer)
    refused: list[tuple[list[Path], dict[str, Any], str]] = [
        ([two[0], other("prompt", instruction="Equal?")], {}, r"prompts.*\['prefix', 'prefix_ids'\]"),
        ([two[0], other("encoder", encoder_layers="last:1")], {"method": "cat"}, "encoders.*encoder_layers"),
        ([two[0], other("summed", encoder_pooling="sum")], {}, "encoder_pooling='concat'.*'sum'.*different kinds"),
        ([two[0], other("rank", r=2)], {"method": "linear"}, "'cat' or 'svd'"),
        ([two[0], other("dora", use_dora=True)], {}, "use_dora.*plain LoRA"),
        ([other("saved", modules_to_save=["lm_head"]), two[0]], {}, "modules_to_save.*plain LoRA"),
        ([two[0], elsewhere], {}, "different bases.*base_model="),
        ([two[0]], {}, "two or more"),
        (two, {"weights": [1.0]}, "one finite number for each of the 2"),
        (two, {"weights": [1.0, float("nan")]}, "one finite number"),
        (two, {"method": "average"}, "'average'.*'linear'"),
        (two, {"method": "ties"}, "density|PEFT cannot combine"),
        (two, {"weighting": 3}, "weighting"),
        ([two[0], base], {}, "pair_prompt.json"),
    ]
    for adapters, options, message in refused:
        with pytest.raises(ValueError, match=message):
            combine_adapters(adapters, tmp_path / "combined", **options)
        assert not (tmp_path / "combined").exists(), message
    assert not list(tmp_path.glob(".combined*"))
    # The same model in two places, said to be one.
    combine_adapters([two[0], elsewhere], tmp_path / "combined", base_model=base)
    assert LINEAR[0] in json.loads((tmp_path / "combined" / "adapter_config.json").read_text())["target_modules"]


def test_no_module_of_a_later_adapter_is_left_out(tmp_path: Path, tokenizer: Any, base: Path) -> None:
    """PEFT adapts what the first one's settings name."""
    options: dict[str, Any] = {"encoder_layers": "first:1"}
    few = make_adapter(tmp_path / "few", base, tokenizer, layers_to_transform=[0], **options)
    all_layers = make_adapter(tmp_path / "all", base, tokenizer, **options)
    with pytest.raises(ValueError, match=r"modules, such as '.*layers\.1\..*give first the adapter that adapts most"):
        combine_adapters([few, all_layers], tmp_path / "combined", method="cat")
    assert not (tmp_path / "combined").exists()
    combine_adapters([all_layers, few], tmp_path / "combined", method="cat")
