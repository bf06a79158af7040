"""The peer for vectors: sentence-transformers' own training of the same language model as an embedding model.

A new LoRA adapter of the same size on the same bare model, the last token's hidden state as the vector, and
MultipleNegativesRankingLoss over the pairs of label 1. Budget and optimizer are those of the run.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from transformers import set_seed

from flipped_kd.evaluation.comparison import SplitScores
from flipped_kd.experiments.ablation.pair_scores import packed_splits
from flipped_kd.experiments.ablation.plan import Job, settings_of
from flipped_kd.experiments.ablation.run import judge_run
from flipped_kd.experiments.arguments import StudentArguments
from flipped_kd.experiments.compare import with_learning_rate
from flipped_kd.experiments.single_run import named_teacher, teacher_split_scores
from flipped_kd.experiments.splits import load_splits
from flipped_kd.students.cpu_bfloat16 import fast_bfloat16
from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.students.lora import default_lora
from flipped_kd.training.config import FlippedDistillationConfig


def embedding_run(job: Job, folder: Path, cache: Path) -> dict[str, Any]:
    """Make a run of the ablation by an embedding loss of sentence-transformers."""
    student, data, config = settings_of(job, folder, cache)
    splits = load_splits(data, job.seed)
    teacher = named_teacher(student, data, config)
    labels = np.asarray(splits.validation["label"]), np.asarray(splits.test["label"])
    of_teacher = teacher_split_scores(teacher, splits, config)
    set_seed(job.seed)  # A's random start belongs to the seed
    model = _as_sentence_transformer(student, config)
    matches = splits.train.filter(lambda label: label == 1, input_columns="label").remove_columns("label")
    started = time.monotonic()
    steps = _train(model, matches, with_learning_rate(student, config), folder)
    seconds = time.monotonic() - started
    similarity = SplitScores(*(_cosines(model, part, config) for part in (splits.validation, splits.test)))
    metrics = judge_run(None, similarity, of_teacher, *labels)
    facts = {"training_seconds": round(seconds, 1), "steps": steps}
    return metrics | {"run": facts, "scores": packed_splits({"similarity": similarity})}


def _as_sentence_transformer(student: StudentArguments, config: FlippedDistillationConfig) -> SentenceTransformer:
    """The bare student with last-token pooling and a new LoRA adapter."""
    name = student.student or ""
    trusted: dict[str, Any] = {"trust_remote_code": student.trust_remote_code}
    with tempfile.TemporaryDirectory() as folder:
        load_student(name, revision=student.student_revision, dtype="float32", **trusted).save_pretrained(folder)
        load_tokenizer(name, revision=student.student_revision, **trusted).save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=config.max_length)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu" if config.use_cpu else None)
    model.add_adapter(
        default_lora(student.lora_r, student.lora_alpha, student.lora_dropout, student.lora_target_modules)
    )
    return model


def _train(model: SentenceTransformer, matches: Any, config: FlippedDistillationConfig, folder: Path) -> int:
    """Train it; the steps that were made."""
    args = SentenceTransformerTrainingArguments(
        per_device_train_batch_size=config.per_device_train_batch_size,
        # The same text twice in a batch would be its own negative.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        **same_budget(config, folder),
    )
    loss = MultipleNegativesRankingLoss(model)
    with fast_bfloat16(config.product_dtype, config.device):  # as fast as ours
        return SentenceTransformerTrainer(model, args, train_dataset=matches, loss=loss).train().global_step


def same_budget(config: FlippedDistillationConfig, folder: Path) -> dict[str, Any]:
    """Budget and optimizer of a run as arguments of sentence-transformers' trainers, all but the batch size.

    What stays theirs: gradients are clipped by their norm, batches are drawn at random, and scores are computed in
    float32.
    """
    return {
        "output_dir": str(folder),
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_epsilon": config.adam_epsilon,
        "lr_scheduler_type": config.lr_scheduler_type,
        "lr_scheduler_kwargs": config.lr_scheduler_kwargs,
        "bf16": config.bf16,
        "use_cpu": config.use_cpu,
        "seed": config.seed,
        "dataloader_drop_last": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _cosines(model: SentenceTransformer, pairs: Any, config: FlippedDistillationConfig) -> np.ndarray:
    first, second = (
        model.encode(list(pairs[column]), batch_size=config.per_device_eval_batch_size, show_progress_bar=False)
        for column in ("text_a", "text_b")
    )
    return (first * second).sum(axis=1).astype(np.float64)
