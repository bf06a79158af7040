"""`flipped-kd report`: write a finished recipe's report page."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ...evaluation.run_files import PAGE_FILE
from ...experiments.report.page import write_page
from ..outputs import refuse_existing


def report(options: Namespace) -> None:
    """Write a finished recipe's report page."""
    if not options.overwrite:
        refuse_existing(Path(options.folder) / PAGE_FILE)
    print(write_page(options.folder, options.ablation), file=options.screen)
