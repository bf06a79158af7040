"""The model that a verb works with: opened, and which of its scores is meant."""

from __future__ import annotations

import hashlib
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..evaluation.match_score import ANSWER_ONLY
from ..inference.loading import local_folder
from ..inference.matcher import FlippedMatcher
from ..publishing.files import contents_digest
from ..utils.choices import ScoreKind
from ..utils.digests import hash_tensors
from ..utils.hub_download import Access
from ..utils.provenance import CACHED_SNAPSHOT
from .arguments import UsageError
from .runtime import hide_bars

logger = logging.getLogger(__name__)


def open_matcher(options: Namespace, state: PartialState | None = None) -> tuple[FlippedMatcher, str]:
    """The model that the options name, and the digest of all that decides what it computes."""
    device = state.device if state is not None and state.num_processes > 1 else None
    matcher, folder = load_matcher(options, device)
    digest = hashlib.sha256(contents_digest(folder).encode())
    if state is None or state.is_main_process:
        hash_tensors(digest, matcher.model.state_dict().items())
    return matcher, digest.hexdigest()


def load_matcher(options: Namespace, device: torch.device | None = None) -> tuple[FlippedMatcher, Path]:
    """The model that the options name, on `device` unless they name one, and its folder."""
    hide_bars(options)
    access: dict[str, Any] = {"cache_dir": options.cache_dir, "trust_remote_code": options.trust_remote_code}
    folder = local_folder(options.model, revision=options.revision, access=Access(**access))
    matcher = FlippedMatcher.from_pretrained(
        folder, device=options.device or device, dtype=options.dtype, base_model=options.base_model, **access
    )
    matcher.source = options.model
    return matcher, folder


def checked_kind(matcher: FlippedMatcher, score: str | None) -> ScoreKind:
    """The score to use, the model's own by default.

    Raises:
        UsageError: the model has no such score.
    """
    scorer = matcher.match_score or ANSWER_ONLY
    if score is None:
        return scorer.default
    for kind in scorer.kinds:
        if kind == score:
            return kind
    raise UsageError(
        f"--score {score}: {matcher.source!r} has {' and '.join(scorer.kinds)} only: the others are fitted when it is "
        "trained with validation pairs"
    )


def refuse_hub_cache(folder: str, instead: str) -> None:
    """Raise UsageError for a snapshot in the Hub's cache: its files are links to those that other revisions share."""
    if CACHED_SNAPSHOT.search(str(Path(folder).resolve())):
        raise UsageError(
            f"{folder} lies in the Hub's cache, whose files are other downloads' too: copy it (hf download "
            f"--local-dir), or {instead}"
        )
