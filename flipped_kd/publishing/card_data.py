"""What a card says, as data: read from a repository's own files and the report of its run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..evaluation.comparison import COMPARED_METRICS, REPORT_KEYS, REPORT_VERSION, completed
from ..evaluation.match_score import SCORE_FILE, MatchScore
from ..evaluation.plots import LOSSES_PLOT, SYSTEMS_PLOT
from ..evaluation.run_files import REPORT_FILE
from ..inference.loading import ADAPTER_CONFIG, MODEL_CONFIG
from ..losses.build import build_loss
from ..prompts.pair_prompt import PROMPT_FILE, read_prompt_file
from ..students.gguf import GgufBase, is_gguf
from ..students.lora_encoder import LoraEncoder
from ..utils.json_files import check_version, read_json_object
from ..utils.provenance import CACHED_SNAPSHOT, is_hub_id, shown_name, without_paths
from .files import ADAPTER_FOLDER, MERGE_FILE

SMALL_STUDENT = 100_000_000
# Of matches, by which two draws of validation pairs may differ.
SAME_SHARE = 0.05
SYSTEM_OF_SCORE = {"answer": "llm_flipped", "similarity": "llm_flipped_similarity", "both": "llm_flipped_both"}


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
        gguf: the GGUF file it was read from; None of other students.
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
    gguf: GgufBase | None
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

    @property
    def fitted_again(self) -> bool:
        """Whether the match score is of other pairs than the report's (`flipped-kd calibrate`)."""
        fitted = (self.score or {}).get("fitted_on")
        if fitted is None or self.report is None:
            return False
        pairs = self.report["data"]
        # Seeds draw other validation pairs, with about as many matches.
        same_share = abs(fitted["positive_share"] - pairs["positive_share"]["validation"]) < SAME_SHARE
        return bool(fitted["pairs"] != pairs["validation"] or not same_share)


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
            By default what the merge has kept of it.

    Raises:
        ValueError: a contract or the report is missing, broken or of a newer version; the message names the file and
            the remedy.
    """
    folder = Path(folder)
    beside = folder / ADAPTER_FOLDER
    source = Path(adapter) if adapter is not None else beside if merged and beside.is_dir() else folder
    found = _report(report, folder, source)
    if not (folder / PROMPT_FILE).is_file():
        raise ValueError(f"{folder} holds no {PROMPT_FILE}: give a folder that FlippedDistillationTrainer has saved.")
    config = _read_if_there(source / ADAPTER_CONFIG)
    if config is None and not merged:
        raise ValueError(
            f"{source} holds no {ADAPTER_CONFIG}: give an adapter folder, or merged=True for a merged one."
        )
    model_config, merge = (_read_if_there(folder / name) if merged else None for name in (MODEL_CONFIG, MERGE_FILE))
    gguf = GgufBase.from_pretrained(source) or GgufBase.from_pretrained(folder)
    base = _base(config, found, merge)
    # A merge with another base was made on that one.
    if gguf is not None and (merge is None or merge.get("base_difference") is None):
        if not base.on_hub or is_gguf(base.name):
            base = ModelSource(gguf.repo_id or gguf.file, gguf.repo_id is not None, gguf.revision)
    title = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    facts = [run["llm_flipped"] for run in found["runs"]] if found else []
    terms, thresholds, citations = _losses(found["settings"]["training"]) if found else ([], {}, [])
    return CardData(
        title=title,
        repo=repo_id or f"path/to/{title}",
        merged=merged,
        # A folder of contracts alone tells nothing of the layout: the usual one is described.
        cross_encoder=model_config is None or (folder / "modules.json").is_file(),
        architecture=model_config["architectures"][0] if model_config and model_config.get("architectures") else None,
        merge=without_paths(merge),
        base=base,
        gguf=gguf,
        lora=_lora(config),
        prompt=read_prompt_file(folder / PROMPT_FILE),
        encoder=LoraEncoder.from_pretrained(folder).to_dict(),
        score=MatchScore.from_pretrained(folder).to_dict() if (folder / SCORE_FILE).is_file() else None,
        report=found,
        teacher=_teacher(found),
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
            score: {metric: found["systems"][name]["by_seed"][metric][0] for metric in COMPARED_METRICS}
            for score, name in SYSTEM_OF_SCORE.items()
            if found and name in found["systems"]
        },
        plots=tuple(name for name in (SYSTEMS_PLOT, LOSSES_PLOT) if (folder / name).is_file()),
    )


def _report(
    report: Mapping[str, Any] | str | os.PathLike[str] | None, folder: Path, source: Path
) -> dict[str, Any] | None:
    """The report without any local path and with the settings that it lacks, or None if there is none."""
    where = "the report"
    if not isinstance(report, Mapping):
        beside = [path / REPORT_FILE for path in (folder, source) if (path / REPORT_FILE).is_file()]
        if report is None and not beside:
            return None
        path = Path(report) if report is not None else beside[0]
        report, where = read_json_object(path), str(path)
    missing = [key for key in ("format_version", "seconds", *REPORT_KEYS) if key not in report]
    if missing:
        raise ValueError(f"{where} lacks {missing}: give the report.json that a comparison has written.")
    check_version(report["format_version"], REPORT_VERSION, where)
    return completed(without_paths(report))


def _teacher(report: Mapping[str, Any] | None) -> ModelSource | None:
    if report is None:
        return None
    name, revision = report["teacher"]["id"], report["teacher"]["revision"]
    return ModelSource(name, revision is not None or is_hub_id(name), revision)


def _read_if_there(path: Path) -> dict[str, Any] | None:
    return read_json_object(path) if path.is_file() else None


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
    loss = build_loss(training)
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
    name = data["train_file"] or data["dataset_name"]
    return [name] if name and is_hub_id(name) else []
