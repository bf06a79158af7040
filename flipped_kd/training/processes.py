"""What a launch over several processes changes: what was asked for is what runs, scoring may come before training, and
the processes end together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from transformers import Trainer, TrainingArguments


def check_distributed(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Refuse a launch that would train unsharded where sharding was asked for, train wrongly, or save nothing.

    Raises:
        ValueError: FSDP or DeepSpeed was asked for, by the launcher or in `args`, and is not what runs; or one of its
            settings does not suit this trainer. The message names it and the remedy.
    """
    asked = {
        DistributedType.FSDP: bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP"),
        DistributedType.DEEPSPEED: bool(args.deepspeed) or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"),
    }
    for kind, wanted in asked.items():
        if wanted and accelerator.distributed_type != kind:
            raise ValueError(
                f"{kind.value} was asked for, but this is a {accelerator.distributed_type.value} run on "
                f"{accelerator.device}: accelerate shards on accelerators only, and elsewhere trains the whole model "
                "in every process without a word. Launch with recipes/accelerate/ddp.yaml or single.yaml."
            )
    if accelerator.distributed_type == DistributedType.FSDP:
        _check_fsdp(accelerator.state.fsdp_plugin)
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        if stage == 3:
            raise ValueError(
                f"zero_stage={stage} splits every model that is loaded, the teacher too: use stage 2 "
                "(recipes/accelerate/deepspeed_zero2.yaml), or FSDP2 where the student does not fit one GPU."
            )


def check_loading() -> None:
    """Refuse a launch in which other processes than the first would load weights without values.

    Raises:
        ValueError: FSDP's cpu_ram_efficient_loading is on.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading=True, accelerate's default, loads student and teacher in the first "
            "process alone, but every process reads them before they are sharded: set it false, as "
            "recipes/accelerate/fsdp2.yaml does."
        )


def _check_fsdp(plugin: Any) -> None:
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version={plugin.fsdp_version} flattens the weights of each layer, in which trained and frozen ones "
            "cannot mix: set fsdp_version: 2, as recipes/accelerate/fsdp2.yaml does."
        )
    kind = plugin.state_dict_type.name
    if kind != "FULL_STATE_DICT":
        raise ValueError(
            f"fsdp_state_dict_type={kind} lets save_model write no adapter at all: set FULL_STATE_DICT, as "
            "recipes/accelerate/fsdp2.yaml does."
        )
    if plugin.activation_checkpointing:
        # Measured: with dropout .5 the gradient of the first step is off by its own size.
        raise ValueError(
            "fsdp_activation_checkpointing=True recomputes with other dropout masks than the forward had, so the "
            "gradients are wrong: set it false and give the trainer activation_checkpointing=True."
        )


@contextmanager
def ready_to_evaluate(trainer: Trainer) -> Iterator[None]:
    """Let a trainer evaluate before it has trained, however it was launched, and train rightly afterwards.

    transformers 5.23 with accelerate 1.15 leave three traps there. An evaluated model counts as prepared, so that
    training does not wrap it: the ranks of a DDP run then train apart, each on its own batches, without a word
    (measured). FSDP2 shards a model together with an optimizer only, and evaluation is refused. DeepSpeed evaluates
    under stage 3 only; below it every process holds the whole model, which is evaluated as it is.
    """
    accelerator = trainer.accelerator
    if not accelerator._models and (trainer.is_in_train or trainer.model_wrapped is not trainer.model):
        # A second train() of a DDP run takes the wrapped model as it is, and forgets that it is prepared.
        accelerator._models.append(trainer.model_wrapped)
    if accelerator._models:  # in training or after it
        yield
        return
    if trainer.is_fsdp_enabled:
        assert trainer.model is not None
        trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        model, _ = accelerator.prepare(trainer.model, torch.optim.SGD(trained))  # never stepped
        trainer.model = trainer.model_wrapped = model
        yield
        return
    wrapped = trainer.model_wrapped
    deepspeed, trainer.is_deepspeed_enabled = trainer.is_deepspeed_enabled, False
    try:
        yield
    finally:
        trainer.is_deepspeed_enabled, trainer.model_wrapped = deepspeed, wrapped
        # Without the mark, and without autocast around it, which training puts on again.
        model = accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        model._is_accelerate_prepared = False
        accelerator._models.clear()


def end_together() -> None:
    """Leave the process group once every process has come here: the last call of a script.

    Where one goes while another still works, gloo aborts now and then.
    """
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
