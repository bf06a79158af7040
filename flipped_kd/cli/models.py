"""The verbs train, merge, push, card, report and check-teacher of `flipped-kd`."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .arguments import PROG, UsageError
from .runtime import shows_progress
from .score import check_report_file, labelled_pairs, write_report

logger = logging.getLogger(__name__)
# Those of the recipes for data and models of the user's own.
TRAIN_DEFAULTS = {
    "output_dir": "outputs/train",
    "learning_rate": 2e-4,
    "save_strategy": "epoch",
    "save_total_limit": 1,
}
TRAIN_HELP = f"""\
Train plainly and flipped with the same budget, compare teacher, LLM and both on test pairs.

  {PROG} train --train_file train.jsonl --validation_file dev.jsonl --test_file test.jsonl \\
      --teacher sentence-transformers/all-MiniLM-L6-v2 --student Qwen/Qwen2.5-0.5B --output_dir outputs/mine

In the output folder you find the flipped adapter with its contracts and card, report.json and report.md.
A command that was interrupted goes on when it is given again. --config FILE.yaml reads settings from a file,
options override it.
On several GPUs: accelerate launch --multi_gpu -m flipped_kd train ...
"""


def train(options: Namespace) -> None:
    """Train and compare; every setting of the recipes is an option."""
    from accelerate import PartialState

    from ..experiments.arguments import DataArguments, StudentArguments
    from ..experiments.compare import run_comparison
    from ..experiments.parsing import parse_settings
    from ..training.config import FlippedDistillationConfig

    classes = (StudentArguments, DataArguments, FlippedDistillationConfig)
    if {"-h", "--help"} & set(options.settings):
        print(TRAIN_HELP)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            student, data, config = parse_settings(classes, options.settings, TRAIN_DEFAULTS, prog=f"{PROG} train")
    except SystemExit as stop:
        if stop.code == 0:
            raise
        # argparse lists every setting before it says what is wrong.
        words = complaint.getvalue().rpartition("error: ")[2]
        raise UsageError(f"{words.strip()} (see {PROG} train --help)") from None
    run_comparison(student, data, config)
    PartialState().wait_for_everyone()


def merge(options: Namespace) -> None:
    """Merge adapters into their base."""
    from ..publishing.publish import combine_adapters, merge_adapter

    several = len(options.adapters) > 1
    if several and options.revision is not None:
        raise UsageError("--revision is of a single adapter: give several as folders")
    if not several and (options.weights is not None or options.adapter_only or options.method != "cat"):
        raise UsageError("--weights, --method and --adapter-only are for several adapters")
    if options.adapter_only and (options.overwrite or options.no_sentence_transformers):
        raise UsageError("--overwrite and --no-sentence-transformers are of merged models: leave them out")
    combined: dict[str, Any] = {
        "weights": options.weights,
        "method": options.method,
        "base_model": options.base_model,
    }
    if options.adapter_only:
        print(combine_adapters(options.adapters, options.output, **combined), file=options.stdout)
        return
    with tempfile.TemporaryDirectory(prefix="flipped-kd-") as scratch:
        adapter = options.adapters[0]
        if several:
            adapter = combine_adapters(options.adapters, Path(scratch, "adapter"), **combined)
        report = merge_adapter(
            adapter,
            options.output,
            base_model=options.base_model,
            revision=options.revision,
            sentence_transformers=not options.no_sentence_transformers,
            overwrite=options.overwrite,
        )
    difference = max(report.answer_difference, report.similarity_difference, report.encode_difference)
    logger.info("scores and vectors of %d pairs differ by at most %.1e", report.probe_pairs, difference)
    if report.reason:
        logger.info("not in the layout of CrossEncoder: %s", report.reason)
    print(report.folder, file=options.stdout)


def push(options: Namespace) -> None:
    """Upload an adapter or a merged model."""
    from ..publishing.card import write_card
    from ..publishing.publish import publish, push_folder
    from ..publishing.push import kind_of

    private = True if options.private else None
    if not options.merged and (options.base_model is not None or options.merged_dir is not None):
        raise UsageError("--base-model and --merged-dir are for --merged: add it, or leave them out")
    if kind_of(Path(options.folder)) == "adapter":
        report = publish(
            options.folder,
            options.repo_id,
            merged=options.merged,
            private=private,
            revision=options.revision,
            base_model=options.base_model,
            merged_dir=options.merged_dir,
            commit_message=options.message,
        )
        urls = [report.adapter_url, report.merged_url]
    else:
        if options.merged:
            raise UsageError(f"--merged: {options.folder} is merged already: leave the option out")
        write_card(options.folder, repo_id=options.repo_id, merged=True)
        urls = [
            push_folder(
                options.folder,
                options.repo_id,
                private=private,
                revision=options.revision,
                commit_message=options.message,
            )
        ]
    for url in filter(None, urls):
        print(url, file=options.stdout)


def card(options: Namespace) -> None:
    """Write or print a model card."""
    from ..publishing.card import card_data, render_card, write_card
    from ..publishing.push import kind_of

    merged = kind_of(Path(options.folder)) != "adapter"
    about = {"report": options.report, "repo_id": options.repo_id, "merged": merged, "adapter": options.adapter}
    if options.show:
        options.stdout.write(render_card(card_data(options.folder, **about)))
    else:
        print(write_card(options.folder, **about, overwrite=options.overwrite), file=options.stdout)


def report(options: Namespace) -> None:
    """Write a finished recipe's report page."""
    from ..experiments.report.page import write_page

    print(write_page(options.folder, options.ablation), file=options.stdout)


