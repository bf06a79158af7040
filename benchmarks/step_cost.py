"""What a flipped training step costs against a plain fine-tuning step of the same student on the same batches.

The three trainers take the same batches in turn, step by step, in one process, so that a drifting machine speed
cancels out; the median of the ratios is printed. The teacher's scores are cached beforehand, as in every training run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flipped_kd import FlippedDistillationConfig, FlippedDistillationTrainer, load_pairs
from flipped_kd.student import load_student, load_tokenizer

SHARED = Path(os.environ.get("FLIPPED_KD_SHARED", Path(__file__).parents[2] / "shared"))
LIMITS = {"joint": 1.15, "independent": 1.6, "both": 1.6}
PLAIN: dict[str, Any] = {"dist_weight": 0.0, "mcl_weight": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "joint": {"representation": "joint"},
    "independent": {"representation": "independent"},
    "both": {"representation": "both"},
}


def main(quick: bool = False) -> dict[str, float]:
    """Print and return the ratio of each representation's step to the plain step."""
    if not SHARED.is_dir():
        print(f"skipped: no data and models at {SHARED}; set FLIPPED_KD_SHARED to their folder")
        return {}
    steps = 6 if quick else 20
    pairs = load_pairs(SHARED / "data" / "banking77" / "train.jsonl", max_rows=32 * steps + 64)
    held_out = load_pairs(SHARED / "data" / "banking77" / "validation.jsonl", max_rows=64)
    student = str(SHARED / "models" / "student-minilm-causal")
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for name, settings in VARIANTS.items():
            config = FlippedDistillationConfig(
                output_dir=f"{folder}/{name}",
                teacher_cache_dir=f"{folder}/cache",
                per_device_train_batch_size=32,
                max_length=128,
                disable_tqdm=True,
                **settings,
            )
            teacher = None if name == "plain" else str(SHARED / "models" / "teacher-banking77")
            trainers[name] = FlippedDistillationTrainer(
                load_student(student), teacher, config, pairs, held_out, load_tokenizer(student)
            )
        # As in its own training: what the plain step does not read is not batched for it.
        trainers["plain"].data_collator = replace(trainers["plain"].data_collator, encode_alone=False)
        seconds = _time_steps(trainers, steps)
    ratios = {name: statistics.median(np.asarray(seconds[name]) / np.asarray(seconds["plain"])) for name in LIMITS}
    print(f"{torch.get_num_threads()} threads, batch 32, {len(seconds['plain'])} steps each; median step / plain step")
    print(f"plain        {statistics.median(seconds['plain']):.2f} s")
    for name, ratio in ratios.items():
        print(f"{name:12s} {statistics.median(seconds[name]):.2f} s  ratio {ratio:.2f} (at most {LIMITS[name]})")
    return ratios


def _time_steps(trainers: dict[str, FlippedDistillationTrainer], steps: int) -> dict[str, list[float]]:
    """Seconds of each step of each trainer, the trainers taking each batch in turn; the first batch warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    optimizers = {name: trainer.create_optimizer() for name, trainer in trainers.items()}
    rows: Any = next(iter(trainers.values())).train_dataset
    for trainer in trainers.values():
        trainer.current_gradient_accumulation_steps = 1
    for step in range(steps + 1):
        batch = [rows[i] for i in range(32 * step, 32 * step + 32)]
        for name, trainer in trainers.items():
            start = time.perf_counter()
            model: Any = trainer.model
            trainer.training_step(model, trainer.data_collator(batch))
            trainer._clip_grad_norm(model)
            optimizers[name].step()
            model.zero_grad()
            if step:
                seconds[name].append(time.perf_counter() - start)
    return seconds
