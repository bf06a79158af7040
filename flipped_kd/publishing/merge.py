"""Merging an adapter into its base: in float32, exactly, and tried before it is put in place."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from ..inference.loading import base_of, is_adapter, local_folder
from ..inference.matcher import FlippedMatcher
from ..prompts.pair_prompt import PairPrompt
from ..students.gguf import GgufBase, is_gguf
from ..utils.atomic import check_target, whole_or_absent
from ..utils.hub_download import Access
from ..utils.json_files import read_versioned
from .card import write_card
from .crossencoder_layout import check_layout, largest_difference, prepare_tokenizer, remove_layout, write_layout
from .files import MERGE_FILE, contents_digest
from .merge_documents import keep_documents
from .merge_probe import measure_differences, probe_pairs, scored
from .merge_weights import merge_weights

logger = logging.getLogger(__name__)
MERGE_VERSION = 1
FLOAT32_BYTES = 4
# Settings of generation that mean nothing where nothing is sampled.
SAMPLING = ("temperature", "top_p", "top_k", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class MergeReport:
    """What a merge has shown.

    Attributes:
        folder: the merged model.
        base_model, base_revision: what it was merged into; None for a local folder, whose path is kept nowhere.
        fingerprint: what it was made from, as `fingerprint` gives it.
        probe_pairs: how many pairs were compared.
        answer_difference, similarity_difference, encode_difference: largest absolute differences between adapter and
            merged model: answer log-odds, cosines, coordinates of unit vectors.
        answer_tolerance: what was allowed for the log-odds (see `merge_probe.measure_differences`).
        cross_encoder_difference: the same between merged model and CrossEncoder, log-odds; None if not tried.
        untied: whether input and output embeddings were untied.
        sentence_transformers: whether the folder can be read by CrossEncoder.
        reason: why not, if not.
        base_difference: largest difference of the log-odds on the GGUF base that the adapter names and on the base
            merged into; None where that is one and the same, or is no GGUF file, or is not at hand.
    """

    folder: Path
    base_model: str | None
    base_revision: str | None
    fingerprint: str
    probe_pairs: int
    answer_difference: float
    similarity_difference: float
    encode_difference: float
    answer_tolerance: float
    cross_encoder_difference: float | None
    untied: bool
    sentence_transformers: bool
    reason: str | None
    base_difference: float | None = None

    def save(self) -> None:
        """Write merge_report.json into the folder."""
        content = {"format_version": MERGE_VERSION} | asdict(self)
        del content["folder"]
        (self.folder / MERGE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> MergeReport:
        """Read merge_report.json.

        Raises:
            ValueError: it is absent, broken or from a newer release.
        """
        path = Path(folder) / MERGE_FILE
        content = read_versioned(path, MERGE_VERSION, "merge again")
        del content["format_version"]
        try:
            return cls(folder=Path(folder), **content)
        except TypeError as error:
            raise ValueError(f"{path} is no report of merge_adapter ({error}): merge again.") from error


def merge_adapter(
    adapter: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    base_model: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    sentence_transformers: bool = True,
    overwrite: bool = False,
) -> MergeReport:
    """Merge an adapter into its base and write a model that needs neither PEFT nor this library.

    The folder loads by AutoModelForCausalLM, pipeline("text-generation"), FlippedMatcher and, if
    `sentence_transformers`, by sentence_transformers.CrossEncoder. It appears whole or not at all.

    Args:
        adapter: folder or Hub name of an adapter of FlippedDistillationTrainer.
        out_dir: where to; must be absent or empty.
        base_model: the base's folder or Hub name, if not the one the adapter names.
        revision: of an adapter on the Hub.
        token: for a private adapter or base.
        sentence_transformers: write the files for CrossEncoder. They are left out (`MergeReport.reason` says why) for
            a decoder that CrossEncoder would score wrongly in batches.
        overwrite: replace an earlier merge in `out_dir`.

    Returns:
        What was compared, and the differences.

    Raises:
        ValueError: adapter, base or out_dir is unusable; a base stored in 4 or 8 bit.
        PublishError: adapter, merged model and CrossEncoder do not agree (see `merge_probe.measure_differences`).
        FloatingPointError: the adapter's scores are no finite numbers.
        OSError: no space left.

    Examples:
        `adapter` is the folder of a trained adapter.

        >>> report = merge_adapter(adapter, folder / "merged")
        >>> report.answer_difference < 1e-3 and report.sentence_transformers
        True
    """
    target = Path(out_dir)
    check_target(target, MERGE_FILE if overwrite else None)
    folder = local_folder(adapter, revision=revision, access=Access(token))
    if not is_adapter(folder):
        raise ValueError(f"{adapter} is no adapter but a merged model: there is nothing to merge.")
    base, base_revision = base_of(folder, base_model)
    refuse_quantised(base, base_revision, token)
    matcher = FlippedMatcher.from_pretrained(
        folder, base_model=base_model, device="cpu", dtype=torch.float32, token=token
    )
    size = FLOAT32_BYTES * sum(parameter.numel() for parameter in matcher.model.parameters())
    with whole_or_absent(target, size) as partial:
        pairs = probe_pairs(matcher.prompt)
        before = scored(matcher, pairs)
        untied = _write_merged(matcher, partial)
        prompt = matcher.prompt
        del matcher
        gc.collect()  # a second model is loaded now
        comparison = measure_differences(before, partial, pairs)
        gc.collect()
        cross_encoder, reason = (
            _try_layout(partial, prompt, pairs, before["answer"], comparison.allowed["answer"])
            if sentence_transformers
            else (None, "it was not asked for")
        )
        report = MergeReport(
            folder=partial,
            base_model=None if Path(base).exists() else base,
            base_revision=base_revision,
            fingerprint=fingerprint(folder, base_model),
            probe_pairs=len(pairs),
            **{f"{name}_difference": value for name, value in comparison.differences.items()},
            answer_tolerance=comparison.allowed["answer"],
            cross_encoder_difference=cross_encoder,
            untied=untied,
            sentence_transformers=reason is None,
            reason=reason,
            base_difference=_base_difference(folder, base_model, pairs, before["answer"]),
        )
        report.save()
        gguf = GgufBase.from_pretrained(folder)
        if gguf is not None:
            gguf.save_pretrained(partial)  # the card tells of it
        keep_documents(folder, target, partial)
    try:
        write_card(target, merged=True, adapter=folder)
    except Exception:  # the model is whole without it
        logger.warning("%s has no card", target, exc_info=True)
    return MergeReport.load(target)


def _base_difference(
    folder: Path, base_model: str | os.PathLike[str] | None, pairs: list[tuple[str, str]], answer: np.ndarray
) -> float | None:
    """How far log-odds move between the GGUF base that an adapter names and another `base_model`, if both are here."""
    if base_model is None or GgufBase.from_pretrained(folder) is None:
        return None
    try:
        own = FlippedMatcher.from_pretrained(folder, device="cpu", dtype=torch.float32)
    except (ValueError, ImportError):
        return None
    return largest_difference(scored(own, pairs)["answer"], answer)


def _try_layout(
    folder: Path, prompt: PairPrompt, pairs: list[tuple[str, str]], answer: np.ndarray, tolerance: float
) -> tuple[float | None, str | None]:
    """Write the files for CrossEncoder and score through it: (largest difference, why there are no such files)."""
    write_layout(folder, prompt)
    difference, reason = check_layout(folder, pairs, answer, tolerance)
    if reason is not None:
        remove_layout(folder)
        logger.warning("the merged model has no files for sentence-transformers' CrossEncoder: %s", reason)
    return difference, reason


def refuse_quantised(base: str, revision: str | None, token: str | None) -> None:
    """Raise ValueError if the base is stored quantised; whether it is usable at all is seen when it is loaded."""
    if is_gguf(base):
        return  # its weights are turned into float ones when it is loaded
    try:
        config, _ = PretrainedConfig.get_config_dict(base, revision=revision, token=token)
    except (OSError, ValueError):
        return
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown method")
        raise ValueError(
            f"the base {base!r} is stored quantised ({method}): an adapter merged into rounded weights is rounded "
            "too. Merge into the full-precision model that it was made from: base_model='its folder or Hub name'. The "
            "adapter fits; scores differ from those on the quantised base by what quantising had changed."
        )


def fingerprint(folder: Path, base_model: str | os.PathLike[str] | None = None) -> str:
    """SHA-256 over what a merge is made from: the adapter's weights, settings, tokenizer and contracts, and its base.

    Of a base in a local folder it takes the weights' sizes and times, for they are large.
    """
    base, revision = base_of(folder, base_model)
    digest = hashlib.sha256(f"{base}@{revision}".encode())
    local = sorted(Path(base).glob("*.safetensors")) if Path(base).is_dir() else [Path(base)]
    for path in (path for path in local if path.is_file()):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    digest.update(contents_digest(folder).encode())
    return digest.hexdigest()


def _write_merged(matcher: FlippedMatcher, folder: Path) -> bool:
    """Write the merged model with tokenizer and contracts; the matcher is used up. Returns whether it was untied."""
    matcher.encoder.save_matrices(matcher.model, folder)
    matcher.encoder.save_pretrained(folder)
    matcher.prompt.save_pretrained(folder)
    if matcher.match_score is not None:
        matcher.match_score.save_pretrained(folder)
    matcher.encoder.detach()
    merged, untied = merge_weights(matcher.model)
    _use_padding(merged, matcher.tokenizer)
    _mend_generation(merged)
    merged.save_pretrained(folder)
    prepare_tokenizer(matcher.tokenizer, matcher.prompt)
    matcher.tokenizer.save_pretrained(folder)
    return untied


def _mend_generation(model: Any) -> None:
    """Leave out settings of sampling of a base that does not sample: transformers reads such a base and saves none."""
    config = getattr(model, "generation_config", None) or GenerationConfig()
    try:
        config.validate(strict=True)
    except ValueError as error:
        logger.warning("the base's generation_config.json is mended, for it cannot be saved: %s", error)
        for name in SAMPLING:
            setattr(config, name, getattr(GenerationConfig(), name, None))


def _use_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name the tokenizer's padding where the model names none: generation asks for it."""
    for config in (model.config, model.generation_config):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
