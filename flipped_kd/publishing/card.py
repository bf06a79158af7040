"""The model card: what a repository's own files and the report of its run say, as data, and as Markdown."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from scipy.special import expit

from ..evaluation.comparison import markdown_table
from ..evaluation.plots import LOSSES_PLOT, SYSTEMS_PLOT, have_matplotlib, write_plots
from ..utils.atomic import write_atomically
from ..utils.choices import SCORE_KINDS
from ..utils.markdown import code, fenced
from .card_data import SMALL_STUDENT, CardData, card_data
from .card_metadata import METRIC_TITLES, front_matter, kept_metadata, may_replace, signed
from .files import CARD_FILE

logger = logging.getLogger(__name__)
CARD_TEMPLATE = "card_template.md.jinja"


def render_card(data: CardData) -> str:
    """The card as Markdown with YAML front matter; the same data give the same text."""
    return signed(_templates().get_template(CARD_TEMPLATE).render(card=data, metadata=front_matter(data)))


@cache
def _templates() -> jinja2.Environment:
    """Kept for the process: every save writes a card, and compiling the template takes longer than the rest of it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        code=code,
        fenced=fenced,
        py=lambda text: json.dumps(text, ensure_ascii=False),  # JSON's strings are Python's too
        percent="{:.1%}".format,
        count="{:,}".format,
        number="{:.4g}".format,
        probability=lambda log_odds: f"{expit(log_odds):.4f}",
    )
    environment.globals.update(
        METRIC_TITLES=METRIC_TITLES,
        table=markdown_table,
        json=json.dumps,
        kinds=SCORE_KINDS,
        small_student=SMALL_STUDENT,
    )
    return environment


def write_card(
    folder: str | os.PathLike[str],
    *,
    report: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    repo_id: str | None = None,
    merged: bool = False,
    adapter: str | os.PathLike[str] | None = None,
    plots: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Write README.md into `folder`, whole or not at all.

    A README.md that somebody has edited stays as it is, with a warning. Metadata added to our card (a licence, tags)
    are kept; the empty card that PEFT writes is replaced.

    Args:
        folder, report, repo_id, merged, adapter: as in `card_data`.
        plots: draw the report's plots into `folder`. None: where there is a report and matplotlib is installed.
            False: only those that lie there already are shown.
        overwrite: replace any README.md, and keep nothing of it.

    Returns:
        Path of README.md.

    Raises:
        ValueError: as in `card_data`.
        ImportError: plots=True without matplotlib.
    """
    target = Path(folder) / CARD_FILE
    data = card_data(folder, report=report, repo_id=repo_id, merged=merged, adapter=adapter)
    # Letters that are no UTF-8 are not ours, so that such a card stays.
    old = target.read_text(encoding="utf-8", errors="replace") if target.is_file() and not overwrite else None
    if old is not None and not may_replace(old):
        logger.warning("%s has been edited and is kept: overwrite=True replaces it", target)
        return target
    if data.report is not None and (have_matplotlib() if plots is None else plots):
        drawn = {path.name for path in write_plots(data.report, folder)}
        data = replace(data, plots=tuple(name for name in (SYSTEMS_PLOT, LOSSES_PLOT) if name in drawn))
    if old is not None:
        metadata, tags = kept_metadata(old)
        data = replace(data, kept_metadata=metadata, kept_tags=tags)
    write_atomically(target, render_card(data))
    return target
