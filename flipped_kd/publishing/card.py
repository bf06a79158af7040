"""The model card: what a repository's own files and the report of its run say, as data, and as Markdown.

`card_data` reads, `render_card` renders card_template.md.jinja, `write_card` writes README.md.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jinja2
import numpy as np
from scipy.special import expit

from ..evaluation.comparison import METRICS, REPORT_VERSION, markdown_table
from ..evaluation.match_score import KINDS, SCORE_FILE, MatchScore
from ..evaluation.plots import LOSSES_PLOT, SYSTEMS_PLOT, have_matplotlib, write_plots
from ..prompts.pair_prompt import PROMPT_FILE, read_prompt_file
from ..students.lora_encoder import LoraEncoder
from ..training.config import FlippedDistillationConfig
from ..training.setup import build_loss
from ..utils.atomic_file import write_atomically
from ..utils.markdown import code, fenced
from ..utils.provenance import CACHED_SNAPSHOT, is_hub_id, shown_name, without_paths
from .card_metadata import TITLES, front_matter, kept_metadata, may_replace, signed
from .push import ADAPTER_FILES, CARD_FILE, MERGE_FILE

logger = logging.getLogger(__name__)
REPORT_FILE = "report.json"
ADAPTER_CONFIG = ADAPTER_FILES[0]
TEMPLATE = "card_template.md.jinja"
SYSTEM_OF_SCORE = {"answer": "llm_flipped", "similarity": "llm_flipped_similarity", "both": "llm_flipped_both"}
REPORT_KEYS = ("student", "teacher", "seeds", "data", "systems", "differences", "runs", "settings", "seconds")
SMALL_STUDENT = 100_000_000
# What was done before it was a setting, for reports that lack it.
BEFORE_THE_CHOICE = {"contrast_filter": "all", "answer_teacher_weight": 0.0}


@dataclass(frozen=True)
class ModelSource:
    """A model by name: a Hub id, or the last part of a local folder; with its commit where that is known."""

    name: str
    on_hub: bool
    revision: str | None = None


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss as it was trained: "sup", "dist" or "mcl", its weight and the settings of its class."""

    term: str
    weight: float
    settings: dict[str, Any]


@dataclass(frozen=True)
class Citation:
    """A BibTeX entry and the terms it is the source of."""

    bibtex: str
    terms: list[str]


@dataclass(frozen=True)
class CardData:
    """Everything a card says. No value holds a local path.

    Attributes:
        title: heading, and the model's name in the metadata.
        repo: what the snippets load: the repository's id, or a stand-in for a local folder.
        merged: whether it is the card of merged weights, not of an adapter.
        cross_encoder: whether the merged weights are in the layout that CrossEncoder loads.
        architecture: of merged weights, such as "Qwen2ForCausalLM", where config.json tells.
        merge: merge_report.json of merged weights, None without one.
        base: the student before training.
        lora: rank, alpha, dropout and sorted target modules; empty where no adapter_config.json is there.
        prompt: pair_prompt.json.
        encoder: lora_encoder.json.
        score: match_score.json, None without one.
        report: report.json, None without one; what follows is then empty.
        teacher: the small encoder that taught.
        losses: terms with weight > 0.
        thresholds: tau_pos and tau_neg by name.
        citations: each source once.
        datasets: Hub ids of the training data.
        dropped: mean share of the training pairs that the thresholds dropped, by class.
        own_results: test metrics of this adapter (that of the first seed) by score and metric.
        plots: file names of the plots that lie beside the card.
        kept_metadata, kept_tags: metadata that somebody added to an earlier card.
    """

    title: str
    repo: str
    merged: bool
    cross_encoder: bool
    architecture: str | None
    merge: dict[str, Any] | None
    base: ModelSource
    lora: dict[str, Any]
    prompt: dict[str, Any]
    encoder: dict[str, Any]
    score: dict[str, Any] | None
    report: dict[str, Any] | None
    teacher: ModelSource | None
    losses: list[LossTerm]
    thresholds: dict[str, float]
    citations: list[Citation]
    datasets: list[str]
    dropped: dict[str, float]
    own_results: dict[str, dict[str, float]]
    plots: tuple[str, ...] = ()
    kept_metadata: Mapping[str, Any] = field(default_factory=dict)
    kept_tags: tuple[str, ...] = ()


