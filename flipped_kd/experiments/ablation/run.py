"""Runs an ablation: its training runs side by side in processes, one line of JSON for each that is finished."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from ...evaluation.comparison import SplitScores, combine, judge
from ...utils.devices import LAUNCHERS, cpu_cores
from ...utils.locking import sole_writer
from ...utils.provenance import commit_of, device_name
from ...utils.screen import unfailing_screen
from ...utils.weight_files import check_models
from ..run_identity import NOT_LEARNED, WHEN_LOOKED
from .pair_scores import packed_splits
from .plan import Job, Plan, inherited_defaults, settings_of
from .rows import append_row, read_rows

logger = logging.getLogger(__name__)
ROW_VERSION = 1
ROWS_FILE = "rows.jsonl"
NEVER_LEARNED = NOT_LEARNED - WHEN_LOOKED
# (job, run folder, cache of teacher scores) -> metrics by system.
Peer = Callable[[Job, Path, Path], dict[str, Any]]


def pending(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[Job]:
    """The jobs that have no row yet.

    Raises:
        ValueError: a row of a job was made with other settings.
    """
    done = {(row["set"], row["name"], row["seed"]): row["resolved"] for row in rows}
    inherited = inherited_defaults()
    for job in plan.jobs:
        if job.key not in done:
            continue
        wanted, found = job.resolved, done[job.key]
        # A setting of ours that came into being after the row is none that it was made with otherwise. Those of
        # transformers were there.
        shared, told = wanted.keys() & found.keys(), wanted.keys() | found.keys()
        wanted, found = {**inherited, **wanted}, {**inherited, **found}
        for name in sorted((shared - NEVER_LEARNED) | (told & inherited.keys())):
            if wanted[name] != found[name]:
                raise ValueError(
                    f"the row of run {job.name!r} of {job.set}, seed {job.seed} was made with {name}={found[name]!r}, "
                    f"which is now {wanted[name]!r}: give another file of rows and another output_dir; or, to run it "
                    f"anew, remove that line and the folder {run_folder(job, plan.output_dir)}."
                )
    return [job for job in plan.jobs if job.key not in done]


@unfailing_screen()
def run_plan(
    plan: Plan,
    rows_file: Path | None = None,
    *,
    workers: int = 1,
    max_minutes: float | None = None,
    peers: Mapping[str, Peer] | None = None,
    emit: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run what is not finished, so many at a time, and append a row for each as it ends.

    A run that was interrupted goes on from its last checkpoint. One that fails is told and left out; the others go on.

    Args:
        plan: what to run.
        rows_file: JSON Lines of finished runs; by default rows.jsonl in the plan's folder.
        workers: processes; the CPU's cores are shared among them, and so are GPUs.
        max_minutes: start no run after so many minutes; those that have begun are finished.
        peers: other trainers, by the name that runs give as `peer`.
        emit: takes a line for the screen.

    Returns:
        All finished rows.

    Raises:
        ValueError: a peer is unknown, `workers` is below 1, rows were made with other settings, or a file of a model
            is broken.
        RuntimeError: runs have failed, the others are finished; or another process writes into the plan's folder.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: at least one process is needed.")
    peers = dict(peers or {})
    for job in plan.jobs:
        if job.peer is not None and job.peer not in peers:
            raise ValueError(f"run {job.name!r}: no peer is named {job.peer!r}; there are {sorted(peers)}.")
    with sole_writer(plan.output_dir):
        return _run_pending(plan, rows_file or plan.output_dir / ROWS_FILE, workers, max_minutes, peers, emit)


def _run_pending(
    plan: Plan,
    rows_file: Path,
    workers: int,
    max_minutes: float | None,
    peers: Mapping[str, Peer],
    emit: Callable[[str], None],
) -> list[dict[str, Any]]:
    jobs = pending(plan, read_rows(rows_file))
    for models in {(job.settings.get("teacher"), job.settings.get("student")) for job in jobs}:
        check_models(*models)
    total = len(plan.jobs)
    emit(f"{total - len(jobs)} of {total} runs are finished ({rows_file})")
    started, failed = time.monotonic(), []
    for number, (job, outcome) in enumerate(_outcomes(jobs, plan.output_dir, workers, max_minutes, peers), 1):
        position = f"[{total - len(jobs) + number}/{total}] {job.set} {job.name}, seed {job.seed}:"
        if isinstance(outcome, BaseException):
            failed.append(f"{job.set} {job.name}, seed {job.seed}: {outcome!r}")
            emit(f"{position} FAILED, {outcome!r}")
            continue
        append_row(rows_file, outcome)
        minutes = (time.monotonic() - started) / 60 * (len(jobs) - number) / number
        metrics = outcome["metrics"]
        best = next(metrics[system] for system in ("both", "answer", "similarity") if system in metrics)
        emit(f"{position} F1 {best['f1']:.4f}, AUC {best['auc']:.4f}; about {minutes:.0f} min left")
    if failed:
        raise RuntimeError(f"{len(failed)} runs have failed: " + "; ".join(failed))
    rows = read_rows(rows_file)
    left = len(pending(plan, rows))
    if left:
        emit(f"{left} runs are left: give the command again to go on")
    return rows


def _outcomes(
    jobs: Sequence[Job], out: Path, workers: int, max_minutes: float | None, peers: Mapping[str, Peer]
) -> Iterator[tuple[Job, dict[str, Any] | BaseException]]:
    """Rows or errors, in the order in which runs end."""
    deadline = time.monotonic() + 60 * (float("inf") if max_minutes is None else max_minutes)
    waiting = list(reversed(jobs))
    workers = max(1, min(workers, len(jobs)))
    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    places = context.SimpleQueue()
    for place in range(workers):
        places.put(place)
    threads = max(1, cpu_cores() // workers)
    running: dict[Future[dict[str, Any]], Job] = {}
    with ProcessPoolExecutor(workers, context, _start_worker, (places, threads)) as pool:
        while waiting or running:
            while waiting and len(running) < workers and time.monotonic() < deadline:
                job = waiting.pop()
                try:
                    running[pool.submit(run_job, job, out, peers.get(job.peer or ""))] = job
                except BrokenProcessPool as broken:  # since the last result; those that run are told of below
                    waiting.clear()
                    yield job, broken
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):  # a process was killed: nothing more can be submitted
                    waiting.clear()
                yield job, future.result() if error is None else error


def _start_worker(places: Any, threads: int) -> None:
    """Give a new process its share of cores, and a GPU if there are any."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    place = places.get()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for name in LAUNCHERS:  # or each worker would take the cores of all
        os.environ.pop(name, None)
    import torch

    torch.set_num_threads(threads)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = shown.split(",") if shown else [str(number) for number in range(torch.cuda.device_count())]
    if gpus:  # CUDA looks at it when it is first used, which is later
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]


