"""A recipe's whole command: settings, models where none is named, the comparison."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data.loading import random_part
from ..training.config import FlippedDistillationConfig
from ..training.processes import check_loading, end_together
from ..utils.devices import cpu_has_bfloat16, use_cpu_threads
from ..utils.redaction import redact
from ..utils.screen import unfailing_screen
from .arguments import DataArguments, StudentArguments
from .compare import run_comparison
from .parsing import TRAIN_DEFAULTS, parse_settings
from .single_run import say, warn
from .splits import SPLITS, load_split
from .yaml_settings import read_yaml

# A teacher or student of this name is built from the training pairs in the run.
MINI = "mini"
PACKAGE = Path(__file__).parents[1]
# Where fetched models are kept, for all runs.
MODELS_FOLDER = Path("outputs/models")
# Behind the name of the folder of a demo that had to do without them.
WITHOUT_MODELS = "_without_models"


@dataclass(frozen=True)
class DemoModels:
    """Models that a recipe without arguments fetches, and what it does with them.

    Attributes:
        config: YAML of the embedded setting with these models.
        fetch: (folder, say) -> student and encoder, or None where they cannot be had.
        train_teacher: (encoder, training pairs, folder, seed=) -> folder of the encoder fine-tuned on the pairs.
        show: (output folder, answers=) called at the end, in the main process; whether to answer questions, which a
            student that knows no language cannot.
    """

    config: Path
    fetch: Callable[[Path, Callable[[str], None]], tuple[str, str] | None]
    train_teacher: Callable[..., Path]
    show: Callable[..., None]


@contextmanager
def _bad_input_in_a_line() -> Iterator[None]:
    """What our checks refuse ends the command with the reason alone, since `accelerate` adds enough lines.

    An error of a library keeps its traceback: it may be a fault of ours.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if PACKAGE not in raised_in.parents:
            raise
        raise SystemExit(redact(f"error: {error}")) from error


@unfailing_screen()
@_bad_input_in_a_line()
def run_recipe(
    argv: Sequence[str],
    *,
    output_dir: str,
    mini_config: Path,
    mini_data: Path,
    build_teacher: Callable[..., Path],
    build_student: Callable[..., Path],
    demo: DemoModels | None = None,
) -> dict[str, Any]:
    """A recipe's whole command: read its settings, make the models where no data is named, run the comparison.

    Args:
        argv: flags.
        output_dir: where it writes, unless told otherwise.
        mini_config: YAML of the embedded setting with a mini student, used where neither data nor --config is given.
        mini_data: folder of its train, validation and test.jsonl; of an FAQ also questions.jsonl.
        build_teacher: (training pairs, folder, seed=) -> folder of the trained mini teacher.
        build_student: (texts, folder, seed=) -> folder of the mini student.
        demo: models to take in the place of the mini ones, where neither a model nor --config is named.
    """
    check_loading()  # before a teacher is made or read
    classes = (StudentArguments, DataArguments, FlippedDistillationConfig)
    found = None
    defaults = {**TRAIN_DEFAULTS, "output_dir": output_dir}
    student, data, config = parse_settings(classes, argv, defaults)
    embedded = not any((data.train_file, data.validation_file, data.test_file, data.dataset_name))
    if embedded:
        if not any(flag.startswith("--config") for flag in argv):
            if demo is not None and student.student is None and data.teacher is None:
                found = _demo_models(demo, config)
            given: list[str] = []
            if demo is not None and found is not None:
                given = ["--config", str(demo.config)]
                precision = "bf16" if config.device.type == "cpu" and cpu_has_bfloat16() else "auto"
                if config.device.type == "cpu" and precision == "auto":
                    say(config, "This CPU does not multiply bfloat16 itself: float32 takes twice as long.")
                argv = ["--student", found[0], "--precision", precision, *argv]
                build_teacher = partial(demo.train_teacher, found[1])
            elif student.student in (None, MINI):
                given = ["--config", str(mini_config)]
                if demo is not None and student.student is None and data.teacher is None:
                    # The demo's own folder stays free: the next try, with the real models, would find other settings.
                    argv = [*argv, "--output_dir", f"{config.output_dir}{WITHOUT_MODELS}"]
            elif demo is not None:  # a student of one's own, with its own folder and learning rate
                left_out = ("output_dir", "learning_rate")
                defaults |= {name: value for name, value in read_yaml(demo.config).items() if name not in left_out}
            student, data, config = parse_settings(classes, [*given, *argv], defaults)
        files = {f"{split}_file": str(mini_data / f"{split}.jsonl") for split in SPLITS}
        if (mini_data / "questions.jsonl").is_file():
            files["questions_file"] = str(mini_data / "questions.jsonl")
        data = dataclasses.replace(data, **files, teacher=data.teacher or MINI)
        student = dataclasses.replace(student, student=student.student or MINI)
    knows_language = student.student != MINI
    if config.device.type == "cpu":
        use_cpu_threads(config.cpu_threads)  # the mini models and the teacher run before the trainer
    student, data = _with_mini_models(student, data, config, build_teacher, build_student)
    report = run_comparison(student, data, config)
    if demo is not None and embedded and config.should_save:
        demo.show(Path(config.output_dir or "outputs"), answers=knows_language)
    end_together()
    return report


def _demo_models(demo: DemoModels, config: FlippedDistillationConfig) -> tuple[str, str] | None:
    with config.main_process_first(local=False, desc="fetching the models"):
        found = demo.fetch(MODELS_FOLDER, lambda text: say(config, text))
    if found is None:
        warn(
            config,
            "the language model of this setting cannot be had here. What follows is shown on a student of "
            "one million random weights, which knows no language: its figures say nothing about the method. "
            f"They are written to {config.output_dir}{WITHOUT_MODELS}.",
        )
    return found


def _with_mini_models(
    student: StudentArguments,
    data: DataArguments,
    config: FlippedDistillationConfig,
    build_teacher: Callable[..., Path],
    build_student: Callable[..., Path],
) -> tuple[StudentArguments, DataArguments]:
    """The settings with models built from the training pairs where "mini" is named."""
    if MINI not in (data.teacher, student.student):
        return student, data
    out = Path(config.output_dir or "outputs") / "mini_models"
    with config.main_process_first(local=False, desc="building the mini models"):
        pairs = load_split(dataclasses.replace(data, max_train_pairs=None), "train")
        if data.teacher == MINI:
            say(config, f"[mini] teacher: {out / 'teacher'}")
            data = dataclasses.replace(data, teacher=str(build_teacher(pairs, out / "teacher", seed=config.seed)))
        if student.student == MINI:
            say(config, f"[mini] student: {out / 'student'}")
            seen = random_part(pairs, data.max_train_pairs, config.seed)  # those that are trained on
            texts = [*seen["text_a"], *seen["text_b"]]
            student = dataclasses.replace(
                student, student=str(build_student(texts, out / "student", seed=config.seed))
            )
    return student, data
