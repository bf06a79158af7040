"""One command's work: teacher, bare LLM, plain fine-tuning and flipped distillation on the same pairs, over seeds,
into one report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .config import DataArguments, FlippedDistillationConfig, StudentArguments, parse_settings
from .data import PairColumns, load_pairs
from .keys import dataset_keys, shared_texts
from .model_card import write_card
from .provenance import device_name, library_versions, shown_command, shown_name
from .report import REPORT_VERSION, SplitScores, judge_seed, markdown_table, summarise, write_atomically, write_report
from .student import default_lora, load_student, load_tokenizer
from .teacher import BiEncoderTeacher, CrossEncoderTeacher, load_teacher
from .trainer import FlippedDistillationTrainer

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
# Told in the report with their values, whether changed or not.
OPTIMIZER = (
    *("optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2"),
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
)
# Settings that change where or how often something is written, not what is learned.
NOT_LEARNED = {
    *("output_dir", "teacher_cache_dir", "run_name", "hub_token", "logging_steps", "disable_tqdm"),
    *("save_strategy", "save_steps", "save_total_limit", "eval_strategy", "eval_steps"),
}


@dataclass
class Splits:
    """The three checked pair sets."""

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset


@dataclass
class RunResult:
    """One finished training run: scores of validation and test pairs, and what is worth telling of it."""

    answer: SplitScores
    similarity: SplitScores
    before: SplitScores
    facts: dict[str, Any]


def load_splits(data: DataArguments, max_rows_seed: int = 0) -> Splits:
    """Load and check all three splits; `max_train_pairs` draws a random subset of the training pairs.

    Raises:
        ValueError: a split is not named, or its rows are unusable.
    """
    columns = PairColumns(data.text_a_column, data.text_b_column, data.label_column)
    parts = {}
    for split in SPLITS:
        source = getattr(data, f"{split}_file") or data.dataset_name
        if source is None:
            raise ValueError(f"no {split} pairs are named: give --{split}_file or --dataset_name.")
        parts[split] = load_pairs(
            source,
            split=split if getattr(data, f"{split}_file") is None else None,
            columns=columns,
            label_threshold=data.label_threshold,
            skip_bad_rows=data.skip_bad_rows,
            max_rows=data.max_train_pairs if split == "train" else None,
            seed=max_rows_seed,
        )
    for overlap in shared_texts(**parts):
        logger.info("%s", overlap)
    return Splits(**parts)


def run_comparison(
    student: StudentArguments, data: DataArguments, config: FlippedDistillationConfig
) -> dict[str, Any]:
    """Train plainly and flipped with the same budget for each seed, compare on test, write report.json and report.md.

    Finished runs in `config.output_dir` with the same settings are not repeated, unfinished ones go on from their last
    checkpoint. The adapter of the first seed's flipped run, with its contracts, stands in the output directory itself.

    Args:
        student: the LLM and its adapter.
        data: pairs and teacher.
        config: settings of the flipped run; the plain one differs in the weights of L_dist and L_MCL only.

    Returns:
        The report as written.
    """
    for name, value in (("student", student.student), ("teacher", data.teacher)):
        if value is None:
            raise ValueError(f"no {name} is named: give --{name} a folder or a Hub name.")
    if data.seeds < 1:
        raise ValueError(f"seeds={data.seeds}: at least one run is needed.")
    out = Path(config.output_dir or "outputs")
    started = time.time()
    config = dataclasses.replace(config, teacher_cache_dir=config.teacher_cache_dir or str(out / "_teacher_cache"))
    load_splits(data, config.seed)  # bad pairs are refused before any model is loaded
    teacher = load_teacher(
        data.teacher or "", revision=data.teacher_revision, trust_remote_code=student.trust_remote_code
    )
    per_seed, runs = [], []
    seeds = list(range(config.seed, config.seed + data.seeds))
    for position, seed in enumerate(seeds):
        splits = load_splits(data, seed)
        results: dict[str, RunResult] = {}
        plain: dict[str, Any] = {"dist_weight": 0.0, "mcl_weight": 0.0}
        for system, weights in (("llm_sft", plain), ("llm_flipped", {})):
            _say(config, f"[{2 * position + len(results) + 1}/{2 * len(seeds)}] seed {seed}: {system}")
            settings = dataclasses.replace(
                config, **weights, seed=seed, output_dir=str(out / "runs" / f"seed-{seed}" / system), push_to_hub=False
            )
            keep_in = out if system == "llm_flipped" and position == 0 else None
            results[system] = _run(student, data, settings, splits, teacher, keep_in)
        labels = {split: np.asarray(getattr(splits, split)["label"]) for split in SPLITS}
        teacher_scores = _teacher_scores(teacher, splits, config)
        sft, flipped = results["llm_sft"], results["llm_flipped"]
        per_seed.append(
            judge_seed(
                teacher_scores,
                sft.before,
                (sft.answer, sft.similarity),
                (flipped.answer, flipped.similarity),
                labels["validation"],
                labels["test"],
            )
        )
        runs.append({"seed": seed, **{system: result.facts for system, result in results.items()}})
    report = {
        "format_version": REPORT_VERSION,
        "student": shown_name(student.student),
        "teacher": {"id": teacher.id, "kind": teacher.kind, "revision": teacher.revision},
        "seeds": seeds,
        "data": {split: len(part) for split, part in labels.items()}
        | {"positive_share": {split: float(part.mean()) for split, part in labels.items()}},
        **summarise(per_seed),
        "runs": runs,
        "settings": _settings(student, data, config),
        "optimizer": {name: config.to_dict()[name] for name in OPTIMIZER},
        "command": shown_command(sys.argv),
        "versions": library_versions(),
        "device": {"name": device_name(config.use_cpu), "processes": config.world_size},
        "seconds": round(time.time() - started, 1),
    }
    if config.should_save:
        write_report(report, out)
    _say(config, f"\n{markdown_table(report)}\n\nReport: {out / 'report.json'}, {out / 'report.md'}; adapter: {out}")
    if config.should_save:
        write_card(out)  # once more, now with the results
    return report


def _run(
    student: StudentArguments,
    data: DataArguments,
    config: FlippedDistillationConfig,
    splits: Splits,
    teacher: BiEncoderTeacher | CrossEncoderTeacher,
    keep_in: Path | None,
) -> RunResult:
    """One training run, or its result from disk where it has been finished with the same settings."""
    folder = Path(str(config.output_dir))
    fingerprint = _fingerprint(student, data, config, splits, teacher)
    finished = _finished(folder, fingerprint)
    if finished is not None and (keep_in is None or (keep_in / "adapter_model.safetensors").is_file()):
        _say(config, f"  finished before: {folder}")
        return finished
    model = load_student(
        student.student or "",
        revision=student.student_revision,
        dtype=student.student_dtype,
        trust_remote_code=student.trust_remote_code,
    )
    tokenizer = load_tokenizer(
        student.student or "", revision=student.student_revision, trust_remote_code=student.trust_remote_code
    )
    trainer = FlippedDistillationTrainer(
        model,
        teacher if config.distils else None,
        config,
        splits.train,
        splits.validation,
        tokenizer,
        default_lora(student.lora_r, student.lora_alpha, student.lora_dropout, student.lora_target_modules),
    )
    # B = 0 at the start: the adapter changes nothing yet, so this is the bare LLM.
    before, _ = _both_splits(trainer, splits) if not config.distils else (SplitScores(*2 * (np.zeros(0),)), None)
    started = time.time()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    seconds = time.time() - started
    answer, similarity = _both_splits(trainer, splits, trainer.fitted_scores)
    trainer.save_model(str(folder))
    if keep_in is not None:
        trainer.save_model(str(keep_in))
    weights = [(p.numel(), p.requires_grad) for p in model.parameters()]
    facts = {
        "training_seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "trainable_parameters": sum(size for size, trained in weights if trained),
        "student_parameters": sum(size for size, trained in weights if not trained),
        "student_revision": getattr(model.config, "_commit_hash", None),  # None where it is no model of the Hub
        "teacher_agreement": trainer.teacher_report,
        "dropped_share": {
            label: trainer.teacher_report.get(f"dropped_{label}_share") for label in ("positive", "negative")
        },
        "log_history": trainer.state.log_history,
    }
    result = RunResult(answer, similarity, before, facts)
    if config.should_save:
        _write_result(folder, fingerprint, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _both_splits(
    trainer: FlippedDistillationTrainer, splits: Splits, validation: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[SplitScores, SplitScores]:
    """(answer, similarity) of the validation and test pairs; those of validation may be known already."""
    validation = validation or trainer.score_pairs(splits.validation)
    test = trainer.score_pairs(splits.test)
    return SplitScores(validation[0], test[0]), SplitScores(validation[1], test[1])


def _teacher_scores(
    teacher: BiEncoderTeacher | CrossEncoderTeacher, splits: Splits, config: FlippedDistillationConfig
) -> SplitScores:
    cache: dict[str, Any] = {"cache_dir": config.teacher_cache_dir, "batch_size": config.teacher_batch_size}
    scored = []
    for part in (splits.validation, splits.test):
        texts_a, texts_b = list(part["text_a"]), list(part["text_b"])
        with config.main_process_first(local=False, desc="scoring with the teacher"):
            table = (
                teacher.score(texts_a, texts_b, **cache)
                if isinstance(teacher, CrossEncoderTeacher)
                else teacher.embed(texts_a + texts_b, **cache)
            )
        scored.append(table.similarity(*dataset_keys(part)).astype(np.float64))
    return SplitScores(*scored)


def _fingerprint(
    student: StudentArguments,
    data: DataArguments,
    config: FlippedDistillationConfig,
    splits: Splits,
    teacher: BiEncoderTeacher | CrossEncoderTeacher,
) -> str:
    """Names everything a run's result depends on: settings, pairs, teacher and student."""
    settings = _settings(student, data, config)
    for name in ("train_file", "validation_file", "test_file", "seeds", "teacher"):
        settings["data"].pop(name)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for split in SPLITS:
        part = getattr(splits, split)
        for keys in dataset_keys(part):
            digest.update(keys.tobytes())
        digest.update(np.asarray(part["label"], dtype=np.int8).tobytes())
    digest.update(teacher.fingerprint.encode())
    return digest.hexdigest()


