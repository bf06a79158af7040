"""Teacher, bare LLM, plain fine-tuning and flipped distillation on the same pairs, over seeds, into one report."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.keys import shared_texts
from ..evaluation.comparison import (
    REPORT_VERSION,
    SplitScores,
    judge_seed,
    markdown_table,
    summarise,
    summarise_retrieval,
    write_report,
)
from ..publishing.card import write_card
from ..publishing.publish import publish
from ..publishing.push import open_repository, refuse_local_gguf
from ..students.gguf import gguf_path, is_gguf
from ..students.size import count_weights, learning_rate_for
from ..teachers.base import Teacher
from ..teachers.suitability import check_scores, check_table, warnings_of
from ..training.config import PLAIN, FlippedDistillationConfig
from ..utils.devices import use_cpu_threads
from ..utils.locking import sole_writer
from ..utils.provenance import device_name, library_versions, shown_command, shown_name
from ..utils.screen import unfailing_screen
from ..utils.weight_files import check_models
from .arguments import DataArguments, StudentArguments
from .artifacts import keep_seed
from .faq_ranking import rankings_of, teacher_retrieval
from .run_identity import run_settings
from .single_run import RunResult, named_teacher, say, teacher_split_scores, train_once, warn
from .splits import SPLITS, Splits, load_splits, unlabelled_texts

logger = logging.getLogger(__name__)
# Told in the report with their values, whether changed or not.
OPTIMIZER = (
    *("optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2"),
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
)
# What the screen calls the two trainings.
NAMES = {"llm_sft": "plain fine-tuning", "llm_flipped": "flipped distillation"}


@unfailing_screen()
def run_comparison(
    student: StudentArguments, data: DataArguments, config: FlippedDistillationConfig
) -> dict[str, Any]:
    """Train flipped, and plainly with the same budget, for each seed; compare on test, and write the report.

    Finished runs in `config.output_dir` with the same settings are not repeated, unfinished ones go on from their last
    checkpoint. The adapter of the first seed's flipped run, with its settings and card, stands in the output directory
    itself; with `config.push_to_hub` it is pushed at the end, card and results included.

    Args:
        student: the LLM and its adapter.
        data: pairs and teacher.
        config: settings of the flipped run; the plain one differs in the weights of L_dist and L_MCL only.

    Returns:
        The report as written.

    Raises:
        ValueError: bad settings or pairs.
        RuntimeError: another process writes into the output folder.
        PublishError: the repository to push to cannot be opened (before anything is trained), or the push failed.
    """
    _check_named(student, data)
    if data.baseline and config.sup_weight == 0 and config.max_steps != 0:
        raise ValueError(
            "sup_weight=0 leaves plain fine-tuning, which is compared with, nothing to learn: give --baseline False, "
            "or a sup_weight above 0."
        )
    config = with_learning_rate(student, config)
    if config.device.type == "cpu":
        use_cpu_threads(config.cpu_threads)
    out = Path(config.output_dir or "outputs")
    config = dataclasses.replace(config, teacher_cache_dir=config.teacher_cache_dir or str(out / "_teacher_cache"))
    splits = load_splits(data, config.seed)  # bad pairs are refused before any model is loaded
    unlabelled_texts(data)
    shared = shared_pairs(splits, config)
    if config.push_to_hub and is_gguf(student.student):
        refuse_local_gguf(gguf_path(student.student or "", student.student_revision)[1])
    repository = None
    if config.push_to_hub and config.should_save:  # so is a repository that cannot be written
        repository = open_repository(config.hub_model_id or out.absolute().name, **_hub(config))
    with sole_writer(out) if config.should_save else nullcontext():
        return _compare(student, data, config, out, repository, shared)


def _compare(
    student: StudentArguments,
    data: DataArguments,
    config: FlippedDistillationConfig,
    out: Path,
    repository: str | None,
    shared: dict[str, int],
) -> dict[str, Any]:
    started = time.time()
    teacher = named_teacher(student, data, config)
    name, rank = ("lora_r", student.lora_r) if config.encoder_rank is None else ("encoder_rank", config.encoder_rank)
    if config.encoder_start == "teacher" and not (teacher.has_vectors and teacher.dim >= rank):
        raise ValueError(
            f"encoder_start='teacher' wants a teacher with vectors of at least {name}={rank} numbers, which "
            f"{teacher.id!r} has not: use encoder_start='random', a smaller {name}, or another teacher."
        )
    comparison = Comparison(student, data, config, teacher, out, shared=shared)
    seeds = list(range(config.seed, config.seed + data.seeds))
    for position, seed in enumerate(seeds):
        comparison.add(seed, position, len(seeds))
    report = {
        "format_version": REPORT_VERSION,
        "student": shown_name(student.student),
        "teacher": {"id": teacher.id, "kind": teacher.kind, "revision": teacher.revision},
        "seeds": seeds,
        **comparison.results(),
        "settings": run_settings(student, data, config),
        "optimizer": {name: config.to_dict()[name] for name in OPTIMIZER},
        "command": shown_command(sys.argv),
        "versions": library_versions(),
        "device": {"name": device_name(config.use_cpu), "processes": config.world_size},
        "seconds": round(time.time() - started + comparison.seconds_before, 1),
    }
    if config.should_save:
        write_report(report, out)
        write_card(out)  # once more, now with the results
    say(config, f"\n{markdown_table(report)}\n\nReport: {out / 'report.json'}, {out / 'report.md'}; adapter: {out}")
    if repository is not None:
        pushed = publish(out, repository, **_hub(config), revision=config.hub_revision)
        say(config, f"Pushed: {pushed.adapter_url}")
    return report


def _hub(config: FlippedDistillationConfig) -> dict[str, Any]:
    return {"private": config.hub_private_repo, "token": config.hub_token}


def shared_pairs(splits: Splits, config: FlippedDistillationConfig) -> dict[str, int]:
    """How many pairs each two splits share, which is warned of: scores on seen pairs say nothing about others.

    Texts alone are shared where an FAQ's questions recur; they are told in the log.
    """
    found = {}
    for overlap in shared_texts(**{split: getattr(splits, split) for split in SPLITS}):
        logger.info("%s", overlap)
        if overlap.pairs:
            found[f"{overlap.first}, {overlap.second}"] = overlap.pairs
            warn(config, f"{overlap}: what was learned by heart counts as a result; take them out of one.")
    return found


def _check_named(student: StudentArguments, data: DataArguments) -> None:
    """Refuse settings that name no model or no pairs, all that is missing at once."""
    models = {"student": student.student, "teacher": data.teacher}
    missing = [f"--{name}, a folder or a Hub name" for name, value in models.items() if value is None]
    if data.dataset_name is None:
        files = [f"--{split}_file" for split in SPLITS if getattr(data, f"{split}_file") is None]
        remedy = ", or --dataset_name for all splits" if len(files) == len(SPLITS) else ""
        missing += [f"{' and '.join(files)}, labelled pairs{remedy}"] if files else []
    if missing:
        raise ValueError(f"settings are missing. Give {'; '.join(missing)}.")
    check_models(data.teacher, student.student)


def with_learning_rate(student: StudentArguments, config: FlippedDistillationConfig) -> FlippedDistillationConfig:
    """With the rate by the student's size, so that report and card tell it; a broken student is told of later."""
    if config.learning_rate is not None:
        return config
    try:
        weights = count_weights(
            student.student or "", revision=student.student_revision, trust_remote_code=student.trust_remote_code
        )
    except (ValueError, ImportError):
        return config
    rate = learning_rate_for(weights)
    say(config, f"learning rate {rate:g}, for a student of {weights / 1e6:,.0f} million weights (--learning_rate)")
    return dataclasses.replace(config, learning_rate=rate)


