"""How many numbers a vector needs, to tell pairs and to search a collection: the student's before any step.

    python -m benchmarks.vector_length --data PAIRS --collection FOLDER --teacher TEACHER --student STUDENT

`--data` is a folder with train and validation.jsonl of labelled pairs (nfcorpus_direct), `--collection` one of BEIR's:
corpus.jsonl, queries.jsonl, qrels/dev.tsv and qrels/test.tsv (nfcorpus_beir). A starts from the texts of the training
pairs, and a second time with the collection's texts too, as with `--unlabelled_file corpus.jsonl`. The start takes the
strongest directions first, so the first r numbers of a long vector are those of a student with `--encoder_rank r`.
Beside it the teacher's vectors, whole and reduced by a principal component analysis of the training texts. nDCG@10 is
mteb's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sklearn.metrics import roc_auc_score

from flipped_kd import FlippedDistillationConfig, FlippedDistillationTrainer, load_pairs
from flipped_kd.inference.scorer import PairScorer
from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.utils.devices import cpu_cores, use_cpu_threads
from recipes.evaluate_mteb import MatcherEncoder, local_task, metrics_of, texts_of

RANKS = (32, 64, 128, 256, 384)


class _Stored(MatcherEncoder):
    """Vectors that are there already, of which the first `numbers` are taken."""

    def __init__(self, vectors: dict[str, np.ndarray], numbers: int) -> None:
        super().__init__(None, f"first-{numbers}")  # type: ignore[arg-type]  # it encodes nothing itself
        self.vectors, self.numbers = vectors, numbers

    def encode(self, inputs: Iterable[Any], **_: Any) -> np.ndarray:
        return self.of(texts_of(inputs))

    def of(self, texts: Iterable[str]) -> np.ndarray:
        """Unit vectors of the texts, (n, numbers)."""
        rows = np.stack([self.vectors[text][: self.numbers] for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Judge:
    """A collection's searches and labelled pairs.

    Args:
        pairs: of validation.
        collection: BEIR's folder.
        max_queries: of dev and of test, the first so many.
    """

    def __init__(self, pairs: datasets.Dataset, collection: Path, max_queries: int) -> None:
        self.pairs = pairs
        files = (collection / "corpus.jsonl", collection / "queries.jsonl")
        self.tasks: dict[str, Any] = {
            name: local_task(*files, collection / "qrels" / f"{name}.tsv", max_queries=max_queries)
            for name in ("dev", "test")
        }
        for task in self.tasks.values():
            task.load_data()

    @property
    def collected(self) -> list[str]:
        """The collection's texts, as they are encoded."""
        (task, *_) = self.tasks.values()
        return list(dict.fromkeys(_read(task.dataset["default"]["test"]["corpus"])))

    @property
    def texts(self) -> list[str]:
        """All that is to be encoded."""
        asked = [text for task in self.tasks.values() for text in _read(task.dataset["default"]["test"]["queries"])]
        pairs = [*self.pairs["text_a"], *self.pairs["text_b"]]
        return list(dict.fromkeys([*pairs, *asked, *self.collected]))

    def print_rows(self, name: str, vectors: np.ndarray, numbers: Sequence[int]) -> None:
        """Print a row for each number of leading components of `vectors`, which are those of `texts`."""
        by_text = dict(zip(self.texts, vectors, strict=True))
        for count in numbers:
            stored = _Stored(by_text, count)
            first, second = (stored.of(self.pairs[column]) for column in ("text_a", "text_b"))
            cells = [name, str(count), f"{roc_auc_score(self.pairs['label'], (first * second).sum(1)):.3f}"]
            for task in self.tasks.values():
                result = mteb.evaluate(stored, task, cache=None, show_progress_bar=False)
                cells.append(f"{metrics_of(result)['ndcg_at_10']:.3f}")
            print("| " + " | ".join(cells) + " |", flush=True)


def _read(rows: datasets.Dataset) -> list[str]:
    return [" ".join(filter(None, (row.get("title"), row["text"]))) for row in rows]


def directions(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and principal directions (d, k) of vectors (n, d), the strongest first."""
    mean = vectors.mean(0)
    return mean, np.linalg.svd(vectors - mean, full_matrices=False)[2].T


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--max_train_pairs", type=int, default=2000)
    parser.add_argument("--max_validation_pairs", type=int, default=600)
    parser.add_argument("--max_queries", type=int, default=100, help="of dev and of test each (100)")
    parser.add_argument("--max_length", type=int, default=128, help="tokens of a pair prompt (128)")
    options = parser.parse_args()
    use_cpu_threads(cpu_cores())
    train = load_pairs(str(options.data / "train.jsonl"), max_rows=options.max_train_pairs)
    validation = load_pairs(str(options.data / "validation.jsonl"), max_rows=options.max_validation_pairs)
    judge = Judge(validation, options.collection, options.max_queries)
    print("| vectors | numbers | AUC validation | nDCG@10 dev | nDCG@10 test |")
    print("|---|---|---|---|---|", flush=True)
    teacher = SentenceTransformer(options.teacher, model_kwargs={"dtype": torch.float32})
    trained_on = list(dict.fromkeys([*train["text_a"], *train["text_b"]]))
    known, vectors = (
        teacher.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        for texts in (trained_on, judge.texts)
    )
    ranks = [rank for rank in RANKS if rank <= vectors.shape[1]]
    judge.print_rows("the teacher's", vectors, vectors.shape[1:])
    mean, strongest = directions(known)
    judge.print_rows("the teacher's, reduced", (vectors - mean) @ strongest, ranks[:-1])
    tokenizer = load_tokenizer(options.student)
    with tempfile.TemporaryDirectory() as folder:
        for name, texts in (("the student's", []), ("the same, the collection read too", judge.collected)):
            config = FlippedDistillationConfig(
                output_dir=f"{folder}/run",
                teacher_cache_dir=f"{folder}/cache",
                max_steps=0,
                max_length=options.max_length,
                encoder_rank=ranks[-1],
                encoder_start="teacher",
                use_cpu=True,
                disable_tqdm=True,
            )
            model = load_student(options.student, dtype="float32")
            trainer = FlippedDistillationTrainer(
                model, options.teacher, config, train, validation, tokenizer, unlabelled_texts=texts
            )
            scorer = PairScorer(trainer.model, tokenizer, trainer.prompt, trainer.encoder)
            judge.print_rows(name, np.asarray(scorer.encode(judge.texts)), ranks)


if __name__ == "__main__":
    main()
