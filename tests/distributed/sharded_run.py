"""Train sharded by FSDP2, as recipes/accelerate/fsdp2.yaml says, and by DDP on the same rows; see test_sharding.py.

accelerate shards on GPUs only and ignores FSDP elsewhere. These ranks compute on the CPU; accelerate is told that they
are of the kind that has GPUs, and everything after that is its own and transformers' code for FSDP2, over gloo.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.students.lora import default_lora
from tests.distributed import sharded_steps
from tests.distributed.leaving import leave_together
from tests.invariants.training import EVERY_PAIR, UNCLIPPED, Gradients, RecordingTrainer, lora, settings

RUNS: dict[str, dict[str, Any]] = {
    "packed": {},
    "two_forwards": {
        **{"mini_batch_size": 2, "gather_across_devices": True},
        **{"gradient_accumulation_steps": 2, "max_grad_norm": 0.05},
    },
    "checkpointed": {"activation_checkpointing": True},
    "bf16": {"precision": "bf16"},
}
STEPS, SAVED = 3, 2
LINEAR = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a shard; every rank calls it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(weight) for name, weight in model.named_parameters() if weight.requires_grad}


def make(folder: Path, name: str, sharded: bool | None, out: str = "", **changes: Any) -> RecordingTrainer:
    """The trainer of one setting.

    Args:
        folder: of the test.
        name: of the setting.
        sharded: by FSDP, or else in DDP; None for FSDP without a word to accelerate about GPUs.
        out: sub-folder, by default one of this setting.
        **changes: to the setting.
    """
    args = settings(
        folder / (out or f"{name}_{sharded}"),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_steps=STEPS,
        teacher_cache_dir=str(folder / "cache"),
        ddp_backend="gloo",
        **EVERY_PAIR,
        **{**UNCLIPPED, **RUNS[name], **changes},
    )
    AcceleratorState._reset_state()
    os.environ["ACCELERATE_USE_FSDP"] = "false" if sharded is False else "true"
    kind = DistributedType.MULTI_GPU if sharded else DistributedType.MULTI_CPU
    PartialState._shared_state["distributed_type"] = kind
    peft_config = lora()
    if name == "checkpointed":  # Qwen2.5-0.5B's embeddings are tied, and fin_mini.yaml adapts them
        peft_config = default_lora(4, 8, 0.3, f"{LINEAR},embed_tokens")
    trainer = RecordingTrainer(
        student_of(folder, name),
        str(folder / "teacher"),
        args,
        datasets.load_from_disk(str(folder / "pairs")),
        datasets.load_from_disk(str(folder / "held_out")),
        load_tokenizer(folder / "student"),
        peft_config,
        callbacks=[Gradients(whole)],
    )
    if name == "two_forwards":
        trainer.data_collator.layout = None
    return trainer


def student_of(folder: Path, name: str) -> Any:
    if name == "bf16":  # frozen weights in bfloat16, trained ones in float32
        return load_student(folder / "student", dtype=torch.bfloat16)
    if name != "checkpointed":
        return load_student(folder / "student")
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config.from_pretrained(folder / "student", tie_word_embeddings=True))


def run(folder: Path, name: str, sharded: bool) -> None:
    """Train, and write down what the test compares."""
    trainer = make(folder, name, sharded, **({"save_strategy": "steps", "save_steps": SAVED} if sharded else {}))
    before = None
    if name == "packed":
        before = trainer.score_pairs(trainer.eval_dataset)[0].tolist()  # type: ignore[arg-type]
    start = trained(trainer.model)
    trainer.train()
    answer, similarity = trainer.score_pairs(trainer.eval_dataset)  # type: ignore[arg-type]
    place = f"{'fsdp' if sharded else 'ddp'}_{name}"
    gradients = next(back for back in trainer.callback_handler.callbacks if isinstance(back, Gradients))
    rank = trainer.args.process_index
    for what, tensors in (("start", start), ("gradients", gradients.steps[0]), ("end", trained(trainer.model))):
        save_file(tensors, folder / f"{place}_{what}_{rank}.safetensors")
    layers = unwrapped(trainer).get_base_model().model.layers
    facts = {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "fsdp2": trainer.accelerator.is_fsdp2,
        "sharded_layers": [isinstance(layer, FSDPModule) for layer in layers],
        "losses": trainer.losses,
        "norms": [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line],
        "before": before,
        "answer": answer.tolist(),
        "similarity": similarity.tolist(),
    }
    (folder / f"{place}_{rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    if name == "checkpointed" and sharded:
        trainer.save_model(str(folder / "adapter"))
        resumed = make(folder, name, True, "resumed")
        resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-{SAVED}")
        save_file(trained(resumed.model), folder / f"resumed_{rank}.safetensors")
    trainer.accelerator.wait_for_everyone()


def unwrapped(trainer: RecordingTrainer) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model)


def refused(folder: Path) -> None:
    """The launch as it is: FSDP was asked for, and accelerate does not shard on a CPU."""
    try:
        make(folder, "packed", None)
    except ValueError as error:
        (folder / "refused").write_text(str(error), encoding="utf-8")


def main(folder: Path) -> None:
    """Every setting, by DDP and sharded; and without the Trainer, by torch's fully_shard alone."""
    refused(folder)
    sharded_steps.main(folder, [make(folder, "packed", False) for _ in range(3)])
    for name in RUNS:
        for sharded in (False, True):
            run(folder, name, sharded)
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
