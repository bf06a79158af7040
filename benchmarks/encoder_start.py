"""What the start of A gives before any step, by the modules that carry the encoder: quality, time, memory, index.

    python -m benchmarks.encoder_start --data banking77 --teacher TEACHER --student STUDENT

`--data` is a folder with train, validation and test.jsonl of labelled pairs. Nothing is trained. The LLM reads every
text once for each row, as a run would; the teacher's vectors are made before and not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
from sklearn.metrics import roc_auc_score

from flipped_kd import FlippedDistillationConfig, FlippedDistillationTrainer, load_pairs
from flipped_kd.inference.scorer import PairScorer
from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.utils.devices import cpu_cores, use_cpu_threads

ENCODERS: dict[str, dict[str, Any]] = {
    "first half, widest module (default)": {},
    "first half, all modules": {"encoder_modules": ["all"]},
    "all layers, all modules": {"encoder_layers": "all", "encoder_modules": ["all"]},
    "last 2 layers, all modules": {"encoder_layers": "last:2", "encoder_modules": ["all"]},
    "last 2 layers, all modules, concatenated": {
        "encoder_layers": "last:2",
        "encoder_modules": ["all"],
        "encoder_pooling": "concat",
    },
    "the same, A at random (earlier default)": {
        "encoder_layers": "last:2",
        "encoder_modules": ["all"],
        "encoder_pooling": "concat",
        "encoder_start": "random",
    },
    "first third, widest module": {"encoder_layers": "first:33%"},
    "all layers, widest module": {"encoder_layers": "all"},
}


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yields a list to which the growth of this process's memory is added at the end, in GB: its peak, sampled."""
    process, found = psutil.Process(), [0.0]
    before, done = process.memory_info().rss, threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            found[0] = max(found[0], (process.memory_info().rss - before) / 1e9)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def similarity_auc(trainer: FlippedDistillationTrainer, pairs: datasets.Dataset) -> float:
    """AUC of the cosines of both texts' vectors."""
    scorer = PairScorer(trainer.model, trainer.processing_class, trainer.prompt, trainer.encoder)
    first, second = (np.asarray(scorer.encode(list(pairs[column]))) for column in ("text_a", "text_b"))
    return float(roc_auc_score(pairs["label"], (first * second).sum(1)))


def main() -> None:
    """Print one row for each choice of modules."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--max_train_pairs", type=int, default=2000)
    parser.add_argument("--max_eval_pairs", type=int, default=1000)
    parser.add_argument("--encoders", type=int, default=len(ENCODERS), help="only the first so many rows")
    options = parser.parse_args()
    use_cpu_threads(cpu_cores())
    train = load_pairs(str(options.data / "train.jsonl"), max_rows=options.max_train_pairs)
    held_out = [
        load_pairs(str(options.data / f"{name}.jsonl"), max_rows=options.max_eval_pairs)
        for name in ("validation", "test")
    ]
    tokenizer = load_tokenizer(options.student)
    print("| encoder | AUC validation | AUC test | numbers a vector | texts | seconds | GB beside the model |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, settings) in enumerate(list(ENCODERS.items())[: options.encoders]):
            places: dict[str, Any] = {"output_dir": f"{folder}/{number}", "teacher_cache_dir": f"{folder}/cache"}
            chosen: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "encoder_start": "teacher"} | settings
            config = FlippedDistillationConfig(**places, **chosen)
            model = load_student(options.student, dtype="float32")
            began = time.time()
            with peak_memory() as memory:
                trainer = FlippedDistillationTrainer(model, options.teacher, config, train, held_out[0], tokenizer)
            start = trainer.encoder_start
            seconds = time.time() - began if start is None else start.seconds
            aucs = [similarity_auc(trainer, part) for part in held_out]
            cells = [name, *(f"{auc:.4f}" for auc in aucs), str(trainer.encoder.dimension)]
            cells += ["-" if start is None else str(start.texts), f"{seconds:.0f}", f"{memory[0]:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
