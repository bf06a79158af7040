"""The large files of a model in a folder, looked at before anything is loaded or computed: whole, and really there."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

LFS_START = b"version https://git-lfs.github.com/spec/"
# What repositories keep in Git LFS, and a clone without it leaves as pointers.
LARGE = ("*.safetensors", "tokenizer.json", "*.model")
AGAIN = "download or save it again."
SHARDS_FILE = "model.safetensors.index.json"


def check_weight_files(folder: Path) -> None:
    """Refuse a folder in which a large file is a pointer of Git LFS, is broken or truncated, or is missing.

    Only beginnings are read. Folders inside it are not looked at.

    Raises:
        ValueError: the message names the file and the remedy.
    """
    for path in sorted({path for pattern in LARGE for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            start = file.read(len(LFS_START))
        if start == LFS_START:
            raise ValueError(
                f"{path} is a pointer of Git LFS and not the file itself ({path.stat().st_size} bytes): run `git lfs "
                "pull` in its repository, or download it again."
            )
        if path.suffix == ".safetensors":
            _check_whole(path)
    if (folder / SHARDS_FILE).is_file():
        _check_shards(folder / SHARDS_FILE)


def check_models(*names: object) -> None:
    """`check_weight_files` of those names that are folders: before one of them computes what another one wastes.

    Raises:
        ValueError: as there.
    """
    for name in names:
        if isinstance(name, str | os.PathLike) and Path(name).is_dir():
            check_weight_files(Path(name))


def _check_whole(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):  # its header says how long the file must be
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is broken or truncated ({path.stat().st_size} bytes; {error}): {AGAIN}") from error


def shards_in(index: Path) -> set[str]:
    """Names of the files that hold the weights, by their index; ValueError if it is broken."""
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is broken ({error!r}): {AGAIN}") from error


def _check_shards(index: Path) -> None:
    names = shards_in(index)
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise ValueError(
            f"{index.parent} lacks {len(missing)} of {len(names)} files of its weights, such as {missing[0]}: "
            "download or save the model again."
        )
