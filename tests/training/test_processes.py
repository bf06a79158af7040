"""Launches that would train unsharded, wrongly or for nothing are refused; scoring may come before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import StateDictType

from flipped_kd.training.clipping import resolve_clipping
from flipped_kd.training.config import FlippedDistillationConfig
from flipped_kd.training.processes import check_distributed, end_together, ready_to_evaluate
from flipped_kd.training.run_checks import check_cached
from tests.invariants.training import assert_equal, logged, settings, trainable

WANTED = {"FSDP": "ACCELERATE_USE_FSDP", "DEEPSPEED": "ACCELERATE_USE_DEEPSPEED"}
FSDP2: dict[str, Any] = {
    "fsdp_version": 2,
    "state_dict_type": StateDictType.FULL_STATE_DICT,
    "activation_checkpointing": False,
}


@pytest.fixture
def args(tmp_path: Path) -> FlippedDistillationConfig:
    return settings(tmp_path)


def accelerator(kind: DistributedType, **plugins: Any) -> Any:
    """As much of an Accelerator as is looked at, of a kind that cannot be made here."""
    return SimpleNamespace(distributed_type=kind, device=torch.device("cuda:0"), state=SimpleNamespace(**plugins))


@pytest.mark.parametrize("kind", WANTED)
def test_what_the_launcher_was_asked_for_must_run(
    kind: str, args: FlippedDistillationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = Accelerator()
    check_distributed(args, launched)  # nothing was asked for
    monkeypatch.setenv(WANTED[kind], "true")
    with pytest.raises(ValueError, match=rf"{kind} was asked for, but this is a NO run on cpu.*single\.yaml"):
        check_distributed(args, launched)


def test_what_the_settings_ask_for_must_run(args: FlippedDistillationConfig) -> None:
    args.fsdp = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="FSDP was asked for, but this is a MULTI_GPU run on cuda:0"):
        check_distributed(args, accelerator(DistributedType.MULTI_GPU))
    check_distributed(args, accelerator(DistributedType.FSDP, fsdp_plugin=SimpleNamespace(**FSDP2)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fsdp_version", 1, "fsdp_version=1 .* set fsdp_version: 2"),
        ("state_dict_type", StateDictType.SHARDED_STATE_DICT, "SHARDED_STATE_DICT .* no adapter .* FULL_STATE_DICT"),
        ("activation_checkpointing", True, "gradients are wrong: set it false .* activation_checkpointing=True"),
    ],
)
def test_settings_of_fsdp(name: str, value: Any, message: str, args: FlippedDistillationConfig) -> None:
    plugin = SimpleNamespace(**(FSDP2 | {name: value}))
    with pytest.raises(ValueError, match=message):
        check_distributed(args, accelerator(DistributedType.FSDP, fsdp_plugin=plugin))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_of_deepspeed(stage: int, args: FlippedDistillationConfig) -> None:
    launched = accelerator(DistributedType.DEEPSPEED, deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    if stage < 3:
        check_distributed(args, launched)
    else:
        with pytest.raises(ValueError, match="zero_stage=3 .* use stage 2"):
            check_distributed(args, launched)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_gradients_are_clipped_by_norm_alone(kind: DistributedType, tmp_path: Path) -> None:
    assert resolve_clipping(settings(tmp_path), accelerator(kind)) == 0.0
    assert resolve_clipping(settings(tmp_path, max_grad_norm=0.3), accelerator(kind)) == 0.0
    assert resolve_clipping(settings(tmp_path, max_grad_value=0.0), accelerator(kind)) == 0.0
    with pytest.raises(ValueError, match=rf"max_grad_value=0\.5 .* sharded by {kind.value}: .*use max_grad_norm"):
        resolve_clipping(settings(tmp_path, max_grad_value=0.5), accelerator(kind))


def test_whole_gradients_are_clipped_by_value(tmp_path: Path) -> None:
    launched = accelerator(DistributedType.MULTI_GPU)
    assert resolve_clipping(settings(tmp_path), launched) == 1.0
    assert resolve_clipping(settings(tmp_path, max_grad_value=0.5), launched) == 0.5
    assert resolve_clipping(settings(tmp_path, max_grad_value=0.0, max_grad_norm=0.3), launched) == 0.0


def test_the_gradient_cache_needs_several_backwards_a_step(tmp_path: Path) -> None:
    cached = settings(tmp_path, mini_batch_size=4)
    with pytest.raises(ValueError, match="mini_batch_size=4 .* DeepSpeed .*FSDP2"):
        check_cached(cached, accelerator(DistributedType.DEEPSPEED))
    for kind in (DistributedType.FSDP, DistributedType.MULTI_GPU, DistributedType.NO):
        check_cached(cached, accelerator(kind))
    check_cached(settings(tmp_path), accelerator(DistributedType.DEEPSPEED))


@pytest.mark.parametrize("kept", [False, True])
def test_why_the_checkpointing_of_fsdp_is_refused(kept: bool) -> None:
    """accelerate's way (`preserve_rng_state=False`) redraws dropout."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    inputs = torch.randn(4, 8)
    gradients = []
    for module in (layer, checkpoint_wrapper(layer, preserve_rng_state=kept)):
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(module(inputs).sum(), layer[0].weight)[0])
    assert torch.equal(*gradients) == kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scoring_first_changes_nothing(precision: str, build: Callable[..., Any], tmp_path: Path) -> None:
    plain = build(precision=precision)
    plain.train()
    trainer = build(precision=precision)
    scored = []
    for _ in range(2):
        with ready_to_evaluate(trainer):
            scored.append(trainer.score_pairs(trainer.eval_dataset)[0].tolist())
        assert not trainer.model._is_accelerate_prepared
        assert not hasattr(trainer.model.forward, "__wrapped__")  # autocast
    assert scored[0] == scored[1]
    trainer.train()
    assert logged(trainer) == logged(plain)
    assert_equal(trainable(trainer.model), trainable(plain.model))
    with ready_to_evaluate(trainer):  # after training nothing is taken apart
        trainer.score_pairs(trainer.eval_dataset)
    assert trainer.accelerator._models == [trainer.model]


def test_deepspeed_scores_first_as_one_process_does(build: Callable[..., Any]) -> None:
    trainer = build()
    expected = trainer.score_pairs(trainer.eval_dataset)
    trainer = build()
    trainer.is_deepspeed_enabled = True
    with ready_to_evaluate(trainer):  # transformers would refuse: ZeRO inference is of stage 3 only
        answer, similarity = trainer.score_pairs(trainer.eval_dataset)
    assert trainer.is_deepspeed_enabled
    assert answer.tolist() == expected[0].tolist() and similarity.tolist() == expected[1].tolist()


def test_one_process_ends_as_often_as_it_likes() -> None:
    end_together()
    end_together()
    # and goes on working afterwards, alone as before
    assert not torch.distributed.is_initialized()
    assert PartialState().num_processes == 1
