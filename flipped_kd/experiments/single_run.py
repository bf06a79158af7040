"""One training run of a comparison: made, or read from its folder where it is finished with the same settings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainingArguments

from ..data.keys import dataset_keys
from ..evaluation.comparison import SplitScores
from ..evaluation.run_files import RUN_FILE, SCORES_FILE
from ..students.loading import load_student, load_tokenizer
from ..students.lora import default_lora
from ..teachers.bi_encoder import BiEncoderTeacher
from ..teachers.cross_encoder import CrossEncoderTeacher
from ..teachers.pair_scores import teacher_scores
from ..training.checkpoint_files import checkpoints_in
from ..training.config import FlippedDistillationConfig
from ..training.resume import random_states_kept
from ..training.trainer import FlippedDistillationTrainer
from ..utils.atomic import replacing, write_atomically
from ..utils.devices import weights_dtype
from ..utils.provenance import shown_name
from .arguments import DataArguments, StudentArguments
from .artifacts import take_snapshot, write_artifacts
from .faq_ranking import answer_retrieval, student_retrieval
from .splits import SPLITS, Splits

FINGERPRINT_FILE = "fingerprint.txt"
# What decides a run and is told though it is a default: transformers has another one, or it is asked for first.
ALWAYS_TOLD = ("learning_rate", "seed", "train_sampling_strategy")
# Settings that change where or how often something is written, not what is learned.
NOT_LEARNED = {
    *("output_dir", "teacher_cache_dir", "run_name", "hub_token", "logging_steps", "disable_tqdm"),
    *("save_strategy", "save_steps", "save_total_limit", "eval_strategy", "eval_steps"),
}


@dataclass
class RunResult:
    """One finished training run: scores of validation and test pairs, and what is worth telling of it."""

    answer: SplitScores
    similarity: SplitScores
    before: SplitScores
    facts: dict[str, Any]


def train_once(
    student: StudentArguments,
    data: DataArguments,
    config: FlippedDistillationConfig,
    splits: Splits,
    teacher: BiEncoderTeacher | CrossEncoderTeacher,
    keep_in: Path | None = None,
    on_bare_answers: Callable[[SplitScores], None] | None = None,
) -> RunResult:
    """One training run in `config.output_dir`, or its result from there if it is finished with the same settings.

    Args:
        student: the LLM and its adapter.
        data: where pairs and teacher come from.
        config: settings; both teacher weights 0 for plain fine-tuning.
        splits: the pairs, as `load_splits` gives them.
        teacher: as `load_teacher` gives it.
        keep_in: folder to save the adapter to as well.
        on_bare_answers: is given the untrained student's answers before it is trained, which plain fine-tuning looks
            at anyway; not of a finished run that has none.

    Raises:
        ValueError: the folder holds a run, finished or begun, with other settings, data or models.
    """
    folder = Path(str(config.output_dir))
    fingerprint = _fingerprint(student, data, config, splits, teacher)
    _claim(folder, fingerprint, config.should_save)
    finished = _finished(folder)
    if finished is not None and (keep_in is None or (keep_in / "adapter_model.safetensors").is_file()):
        say(config, f"  finished before: {folder}")
        if on_bare_answers is not None and len(finished.before.test):
            on_bare_answers(finished.before)
        return finished
    trainer = _new_trainer(student, config, splits, teacher)
    before, by_answer = SplitScores(*2 * (np.zeros(0),)), {}
    if on_bare_answers is not None or not config.distils:
        # A flipped run is the same whether it looks or not.
        with random_states_kept() if config.distils else nullcontext():
            # B = 0 at the start: the adapter changes nothing yet, so this is the bare LLM.
            before, _ = _both_splits(trainer, splits)
            by_answer = answer_retrieval(trainer, data, trained=False)
    if on_bare_answers is not None:
        on_bare_answers(before)
    start = take_snapshot(trainer, splits.test)
    started = time.time()
    trainer.train(resume_from_checkpoint=True)  # from the start where there is no checkpoint
    seconds = time.time() - started
    answer, similarity = _both_splits(trainer, splits, trainer.fitted_scores)
    by_answer |= answer_retrieval(trainer, data, trained=True)
    trainer.save_model(str(folder))
    write_artifacts(folder, start, take_snapshot(trainer, splits.test))
    if keep_in is not None:
        trainer.save_model(str(keep_in))
    facts = _facts(trainer, seconds)
    if data.questions_file is not None and config.should_save:
        if trainer.is_fsdp_enabled:  # one process cannot read a sharded model by itself
            say(config, "  the student is sharded: questions are not ranked by its vectors")
        else:
            facts |= {"retrieval": student_retrieval(trainer, data), "retrieval_by_answer": by_answer}
    result = RunResult(answer, similarity, before, facts)
    if config.should_save:
        _write_result(folder, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _new_trainer(
    student: StudentArguments,
    config: FlippedDistillationConfig,
    splits: Splits,
    teacher: BiEncoderTeacher | CrossEncoderTeacher,
) -> FlippedDistillationTrainer:
    automatic = weights_dtype(config.device, config.precision)
    model = load_student(
        student.student or "",
        revision=student.student_revision,
        dtype=automatic if student.student_dtype == "auto" else student.student_dtype,
        trust_remote_code=student.trust_remote_code,
        load_in_4bit=student.load_in_4bit,
    )
    tokenizer = load_tokenizer(
        student.student or "", revision=student.student_revision, trust_remote_code=student.trust_remote_code
    )
    return FlippedDistillationTrainer(
        model,
        teacher if config.distils else None,
        config,
        splits.train,
        splits.validation,
        tokenizer,
        default_lora(student.lora_r, student.lora_alpha, student.lora_dropout, student.lora_target_modules),
    )


def _facts(trainer: FlippedDistillationTrainer, seconds: float) -> dict[str, Any]:
    """What is worth telling of a finished training."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "training_seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "trainable_parameters": sum(size for size, trained in weights if trained),
        "student_parameters": sum(size for size, trained in weights if not trained),
        "student_revision": getattr(model, "hub_commit", None),  # None where it is no model of the Hub
        "teacher_agreement": trainer.teacher_report,
        "dropped_share": {
            label: trainer.teacher_report.get(f"dropped_{label}_share") for label in ("positive", "negative")
        },
        "log_history": trainer.state.log_history,
    }


