"""Students stored as GGUF: named, checked, read by transformers' own reader, and from then on ordinary models."""

from __future__ import annotations

import copy
import functools
import importlib.util
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import AutoConfig, PretrainedConfig

from ..utils.digests import file_sha256
from ..utils.json_files import AGAIN, read_versioned, write_json
from ..utils.redaction import redact

logger = logging.getLogger(__name__)

GGUF_FILE = "gguf_base.json"
FORMAT_VERSION = 1
SUFFIX = ".gguf"
MAGIC = b"GGUF"
HOW = "Name it FILE.gguf, FOLDER/FILE.gguf or, on the Hub, owner/name:FILE.gguf."


@dataclass(frozen=True)
class GgufBase:
    """Which GGUF file an adapter was trained on, as it is saved beside the adapter.

    Attributes:
        file: name of the file; on the Hub with the folders above it.
        sha256: of its bytes, hexadecimal.
        repo_id: its repository on the Hub; None of a local file.
        revision: commit in that repository.
        name: what the file calls its model (general.name); None if it does not say.
    """

    file: str
    sha256: str
    repo_id: str | None = None
    revision: str | None = None
    name: str | None = None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write gguf_base.json into `folder`, whole or not at all."""
        content = {"format_version": FORMAT_VERSION} | asdict(self)
        write_json(Path(folder) / GGUF_FILE, content)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> GgufBase | None:
        """Read gguf_base.json; None where there is none.

        Raises:
            ValueError: it is broken or from a newer release.
        """
        path = Path(folder) / GGUF_FILE
        if not path.is_file():
            return None
        content = read_versioned(path, FORMAT_VERSION)
        del content["format_version"]
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"{path} is no record of a GGUF base ({error}): {AGAIN}.") from error


def is_gguf(name: object) -> bool:
    """Whether a student's name is that of a GGUF file, local or on the Hub."""
    return isinstance(name, str | os.PathLike) and os.fspath(name).lower().endswith(SUFFIX)


def gguf_path(name: str | os.PathLike[str], revision: str | None = None, **options: Any) -> tuple[Path, GgufBase]:
    """The local file of a GGUF name, fetched from the Hub if need be, and what is recorded of it.

    A name is FILE.gguf, FOLDER/FILE.gguf or owner/name:FILE.gguf; `options` of the download are token and cache_dir.
    ImportError: the package gguf is not installed. ValueError: there is no such file, or it is no whole GGUF file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"{os.fspath(name)!r} needs the package gguf: pip install 'flipped_kd[gguf]'.")
    path, repo_id, commit = Path(name), None, None
    file = path.name
    if not path.is_file():
        repo_id, _, file = os.fspath(name).rpartition(":")
        if repo_id.count("/") != 1:
            raise ValueError(f"{os.fspath(name)!r} is no existing file. {HOW}")
        try:
            path = Path(hf_hub_download(repo_id, file, revision=revision, **options))
        except Exception as error:  # whatever the Hub's client raises: what to do is the same
            said = redact(str(error), options.get("token"))
            raise ValueError(f"{os.fspath(name)!r} could not be had from the Hub: {said} {HOW}") from None
        commit = path.parents[file.count("/")].name
    elif revision is not None:
        raise ValueError(f"revision={revision!r} is of a repository on the Hub, and {name} is a file: leave it out.")
    stat = path.stat()
    sha256, called = _inspected(path, stat.st_size, stat.st_mtime_ns)
    return path, GgufBase(file, sha256, repo_id, commit, called)


def load_gguf_config(path: Path) -> PretrainedConfig:
    """The configuration that a GGUF file describes.

    Raises:
        ValueError: transformers does not read this architecture.
    """
    stat = path.stat()
    return copy.deepcopy(_read_config(path, stat.st_size, stat.st_mtime_ns))


# A header takes seconds to read, most of them for the vocabulary, and every run of a comparison asks for it.
@functools.lru_cache(maxsize=8)
def _read_config(path: Path, size: int, modified: int) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ValueError(
            f"{path} holds an architecture that transformers does not read from GGUF ({error}): take the model's "
            "safetensors."
        ) from error


def make_ordinary(model: Any, name: str | os.PathLike[str], base: GgufBase) -> None:
    """Let a model that was read from GGUF be saved, merged and published as any other; its weights are floats now."""
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if mark in vars(model):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # By this name the adapter finds its base again.
    model.config._name_or_path = model.name_or_path = os.fspath(name)
    model.gguf_base = base


def check_same_file(wanted: GgufBase, found: GgufBase, name: str | os.PathLike[str]) -> None:
    """Raise ValueError if the base that is there is another file than the one an adapter was trained on."""
    if wanted.sha256 != found.sha256:
        raise ValueError(
            f"{os.fspath(name)} has sha256 {found.sha256[:16]}..., the adapter was trained on {wanted.file} with "
            f"{wanted.sha256[:16]}...: give that file as base_model, or train on this one."
        )


@functools.lru_cache(maxsize=8)  # model, tokenizer and every run of a comparison ask for one and the same file
def _inspected(path: Path, size: int, modified: int) -> tuple[str, str | None]:
    """(sha256, what the file calls its model) of a whole GGUF file; size and time tell a changed one apart."""
    name = _checked_name(path)
    return file_sha256(path), name


def _checked_name(path: Path) -> str | None:
    """What the file calls its model; ValueError unless it is a whole GGUF file."""
    with open(path, "rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise ValueError(f"{path} is no GGUF file (it begins with {magic!r}): download or convert it again.")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        # Memory-mapped: a file that was cut short fails here, not in the middle of loading.
        end = max((int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors), default=0)
    except Exception as error:  # the reader raises whatever broken bytes lead to
        raise ValueError(f"{path} is a broken or truncated GGUF file ({error}): download it again.") from error
    if not end or end > path.stat().st_size:
        raise ValueError(f"{path} is a truncated GGUF file: it ends before its last tensor. Download it again.")
    if int(_told(reader, "split.count") or 1) > 1:
        raise ValueError(f"{path} is a part of several: join them by `llama-gguf-split --merge`, and give that file.")
    _warn_of_rotation(reader, path)
    name = _told(reader, "general.name")
    return None if name is None else str(name)


def _told(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _warn_of_rotation(reader: Any, path: Path) -> None:
    """Of scaled positions, which transformers 5.23 reads of gpt-oss alone."""
    architecture = _told(reader, "general.architecture")
    scaling, factor = (_told(reader, f"{architecture}.rope.scaling.{name}") for name in ("type", "factor"))
    tensors = [tensor.name for tensor in reader.tensors if tensor.name.startswith(("rope_freqs.", "rope_factors_"))]
    scaled = scaling not in (None, "none") and factor not in (None, 0, 1)
    if architecture != "gpt-oss" and (tensors or scaled):
        logger.warning(
            "%s scales its positions (%s), which transformers does not read from GGUF: long texts are read otherwise "
            "than the model was trained to. Take the model's safetensors.",
            path.name,
            tensors[0] if tensors else f"{scaling}, factor {factor:g}",
        )
