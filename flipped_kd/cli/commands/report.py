"""`flipped-kd report`: write a finished recipe's report page."""

from __future__ import annotations

from argparse import Namespace

from ...experiments.report.page import write_page


def report(options: Namespace) -> None:
    """Write a finished recipe's report page."""
    print(write_page(options.folder, options.ablation), file=options.stdout)