def card_data(
    folder: str | os.PathLike[str],
    *,
    report: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    repo_id: str | None = None,
    merged: bool = False,
    adapter: str | os.PathLike[str] | None = None,
) -> CardData:
    """Collect what a card says.

    Args:
        folder: an adapter folder, or a merged one: pair_prompt.json, lora_encoder.json and, of an adapter,
            adapter_config.json; match_score.json and report.json may be absent.
        report: the run's report or its file; by default report.json in `folder`, if it is there.
        repo_id: the repository that the card is for; the snippets load it.
        merged: whether the card is for merged weights.
        adapter: folder of the adapter that was merged, for its adapter_config.json and, by default, its report.json.

    Raises:
        ValueError: a contract or the report is missing, broken or of a newer version; the message names the file and
            the remedy.
    """
    folder, source = Path(folder), Path(adapter or folder)
    found = _report(report, folder, source)
    if found is not None:
        settings = found["settings"]
        # What the report says, in its order, and what it lacks behind it.
        training = settings["training"] | BEFORE_THE_CHOICE | settings["training"]
        found = {**found, "settings": {**settings, "training": training}}
    if not (folder / PROMPT_FILE).is_file():
        raise ValueError(f"{folder} holds no {PROMPT_FILE}: give a folder that FlippedDistillationTrainer has saved.")
    config = _adapter_config(source, required=not merged)
    model_config, merge = (_read_json_if(merged, folder / name) for name in ("config.json", MERGE_FILE))
    base = _base(config, found, merge)
    title = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    facts = [run["llm_flipped"] for run in found["runs"]] if found else []
    terms, thresholds, citations = _losses(found["settings"]["training"]) if found else ([], {}, [])
    teacher = None
    if found is not None:
        name, revision = found["teacher"]["id"], found["teacher"]["revision"]
        teacher = ModelSource(name, revision is not None or is_hub_id(name), revision)
    return CardData(
        title=title,
        repo=repo_id or f"path/to/{title}",
        merged=merged,
        # A folder of contracts alone tells nothing of the layout: the usual one is described.
        cross_encoder=model_config is None or (folder / "modules.json").is_file(),
        architecture=model_config["architectures"][0] if model_config and model_config.get("architectures") else None,
        merge=without_paths(merge),
        base=base,
        lora=_lora(config),
        prompt=read_prompt_file(folder / PROMPT_FILE),
        encoder=LoraEncoder.from_pretrained(folder).to_dict(),
        score=MatchScore.from_pretrained(folder).to_dict() if (folder / SCORE_FILE).is_file() else None,
        report=found,
        teacher=teacher,
        losses=terms,
        thresholds=thresholds,
        citations=citations,
        datasets=_datasets(found),
        dropped={
            label: float(np.mean([run["dropped_share"][label] for run in facts]))
            for label in ("positive", "negative")
            if facts and all(run["dropped_share"][label] is not None for run in facts)
        },
        own_results={
            score: {metric: found["systems"][name]["by_seed"][metric][0] for metric in METRICS}
            for score, name in SYSTEM_OF_SCORE.items()
            if found and name in found["systems"]
        },
        plots=tuple(name for name in (SYSTEMS_PLOT, LOSSES_PLOT) if (folder / name).is_file()),
    )


def render_card(data: CardData) -> str:
    """The card as Markdown with YAML front matter; the same data give the same text."""
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
        TITLES=TITLES, table=markdown_table, json=json.dumps, kinds=KINDS, small_student=SMALL_STUDENT
    )
    text = environment.get_template(TEMPLATE).render(card=data, metadata=front_matter(data))
    return signed(text)


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
    old = target.read_text(encoding="utf-8") if target.is_file() and not overwrite else None
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


