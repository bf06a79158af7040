"""Digests of what is too large to be compared itself: files, and the weights of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor as an array (n,) of uint8, in main memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def hash_tensors(digest: Any, named: Iterable[tuple[str, Tensor]]) -> None:
    """Feed tensors with names, dtypes and shapes into a digest of hashlib, by name; where they lie does not matter."""
    for name, tensor in sorted(named):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
