"""A folder of model cards that can be rendered again from committed data: a report and the small contract files.

python recipes/card_collection.py --render model_cards
python recipes/card_collection.py --adopt outputs/fin_mini model_cards/fin_mini
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flipped_kd.evaluation.match_score import SCORE_FILE
from flipped_kd.evaluation.plots import LOSSES_PLOT, SYSTEMS_PLOT, TERMS, write_plots
from flipped_kd.evaluation.run_files import REPORT_FILE
from flipped_kd.inference.loading import ADAPTER_CONFIG
from flipped_kd.prompts.pair_prompt import PROMPT_FILE
from flipped_kd.publishing.card import render_card, write_card
from flipped_kd.publishing.card_data import card_data
from flipped_kd.publishing.files import CARD_FILE
from flipped_kd.students.gguf import GGUF_FILE
from flipped_kd.students.lora_encoder import ENCODER_FILE
from flipped_kd.utils.atomic import write_atomically
from flipped_kd.utils.json_files import write_json

MERGED_FOLDER = "merged"
CONTRACTS = (PROMPT_FILE, ENCODER_FILE, SCORE_FILE, GGUF_FILE)
# All that the plots read of a log entry.
LOGGED = ("step", "loss", *(term for term, _, _ in TERMS))


def render_all(folder: Path) -> list[Path]:
    """Write README.md and merged/README.md of every run in `folder` from its files; the plots stay as they are.

    Returns:
        Paths of the cards.

    Raises:
        ValueError: no run is there, or one is not complete.
    """
    runs = sorted(path.parent for path in folder.glob(f"*/{REPORT_FILE}"))
    if not runs:
        raise ValueError(f"{folder} holds no */{REPORT_FILE}: put runs there with --adopt OUTPUT {folder}/NAME.")
    return [card for run in runs for card in _render(run)]


def adopt(output: Path, target: Path) -> list[Path]:
    """Copy what the cards of a finished run need into `target`, draw its plots and write its cards.

    The report loses all of its logs that the plots do not read; no copy holds a path of this machine.

    Args:
        output: output folder of a comparison.
        target: made if absent; an earlier run's files in it are replaced, or removed where this run has none.

    Returns:
        Paths of all files written.

    Raises:
        ValueError: `output` lacks something; nothing has been written then.
        ImportError: matplotlib is not installed.
    """
    data = card_data(output)
    if data.report is None:
        raise ValueError(f"{output} holds no {REPORT_FILE}: give the output folder of a finished comparison.")
    report = {**data.report, "runs": [_stripped(run) for run in data.report["runs"]]}
    config = json.loads((output / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = data.base.name
    config["target_modules"] = data.lora["modules"]  # PEFT writes a set, in an order that changes
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / REPORT_FILE, report)
    write_json(target / ADAPTER_CONFIG, config)
    present = [name for name in CONTRACTS if (output / name).is_file()]
    for name in present:
        shutil.copyfile(output / name, target / name)
    plots = write_plots(report, target)
    for name in {*CONTRACTS, SYSTEMS_PLOT, LOSSES_PLOT} - {*present, *(path.name for path in plots)}:
        (target / name).unlink(missing_ok=True)  # an earlier run's, which the card would tell as this one's
    return [*(target / name for name in (REPORT_FILE, ADAPTER_CONFIG, *present)), *plots, *_render(target)]


def _render(run: Path) -> list[Path]:
    """The adapter's card and, in its own folder, that of the merged weights."""
    adapter_card = write_card(run, plots=False, overwrite=True)
    merged = run / MERGED_FOLDER
    merged.mkdir(exist_ok=True)
    data = card_data(run, merged=True)
    data = replace(data, plots=tuple(f"../{name}" for name in data.plots))
    write_atomically(merged / CARD_FILE, render_card(data))
    return [adapter_card, merged / CARD_FILE]


def _stripped(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run whose logs hold the plotted values of training only."""
    return {
        name: {**facts, "log_history": [_entry(entry) for entry in facts["log_history"] if "loss" in entry]}
        if isinstance(facts, Mapping)
        else facts
        for name, facts in run.items()
    }


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in LOGGED if name in entry}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Keep a folder of cards.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--render", metavar="FOLDER", type=Path, help="write the cards of every run in FOLDER again")
    action.add_argument(
        "--adopt",
        metavar=("OUTPUT", "TARGET"),
        nargs=2,
        type=Path,
        help="copy what the cards of a finished run need from its output folder to TARGET, and write them",
    )
    arguments = parser.parse_args(argv)
    try:
        written = render_all(arguments.render) if arguments.render else adopt(*arguments.adopt)
    except (ValueError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    sys.stdout.writelines(f"{path}\n" for path in written)


if __name__ == "__main__":
    main()
