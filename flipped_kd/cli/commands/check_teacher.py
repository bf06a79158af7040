"""`flipped-kd check-teacher`: judge a teacher on labelled pairs."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

import numpy as np
import torch

from ...inference.loading import resolved_device
from ...inference.matcher import FlippedMatcher
from ...prompts.pair_prompt import PairPrompt
from ...students.loading import check_positions, load_student, load_tokenizer
from ...students.lora import add_adapter, default_lora
from ...students.lora_encoder import LoraEncoder
from ...teachers.loading import load_teacher
from ...teachers.pair_scores import teacher_scores
from ...teachers.suitability import check_scores, check_table, warnings_of
from ...utils.devices import weights_dtype
from ...utils.weight_files import check_models
from ..outputs import check_report_file
from ..reports import labelled_pairs, show_report
from ..runtime import reading, shows_progress


def check_teacher(options: Namespace) -> None:
    """Judge a teacher on labelled pairs."""
    if options.output is not None:
        inputs = (options.pairs, options.validation, options.teacher, options.student)
        check_report_file(options.output, *inputs, overwrite=options.overwrite)
    if (options.validation, options.validation_split) == (options.pairs, options.split):
        raise ValueError(
            f"--validation {options.validation} names the very pairs that are judged: name others, give their part by "
            "--validation-split, or leave it out."
        )
    if options.validation_split is not None and options.validation is None:
        raise ValueError(f"--validation-split {options.validation_split} wants --validation.")
    check_models(options.teacher, options.student)
    resolved_device(options.device)  # refused before the pairs are read
    pairs = labelled_pairs(options, options.pairs)
    held_out = None
    if options.validation is not None:
        own = Namespace(**{**vars(options), "split": options.validation_split})
        held_out = labelled_pairs(own, options.validation)
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
    show_report(options, named | report, check_table(report))
    for warning in warnings_of(report):
        print(f"WARNING: {warning}", file=sys.stderr)


def bare_answers(options: Namespace, parts: list[Any]) -> list[np.ndarray]:
    """The answer log-odds of the LLM as it is: with a new adapter, whose B is 0, it is just that."""
    trusted = {"trust_remote_code": options.trust_remote_code}
    device = resolved_device(options.device)
    model = load_student(options.student, dtype=weights_dtype(device), **trusted)
    check_positions(model, options.max_length)
    tokenizer = load_tokenizer(options.student, **trusted)
    prompt = PairPrompt.from_preset(
        tokenizer, options.prompt, max_length=options.max_length, instruction=options.instruction
    )
    torch.nn.Module.to(model, device)
    student = add_adapter(model, default_lora(rank=1))
    matcher = FlippedMatcher(student, tokenizer, prompt, LoraEncoder.from_model(student))
    return [matcher.scores(part, kind="answer", **reading(options))[0] for part in parts]
