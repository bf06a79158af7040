"""What both kinds of teachers share: name, fingerprint, and the folder of their scores."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from sentence_transformers import CrossEncoder, SentenceTransformer

from ..utils.checks import is_whole
from .fingerprint import FingerprintMemory
from .items import TextItems

# Batches computed between two looks at the progress bar: enough for sorting by length, few enough for a lively bar.
BATCHES_PER_BLOCK = 16


class Teacher:
    """What both kinds share: name, fingerprint, and the cache folder.

    Attributes:
        model: the model, in evaluation mode; it belongs to no trainer's module tree.
        id: Hub id or base name of the folder, never a full path.
        revision: commit on the Hub, None for local models.
    """

    kind: ClassVar[str]

    def __init__(self, model: SentenceTransformer | CrossEncoder, *, id: str, revision: str | None) -> None:
        self.id = id
        self.revision = revision
        self._scratch: TemporaryDirectory | None = None
        self._fingerprint = FingerprintMemory()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of; it gets a temporary folder of its own."""
        return vars(self) | {"_scratch": None}

    def _cache_dir(self, cache_dir: str | Path | None) -> Path:
        if cache_dir is not None:
            return Path(cache_dir)
        if self._scratch is None:
            self._scratch = TemporaryDirectory(prefix="flipped_kd_teacher_", ignore_cleanup_errors=True)
        return Path(self._scratch.name)


def check_unit(items: TextItems, wanted: str, method: str) -> None:
    if items.unit != wanted:
        raise TypeError(
            f"{method}() takes {wanted}, got {type(items).__name__} of {items.unit}: pass "
            f"Dataset{wanted.capitalize()} or Listed{wanted.capitalize()}."
        )


def check_batch_size(batch_size: int) -> None:
    if not is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number from 1.")
