"""Batches of a streamed training set: whole ones alone, for whole steps alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset

from .config import FlippedDistillationConfig


def check_streamed(args: FlippedDistillationConfig, calibrates: bool) -> None:
    """Refuse what a stream of training pairs cannot give, and have every process read its own batches from it."""
    if args.max_steps < 1:
        raise ValueError(
            f"max_steps={args.max_steps}: a streamed training set has no length; say how many steps. For the start "
            "alone, without a step, give its texts as unlabelled_texts and no training set."
        )
    if args.distils and not calibrates:
        raise ValueError(
            "the teacher's scores are calibrated on whole data sets: give an eval_dataset beside a streamed training "
            "set."
        )
    strategies = ("save_strategy", "eval_strategy", "logging_strategy")
    by_epoch = [name for name in strategies if getattr(args, name) == "epoch"]
    if by_epoch and args.world_size > 1:
        raise ValueError(
            f"{by_epoch[0]}='epoch': the processes' parts of a stream end at different steps, where one would wait "
            "for another for ever: give 'steps'."
        )
    accelerator_config: Any = args.accelerator_config
    if accelerator_config.dispatch_batches is None:
        # The main process would read for all and join batches of different widths, which cannot be joined.
        accelerator_config.dispatch_batches = False


def check_first_step(batches: Sequence[Any], step: int, args: FlippedDistillationConfig) -> None:
    """Refuse a stream that has ended before it filled a step."""
    if not batches and step == 0:
        size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        workers = args.dataloader_num_workers
        shared = f", or each of {workers} loader workers fewer than a batch" if workers > 1 else ""
        raise ValueError(
            f"the stream of training pairs has fewer than the {size} pairs of a step{shared}: give more pairs or a "
            "smaller per_device_train_batch_size, gradient_accumulation_steps or dataloader_num_workers."
        )


def stream_loader(
    dataset: IterableDataset,
    batch_size: int,
    collator: Callable[[list[Any]], Any],
    accelerator: Accelerator,
    args: Any,
) -> DataLoader:
    """As Trainer makes it, but the rows that fill no batch are left out.

    Trainer leaves them out of data sets only. Each worker would give a short batch in the middle of a pass, and
    accelerate would fill up those of several processes with rows that they have had.

    Args:
        dataset: the stream.
        batch_size: pairs of a batch.
        collator: makes batches of rows.
        accelerator: of the trainer.
        args: of the trainer.
    """
    loader: DataLoader = accelerator.prepare(
        DataLoader(
            dataset,
            batch_size=batch_size,
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
            drop_last=True,
        )
    )
    return loader
