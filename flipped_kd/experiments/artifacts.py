"""What a training run leaves for the report beside its scores: vectors before and after, and how far A and B moved.

evidence.npz of a run (`take_snapshot`, `write_artifacts`), evidence.npz and evidence.json of its seed (`keep_seed`).
All of it is bounded but the scores, and stays with the user: nothing of it is pushed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor

from ..evaluation.comparison import SplitScores
from ..evaluation.mistakes import choose_examples, judge_systems, shortened
from ..evaluation.run_files import ARTIFACTS_FILE, EXAMPLES_FILE
from ..inference.scorer import PairScorer
from ..students.encoder_modules import lora_layers
from ..students.probing import is_sharded
from ..teachers.base import Teacher
from ..teachers.pair_scores import text_vectors
from ..training.config import FlippedDistillationConfig
from ..training.trainer import FlippedDistillationTrainer
from ..utils.atomic import write_atomically
from .text_sample import Sample, sample_pairs

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Adapted:
    """A and B of a LoRA layer at one moment, on the CPU: they add scaling * B A to its weight.

    An embedding keeps its weight the other way round: they add the transpose. Norms are the same.
    """

    a: Tensor
    b: Tensor
    scaling: float


@dataclass(frozen=True)
class Snapshot:
    """A student at one moment.

    Attributes:
        vectors: (n, D) float32, unit length, of the sampled texts.
        layers: the adapted layers by their name in the base model.
    """

    vectors: np.ndarray
    layers: dict[str, Adapted]


def take_snapshot(trainer: FlippedDistillationTrainer, test: datasets.Dataset) -> Snapshot | None:
    """What the trainer's student makes of a sample of the test pairs now, and its A and B.

    Reads in evaluation mode, draws no random numbers and changes no weight. None where this process is not the one
    that saves, or its weights are sharded.
    """
    if not trainer.args.should_save or trainer.is_fsdp_enabled or is_sharded(trainer.model):
        return None
    scorer = PairScorer(trainer.model, trainer.processing_class, trainer.prompt, trainer.encoder)
    vectors = scorer.encode(list(sample_pairs(test).texts), show_progress_bar=False)
    name = trainer.encoder.adapter_name
    layers = {}
    for module_name, module in lora_layers(trainer.model):
        matrices = _matrices(module, name)
        if matrices is not None:
            a, b = (matrix.detach().to("cpu", copy=True) for matrix in matrices)
            layers[module_name] = Adapted(a, b, float(module.scaling[name]))
    return Snapshot(np.asarray(vectors, np.float32), layers)


def _matrices(layer: Any, name: str) -> tuple[Tensor, Tensor] | None:
    """A and B of a linear layer or an embedding; None where the weight's change is not their product."""
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    # A lone parameter (stacked experts) and a convolution are made of them in other ways.
    if name not in layer.lora_A or isinstance(layer, ParamWrapper) or layer.lora_A[name].weight.dim() != 2:
        return None
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def update_norm(before: Adapted, after: Adapted) -> float:
    """Frobenius norm of the change of scaling * B A, without the product itself.

    |L R|² = <LᵀL, R Rᵀ> for L = [s B, -s₀ B₀] (out, 2r) and R = [A; A₀] (2r, in): r x r matrices are enough.
    """
    left = torch.cat([after.scaling * after.b.double(), -before.scaling * before.b.double()], 1)
    right = torch.cat([after.a.double(), before.a.double()])
    return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


def write_artifacts(folder: Path, before: Snapshot | None, after: Snapshot | None) -> None:
    """Write evidence.npz into a run's folder, whole or not at all; nothing where a snapshot is missing.

    It holds before and after (n, D), the vectors of the sampled texts; modules (m,), names; and Frobenius norms (m,):
    a_start of A at the start, a_moved and b_moved of the change of A and of B (which starts at 0 unless it is of
    an embedding, whose A does, or the adapter was trained before), update of the change of the layer's weight.
    """
    if before is None or after is None:
        return
    first, last = before.layers, after.layers
    names = list(last)

    def norms(of: Any) -> np.ndarray:
        return np.array([float(of(first[name], last[name])) for name in names])

    arrays = {
        "format_version": np.array(FORMAT_VERSION),
        "before": before.vectors,
        "after": after.vectors,
        "modules": np.array(names, dtype=np.str_),
        "a_start": norms(lambda old, new: torch.linalg.norm(old.a.double())),
        "a_moved": norms(lambda old, new: torch.linalg.norm(new.a.double() - old.a.double())),
        "b_moved": norms(lambda old, new: torch.linalg.norm(new.b.double() - old.b.double())),
        "update": norms(update_norm),
    }
    _write_npz(folder / ARTIFACTS_FILE, arrays)


def keep_seed(
    folder: Path,
    splits: Any,
    teacher: Teacher,
    of_teacher: SplitScores,
    students: Mapping[str, tuple[SplitScores, SplitScores]],
    config: FlippedDistillationConfig,
) -> None:
    """Write evidence.npz and evidence.json into the folder of a seed, in the process that saves.

    The arrays: teacher_validation and teacher_test, T of all pairs; labels_validation and labels_test, int8; pairs
    (m, 2), pair_labels (m,) and groups (n,) of the sample, as in `Sample`; of a bi-encoder, vectors (n, D) of the
    sampled texts. The JSON: what `choose_examples` gives, and a text of each group.

    Args:
        folder: of the seed.
        splits: the three pair sets.
        teacher: the teacher, whose scores and vectors are in its cache by now.
        of_teacher: its T of validation and test pairs.
        students: (answer, similarity) by name of the system.
        config: settings of the runs.
    """
    if not config.should_save:
        return
    sample = sample_pairs(splits.test)
    labels = {split: np.asarray(getattr(splits, split)["label"], np.int8) for split in ("validation", "test")}
    arrays = {
        "format_version": np.array(FORMAT_VERSION),
        **{f"labels_{split}": values for split, values in labels.items()},
        **{f"teacher_{split}": getattr(of_teacher, split) for split in labels},
        "pairs": sample.pairs,
        "pair_labels": sample.labels,
        "groups": sample.groups,
    }
    if teacher.has_vectors:
        cache: dict[str, Any] = {"cache_dir": config.teacher_cache_dir, "batch_size": config.teacher_batch_size}
        arrays["vectors"] = text_vectors(teacher, sample.texts, **cache, show_progress=False)
    _write_npz(folder / ARTIFACTS_FILE, arrays)
    judged = judge_systems(labels["validation"], of_teacher, students)
    examples = choose_examples(judged, splits.test) | {"groups": [shortened(text) for text in _one_of_each(sample)]}
    content = {"format_version": FORMAT_VERSION, **examples}
    write_atomically(folder / EXAMPLES_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _one_of_each(sample: Sample) -> list[str]:
    """A text of each group, in the order of the groups' numbers."""
    places = [int(np.flatnonzero(sample.groups == group)[0]) for group in range(sample.groups.max(initial=-1) + 1)]
    return [sample.texts[place] for place in places]


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())
