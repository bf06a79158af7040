"""One training run of a comparison: made, or read from its folder where it is finished with the same settings."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..evaluation.comparison import SplitScores
from ..evaluation.plots import LOSSES_PLOT, SYSTEMS_PLOT
from ..evaluation.run_files import PAGE_FILE, REPORT_FILE, REPORT_TABLE_FILE, RUN_FILE, SCORES_FILE
from ..inference.loading import ADAPTER_WEIGHTS
from ..inference.scorer import PairScorer
from ..students.loading import load_student, load_tokenizer
from ..students.lora import default_lora
from ..students.probing import is_sharded
from ..teachers.base import Teacher
from ..teachers.loading import load_teacher
from ..teachers.pair_scores import teacher_scores
from ..training.config import FlippedDistillationConfig
from ..training.random_states import random_states_kept
from ..training.trainer import FlippedDistillationTrainer
from ..utils.atomic import replacing
from ..utils.devices import weights_dtype
from ..utils.json_files import read_json_object, write_json
from .arguments import DataArguments, StudentArguments
from .artifacts import take_snapshot, write_artifacts
from .faq_ranking import answer_retrieval, student_retrieval
from .run_identity import claim_folder, run_fingerprint
from .splits import Splits, unlabelled_texts
from .stopwatch import Stopwatch


@dataclass
class RunResult:
    """One finished training run: scores of validation and test pairs, and what is worth telling of it.

    Attributes:
        answer: the trained student's answers.
        similarity: its similarities.
        before: the untrained student's answers; empty where nobody asked for them.
        start: the similarities after the start of A, before any step; None where A started at random.
        facts: plain JSON values.
        seconds_before: that earlier commands took for it.
    """

    answer: SplitScores
    similarity: SplitScores
    before: SplitScores
    start: SplitScores | None
    facts: dict[str, Any]
    seconds_before: float = 0.0


def train_once(
    student: StudentArguments,
    data: DataArguments,
    config: FlippedDistillationConfig,
    splits: Splits,
    teacher: Teacher,
    keep_in: Path | None = None,
    on_bare_answers: Callable[[SplitScores], None] | None = None,
    looks_before: bool = True,
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
        looks_before: score the untrained student too: plainly trained its answers, of a flipped run its vectors.

    Raises:
        ValueError: the folder holds a run, finished or begun, with other settings, data or models.
    """
    folder = Path(str(config.output_dir))
    fingerprint = run_fingerprint(student, data, config, splits, teacher)
    claim_folder(folder, fingerprint, config.should_save)
    finished = _finished(folder)
    if finished is not None and (keep_in is None or _is_kept(folder, keep_in)):
        say(config, f"  finished before: {folder}")
        _warn_of_other_processes(finished, folder, config)
        if on_bare_answers is not None and len(finished.before.test):
            on_bare_answers(finished.before)
        return finished
    begun = time.time()
    trainer = _new_trainer(student, data, config, splits, teacher)
    before, by_answer = SplitScores(*2 * (np.zeros(0),)), {}
    start, untrained = None, None
    wants_answers = on_bare_answers is not None or (looks_before and not config.distils) or config.max_steps == 0
    with random_states_kept():  # a run is the same whether it looks or not
        if wants_answers:
            # B = 0 at the start: the adapter changes nothing yet, so this is the bare LLM.
            if trainer.encoder_start is None and config.max_steps != 0:
                before = _alone(trainer, splits, "answer")
            else:
                untrained = before, start = _both_splits(trainer, splits)
            by_answer = answer_retrieval(trainer, data, trained=False)
        elif looks_before and trainer.encoder_start is not None:
            start = _alone(trainer, splits, "similarity")
    if trainer.encoder_start is None:
        start = None
    if on_bare_answers is not None:
        on_bare_answers(before)
    first = take_snapshot(trainer, splits.test)
    watch = Stopwatch()
    trainer.add_callback(watch)
    trainer.train(resume_from_checkpoint=True)  # from the start where there is no checkpoint
    # Without a step nothing has changed since.
    unchanged = untrained if config.max_steps == 0 else None
    answer, similarity = unchanged or _both_splits(trainer, splits, trainer.fitted_scores)
    by_answer |= answer_retrieval(trainer, data, trained=True)
    trainer.save_model(str(folder))
    write_artifacts(folder, first, take_snapshot(trainer, splits.test))
    if keep_in is not None:
        if config.should_save:
            _forget_results_of_others(keep_in, config.seed)
        trainer.save_model(str(keep_in))
    facts = _facts(trainer, watch.seconds)
    if data.questions_file is not None and config.should_save:
        if trainer.is_fsdp_enabled:  # one process cannot read a sharded model by itself
            say(config, "  the student is sharded: questions are not ranked by its vectors")
        else:
            facts |= {"retrieval": student_retrieval(trainer, data), "retrieval_by_answer": by_answer}
    facts["seconds"] = round(time.time() - begun + watch.before, 1)
    result = RunResult(answer, similarity, before, start, facts, seconds_before=watch.before)
    if config.should_save:
        _write_result(folder, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _new_trainer(
    student: StudentArguments,
    data: DataArguments,
    config: FlippedDistillationConfig,
    splits: Splits,
    teacher: Teacher,
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
        unlabelled_texts=unlabelled_texts(data) if config.distils else (),
    )


def _facts(trainer: FlippedDistillationTrainer, seconds: float) -> dict[str, Any]:
    """What is worth telling of a finished training."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    # PEFT's count: a quantised parameter holds two weights a byte.
    trainable, everything = model.get_nb_trainable_parameters()
    return {
        "training_seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "processes": trainer.args.world_size,
        "trainable_parameters": trainable,
        "student_parameters": everything - trainable,
        "student_revision": getattr(model, "hub_commit", None),  # None where it is no model of the Hub
        "encoder_start": None if trainer.encoder_start is None else dataclasses.asdict(trainer.encoder_start),
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


def _alone(trainer: FlippedDistillationTrainer, splits: Splits, kind: Literal["answer", "similarity"]) -> SplitScores:
    """One of the two scores of the validation and test pairs, without the cost of the other.

    A sharded student cannot be read by one process, and several processes share the pairs: there both are computed.
    """
    if trainer.is_fsdp_enabled or is_sharded(trainer.model) or trainer.args.world_size > 1:
        return _both_splits(trainer, splits)[kind == "similarity"]
    scorer = PairScorer(trainer.model, trainer.processing_class, trainer.prompt, trainer.encoder)
    found, bar = [], not trainer.args.disable_tqdm
    with trainer.in_precision():
        for part in (splits.validation, splits.test):
            scores = scorer.scores(part, kind=kind, show_progress_bar=bar)
            found.append(scores[kind == "similarity"])
    return SplitScores(*found)


def _forget_results_of_others(folder: Path, seed: int) -> None:
    """Remove the report of a finished comparison whose adapter, that of another first seed, is replaced now."""
    path = folder / REPORT_FILE
    if path.is_file() and read_json_object(path).get("seeds", [seed])[0] != seed:
        for name in (REPORT_FILE, REPORT_TABLE_FILE, PAGE_FILE, SYSTEMS_PLOT, LOSSES_PLOT):
            (folder / name).unlink(missing_ok=True)


def named_teacher(student: StudentArguments, data: DataArguments, config: FlippedDistillationConfig) -> Teacher:
    """The teacher that the settings name. It scores where training will be, and leaves the place to the student."""
    teacher = load_teacher(
        data.teacher or "",
        revision=data.teacher_revision,
        trust_remote_code=student.trust_remote_code,
        device=config.device,
    )
    teacher.rest()
    return teacher


def teacher_split_scores(teacher: Teacher, splits: Splits, config: FlippedDistillationConfig) -> SplitScores:
    """The teacher's T of the validation and test pairs, cached."""
    cache: dict[str, Any] = {"cache_dir": config.teacher_cache_dir, "batch_size": config.teacher_batch_size}
    scored = []
    for part in (splits.validation, splits.test):
        with config.main_process_first(local=False, desc="scoring with the teacher"):
            scored.append(teacher_scores(teacher, part, **cache, show_progress=not config.disable_tqdm))
    return SplitScores(*scored)


def _write_result(folder: Path, result: RunResult) -> None:
    """scores.npz first, run.json last: the latter marks a finished run."""
    arrays = {
        f"{kind}_{split}": getattr(getattr(result, kind), split)
        for kind in ("answer", "similarity", "before", *(("start",) if result.start is not None else ()))
        for split in ("validation", "test")
    }
    with replacing(folder / SCORES_FILE) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
    write_json(folder / RUN_FILE, result.facts)


def _warn_of_other_processes(finished: RunResult, folder: Path, config: FlippedDistillationConfig) -> None:
    made_by = finished.facts.get("processes", config.world_size)
    if made_by != config.world_size:
        warn(
            config,
            f"{folder} was made by {made_by} processes, and there are {config.world_size}: its batches were of "
            "another size. Delete the folder to make it anew.",
        )


def _is_kept(folder: Path, keep_in: Path) -> bool:
    """Whether `keep_in` holds an adapter, and not that of another run, such as one of another first seed."""
    own, kept = folder / ADAPTER_WEIGHTS, keep_in / ADAPTER_WEIGHTS
    return kept.is_file() and (not own.is_file() or filecmp.cmp(own, kept, shallow=False))


def _finished(folder: Path) -> RunResult | None:
    if not (folder / RUN_FILE).is_file():
        return None
    facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    with np.load(folder / SCORES_FILE) as arrays:
        answer, similarity, before = (SplitScores.of(arrays, kind) for kind in ("answer", "similarity", "before"))
        start = SplitScores.of(arrays, "start") if "start_test" in arrays else None
    seconds = facts.get("seconds", facts["training_seconds"])
    return RunResult(answer, similarity, before, start, facts, seconds_before=seconds)


def say(config: FlippedDistillationConfig, text: str) -> None:
    """Show a line, once for all processes."""
    if config.process_index == 0:
        print(text)


def warn(config: FlippedDistillationConfig, text: str) -> None:
    """Show a warning on standard error, once for all processes."""
    if config.process_index == 0:
        print(f"WARNING: {text}", file=sys.stderr)
