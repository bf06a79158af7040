"""Samples a second of two ranks at one thread each against one rank at one thread, contrasts gathered and not."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flipped_kd import FlippedDistillationConfig, FlippedDistillationTrainer, load_pairs
from flipped_kd.training.processes import end_together

from .harness import BANKING, SHARED, STAND_IN, TEACHER, missing

BATCH = 32
WARM_UP = 2  # steps
LIMIT = 1.8  # two ranks / one rank, on a machine whose cores do not slow each other
APART = "two runs apart"


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.times.append(time.perf_counter())


def train(folder: Path, steps: int, gathered: bool) -> float:
    """Train as one of the ranks that were launched; samples a second of all ranks together."""
    clock = Clock()
    args = FlippedDistillationConfig(
        output_dir=str(folder / "out"),
        teacher_cache_dir=str(folder / "cache"),
        per_device_train_batch_size=BATCH,
        gather_across_devices=gathered,
        max_steps=steps,
        max_length=128,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        precision="fp32",
        ddp_backend="gloo" if "LOCAL_RANK" in os.environ else None,
    )
    trainer = FlippedDistillationTrainer(
        str(STAND_IN),
        str(TEACHER),
        args,
        # As many for one rank as for two: the lengths of the texts are then the same on average.
        load_pairs(BANKING / "train.jsonl", max_rows=2 * BATCH * (steps + 1)),
        load_pairs(BANKING / "validation.jsonl", max_rows=64),  # scored once, after the last step
        callbacks=[clock],
    )
    trainer.train()
    samples = BATCH * args.world_size * (steps - WARM_UP)
    end_together()
    return samples / (clock.times[-1] - clock.times[WARM_UP - 1])


def launched(folder: str, steps: int, gathered: bool, ranks: int) -> float:
    """`train` on so many ranks."""
    result = Path(folder) / "samples_per_second.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "-m", "benchmarks.ranks"]
    command += [folder, str(steps), *(["--gathered"] if gathered else [])]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(result.read_text())


def apart(folder: str, steps: int) -> float:
    """Samples a second of two runs of one rank side by side that know nothing of each other: the machine's limit."""
    folders = [f"{folder}/apart-{number}" for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(lambda one: launched(one, steps, False, 1), folders))


def main(quick: bool = False) -> dict[str, float]:
    """Print the table; return the ratios."""
    if missing(SHARED):
        return {}
    rounds, steps = (1, 8) if quick else (3, 14)
    variants = {"one rank": (False, 1), "two ranks": (False, 2), "two ranks, gathered": (True, 2)}
    found: dict[str, list[float]] = {name: [] for name in (*variants, APART)}
    with tempfile.TemporaryDirectory() as folder:
        launched(folder, WARM_UP + 1, False, 1)  # fills the teacher's cache
        for number in range(2):
            Path(f"{folder}/apart-{number}").mkdir()
            shutil.copytree(f"{folder}/cache", f"{folder}/apart-{number}/cache")
        for _ in range(rounds):
            for name, (gathered, ranks) in variants.items():
                found[name].append(launched(folder, steps, gathered, ranks))
            found[APART].append(apart(folder, steps))
    print(
        f"one thread a rank, batch {BATCH} a rank, float32, {steps - WARM_UP} steps, {rounds} rounds in turn; "
        "samples a second"
    )
    ratios = {
        name: statistics.median(two / one for two, one in zip(rates, found["one rank"], strict=True))
        for name, rates in found.items()
    }
    for name, rates in found.items():
        print(f"{name:20s} {statistics.median(rates):6.1f}  ratio {ratios[name]:.2f}")
    print(f"at least {LIMIT} for two ranks where two runs apart reach 2: what they lack, the machine has not")
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--gathered", action="store_true")
    options = parser.parse_args()
    rate = train(options.folder, options.steps, options.gathered)
    if int(os.environ.get("RANK", "0")) == 0:
        (options.folder / "samples_per_second.json").write_text(json.dumps(rate))
