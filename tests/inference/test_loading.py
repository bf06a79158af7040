"""Loading a matcher: from folders and the loopback Hub; what cannot be used is refused with its name and a remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from flipped_kd import FlippedMatcher
from flipped_kd.inference.loading import resolved_dtype
from flipped_kd.publishing.merge import merge_adapter
from tests.adapters import LINEAR, MIXED_PAIRS, make_adapter, make_base
from tests.broken_files import BREAKS, break_file
from tests.hub.fixtures import connected
from tests.hub.server import LoopbackHub

REPO = "tester/matcher"
WRONG_TOKEN = "hf_" + "w" * 34


@pytest.fixture(scope="module")
def folders(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter, its base, its merge, and bases that it does not fit."""
    root = tmp_path_factory.mktemp("folders")
    base = make_base(root / "base", "qwen2", tokenizer, tied=True)
    adapter = make_adapter(root / "adapter", base, tokenizer)
    merged = merge_adapter(adapter, root / "merged", sentence_transformers=False).folder
    return {"base": base, "adapter": adapter, "merged": merged}


@pytest.fixture
def copies(folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies to be broken."""
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items()}


def load(name: Any, **options: Any) -> FlippedMatcher:
    return FlippedMatcher.from_pretrained(name, device="cpu", **options)


# ---- Folders ----


def test_adapter_and_merged_model(folders: dict[str, Path]) -> None:
    adapter, merged = load(folders["adapter"]), load(str(folders["merged"]))
    for one, other in zip(adapter.scores(MIXED_PAIRS), merged.scores(MIXED_PAIRS), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1, np.abs(one).max()))
    assert adapter.source == str(folders["adapter"]) and adapter.device == torch.device("cpu")
    assert adapter.match_score is not None and merged.match_score is not None and not adapter.model.training
    assert adapter.match_score.to_dict() == merged.match_score.to_dict()


def test_a_base_that_has_moved(copies: dict[str, Path], folders: dict[str, Path]) -> None:
    config = copies["adapter"] / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"base_model_name_or_path": "/elsewhere/base"}))
    with pytest.raises(ValueError, match=r"base '/elsewhere/base' of the adapter in .* give base_model="):
        load(copies["adapter"])
    found = load(copies["adapter"], base_model=folders["base"]).scores(MIXED_PAIRS)
    np.testing.assert_array_equal(found, load(folders["adapter"]).scores(MIXED_PAIRS))
    config.write_text(json.dumps(content | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="names no base: give base_model="):
        load(copies["adapter"])
    with pytest.raises(ValueError, match=r"merged model, which has no base"):
        load(folders["merged"], base_model=folders["base"])


def test_a_base_that_does_not_fit_is_named(copies: dict[str, Path], tokenizer: Any, tmp_path: Path) -> None:
    """Of another kind, another size, another vocabulary; or an adapter whose weights are not all there."""
    kind = make_base(tmp_path / "gpt2", "gpt2", tokenizer, tied=True)
    size = tmp_path / "wide"
    config = Qwen2Config.from_pretrained(copies["base"], intermediate_size=64)
    Qwen2ForCausalLM(config).save_pretrained(size)
    for base in (kind, size):
        with pytest.raises(ValueError, match=rf"does not fit the base '{base}'; it was trained on '.*/base'"):
            load(copies["adapter"], base_model=base)
    small = copies["base"]
    settings = json.loads((small / "config.json").read_text())
    weights = load_file(small / "model.safetensors")
    rows = weights["model.embed_tokens.weight"][:100].contiguous()
    save_file(weights | {"model.embed_tokens.weight": rows}, small / "model.safetensors", metadata={"format": "pt"})
    (small / "config.json").write_text(json.dumps(settings | {"vocab_size": 100}))
    with pytest.raises(ValueError, match=r"token ids up to \d+, the model '.*base' has embeddings for 100"):
        load(copies["adapter"], base_model=small)
    path = copies["adapter"] / "adapter_model.safetensors"
    weights = load_file(path)
    save_file(dict(list(weights.items())[:-1]), path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit .*: 1 of its weights.*no counterpart"):
        load(copies["adapter"])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in ("adapter", "merged") for name in ("pair_prompt.json", "lora_encoder.json")),
        ("adapter", "adapter_model.safetensors"),
        ("adapter", "tokenizer_config.json"),
        ("merged", "lora_encoder.safetensors"),
        ("merged", "model.safetensors"),
    ],
)
def test_missing_files_are_named(copies: dict[str, Path], kind: str, name: str) -> None:
    (copies[kind] / name).unlink()
    with pytest.raises(ValueError, match=rf"{kind}' holds .* without {name}.*Save or download it again"):
        load(copies[kind])


@pytest.mark.parametrize("name", ["pair_prompt.json", "lora_encoder.json", "match_score.json"])
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_newer_and_broken_contracts(copies: dict[str, Path], kind: str, name: str) -> None:
    path = copies[kind] / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(ValueError, match=rf"(?i){name}.*version 99.*upgrade flipped_kd"):
        load(copies[kind])
    for broken in ("{", "[]", json.dumps(dict.fromkeys(content, 1))):
        path.write_text(broken)
        with pytest.raises(ValueError, match=name):
            load(copies[kind])


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("adapter", "adapter_model.safetensors"),
        ("adapter", "tokenizer.json"),
        ("base", "model.safetensors"),
        ("merged", "model.safetensors"),
        ("merged", "lora_encoder.safetensors"),
    ],
)
def test_damaged_files(copies: dict[str, Path], kind: str, name: str, how: str) -> None:
    path = copies[kind] / name
    break_file(path, how)
    cut = name == "tokenizer.json" and how != "pointer"
    said = rf"tokenizer of '{path.parent}' cannot be loaded" if cut else f"{path} is {BREAKS[how]}"
    with pytest.raises(ValueError, match=said):
        if kind == "base":
            load(copies["adapter"], base_model=copies["base"])
        else:
            load(copies[kind])


def test_other_adapters_and_folders(copies: dict[str, Path], tmp_path: Path) -> None:
    config = copies["adapter"] / "adapter_config.json"
    content = config.read_text()
    config.write_text(content.replace('"LORA"', '"IA3"'))
    with pytest.raises(ValueError, match="IA3 adapter: the matcher reads LoRA adapters only"):
        load(copies["adapter"])
    config.write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json is no adapter configuration"):
        load(copies["adapter"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds neither adapter_config\.json nor config\.json"):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"neither an existing folder nor a Hub id"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"without pair_prompt\.json, lora_encoder\.json"):
        load(copies["base"])


def test_an_adapted_embedding_is_an_adapter_too(folders: dict[str, Path], tokenizer: Any, tmp_path: Path) -> None:
    targets = [*LINEAR, "embed_tokens"]
    adapter = make_adapter(tmp_path / "adapter", folders["base"], tokenizer, target_modules=targets)
    assert np.isfinite(load(adapter).predict(MIXED_PAIRS)).all()


def test_dtypes(folders: dict[str, Path]) -> None:
    assert resolved_dtype("auto", torch.device("cpu")) == torch.float32
    half = load(folders["merged"], dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16 == load(folders["merged"], dtype=torch.bfloat16).model.dtype
    exact, found = load(folders["merged"]).scores(MIXED_PAIRS), half.scores(MIXED_PAIRS)
    assert np.abs(found[0] - exact[0]).max() < 0.3 and np.abs(found[1] - exact[1]).max() < 0.05
    # The answer is read in float32: bfloat16 log-odds would be multiples of a power of 2.
    assert all(not (value * 2**10).is_integer() for value in found[0])
    with pytest.raises(ValueError, match="dtype='int8' is not one of"):
        load(folders["merged"], dtype="int8")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_before_the_model_is_looked_for(device: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        FlippedMatcher.from_pretrained(tmp_path / "absent", device=device)


# ---- Hub ----


@pytest.fixture
def world(folders: dict[str, Path], hub: LoopbackHub, online: HfApi) -> LoopbackHub:
    """The adapter on the Hub, private, with a first state in which its answers were others."""
    online.create_repo(REPO, private=True)
    online.upload_folder(repo_id=REPO, folder_path=folders["adapter"])
    online.create_tag(REPO, tag="v1")
    odds = (folders["adapter"] / "match_score.json").read_text().replace('"default": "both"', '"default": "answer"')
    online.upload_file(repo_id=REPO, path_in_repo="match_score.json", path_or_fileobj=odds.encode())
    online.upload_file(repo_id=REPO, path_in_repo="pytorch_model.bin", path_or_fileobj=b"a pickle")
    return hub


def test_from_the_hub(world: LoopbackHub, folders: dict[str, Path], tmp_path: Path) -> None:
    """At a revision, without pickles, and again without any connection."""
    expected = load(folders["adapter"]).scores(MIXED_PAIRS)
    for revision, default in ((None, "answer"), ("v1", "both")):
        matcher = load(REPO, revision=revision, cache_dir=tmp_path / "cache")
        assert matcher.source == REPO and matcher.match_score is not None and matcher.match_score.default == default
        np.testing.assert_array_equal(matcher.scores(MIXED_PAIRS), expected)
    names = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert "adapter_model.safetensors" in names and "pytorch_model.bin" not in names


def test_unknown_names_and_tokens(world: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, options, message in (
        ("tester/absent", {}, "no such repository, or it is private"),
        (REPO, {"revision": "v9"}, "no such branch, tag or commit"),
        ("not a name", {}, "neither an existing folder nor a Hub id"),
    ):
        with pytest.raises(ValueError, match=rf"'{name}'.*{message}"):
            load(name, cache_dir=tmp_path / "cache", **options)
    for token in (WRONG_TOKEN, False):
        with pytest.raises(ValueError, match=rf"'{REPO}'.*(refused|private)") as caught:
            load(REPO, token=token, cache_dir=tmp_path / "cache")
        assert WRONG_TOKEN not in str(caught.value) + caplog.text
    with pytest.raises(ValueError, match="holds white space") as caught:
        load(REPO, token=WRONG_TOKEN + "\n")
    assert WRONG_TOKEN not in str(caught.value)


def test_without_contracts_no_weights_are_fetched(world: LoopbackHub, online: HfApi, tmp_path: Path) -> None:
    online.delete_file("pair_prompt.json", repo_id=REPO)
    with pytest.raises(ValueError, match=r"without pair_prompt\.json"):
        load(REPO, cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*.safetensors")]


def test_offline(folders: dict[str, Path], hub: LoopbackHub, tmp_path: Path) -> None:
    """What was fetched once is there; what was not is an error that says so."""
    with connected(hub, tmp_path, hub.token) as api:
        api.create_repo(REPO)
        api.upload_folder(repo_id=REPO, folder_path=folders["adapter"])
        expected = load(REPO, cache_dir=tmp_path / "cache").scores(MIXED_PAIRS)
    np.testing.assert_array_equal(load(REPO, cache_dir=tmp_path / "cache").scores(MIXED_PAIRS), expected)
    with pytest.raises(ValueError, match=r"could not be reached, and nothing is cached"):
        load("tester/other", cache_dir=tmp_path / "cache")
