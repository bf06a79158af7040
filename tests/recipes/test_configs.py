"""Every shipped configuration parses: known keys, values in range; and launches what it says."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType

from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.experiments.parsing import parse_settings
from flipped_kd.training.config import FlippedDistillationConfig

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = sorted(path for path in (RECIPES / "configs").glob("*.yaml") if not path.stem.startswith("ablation"))
LAUNCHES = sorted((RECIPES / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_parses(path: Path) -> None:
    student, data, config = parse_settings(
        (StudentArguments, DataArguments, FlippedDistillationConfig), ["--config", str(path)]
    )
    assert config.output_dir == f"outputs/{path.stem}"
    named = data.teacher, student.student, data.dataset_name or data.train_file
    if path.stem.endswith("_full"):
        assert all(named) and "mini" not in named
    elif path.stem == "fin_demo":  # the student is fetched, the teacher fine-tuned in the run
        assert named == ("mini", None, None)
    else:
        assert all(named) == (named[:2] == ("mini", "mini"))
    assert student.trust_remote_code is False


def test_a_mini_and_a_full_setting_are_shipped() -> None:
    settings = {f"{domain}_{size}" for domain in ("fin", "med", "faq") for size in ("mini", "full")}
    assert settings | {"fin_zh_mini", "fin_demo"} == {path.stem for path in CONFIGS}


def launched(name: str, *options: str) -> Namespace:
    """The launcher's own reading of a configuration."""
    file = str(RECIPES / "accelerate" / f"{name}.yaml")
    args = launch_command_parser().parse_args(["--config_file", file, "--main_process_port", "0", *options, "x.py"])
    return _validate_launch_command(args)[0]


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_launch_configuration_parses(path: Path) -> None:
    config = load_config_from_file(str(path))  # refuses unknown keys, but not inside the sections
    known = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= known
    text = path.read_text("utf-8")
    assert text.startswith("#") and f"--config_file recipes/accelerate/{path.name}" in text


@pytest.mark.parametrize(
    ("name", "launcher", "processes"),
    [
        ("single", None, 1),
        ("ddp", "multi_gpu", 2),
        ("multi_node", "multi_gpu", 16),
        ("fsdp2", "use_fsdp", 2),
        ("deepspeed_zero2", "use_deepspeed", 2),
    ],
)
def test_launches_what_its_name_says(name: str, launcher: str | None, processes: int) -> None:
    args = launched(name)
    chosen = [kind for kind in ("multi_gpu", "use_fsdp", "use_deepspeed", "tpu", "cpu") if getattr(args, kind)]
    assert chosen == ([] if launcher is None else [launcher])
    assert args.num_processes == processes
    assert args.num_machines == (2 if name == "multi_node" else 1)
    assert launched(name, "--num_processes", "8").num_processes == 8
    assert len(LAUNCHES) == 5


def of(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process see what a launched one would."""
    for key, value in env.items():
        if os.environ.get(key) != value:
            monkeypatch.setenv(key, value)


def test_what_fsdp2_tells_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    of(prepare_multi_gpu_env(launched("fsdp2")), monkeypatch)
    plugin: Any = FullyShardedDataParallelPlugin()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true" and os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert not plugin.activation_checkpointing and not plugin.cpu_ram_efficient_loading
    assert plugin.transformer_cls_names_to_wrap is None  # the model's own


def test_what_deepspeed_zero2_tells_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    args = launched("deepspeed_zero2")
    args.deepspeed_fields_from_accelerate_config = ""
    of(prepare_deepspeed_cmd_env(args)[1], monkeypatch)
    config = DeepSpeedPlugin().deepspeed_config
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true" and os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "none"
    assert config["gradient_clipping"] == config["gradient_accumulation_steps"] == "auto"
