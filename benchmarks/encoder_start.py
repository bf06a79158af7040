"""What the start of A gives before any step, by the modules that carry the encoder: quality, time, memory, index.

    python -m benchmarks.encoder_start --data banking77 --teacher TEACHER --student STUDENT

`--data` is a folder with train, validation and test.jsonl of labelled pairs. Nothing is trained. The LLM reads every
text once for each row, as a run would; the teacher is loaded and its vectors are made before, and not counted.
`--texts 250 500 1000` shows instead how many texts pay, with the default encoder, and `--search` how long a search
takes by the numbers of a vector.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sentence_transformers.util import dot_score, semantic_search
from sklearn.metrics import roc_auc_score

from flipped_kd import FlippedDistillationConfig, FlippedDistillationTrainer, load_pairs
from flipped_kd.inference.scorer import PairScorer
from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.teachers.loading import load_teacher
from flipped_kd.training import encoder_start
from flipped_kd.utils.devices import cpu_cores, use_cpu_threads

from .harness import growth

CORPUS = 100_000

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


def similarity_auc(trainer: FlippedDistillationTrainer, pairs: datasets.Dataset) -> float:
    """AUC of the cosines of both texts' vectors."""
    scorer = PairScorer(trainer.model, trainer.processing_class, trainer.prompt, trainer.encoder)
    first, second = (np.asarray(scorer.encode(list(pairs[column]))) for column in ("text_a", "text_b"))
    return float(roc_auc_score(pairs["label"], (first * second).sum(1)))


def search_seconds(numbers: int, queries: int) -> float:
    """The least of five searches for the nearest 10 of 100,000 texts; what they say does not matter."""
    torch.manual_seed(0)
    corpus, asked = (torch.nn.functional.normalize(torch.randn(n, numbers), dim=-1) for n in (CORPUS, queries))
    found = []
    for _ in range(5):
        began = time.perf_counter()
        semantic_search(asked, corpus, top_k=10, score_function=dot_score)  # as FlippedMatcher does
        found.append(time.perf_counter() - began)
    return min(found)


def print_search() -> None:
    """Print one row for each length of a vector."""
    print("| numbers a vector | MB of 100,000 texts | ms, one query | ms, 100 queries |")
    print("|---|---|---|---|", flush=True)
    for numbers in (32, 384, 448):
        cells = [str(numbers), f"{CORPUS * numbers * 4 / 1e6:.0f}"]
        cells += [f"{1000 * search_seconds(numbers, queries):.1f}" for queries in (1, 100)]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print one row for each choice of modules, number of texts, or length of a vector."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher")
    parser.add_argument("--student")
    parser.add_argument("--texts", type=int, nargs="+", help="numbers of texts, with the default encoder")
    parser.add_argument("--search", action="store_true", help="how long a search takes; needs no data")
    parser.add_argument("--max_train_pairs", type=int, default=2000)
    parser.add_argument("--max_eval_pairs", type=int, default=1000)
    parser.add_argument("--encoders", type=int, default=len(ENCODERS), help="only the first so many rows")
    options = parser.parse_args()
    use_cpu_threads(cpu_cores())
    if options.search:
        print_search()
        return
    if None in (options.data, options.teacher, options.student):
        parser.error("--data, --teacher and --student are needed")
    train = load_pairs(str(options.data / "train.jsonl"), max_rows=options.max_train_pairs)
    held_out = [
        load_pairs(str(options.data / f"{name}.jsonl"), max_rows=options.max_eval_pairs)
        for name in ("validation", "test")
    ]
    teacher, tokenizer = load_teacher(options.teacher), load_tokenizer(options.student)
    rows: list[tuple[str, dict[str, Any], int]] = [
        (name, settings, encoder_start.MAX_TEXTS) for name, settings in list(ENCODERS.items())[: options.encoders]
    ]
    if options.texts:
        rows = [(f"{next(iter(ENCODERS))}, {count} texts", {}, count) for count in options.texts]
    print("| encoder | AUC validation | AUC test | numbers a vector | texts | seconds | GB beside the model |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        # All that a trainer asks the teacher for: the first row would else count what the others only read.
        teacher.score_datasets([train, held_out[0]], cache_dir=f"{folder}/cache", show_progress=False)
        for number, (name, settings, encoder_start.MAX_TEXTS) in enumerate(rows):
            places: dict[str, Any] = {"output_dir": f"{folder}/{number}", "teacher_cache_dir": f"{folder}/cache"}
            chosen: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "encoder_start": "teacher"} | settings
            config = FlippedDistillationConfig(**places, **chosen)
            model = load_student(options.student, dtype="float32")
            began = time.time()
            with growth() as grown:
                trainer = FlippedDistillationTrainer(model, teacher, config, train, held_out[0], tokenizer)
            start = trainer.encoder_start
            seconds = time.time() - began if start is None else start.seconds
            aucs = [similarity_auc(trainer, part) for part in held_out]
            cells = [name, *(f"{auc:.4f}" for auc in aucs), str(trainer.encoder.dimension)]
            cells += ["-" if start is None else str(start.texts), f"{seconds:.0f}", f"{grown['peak'] / 1e9:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
