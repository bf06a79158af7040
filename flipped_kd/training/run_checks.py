"""What of a trainer's arguments does not go together, refused before anything is loaded, scored or trained."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftConfig, PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.validation import text_fault
from ..prompts.pair_prompt import PairPrompt
from ..utils.devices import cpu_has_bfloat16
from .config import FlippedDistillationConfig
from .processes import check_loading

logger = logging.getLogger(__name__)
# Share of the training pairs that may be left out of an epoch without a word.
MUCH_LEFT_OUT = 0.1


def check_args(
    args: FlippedDistillationConfig,
    peft_config: Any = None,
    prompt: Any = None,
    compute_metrics: Any = None,
    unlabelled_texts: Any = (),
) -> None:
    """Refuse arguments of another kind or of another trainer, and one process over several GPUs; warn of slow bf16."""
    if not isinstance(args, FlippedDistillationConfig):
        raise ValueError(f"args is a {type(args).__name__}: give a FlippedDistillationConfig.")
    check_loading()
    for name, given, kind in (("peft_config", peft_config, PeftConfig), ("prompt", prompt, PairPrompt)):
        if given is not None and not isinstance(given, kind):
            made = "peft.LoraConfig" if kind is PeftConfig else "PairPrompt"
            raise ValueError(f"{name} is a {type(given).__name__}: give a {made}, or None for the default.")
    if prompt is not None:
        check_prompt_settings(args, prompt)
    if isinstance(unlabelled_texts, str):
        raise TypeError(f"unlabelled_texts must be a list of texts, not one str: {unlabelled_texts[:60]!r}.")
    for number, text in enumerate(unlabelled_texts):
        if fault := text_fault(text, "unlabelled_texts"):
            raise ValueError(f"unlabelled_texts[{number}]: {fault}. Leave it out.")
    if args.batch_eval_metrics and compute_metrics is None:
        raise ValueError(
            "batch_eval_metrics=True wants metrics that add up over batches, as AUC does not: leave it False, or give "
            "compute_metrics."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs and would split each batch over threads, which the encoder cannot "
            "follow: start with accelerate launch (one process a GPU), or show it one GPU by CUDA_VISIBLE_DEVICES. A "
            "student too large for one GPU is sharded by FSDP2, not spread by device_map (docs/distributed.md)."
        )
    check_contrast(args)
    if args.bf16 and args.device.type == "cpu" and not cpu_has_bfloat16():
        logger.warning(
            "precision='bf16': this CPU does not multiply bfloat16 itself. Products are taken in float32 and rounded: "
            "precision='fp32' is faster here and more exact."
        )


def check_prompt_settings(args: FlippedDistillationConfig, prompt: PairPrompt) -> None:
    """Refuse settings of the prompt beside a prompt that is made already, and has its own."""
    for name in ("prompt", "instruction", "max_length"):
        value, default = getattr(args, name), getattr(FlippedDistillationConfig, name)
        if value not in (default, getattr(prompt, name, default)):
            raise ValueError(
                f"{name}={value!r} would be ignored: the prompt that is given has its own (max_length="
                f"{prompt.max_length}). Give it to PairPrompt.from_preset, or no prompt."
            )


def check_prompt(prompt: PairPrompt, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a prompt that was made with another tokenizer: its ids would be other words."""
    different = prompt.difference(tokenizer)
    if different is not None:
        raise ValueError(
            f"prompt: it was made with another tokenizer, whose {different} are not those of the student's: make it "
            "with the student's, as PairPrompt.from_preset(tokenizer) does."
        )


def check_contrast(args: FlippedDistillationConfig, batch_size: int | None = None) -> None:
    """Refuse batches of one pair: nothing is set against it, so the teacher would teach nothing.

    Args:
        args: settings.
        batch_size: pairs a process, if not those of the settings: auto_find_batch_size takes fewer.
    """
    found = args.per_device_train_batch_size if batch_size is None else batch_size
    contrast = found * (args.world_size if args.gather_across_devices else 1)
    if contrast < 2 and (args.mcl_weight or (args.dist_weight and args.dist_loss != "mse")):
        raise ValueError(
            f"per_device_train_batch_size={found}: L_MCL and L_dist compare the pairs of "
            "one batch, and gradient accumulation does not enlarge it. Give 8 or more; if memory is short, add "
            "mini_batch_size=1, which reads them one by one."
        )


def check_batches(pairs: int, args: FlippedDistillationConfig) -> None:
    """Refuse a training set smaller than one global batch: no step would be made. Warn if much of it is left out."""
    size = args.train_batch_size * args.world_size
    if pairs < size and args.max_steps != 0:
        raise ValueError(
            f"the training set has {pairs} pairs, fewer than one global batch of {size} ({args.train_batch_size} a "
            f"process x {args.world_size}): give more pairs or a smaller per_device_train_batch_size."
        )
    if size and pairs % size > MUCH_LEFT_OUT * pairs and args.max_steps != 0:
        logger.warning(
            "%d of %d training pairs are left out of each epoch, for they fill no global batch of %d (%d a process x "
            "%d): a smaller per_device_train_batch_size leaves fewer",
            *(pairs % size, pairs, size, args.train_batch_size, args.world_size),
        )


def check_without_steps(args: FlippedDistillationConfig, started: bool) -> None:
    """Refuse a run without a step whose A knows nothing either."""
    if args.max_steps == 0 and not started:
        raise ValueError(
            "max_steps=0 makes no step, and A does not start from the teacher either: vectors would be noise. Give a "
            "bi-encoder teacher, texts and encoder_start='teacher', or steps."
        )


def check_optimizer(optimizer: torch.optim.Optimizer | None, student: PeftModel) -> None:
    """Refuse an optimizer of other weights: those of a student that had no adapter yet are frozen by now."""
    if optimizer is None:
        return
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    left_out = [name for name, weight in student.named_parameters() if weight.requires_grad and id(weight) not in held]
    if left_out:
        raise ValueError(
            f"optimizers: {len(left_out)} weights that are to be trained, such as {left_out[0]!r}, are not the "
            "optimizer's: give the PeftModel as the student, and an optimizer of its weights that require a gradient."
        )


def check_cached(args: FlippedDistillationConfig, accelerator: Accelerator) -> None:
    """Refuse the gradient cache where a step's gradients cannot be added up over several backwards."""
    if args.mini_batch_size is not None and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            f"mini_batch_size={args.mini_batch_size} runs backward several times a step, which DeepSpeed takes for "
            "several steps: use DDP or FSDP2 (recipes/accelerate), or leave mini_batch_size unset."
        )
