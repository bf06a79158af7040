"""The outside peers of the ablation: sentence-transformers' own trainers on the same student and pairs.

Here its CrossEncoderTrainer; its embedding training is in embedding_peer.py. The student is the same language model
with the same LoRA and the same prompt, in sentence-transformers' layout for causal models (yes minus no at the last
token); losses and training loop are theirs. Budget and optimizer are those of the run, with what
`same_budget` says.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from embedding_peer import embedding_run, same_budget
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder import losses as cross_encoder_losses
from torch import nn
from trainable_cross_encoder import PairTrainer, trainable_cross_encoder
from transformers import set_seed

from flipped_kd.evaluation.comparison import SplitScores
from flipped_kd.experiments.ablation.pair_scores import packed_splits
from flipped_kd.experiments.ablation.plan import Job, settings_of
from flipped_kd.experiments.ablation.run import Peer, judge_run
from flipped_kd.experiments.arguments import StudentArguments
from flipped_kd.experiments.compare import with_learning_rate
from flipped_kd.experiments.single_run import named_teacher, teacher_split_scores
from flipped_kd.experiments.splits import load_splits
from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.students.cpu_bfloat16 import fast_bfloat16
from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.students.lora import default_lora
from flipped_kd.teachers.calibration import PlattCalibration
from flipped_kd.teachers.pair_scores import teacher_scores
from flipped_kd.training.config import FlippedDistillationConfig

# (pairs, teacher's log-odds of any texts a and b, seed) -> columns that the loss reads.
Columns = Callable[[datasets.Dataset, Callable[..., np.ndarray], int], dict[str, Sequence[Any]]]


def gold_labels(pairs: datasets.Dataset, log_odds: Callable[..., np.ndarray], seed: int) -> dict[str, Sequence[Any]]:
    """For BinaryCrossEntropyLoss: plain fine-tuning."""
    return {"text_a": pairs["text_a"], "text_b": pairs["text_b"], "label": [float(label) for label in pairs["label"]]}


def teacher_labels(
    pairs: datasets.Dataset, log_odds: Callable[..., np.ndarray], seed: int
) -> dict[str, Sequence[Any]]:
    """For MSELoss: the student's log-odds of a pair are to be the teacher's."""
    return {
        "text_a": pairs["text_a"],
        "text_b": pairs["text_b"],
        "label": log_odds(pairs["text_a"], pairs["text_b"]).tolist(),
    }


def teacher_margins(
    pairs: datasets.Dataset, log_odds: Callable[..., np.ndarray], seed: int
) -> dict[str, Sequence[Any]]:
    """For MarginMSELoss: a matching text_b against one of another pair, two forwards as for two pairs."""
    matches = [row for row in range(len(pairs)) if pairs["label"][row] == 1]
    rng = random.Random(seed)
    text_a, text_b = list(pairs["text_a"]), list(pairs["text_b"])
    first = [text_a[row] for row in matches]
    second = [text_b[row] for row in matches]
    others = [rng.randrange(len(pairs) - 1) for _ in matches]
    third = [text_b[other + (other >= row)] for other, row in zip(others, matches, strict=True)]
    margins = log_odds(first, second) - log_odds(first, third)
    return {"query": first, "passage_one": second, "passage_two": third, "label": margins.tolist()}


@dataclass(frozen=True)
class CrossEncoderPeer:
    """Makes a run of the ablation by a loss of sentence-transformers. It pickles: runs are made in other processes.

    Attributes:
        loss: name of the loss in sentence_transformers.cross_encoder.losses.
        columns: what the loss reads.
    """

    loss: str
    columns: Columns

    def __call__(self, job: Job, folder: Path, cache: Path) -> dict[str, Any]:
        student, data, config = settings_of(job, folder, cache)
        splits = load_splits(data, job.seed)
        teacher = named_teacher(student, data, config)
        if not teacher.has_vectors:
            raise ValueError("the peers ask the teacher about new pairs of texts: use a bi-encoder teacher.")
        labels = np.asarray(splits.validation["label"]), np.asarray(splits.test["label"])
        of_teacher = teacher_split_scores(teacher, splits, config)
        calibration = PlattCalibration.fit(of_teacher.validation, labels[0])

        def log_odds(text_a: Sequence[str], text_b: Sequence[str]) -> np.ndarray:
            table = datasets.Dataset.from_dict({"text_a": list(text_a), "text_b": list(text_b)})
            scores = teacher_scores(teacher, table, cache_dir=str(cache), batch_size=config.teacher_batch_size)
            return calibration.scale * scores + calibration.offset

        set_seed(job.seed)  # A's random start belongs to the seed
        model = _as_cross_encoder(student, config)
        rows = datasets.Dataset.from_dict(self.columns(splits.train, log_odds, job.seed))
        started = time.monotonic()
        steps = _train(model, rows, self.loss, with_learning_rate(student, config), folder)
        seconds = time.monotonic() - started
        answer = SplitScores(*(_scores(model, part, config) for part in (splits.validation, splits.test)))
        facts = {"training_seconds": round(seconds, 1), "steps": steps}
        metrics = judge_run(answer, None, of_teacher, *labels)
        return metrics | {"run": facts, "scores": packed_splits({"answer": answer})}


def _as_cross_encoder(student: StudentArguments, config: FlippedDistillationConfig) -> CrossEncoder:
    """The bare student in sentence-transformers' layout, with a new LoRA adapter."""
    name = student.student or ""
    trusted: dict[str, Any] = {"trust_remote_code": student.trust_remote_code}
    tokenizer = load_tokenizer(name, revision=student.student_revision, **trusted)
    prompt = PairPrompt.from_preset(
        tokenizer, config.prompt, max_length=config.max_length, instruction=config.instruction
    )
    return trainable_cross_encoder(
        load_student(name, revision=student.student_revision, dtype="float32", **trusted),
        tokenizer,
        prompt,
        default_lora(student.lora_r, student.lora_alpha, student.lora_dropout, student.lora_target_modules),
        device="cpu" if config.use_cpu else None,
    )


def _train(
    model: CrossEncoder, rows: datasets.Dataset, loss: str, config: FlippedDistillationConfig, folder: Path
) -> int:
    """Train it; the steps that were made."""
    options: dict[str, Any] = {"activation_fn": nn.Identity()} if loss != "BinaryCrossEntropyLoss" else {}
    # A triple is read twice: half as many a step make the same number of forwards.
    size = config.per_device_train_batch_size // (2 if "passage_two" in rows.column_names else 1)
    args = CrossEncoderTrainingArguments(per_device_train_batch_size=size, **same_budget(config, folder))
    objective = getattr(cross_encoder_losses, loss)(model, **options)
    with fast_bfloat16(config.product_dtype, config.device):  # as fast as ours
        return PairTrainer(model, args, train_dataset=rows, loss=objective).train().global_step


def _scores(model: CrossEncoder, pairs: datasets.Dataset, config: FlippedDistillationConfig) -> np.ndarray:
    texts = list(zip(pairs["text_a"], pairs["text_b"], strict=True))
    found = model.predict(
        texts,
        batch_size=config.per_device_eval_batch_size,
        activation_fn=nn.Identity(),
        show_progress_bar=False,
    )
    return np.asarray(found, np.float64)


PEERS: dict[str, Peer] = {
    "cross_encoder_bce": CrossEncoderPeer("BinaryCrossEntropyLoss", gold_labels),
    "cross_encoder_mse": CrossEncoderPeer("MSELoss", teacher_labels),
    "cross_encoder_margin_mse": CrossEncoderPeer("MarginMSELoss", teacher_margins),
    "embedding_mnrl": embedding_run,
}
