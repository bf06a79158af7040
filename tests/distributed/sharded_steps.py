"""Steps of the trainer's loss on a student sharded by torch's `fully_shard`, beside one that is whole; part of
sharded_run.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from flipped_kd.students.answer_head import position_logits
from flipped_kd.training.trainer import FlippedDistillationTrainer

STEPS = 3
NAMES = ("whole", "sharded", "sharded_checkpointed")


def main(folder: Path, trainers: Sequence[FlippedDistillationTrainer]) -> None:
    """Write what the three give, a file each and rank: the same steps, of which the whole one's ranks are averaged."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, trainer in zip(NAMES, trainers, strict=True):
        if name != "whole":
            for layer in trainer.model.get_base_model().model.layers:  # type: ignore[union-attr]
                fully_shard(layer, mesh=mesh)
            fully_shard(trainer.model, mesh=mesh)
        if name == "sharded_checkpointed":
            trainer.model.activation_checkpointing_enable({"use_reentrant": False})
        found = {}
        optimizer = torch.optim.AdamW([w for w in trainer.model.parameters() if w.requires_grad], lr=3e-3)
        for step in range(STEPS):
            found |= {f"{step}.{key}": value for key, value in one_step(trainer, optimizer, step).items()}
        options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
        found |= {f"end.{key}": value for key, value in get_model_state_dict(trainer.model, options=options).items()}
        save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{name}_{dist.get_rank()}")


def one_step(trainer: FlippedDistillationTrainer, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Tensor]:
    """One optimizer step on rows of this rank's own, and everything on the way."""
    rows = [4 * (2 * step + dist.get_rank()) + row for row in range(4)]
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])  # type: ignore[index]
    trainer.model.train()
    with torch.no_grad(), trainer.encoder.capture() as captured:
        ids = batch["input_ids"]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        position_logits(trainer.model, inputs, torch.zeros(len(ids), dtype=torch.long), True)
    # What the hooks see is no shard: pooling is over every entry of A's outputs.
    assert captured and not any(isinstance(output, DTensor) for output in captured.values())
    with torch.no_grad():
        logits, vectors = trainer.reader(trainer.model, batch)
    assert vectors is not None
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {}
    for name, weight in trainer.model.named_parameters():
        if not weight.requires_grad:
            assert weight.grad is None
            continue
        assert weight.grad is not None
        if isinstance(weight.grad, DTensor):
            gradients[f"gradient.{name}"] = weight.grad.full_tensor()
        else:
            dist.all_reduce(weight.grad)
            weight.grad /= dist.get_world_size()
            gradients[f"gradient.{name}"] = weight.grad.clone()
    optimizer.step()
    optimizer.zero_grad()
    return {"logits": logits, "vectors": vectors.stacked(), "loss": loss.detach().reshape(1), **gradients}
