"""What a large contrast costs in memory and time: with the gradient cache, and read at once.

Each size is trained in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import torch

from flipped_kd import FlippedDistillationConfig, FlippedDistillationTrainer, load_pairs

from .harness import BANKING, SHARED, STAND_IN, TEACHER, check_memory, elsewhere, missing, peak_anonymous

MINI_BATCH = 32
CONTRASTS = (32, 128, 1024)
LIMIT = 1.2  # peak at the largest contrast / peak at the smallest


def train(
    student: str, teacher: str, pairs: str, held_out: str, rows: int, contrast: int, mini_batch: int | None
) -> dict[str, Any]:
    """Train on so many pairs at `contrast` pairs a step: the process's peak, and the seconds of all steps."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        args = FlippedDistillationConfig(
            output_dir=folder,
            per_device_train_batch_size=contrast,
            mini_batch_size=mini_batch,
            max_length=128,
            disable_tqdm=True,
            use_cpu=True,
            precision="fp32",
        )
        trainer = FlippedDistillationTrainer(
            student, teacher, args, load_pairs(pairs, max_rows=rows), load_pairs(held_out, max_rows=64)
        )
        optimizer = trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        model: Any = trainer.model
        start = time.perf_counter()
        for batch in trainer.get_train_dataloader():
            trainer.training_step(model, batch)
            optimizer.step()
            model.zero_grad()
    return {"peak": peak_anonymous(), "seconds": time.perf_counter() - start}


def main(quick: bool = False) -> dict[str, float]:
    """Print the table; return peaks of the cached sizes over that of the smallest."""
    if missing(SHARED):
        return {}
    check_memory()
    paths = STAND_IN, TEACHER, BANKING / "train.jsonl", BANKING / "validation.jsonl"
    sizes = CONTRASTS[:2] if quick else CONTRASTS
    rows = max(sizes)  # the same pairs at every size, so that the longest texts are among them
    cached = {size: elsewhere("contrast_memory", *paths, rows, size, MINI_BATCH) for size in sizes}
    at_once = {size: elsewhere("contrast_memory", *paths, rows, size, 0) for size in sizes[:2]}
    first = cached[CONTRASTS[0]]["peak"]
    print(f"1 thread, float32, {rows} pairs, mini-batches of {MINI_BATCH}; peak anonymous memory of the process")
    for name, runs in (("cached", cached), ("at once", at_once)):
        for size, run in runs.items():
            print(
                f"{name:8s} contrast {size:5d}  {run['peak']:6.0f} MiB  ratio {run['peak'] / first:.2f}  "
                f"{1000 * run['seconds'] / rows:.1f} ms a pair"
            )
    print(f"limit of the cached ratio: {LIMIT}")
    return {str(size): run["peak"] / first for size, run in cached.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("student", "teacher", "pairs", "held_out"):
        parser.add_argument(name)
    parser.add_argument("rows", type=int)
    parser.add_argument("contrast", type=int)
    parser.add_argument("mini_batch", type=int, help="0 reads all at once")
    options = vars(parser.parse_args())
    options["mini_batch"] = options["mini_batch"] or None
    print(json.dumps(train(**options)))
