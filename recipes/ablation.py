"""Ablations and other objectives: many training runs from one YAML file, side by side, resumable, one row for each.

    python recipes/ablation.py --quick                       # mini set, plain and full, 2 seeds
    python recipes/ablation.py --config recipes/configs/ablation_main.yaml --root FOLDER --workers 2
    python recipes/ablation.py --config ... --tables         # only print the tables of the rows there are

FOLDER holds the data and models that the file names. A command that was interrupted goes on when it is given again:
finished runs are not repeated, unfinished ones go on from their last checkpoint. --max_minutes stops in good time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mini_student import MiniStudentSettings, build_mini_student
from mini_teacher import build_mini_teacher
from peers import PEERS

from flipped_kd.data.loading import load_pairs
from flipped_kd.evaluation.plots import have_matplotlib
from flipped_kd.experiments.ablation.plan import Job, Plan, read_plan, settings_of
from flipped_kd.experiments.ablation.plots import draw_differences, draw_learning_curves, draw_runs
from flipped_kd.experiments.ablation.rows import read_rows
from flipped_kd.experiments.ablation.run import ROWS_FILE, pending, run_plan
from flipped_kd.experiments.ablation.tables import group_tables
from flipped_kd.experiments.report.figures import write_png
from flipped_kd.experiments.splits import load_split
from flipped_kd.utils.atomic import write_atomically
from flipped_kd.utils.devices import cpu_cores
from flipped_kd.utils.screen import unfailing_screen

HERE = Path(__file__).parent
QUICK = HERE / "configs" / "ablation_quick.yaml"
# Names of models that are built.
MINI = {"student": r"mini(-\d+)?", "teacher": r"mini(-[a-z_]+_mini)?"}


@unfailing_screen()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="plan of the ablation (YAML)")
    parser.add_argument("--quick", action="store_true", help=f"the plan {QUICK.name}")
    parser.add_argument("--root", type=Path, help="where relative paths in the plan start; by default here")
    parser.add_argument("--output_dir", type=Path, help="replaces the plan's")
    parser.add_argument(
        "--rows", type=Path, help=f"file of finished rows; by default {ROWS_FILE} in the output folder"
    )
    parser.add_argument("--workers", type=int, help="processes; by default one a GPU, else one a core")
    parser.add_argument("--max_minutes", type=float, help="start no run after so many minutes")
    parser.add_argument("--tables", action="store_true", help="run nothing, show the tables of the finished rows")
    options = parser.parse_args(argv)
    if (options.config is None) != options.quick:
        parser.error("give --config or --quick")
    workers = options.workers if options.workers is not None else torch.cuda.device_count() or cpu_cores()
    try:
        plan = read_plan(options.config or QUICK, options.root or HERE.parent, output_dir=options.output_dir)
        rows_file = options.rows or plan.output_dir / ROWS_FILE
        plan = with_mini_models(plan, build=not options.tables)
        if options.tables:
            rows = read_rows(rows_file)
            pending(plan, rows)  # rows of other settings are refused
        else:
            rows = run_plan(plan, rows_file, workers=workers, max_minutes=options.max_minutes, peers=PEERS)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    tables = "\n\n".join(group_tables(rows, group) for group in plan.groups)
    print(f"\n{tables}")
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(plan.output_dir / "tables.md", f"# Ablation\n\n{tables}\n")
    if have_matplotlib():
        folder = plan.output_dir / "plots"
        folder.mkdir(exist_ok=True)
        drawn = (draw(rows, plan.groups) for draw in (draw_runs, draw_differences, draw_learning_curves))
        paths = [write_png(drawing, folder) for drawing in itertools.chain.from_iterable(drawn)]
        print(f"\nTables: {plan.output_dir / 'tables.md'}; {len(paths)} plots: {folder}")


def with_mini_models(plan: Plan, build: bool = True) -> Plan:
    """The plan with models built, as the recipes do, for the runs that name none or mini ones.

    `student: mini-64` is a mini student of width 64, `teacher: mini-med_mini` a mini teacher of another embedded set.

    Args:
        plan: as `read_plan` gives it.
        build: False only names them.
    """
    built: dict[tuple[str, str, str], str] = {}
    jobs = []
    for job in plan.jobs:
        found = {}
        for role, pattern in MINI.items():
            name = str(job.settings.get(role) or "mini")
            if not re.fullmatch(pattern, name):
                continue
            key = (job.set, role, name)
            if build and key not in built:
                built[key] = _build(plan, role, name, job)
            found[role] = built.get(key, name)
        jobs.append(dataclasses.replace(job, settings={**job.settings, **found}))
    return dataclasses.replace(plan, jobs=tuple(jobs))


def _build(plan: Plan, role: str, name: str, job: Job) -> str:
    folder = plan.output_dir / "mini_models" / job.set / role / name
    _, data, _ = settings_of(job, folder, folder)
    pairs = load_split(dataclasses.replace(data, max_train_pairs=None), "train")
    special = name.removeprefix("mini").removeprefix("-")
    if role == "teacher":
        known = load_pairs(HERE / "data" / special / "train.jsonl") if special else pairs
        return str(build_mini_teacher(known, folder, seed=0))
    width = int(special or MiniStudentSettings.hidden_size)
    size = MiniStudentSettings(hidden_size=width, intermediate_size=3 * width)
    return str(build_mini_student([*pairs["text_a"], *pairs["text_b"]], folder, seed=0, settings=size))


if __name__ == "__main__":
    main()