def _both_splits(
    trainer: FlippedDistillationTrainer, splits: Splits, validation: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[SplitScores, SplitScores]:
    """(answer, similarity) of the validation and test pairs; those of validation may be known already."""
    validation = validation or trainer.score_pairs(splits.validation)
    test = trainer.score_pairs(splits.test)
    return SplitScores(validation[0], test[0]), SplitScores(validation[1], test[1])


def teacher_split_scores(
    teacher: BiEncoderTeacher | CrossEncoderTeacher, splits: Splits, config: FlippedDistillationConfig
) -> SplitScores:
    """The teacher's T of the validation and test pairs, cached."""
    cache: dict[str, Any] = {"cache_dir": config.teacher_cache_dir, "batch_size": config.teacher_batch_size}
    scored = []
    for part in (splits.validation, splits.test):
        with config.main_process_first(local=False, desc="scoring with the teacher"):
            scored.append(teacher_scores(teacher, part, **cache))
    return SplitScores(*scored)


def _fingerprint(
    student: StudentArguments,
    data: DataArguments,
    config: FlippedDistillationConfig,
    splits: Splits,
    teacher: BiEncoderTeacher | CrossEncoderTeacher,
) -> str:
    """Names everything a run's result depends on: settings, pairs, teacher and student."""
    settings = run_settings(student, data, config)
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


@functools.cache  # the student of a comparison does not change while it runs
def _files_of(student: str) -> bytes:
    """sha256 of a local student's configuration, tokenizer and weights; nothing of one on the Hub, which is named."""
    digest = hashlib.sha256()
    for path in sorted(Path(student).glob("*")) if Path(student).is_dir() else []:
        if path.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja"):
            with open(path, "rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.digest()


def run_settings(student: StudentArguments, data: DataArguments, config: FlippedDistillationConfig) -> dict[str, Any]:
    """Settings as plain JSON values: of training only our own and the changed ones; no local paths, no tokens."""
    # Settings decide anew what the processes are, for all settings there are: these must decide alike.
    defaults = FlippedDistillationConfig(
        output_dir="-", use_cpu=config.use_cpu, ddp_backend=config.ddp_backend
    ).to_dict()
    own = {field.name for field in dataclasses.fields(FlippedDistillationConfig)} - {
        field.name for field in dataclasses.fields(TrainingArguments)
    }
    changed = {
        name: value
        for name, value in config.to_dict().items()
        if name not in NOT_LEARNED and (name in own or value != defaults.get(name) or name in ALWAYS_TOLD)
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


def _claim(folder: Path, fingerprint: str, writes: bool) -> None:
    """Say what the run in `folder` depends on before its first step: its checkpoints are gone on from by no other.

    Raises:
        ValueError: it holds a run, finished or begun, that depends on something else.
    """
    path = folder / FINGERPRINT_FILE
    finished = (folder / RUN_FILE).is_file()
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else None
    if known != fingerprint and (finished or checkpoints_in(folder)):
        raise ValueError(
            f"{folder} holds {'a finished run' if finished else 'the checkpoints of a run'} with other settings, "
            "data or models: use another --output_dir, or delete it to run anew."
        )
    if writes:
        write_atomically(path, fingerprint + "\n")


def _write_result(folder: Path, result: RunResult) -> None:
    """scores.npz first, run.json last: the latter marks a finished run."""
    arrays = {
        f"{kind}_{split}": getattr(getattr(result, kind), split)
        for kind in ("answer", "similarity", "before")
        for split in ("validation", "test")
    }
    with replacing(folder / SCORES_FILE) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
    write_atomically(folder / RUN_FILE, json.dumps(result.facts, indent=2) + "\n")


def _finished(folder: Path) -> RunResult | None:
    if not (folder / RUN_FILE).is_file():
        return None
    facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    with np.load(folder / SCORES_FILE) as arrays:
        kinds: list[SplitScores] = [
            SplitScores(arrays[f"{kind}_validation"], arrays[f"{kind}_test"])
            for kind in ("answer", "similarity", "before")
        ]
    return RunResult(kinds[0], kinds[1], kinds[2], facts)


def say(config: FlippedDistillationConfig, text: str, emit: Callable[[str], None] = print) -> None:
    """Show a line, once for all processes."""
    if config.process_index == 0:
        emit(text)