def _settings(student: StudentArguments, data: DataArguments, config: FlippedDistillationConfig) -> dict[str, Any]:
    """Settings as plain JSON values: of training only our own and the changed ones; no local paths, no tokens."""
    defaults = FlippedDistillationConfig(output_dir="-").to_dict()
    own = {field.name for field in dataclasses.fields(FlippedDistillationConfig)} - {
        field.name for field in dataclasses.fields(TrainingArguments)
    }
    changed = {
        name: value
        for name, value in config.to_dict().items()
        if name not in NOT_LEARNED
        and (name in own or value != defaults.get(name) or name in ("learning_rate", "seed"))
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


def _write_result(folder: Path, fingerprint: str, result: RunResult) -> None:
    """scores.npz first, run.json last: the latter marks a finished run."""
    partial = folder / "scores.tmp.npz"
    arrays = {
        f"{kind}_{split}": getattr(getattr(result, kind), split)
        for kind in ("answer", "similarity", "before")
        for split in ("validation", "test")
    }
    np.savez(partial, **arrays)
    partial.replace(folder / "scores.npz")
    write_atomically(folder / "run.json", json.dumps({"fingerprint": fingerprint, **result.facts}, indent=2) + "\n")


def _finished(folder: Path, fingerprint: str) -> RunResult | None:
    if not (folder / "run.json").is_file():
        return None
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if facts.pop("fingerprint") != fingerprint:
        raise ValueError(
            f"{folder} holds a finished run with other settings, data or models: use another --output_dir, or delete "
            "it to run anew."
        )
    with np.load(folder / "scores.npz") as arrays:
        kinds: list[SplitScores] = [
            SplitScores(arrays[f"{kind}_validation"], arrays[f"{kind}_test"])
            for kind in ("answer", "similarity", "before")
        ]
    return RunResult(kinds[0], kinds[1], kinds[2], facts)


def _say(config: FlippedDistillationConfig, text: str, emit: Callable[[str], None] = print) -> None:
    if config.process_index == 0:
        emit(text)


def run_recipe(
    argv: Sequence[str],
    *,
    defaults: dict[str, Any],
    mini_config: Path,
    mini_data: Path,
    build_teacher: Callable[..., Path],
    build_student: Callable[..., Path],
) -> dict[str, Any]:
    """A recipe's whole command: read its settings, build the mini models where no data is named, run the comparison.

    Args:
        argv: flags.
        defaults: the recipe's defaults by field name, for data and models of the user's own.
        mini_config: YAML of the embedded setting, used where neither data nor --config is given.
        mini_data: folder of its train, validation and test.jsonl.
        build_teacher: (training pairs, folder, seed=) -> folder of the trained mini teacher.
        build_student: (texts, folder, seed=) -> folder of the mini student.
    """
    classes = (StudentArguments, DataArguments, FlippedDistillationConfig)
    student, data, config = parse_settings(classes, argv, defaults)
    if any((data.train_file, data.validation_file, data.test_file, data.dataset_name)):
        return run_comparison(student, data, config)
    if not any(flag.startswith("--config") for flag in argv):
        student, data, config = parse_settings(classes, ["--config", str(mini_config), *argv], defaults)
    files = {f"{split}_file": str(mini_data / f"{split}.jsonl") for split in SPLITS}
    data = dataclasses.replace(data, **files)
    out = Path(config.output_dir or "outputs") / "mini_models"
    with config.main_process_first(local=False, desc="building the mini models"):
        pairs = load_pairs(files["train_file"])
        if data.teacher is None:
            _say(config, f"[mini] teacher: {out / 'teacher'}")
            data = dataclasses.replace(data, teacher=str(build_teacher(pairs, out / "teacher", seed=config.seed)))
        if student.student is None:
            _say(config, f"[mini] student: {out / 'student'}")
            texts = [*pairs["text_a"], *pairs["text_b"]]
            student = dataclasses.replace(
                student, student=str(build_student(texts, out / "student", seed=config.seed))
            )
    return run_comparison(student, data, config)
