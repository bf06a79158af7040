"""`flipped-kd report`: a finished experiment as one HTML page that opens anywhere, and its plots as PNG files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import jinja2

from ...evaluation.run_files import PAGE_FILE
from ...utils.atomic import write_atomically
from .data import ReportData, gather
from .figures import Drawing, Picture, picture, write_png
from .sections import all_sections

PLOTS_FOLDER = "plots"
PAGE_TEMPLATE = "page_template.html.jinja"
# What is told of the settings: the method's own, and those of the optimizer.
METHOD = (
    *("sup_weight", "dist_weight", "mcl_weight", "contrast", "dist_loss", "representation", "margin", "temperature"),
    *("positive_margin", "negative_margin", "positive_threshold", "negative_threshold"),
    *(
        "answer_teacher_weight",
        "answer_vocabulary_weight",
        "contrast_filter",
        "encoder_layers",
        "encoder_modules",
        "encoder_pooling",
        "encoder_rank",
        "encoder_start",
    ),
    *("prompt", "train_sampling_strategy", "seed"),
)


def write_page(folder: str | os.PathLike[str], ablation: str | os.PathLike[str] | None = None) -> Path:
    """Write report.html and plots/*.png into the output folder of a finished recipe, each file whole or not at all.

    `ablation` is JSON Lines of an ablation's rows. Returns the path of report.html. ValueError: the folder holds no
    report, or a file is broken. ImportError: matplotlib is not installed.
    """
    out = Path(folder)
    data = gather(out, Path(ablation) if ablation is not None else None)
    page = render_page(data, out / PLOTS_FOLDER)
    write_atomically(out / PAGE_FILE, page)
    return out / PAGE_FILE


def render_page(data: ReportData, plots: Path | None = None) -> str:
    """The page as HTML; with `plots` its pictures are written there as PNG files too.

    Raises:
        ImportError: matplotlib is not installed.
    """

    def draw(drawings: Iterable[Drawing]) -> list[Picture]:
        pictures = []
        for drawing in drawings:
            pictures.append(picture(drawing))
            if plots is not None:
                plots.mkdir(parents=True, exist_ok=True)
                write_png(drawing, plots)
        return pictures

    report = data.report
    training = {**report.get("optimizer", {}), **report["settings"]["training"]}
    shown = {name: value for name, value in training.items() if name in METHOD or name in report.get("optimizer", {})}
    return (
        _templates()
        .get_template(PAGE_TEMPLATE)
        .render(
            title=f"{report['student']} learns to match from {report['teacher']['id']}",
            report=report,
            settings=shown,
            sections=all_sections(data, draw),
        )
    )


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,  # texts of pairs and names of models stand in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    return environment