@dataclass
class Comparison:
    """The runs of a comparison, seed by seed, and what they give.

    Attributes:
        shared: how many pairs each two splits share, the most of any seed.
        seconds_before: that runs took which earlier commands have made.
    """

    student: StudentArguments
    data: DataArguments
    config: FlippedDistillationConfig
    teacher: Teacher
    out: Path
    check: dict[str, Any] = field(default_factory=dict)
    judged: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    rankings: list[dict[str, Any]] = field(default_factory=list)
    pairs: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    seconds_before: float = 0.0

    def add(self, seed: int, position: int, seeds: int) -> None:
        """Train with one seed, and judge."""
        splits = load_splits(self.data, seed)
        if position:  # the first seed's were counted before any model was loaded
            for names, count in shared_pairs(splits, self.config).items():
                self.shared[names] = max(count, self.shared.get(names, 0))
        of_teacher = teacher_split_scores(self.teacher, splits, self.config)
        results: dict[str, RunResult] = {}

        def on_bare_answers(before: SplitScores) -> None:
            if not self.check:
                self.check.update(_check_teacher(of_teacher, before, splits, self.config))

        folder = self.out / "runs" / f"seed-{seed}"
        # Without a step plain fine-tuning is the bare LLM.
        plain = self.data.baseline and self.config.max_steps != 0
        systems: dict[str, dict[str, Any]] = {"llm_sft": PLAIN} if plain else {}
        systems["llm_flipped"] = {}
        for system, weights in systems.items():
            number = len(systems) * position + len(results) + 1
            say(self.config, f"[{number}/{len(systems) * seeds}] seed {seed}: {NAMES[system]}")
            settings = dataclasses.replace(
                self.config, **weights, seed=seed, output_dir=str(folder / system), push_to_hub=False
            )
            keep_in = self.out if system == "llm_flipped" and position == 0 else None
            callback = None if results else on_bare_answers
            results[system] = train_once(self.student, self.data, settings, splits, self.teacher, keep_in, callback)
        students = {system: (result.answer, result.similarity) for system, result in results.items()}
        keep_seed(folder, splits, self.teacher, of_teacher, students, self.config)
        labels = {split: np.asarray(getattr(splits, split)["label"]) for split in SPLITS}
        self.pairs = {split: len(part) for split, part in labels.items()}
        self.pairs["positive_share"] = {split: float(part.mean()) for split, part in labels.items()}
        before = next(iter(results.values())).before
        if not self.check:
            self.check.update(_check_teacher(of_teacher, None, splits, self.config))
        self.judged.append(
            judge_seed(
                of_teacher,
                before if len(before.test) else None,
                students.get("llm_sft"),
                students["llm_flipped"],
                labels["validation"],
                labels["test"],
                results["llm_flipped"].start,
            )
        )
        facts = {system: result.facts for system, result in results.items()}
        self.seconds_before += sum(result.seconds_before for result in results.values())
        self.runs.append({"seed": seed, **facts})
        if all("retrieval" in of_run for of_run in facts.values()):
            of_seed = {"teacher": teacher_retrieval(self.teacher, self.data, self.config)}
            self.rankings.append(rankings_of(facts) | of_seed)

    def results(self) -> dict[str, Any]:
        """The parts of the report that the runs give."""
        return {
            "data": {**self.pairs, **({"shared_pairs": self.shared} if self.shared else {})},
            **summarise(self.judged),
            **({"retrieval": summarise_retrieval(self.rankings)} if self.rankings else {}),
            "teacher_check": self.check,
            "runs": self.runs,
        }


def _check_teacher(
    of_teacher: SplitScores, before: SplitScores | None, splits: Splits, config: FlippedDistillationConfig
) -> dict[str, Any]:
    """Is there something to learn? Teacher against the untrained LLM on the validation pairs, said before training."""
    student = None if before is None else (before.validation, None)
    labels = np.asarray(splits.validation["label"])
    thresholds = config.positive_threshold, config.negative_threshold
    report = check_scores(of_teacher.validation, labels, student=student, thresholds=thresholds)
    say(config, f"\nThe teacher on the validation pairs\n\n{check_table(report)}\n")
    for warning in warnings_of(report):
        warn(config, warning)
    return report