def check_teacher(options: Namespace) -> None:
    """Judge a teacher on labelled pairs."""
    from ..teachers.bi_encoder import load_teacher
    from ..teachers.suitability import check_scores, check_table, teacher_scores, warnings_of

    check_report_file(options.output)
    pairs = labelled_pairs(options, options.pairs)
    held_out = None if options.validation is None else labelled_pairs(options, options.validation)
    teacher = load_teacher(
        options.teacher,
        revision=options.revision,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    parts = [pairs] if held_out is None else [pairs, held_out]
    cache = {"cache_dir": options.teacher_cache_dir, "batch_size": options.batch_size}
    scores = [teacher_scores(teacher, part, **cache, show_progress=shows_progress(options)) for part in parts]
    labels = [np.asarray(part["label"]) for part in parts]
    answers = None if options.student is None else bare_answers(options, parts)
    report = check_scores(
        scores[0],
        labels[0],
        validation=None if held_out is None else (scores[1], labels[1]),
        student=None if answers is None else (answers[0], answers[1] if held_out is not None else None),
        thresholds=(options.positive_threshold, options.negative_threshold),
    )
    if held_out is None and report["calibration"]["scale"] > 0:
        report["advice"].append(
            "Calibrated and judged on the same pairs; if the teacher was trained on them, give others by --validation."
        )
    named = {"teacher": {"id": teacher.id, "kind": teacher.kind, "revision": teacher.revision}}
    write_report(options, named | report, check_table(report))
    for warning in warnings_of(report):
        print(f"WARNING: {warning}", file=sys.stderr)


def bare_answers(options: Namespace, parts: list[Any]) -> list[np.ndarray]:
    """The answer log-odds of the LLM as it is: with a new adapter, whose B is 0, it is just that."""
    from ..inference.loading import default_device
    from ..inference.matcher import FlippedMatcher
    from ..prompts.pair_prompt import PairPrompt
    from ..students.loading import add_adapter, default_lora, load_student, load_tokenizer
    from ..students.lora_encoder import LoraEncoder

    trusted = {"trust_remote_code": options.trust_remote_code}
    model = load_student(options.student, **trusted)
    tokenizer = load_tokenizer(options.student, **trusted)
    prompt = PairPrompt.from_preset(
        tokenizer, options.prompt, max_length=options.max_length, instruction=options.instruction
    )
    torch.nn.Module.to(model, torch.device(options.device or default_device()))
    student = add_adapter(model, default_lora(rank=1))
    matcher = FlippedMatcher(student, tokenizer, prompt, LoraEncoder.from_model(student))
    return [
        matcher.scores(part, kind="answer", batch_size=options.batch_size, show_progress_bar=shows_progress(options))[
            0
        ]
        for part in parts
    ]