def _end_with_parent() -> None:
    """End when the process that waits for the rows has been killed; else the next one would train beside this one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_folder(job: Job, out: Path) -> Path:
    """Where a run writes, in the folder of its ablation."""
    return out / "runs" / _folder_name(job.set) / _folder_name(job.name) / f"seed-{job.seed}"


def _folder_name(name: str) -> str:
    """The name, or where some system takes no such folder one like it, with what tells it from others like it."""
    possible = re.sub(r'[<>:"/\\|?*\x00-\x1f]|[. ]+$', "_", name)
    return name if possible == name else f"{possible}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


@unfailing_screen()
def run_job(job: Job, out: Path, peer: Peer | None = None) -> dict[str, Any]:
    """Make one run and return its row.

    Args:
        job: the run.
        out: folder of the ablation.
        peer: makes it instead of our trainer.
    """
    folder = run_folder(job, out)
    started = time.monotonic()
    metrics = (peer or _own_run)(job, folder, out / "_teacher_cache")
    scores, seconds = metrics.pop("scores", None), metrics.pop("seconds", None)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # finished: nothing resumes from it
    return {
        "format_version": ROW_VERSION,
        "set": job.set,
        "name": job.name,
        "seed": job.seed,
        "settings": dict(job.changes),
        "resolved": job.resolved,
        "metrics": metrics,
        **({"scores": scores} if scores else {}),
        "made": {"commit": commit_of(Path(__file__).parent), "device": device_name(bool(job.settings.get("use_cpu")))},
        "seconds": round(time.monotonic() - started, 1) if seconds is None else seconds,
    }


def _own_run(job: Job, folder: Path, cache: Path) -> dict[str, Any]:
    # Here: a process that only reads rows or makes tables needs no training libraries.
    from ..compare import shared_pairs
    from ..faq_ranking import teacher_retrieval
    from ..single_run import named_teacher, teacher_split_scores, train_once
    from ..splits import load_splits

    student, data, config = settings_of(job, folder, cache)
    config.disable_tqdm = True
    splits = load_splits(data, job.seed)
    shared_pairs(splits, config)
    teacher = named_teacher(student, data, config)
    result = train_once(student, data, config, splits, teacher, looks_before=job.looks_before)
    labels = np.asarray(splits.validation["label"]), np.asarray(splits.test["label"])
    of_teacher = teacher_split_scores(teacher, splits, config)
    metrics = judge_run(result.answer, result.similarity, of_teacher, *labels)
    kept = {"answer": result.answer, "similarity": result.similarity}
    if job.looks_before:
        kept |= {"teacher": of_teacher, "label": SplitScores(*labels)}
    if len(result.before.test):
        metrics["llm"] = judge(result.before, labels[0], labels[1], 0.0)
    dropped = result.facts.get("dropped_share") or {}
    retrieval = result.facts.get("retrieval")
    if retrieval is not None:
        metrics["similarity"] |= retrieval
        metrics["teacher"] |= teacher_retrieval(teacher, data, config) or {}
    if result.start is not None:
        metrics["start"] = judge(result.start, *labels)
    facts = {name: result.facts[name] for name in ("training_seconds", "steps")} | {"dropped_share": dropped}
    # Of a run that was interrupted, or made before its row was written, the time that it took in all.
    return metrics | {"run": facts, "scores": packed_splits(kept), "seconds": result.facts.get("seconds")}


def judge_run(
    answer: SplitScores | None,
    similarity: SplitScores | None,
    teacher: SplitScores,
    validation_labels: np.ndarray,
    test_labels: np.ndarray,
) -> dict[str, Any]:
    """Metrics of one run's scores and of its teacher, as `comparison.judge` gives them.

    Returns:
        By system: teacher; answer and answer_plus_teacher, if there is an answer; similarity; both and
        both_plus_teacher, if there are both. Under "validation_auc" the AUC on validation of each.
    """
    labels = validation_labels, test_labels
    both = None if answer is None or similarity is None else combine(answer, similarity, validation_labels)
    systems = {"teacher": teacher, "answer": answer, "similarity": similarity, "both": both}
    found = {name: one for name, one in systems.items() if one is not None}
    # What settings are chosen by.
    chosen_by = {name: float(roc_auc_score(validation_labels, one.validation)) for name, one in found.items()}
    metrics: dict[str, Any] = {"validation_auc": chosen_by}
    log_odds = [name for name in ("answer", "both") if name in found]
    metrics |= {name: judge(one, *labels, 0.0 if name in log_odds else None) for name, one in found.items()}
    for name in log_odds:
        with_teacher = combine(found[name], teacher, validation_labels)
        metrics[f"{name}_plus_teacher"] = judge(with_teacher, *labels, 0.0)
    return metrics
