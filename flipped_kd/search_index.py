"""A corpus with its vectors, kept on disk: what `FlippedMatcher.search` looks through."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .atomic_folder import check_target, whole_or_absent

INDEX_FILE = "search_index.json"
TEXTS_FILE = "texts.jsonl"
EMBEDDINGS_FILE = "embeddings.safetensors"
FORMAT_VERSION = 1


class SearchIndex:
    """Texts and their vectors. Made by `FlippedMatcher.index`.

    Args:
        texts: N texts.
        embeddings: (N, D) float32 unit vectors, row i that of text i.
        encoder: definition of the encoder that made them, as plain JSON values.

    Raises:
        ValueError: numbers of texts and vectors differ.
    """

    def __init__(self, texts: Sequence[str], embeddings: Tensor, encoder: dict[str, Any]) -> None:
        if embeddings.ndim != 2 or len(texts) != len(embeddings):
            raise ValueError(
                f"{len(texts)} texts need vectors of shape ({len(texts)}, D), got {tuple(embeddings.shape)}."
            )
        self.texts = list(texts)
        self.embeddings = embeddings
        self.encoder = encoder
        # Matchers whose encoder is known to give these vectors.
        self.known_to: WeakSet[Any] = WeakSet()
        self._placed = embeddings

    def __len__(self) -> int:
        return len(self.texts)

    def on(self, device: torch.device) -> Tensor:
        """The vectors on `device`; the copy there is kept for the next search."""
        self._placed = self._placed.to(device)
        return self._placed

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write search_index.json, texts.jsonl and embeddings.safetensors; the folder appears whole or not at all.

        Args:
            folder: absent or empty.
            overwrite: replace an index that is there.

        Raises:
            ValueError: something else is there.
            OSError: no space left.
        """
        target = Path(folder)
        check_target(target, INDEX_FILE if overwrite else None)
        header = {"format_version": FORMAT_VERSION, "count": len(self), "encoder": self.encoder}
        with whole_or_absent(target, self.embeddings.nbytes) as partial:
            (partial / INDEX_FILE).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
            with (partial / TEXTS_FILE).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in self.texts)
            save_file({"embeddings": self.embeddings.contiguous()}, partial / EMBEDDINGS_FILE)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SearchIndex:
        """Read a saved index.

        Raises:
            ValueError: a file is absent or broken, the files do not belong together, or a newer release wrote them.
        """
        place = Path(folder)
        if not (place / INDEX_FILE).is_file():
            raise ValueError(f"{place} holds no {INDEX_FILE}: give a folder that SearchIndex.save has written.")
        try:
            header = json.loads((place / INDEX_FILE).read_text(encoding="utf-8"))
            version, count, encoder = int(header["format_version"]), header["count"], header["encoder"]
            if version <= FORMAT_VERSION:
                with (place / TEXTS_FILE).open(encoding="utf-8") as file:
                    texts = [json.loads(line)["text"] for line in file]
                index = cls(texts, load_file(place / EMBEDDINGS_FILE)["embeddings"], encoder)
                if len(index) != count:
                    raise ValueError(f"{count} texts expected, {len(index)} found")
                return index
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"the index in {place} is broken ({error}): make it again.") from error
        raise ValueError(
            f"{place / INDEX_FILE} has format_version {version}, this release reads up to {FORMAT_VERSION}: upgrade "
            "flipped_kd."
        )
