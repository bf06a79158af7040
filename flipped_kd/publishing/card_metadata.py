"""The YAML front matter of a model card, and whether a README.md that stands already may be replaced."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..utils.provenance import is_hub_id

if TYPE_CHECKING:
    from .card_data import CardData

PIPELINE_TAG = "text-ranking"
# A model merged with its adapter is a fine-tuned one to the Hub: "merge" there means several base models in one.
RELATIONS = {False: "adapter", True: "finetune"}
TAGS = ("flipped-kd", "text-matching", "knowledge-distillation")
ADAPTER_TAGS = ("lora",)
CROSS_ENCODER_TAGS = ("sentence-transformers", "cross-encoder", "reranker")
# Our names of the metrics, and those of hf.co/metrics.
HUB_METRICS = {"f1": "f1", "accuracy": "accuracy", "auc": "roc_auc", "average_precision": "average_precision"}
METRIC_TITLES = {"f1": "F1", "accuracy": "Accuracy", "auc": "AUC", "average_precision": "Average precision"}
# Keys that we write and PEFT leaves alone when it saves an adapter over our card.
STABLE_KEYS = ("base_model_relation", "datasets", "metrics", "model-index", "pipeline_tag")
MARKER = "<!-- Written by flipped_kd, which replaces this card as long as it is not edited. {digest} -->"
_MARKER = re.compile(r"<!-- Written by flipped_kd, [^>]*\. ([0-9a-f]{64}) -->")
_PEFT_BLOCK = re.compile(r"\s*(#+ (Framework versions|Training procedure)\s[\s\S]*)?")


def front_matter(card: CardData) -> str:
    """The metadata as YAML text, without the lines of dashes."""
    results = _eval_results(card)
    of_kind = (CROSS_ENCODER_TAGS if card.cross_encoder else ()) if card.merged else ADAPTER_TAGS
    library = ("sentence-transformers" if card.cross_encoder else "transformers") if card.merged else "peft"
    base = {"base_model": card.base.name, "base_model_relation": RELATIONS[card.merged]} if card.base.on_hub else {}
    return ModelCardData(
        library_name=library,
        pipeline_tag=PIPELINE_TAG,
        tags=[*TAGS, *of_kind, *card.kept_tags],
        datasets=card.datasets or None,
        metrics=list(HUB_METRICS.values()) if results else None,
        model_name=card.title if results else None,
        eval_results=results or None,
        **{**card.kept_metadata, **base},
    ).to_yaml(line_break="\n")


def _eval_results(card: CardData) -> list[EvalResult]:
    """The metrics of this very adapter, that of the first seed, for each of its scores."""
    if card.report is None:
        return []
    report = card.report
    source = report["settings"]["data"]
    name = source["test_file"] or source["dataset_name"] or "test pairs"  # a file goes before the data set's own part
    on_hub = not source["test_file"] and is_hub_id(name)
    size = {"n": report["data"]["test"], "positive_share": round(report["data"]["positive_share"]["test"], 4)}
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Text matching",
            dataset_type=name if on_hub else "local",
            dataset_name=name,
            dataset_split="test",
            dataset_args=size,
            metric_type=HUB_METRICS[metric],
            metric_name=f"{METRIC_TITLES[metric]} ({score})",
            metric_value=round(value, 4),
            metric_args={"score": score, "seed": report["seeds"][0]},
        )
        for score, values in card.own_results.items()
        for metric, value in values.items()
    ]


def signed(content: str) -> str:
    """`content`, a whole card, with the line that tells later whether somebody has edited it."""
    return f"{content.rstrip()}\n\n{MARKER.format(digest=_digest(content))}\n"


def may_replace(content: str) -> bool:
    """Whether a README.md holds nothing of the user's: it is our card, or the empty one that PEFT writes.

    Our card stays ours where only the metadata have changed that PEFT rewrites when it saves the adapter again, and
    where keys or tags were added: those are kept (see `kept_metadata`). Metadata that cannot be read are the user's.
    """
    try:
        body = ModelCard(content, ignore_metadata_errors=True).text
    except (ValueError, yaml.YAMLError):
        return False
    marker = _MARKER.search(body)
    if marker is not None:
        return bool(_PEFT_BLOCK.fullmatch(body[marker.end() :])) and marker[1] == _digest(content)
    stock = _peft_template()
    return _plain(body).startswith(stock) and bool(_PEFT_BLOCK.fullmatch(_plain(body)[len(stock) :]))


def kept_metadata(content: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Metadata that somebody added to our card: keys that we do not write (licence, language, a base model where we
    know none), and tags. PEFT's own, which may hold a local path, are not among them."""
    found = ModelCard(content, ignore_metadata_errors=True).data.to_dict()
    if not _MARKER.search(content):
        return {}, ()
    own = {*STABLE_KEYS, "library_name", "tags", "base_model"}
    kept = {key: value for key, value in found.items() if key not in own}
    base = found.get("base_model")
    if isinstance(base, str) and is_hub_id(base):
        kept["base_model"] = base
    tags = tuple(
        tag
        for tag in map(str, found.get("tags") or ())  # 2026 is a number in YAML
        if not tag.startswith("base_model:") and tag not in (*TAGS, *ADAPTER_TAGS, *CROSS_ENCODER_TAGS, "transformers")
    )
    return kept, tags


def _digest(content: str) -> str:
    """Of the text above the marker and the metadata that only an editor changes."""
    card = ModelCard(content, ignore_metadata_errors=True)
    data: Mapping[str, Any] = card.data.to_dict()
    stable = {key: data.get(key) for key in STABLE_KEYS}
    text = _plain(_MARKER.split(card.text)[0])
    return hashlib.sha256((json.dumps(stable, sort_keys=True) + text).encode()).hexdigest()


def _plain(text: str) -> str:
    """PEFT joins the lines anew when it adds its version."""
    return "\n".join(text.splitlines()).strip()


@cache
def _peft_template() -> str:
    """The text of the card that PEFT writes where there is none."""
    return _plain(ModelCard.from_template(ModelCardData()).text)