def _report(
    report: Mapping[str, Any] | str | os.PathLike[str] | None, folder: Path, source: Path
) -> dict[str, Any] | None:
    """The report without any local path, or None if there is none."""
    where = "the report"
    if not isinstance(report, Mapping):
        beside = [path / REPORT_FILE for path in (folder, source) if (path / REPORT_FILE).is_file()]
        if report is None and not beside:
            return None
        path = Path(report) if report is not None else beside[0]
        report, where = _read_json(path), str(path)
    missing = [key for key in ("format_version", *REPORT_KEYS) if key not in report]
    if missing:
        raise ValueError(f"{where} lacks {missing}: give the report.json that a comparison has written.")
    if report["format_version"] > REPORT_VERSION:
        raise ValueError(
            f"{where} has format_version {report['format_version']}, this release reads up to {REPORT_VERSION}: "
            "upgrade flipped_kd."
        )
    return cast(dict[str, Any], without_paths(report))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give an existing file.") from error
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON ({error}): write or download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object: write or download it again.")
    return content


def _read_json_if(wanted: bool, path: Path) -> dict[str, Any] | None:
    return _read_json(path) if wanted and path.is_file() else None


def _adapter_config(folder: Path, required: bool) -> dict[str, Any] | None:
    path = folder / ADAPTER_CONFIG
    if path.is_file():
        return _read_json(path)
    if required:
        raise ValueError(
            f"{folder} holds no {ADAPTER_CONFIG}: give an adapter folder, or merged=True for a merged one."
        )
    return None


def _base(
    config: Mapping[str, Any] | None, report: Mapping[str, Any] | None, merge: Mapping[str, Any] | None
) -> ModelSource:
    """The base model; on the Hub only if its commit is known, or its name is a Hub id and no local folder's."""
    if merge and merge.get("base_model") and is_hub_id(merge["base_model"]):
        return ModelSource(merge["base_model"], True, merge.get("base_revision"))
    named = (config or {}).get("base_model_name_or_path") or (report or {}).get("student") or "the base model"
    cached = CACHED_SNAPSHOT.search(named)
    if cached:
        return ModelSource(f"{cached[1]}/{cached[2]}", True, cached[3])
    told = report["student"] if report else named  # a report knows which names were folders when it was written
    commit = report["runs"][0]["llm_flipped"].get("student_revision") if report else None
    asked = report["settings"]["student"]["student_revision"] if report else (config or {}).get("revision")
    if told == named and (commit is not None or is_hub_id(named)):
        return ModelSource(named, True, commit or asked)
    return ModelSource(cast(str, shown_name(told)), False)


def _lora(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    targets = config["target_modules"]
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "dropout": config["lora_dropout"],
        "modules": [targets] if isinstance(targets, str) else sorted(targets),
    }


def _losses(training: Mapping[str, Any]) -> tuple[list[LossTerm], dict[str, float], list[Citation]]:
    """What was minimised, rebuilt from the settings."""
    loss = build_loss(cast(FlippedDistillationConfig, SimpleNamespace(**training)))
    parts: dict[str, Any] = {"sup": loss.sup, "dist": loss.dist, "mcl": loss.mcl}
    weights = dict(zip(parts, loss.weights, strict=True))
    terms = [LossTerm(name, weights[name], parts[name].get_config_dict()) for name in parts if weights[name]]
    sources: dict[str, list[str]] = {}
    for term in terms:
        sources.setdefault(parts[term.term].citation, []).append(term.term)
    # An objective of one's own need not have a source.
    citations = [Citation(bibtex, names) for bibtex, names in sources.items() if bibtex]
    return terms, loss.threshold.get_config_dict(), citations


def _datasets(report: Mapping[str, Any] | None) -> list[str]:
    if report is None:
        return []
    data = report["settings"]["data"]
    names = [data["train_file"] or data["dataset_name"]]
    return [name for name in names if name and is_hub_id(name)]
