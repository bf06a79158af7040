"""`flipped-kd train`: train and compare; every setting of the recipes is an option."""

from __future__ import annotations

import contextlib
import io
from argparse import Namespace

from accelerate import PartialState

from ...experiments.arguments import DataArguments, StudentArguments
from ...experiments.compare import run_comparison
from ...experiments.parsing import TRAIN_DEFAULTS, parse_settings
from ...training.config import FlippedDistillationConfig
from ..arguments import PROG, UsageError

DEFAULTS = {**TRAIN_DEFAULTS, "output_dir": "outputs/train"}
TRAIN_HELP = f"""\
Train plainly and flipped with the same budget, compare teacher, LLM and both on test pairs.

  {PROG} train --train_file train.jsonl --validation_file dev.jsonl --test_file test.jsonl \\
      --teacher sentence-transformers/all-MiniLM-L6-v2 --student Qwen/Qwen2.5-0.5B --output_dir outputs/mine

In the output folder you find the flipped adapter with its settings and card, report.json and report.md.
A command that was interrupted goes on when it is given again. --config FILE.yaml reads settings from a file,
options override it.
On several GPUs: accelerate launch --multi_gpu -m flipped_kd train ...
"""


def train(options: Namespace) -> None:
    """Train and compare; every setting of the recipes is an option."""
    classes = (StudentArguments, DataArguments, FlippedDistillationConfig)
    if {"-h", "--help"} & set(options.settings):
        print(TRAIN_HELP)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            student, data, config = parse_settings(classes, options.settings, DEFAULTS, prog=f"{PROG} train")
    except SystemExit as stop:
        if stop.code == 0:
            raise
        # argparse lists every setting before it says what is wrong.
        words = complaint.getvalue().rpartition("error: ")[2]
        raise UsageError(f"{words.strip()} (see {PROG} train --help)") from None
    run_comparison(student, data, config)
    PartialState().wait_for_everyone()
