"""What a training run depends on: its settings as plain values, and a fingerprint that its folder is bound to."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainingArguments

from ..data.keys import dataset_keys
from ..evaluation.run_files import RUN_FILE
from ..teachers.base import Teacher
from ..training.checkpoint_files import STAGING_FOLDER, checkpoints_in, read_manifest
from ..training.config import FlippedDistillationConfig
from ..utils.atomic import write_atomically
from ..utils.digests import file_sha256
from ..utils.provenance import shown_name
from .arguments import DataArguments, StudentArguments
from .splits import SPLITS, Splits

FINGERPRINT_FILE = "fingerprint.txt"
# What decides a run and is told though it is a default: transformers has another one, or it is asked for first.
ALWAYS_TOLD = ("learning_rate", "seed", "train_sampling_strategy")
# When it is looked decides what is learned where the best checkpoint or the learning rate goes by what is seen.
WHEN_LOOKED = {"save_strategy", "save_steps", "eval_strategy", "eval_steps", "do_eval"}
RATES_BY_METRICS = ("reduce_lr_on_plateau", "greedy")
# Settings that change where or how often something is written, not what is learned.
NOT_LEARNED = WHEN_LOOKED | {
    *("output_dir", "teacher_cache_dir", "run_name", "disable_tqdm", "report_to", "log_level"),
    *("logging_steps", "logging_strategy", "logging_first_step"),
    *("hub_token", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_always_push"),
    *("save_total_limit", "cpu_threads", "ddp_timeout", "eval_accumulation_steps", "torch_empty_cache_steps"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
    *("dataloader_pin_memory",),
}


def run_fingerprint(
    student: StudentArguments,
    data: DataArguments,
    config: FlippedDistillationConfig,
    splits: Splits,
    teacher: Teacher,
) -> str:
    """Names everything a run's result depends on: settings, pairs, teacher and student."""
    settings = run_settings(student, data, config)
    if data.unlabelled_file is not None:
        settings["data"]["unlabelled_file"] = _files_of(data.unlabelled_file).hex()
    for name in ("train_file", "validation_file", "test_file", "seeds", "baseline", "teacher", "max_answer_rankings"):
        settings["data"].pop(name)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for split in SPLITS:
        part = getattr(splits, split)
        for keys in dataset_keys(part):
            digest.update(keys.tobytes())
        digest.update(np.asarray(part["label"], dtype=np.int8).tobytes())
    digest.update(teacher.fingerprint.encode())
    digest.update(_files_of(student.student or ""))
    return digest.hexdigest()


def _files_of(student: str) -> bytes:
    """sha256 of a file, or of a local student's configuration, tokenizer and weights; nothing of one on the Hub."""
    digest = hashlib.sha256()
    local = sorted(Path(student).glob("*")) if Path(student).is_dir() else [Path(student)]
    for path in (path for path in local if path.is_file()):
        if path == Path(student) or path.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja"):
            status = path.stat()
            digest.update(path.name.encode() + bytes.fromhex(_sha256(path, status.st_size, status.st_mtime_ns)))
    return digest.digest()


@functools.cache  # large, and the same for all runs of a comparison
def _sha256(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)


def run_settings(student: StudentArguments, data: DataArguments, config: FlippedDistillationConfig) -> dict[str, Any]:
    """Settings as plain JSON values: of training only our own and the changed ones; no local paths, no tokens."""
    # Settings decide anew what the processes are, for all settings there are: these must decide alike.
    defaults = FlippedDistillationConfig(
        output_dir="-", use_cpu=config.use_cpu, ddp_backend=config.ddp_backend
    ).to_dict()
    own = {field.name for field in dataclasses.fields(FlippedDistillationConfig)} - {
        field.name for field in dataclasses.fields(TrainingArguments)
    }
    by_metrics = config.load_best_model_at_end or config.lr_scheduler_type in RATES_BY_METRICS
    left_out = NOT_LEARNED - WHEN_LOOKED if by_metrics else NOT_LEARNED
    changed = {
        name: value
        for name, value in config.to_dict().items()
        if name not in left_out and (name in own or value != defaults.get(name) or name in ALWAYS_TOLD)
    }
    shown = {
        name: shown_name(value) if name.endswith("_file") or name in ("dataset_name", "teacher") else value
        for name, value in dataclasses.asdict(data).items()
    }
    return {
        "student": {**dataclasses.asdict(student), "student": shown_name(student.student)},
        "data": shown,
        "training": changed,
    }


def claim_folder(folder: Path, fingerprint: str, writes: bool) -> None:
    """Say what the run in `folder` depends on before its first step: its checkpoints are gone on from by no other.

    Raises:
        ValueError: it holds a run, finished or begun, that depends on something else.
    """
    path = folder / FINGERPRINT_FILE
    finished = (folder / RUN_FILE).is_file()
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else None
    # One that is whole and has not got its name yet would be given it.
    begun = checkpoints_in(folder) or any(map(read_manifest, checkpoints_in(folder / STAGING_FOLDER)))
    if known != fingerprint and (finished or begun):
        raise ValueError(
            f"{folder} holds {'a finished run' if finished else 'the checkpoints of a run'} with other settings, "
            "data or models: use another --output_dir, or delete it to run anew."
        )
    if writes:
        write_atomically(path, fingerprint + "\n")
