"""Large files of a model: pointers, broken and missing ones are named before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flipped_kd.utils.weight_files import check_models, check_weight_files
from tests.broken_files import BREAKS, break_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in two shards."""
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        save_file({name: torch.zeros(8)}, tmp_path / name)
    index = {"weight_map": {name: name for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "spiece.model", "config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_whole_files_and_names_of_the_hub_pass(folder: Path) -> None:
    check_weight_files(folder)
    check_models(folder, str(folder), None, "organisation/name", folder / "absent.gguf")
    read = [path.name for path in folder.glob("*.safetensors")]
    assert len(read) > 1  # there were weights to look at


@pytest.mark.parametrize("how", BREAKS)
def test_broken_weights_are_named_with_a_remedy(folder: Path, how: str) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    break_file(path, how)
    with pytest.raises(ValueError, match=rf"{path} is {BREAKS[how]}.*again"):
        check_models("organisation/name", folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_pointers_of_other_large_files_are_named(folder: Path, name: str) -> None:
    break_file(folder / name, "pointer")
    with pytest.raises(ValueError, match=rf"{folder / name} is a pointer of Git LFS .*git lfs pull"):
        check_weight_files(folder)


def test_a_missing_shard_and_a_broken_index_are_named(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 2 files of its weights, such as model-00002-of-00002"):
        check_weight_files(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json is broken .*again"):
        check_weight_files(folder)
