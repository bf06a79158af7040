"""Fine-tune a small encoder on labelled pairs, to be the teacher: sentence-transformers' own trainer and losses.

    python recipes/train_teacher.py --train_file train.jsonl --validation_file dev.jsonl \
        --model sentence-transformers/all-MiniLM-L6-v2 --output_dir outputs/teacher
    python recipes/train_teacher.py --kind cross-encoder ...

A bi-encoder learns to rank the match of each text above the others of its batch (MultipleNegativesRankingLoss, over
the pairs of label 1), a cross-encoder by binary cross-entropy over all pairs. AUC and F1 on the validation pairs are
printed before and after; the folder is what `--teacher` takes. It has seen the training pairs then: recipes calibrate
it on the validation pairs.

Why not a loss over all pairs: all-MiniLM-L6-v2, one epoch of 2,000 pairs, one seed, AUC on validation. NFCorpus, .753
before: ranking .772, CoSENT .753 (learning rate 2e-5) and .737 (5e-5), online contrastive .737 (2e-5). banking77, .813
before: ranking .833, CoSENT .807.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from flipped_kd.evaluation.metrics import best_f1_threshold, matching_metrics
from flipped_kd.experiments.arguments import DataArguments
from flipped_kd.experiments.parsing import parse_settings
from flipped_kd.experiments.splits import load_split
from flipped_kd.teachers.loading import load_teacher
from flipped_kd.teachers.pair_scores import teacher_scores
from flipped_kd.utils.atomic import check_target, whole_or_absent
from flipped_kd.utils.screen import unfailing_screen

KINDS = ("bi-encoder", "cross-encoder")


@dataclass
class TeacherTraining:
    """How the small encoder is trained.

    Args:
        model: Hub name or folder of the encoder to start from.
        kind: "bi-encoder" or "cross-encoder".
        output_dir: folder to save it to; it must be new or empty.
        epochs: passes over the pairs.
        batch_size: pairs a step.
        learning_rate: of AdamW.
        train_steps: stop there, if positive.
        train_seed: of order and dropout.

    Raises:
        ValueError: a setting is out of range.
    """

    model: str | None = field(default=None, metadata={"help": "Hub name or folder of the encoder to start from."})
    kind: str = field(default="bi-encoder", metadata={"help": "bi-encoder or cross-encoder."})
    output_dir: str = field(default="outputs/teacher", metadata={"help": "New or empty folder to save it to."})
    epochs: float = field(default=1.0, metadata={"help": "Passes over the pairs."})
    batch_size: int = field(default=32, metadata={"help": "Pairs a step."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate of AdamW."})
    train_steps: int = field(default=-1, metadata={"help": "Stop there, if positive."})
    train_seed: int = field(default=0, metadata={"help": "Of order and dropout."})

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: choose one of {list(KINDS)}.")
        for name in ("epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number.")


@unfailing_screen()
def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Train, save and return the validation metrics before and after."""
    settings, data = parse_settings((TeacherTraining, DataArguments), sys.argv[1:] if argv is None else argv)
    if settings.model is None:
        raise ValueError("no model is named: give --model a folder or a Hub name of an encoder.")
    out = Path(settings.output_dir)
    check_target(out)
    train, validation = load_split(data, "train"), load_split(data, "validation")
    # Many encoders are published in half precision, in which AdamW's steps are lost and a CPU is ten times slower.
    kind: Any = SentenceTransformer if settings.kind == "bi-encoder" else CrossEncoder
    model = kind(settings.model, model_kwargs={"dtype": "float32"})
    found = {"before": validation_metrics(model, validation)}
    train_encoder(model, train, settings)
    found["after"] = validation_metrics(model, validation)
    with whole_or_absent(out) as partial:
        model.save_pretrained(str(partial))
    for moment, metrics in found.items():
        print(f"{moment:6s}  AUC {metrics['roc_auc']:.4f}  F1 {metrics['f1_tuned']:.4f}  ({len(validation)} pairs)")
    print(f"Teacher: {out}")
    return found


def validation_metrics(model: SentenceTransformer | CrossEncoder, pairs: datasets.Dataset) -> dict[str, float]:
    """AUC and F1 (at its best threshold on these pairs, which flatters) of a model as a teacher."""
    scores = teacher_scores(load_teacher(model), pairs, cache_dir=None, show_progress=False)
    labels = np.asarray(pairs["label"])
    return matching_metrics(scores, labels, threshold=None, tuned_threshold=best_f1_threshold(scores, labels))


def train_encoder(model: Any, pairs: datasets.Dataset, settings: TeacherTraining) -> None:
    """Train `model`, of the kind that `settings` name, on pairs with text_a, text_b and label; in place."""
    rows = pairs.select_columns(["text_a", "text_b", "label"]).cast_column("label", datasets.Value("float32"))
    bi_encoder = settings.kind == "bi-encoder"
    with tempfile.TemporaryDirectory() as scratch:
        options: dict[str, Any] = {
            **{"output_dir": scratch, "save_strategy": "no", "report_to": "none", "warmup_steps": 0.1},
            **{"num_train_epochs": settings.epochs, "max_steps": settings.train_steps, "seed": settings.train_seed},
            "per_device_train_batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            # Without an accelerator there is nothing to pin for, of which torch would warn.
            "dataloader_pin_memory": torch.accelerator.is_available(),
        }
        if bi_encoder:
            # The same text twice in a batch would be its own negative.
            arguments = SentenceTransformerTrainingArguments(**options, batch_sampler=BatchSamplers.NO_DUPLICATES)
            matches = rows.filter(lambda label: label == 1, input_columns="label").remove_columns("label")
            loss = MultipleNegativesRankingLoss(model)
            SentenceTransformerTrainer(model, arguments, train_dataset=matches, loss=loss).train()
        else:
            settings_of_peer = CrossEncoderTrainingArguments(**options)
            CrossEncoderTrainer(
                model, settings_of_peer, train_dataset=rows, loss=BinaryCrossEntropyLoss(model)
            ).train()


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
