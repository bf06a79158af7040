"""A teacher's model files: where they are, which kind they are, whether they are safe to read."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

from sentence_transformers import CrossEncoder, SentenceTransformer

from ..utils.hub_download import Access, fetch
from ..utils.provenance import is_hub_id
from ..utils.weight_files import check_weight_files

# What is fetched from the Hub: no pickle is ever downloaded.
SAFE_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
PICKLED_WEIGHTS = ("pytorch_model*.bin", "adapter_model.bin", "*.ckpt", "*.pkl", "*.pickle", "*.pt", "*.pth")
KIND_RULE = (
    "A teacher is a sentence-transformers bi-encoder (modules.json), a cross-encoder (config.json with a "
    "...ForSequenceClassification architecture and one label, or a sentence-transformers CrossEncoder) or a plain "
    "encoder such as BertModel"
)
KIND_REMEDY = (
    "save yours with SentenceTransformer.save_pretrained or CrossEncoder.save_pretrained, or name one from the Hub"
)


def resolve_model(teacher: str | Path, revision: str | None, trust_remote_code: bool) -> tuple[str, str | None, Path]:
    """Find a model's files, fetching those of a Hub id without any pickle.

    Args:
        teacher: a folder or a Hub id; a name without organisation means sentence-transformers/<name>.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: also fetch the repository's Python files.

    Returns:
        Its name (Hub id or base name of the folder), its commit on the Hub or None, and its local folder.

    Raises:
        ValueError: if it is neither a folder nor to be had from the Hub.
    """
    folder = Path(teacher)
    if folder.is_dir():
        return _base_name(folder), None, folder
    if isinstance(teacher, Path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", teacher) or teacher.startswith("."):
        raise ValueError(
            f"Teacher {str(teacher)!r} is neither an existing folder nor a Hub id (organisation/name). Check the path."
        )
    # sentence-transformers' own models are commonly named without their organisation.
    name = teacher if "/" in teacher else f"sentence-transformers/{teacher}"
    access = Access(trust_remote_code=trust_remote_code)
    snapshot = fetch(name, revision, access, SAFE_PATTERNS, subfolders=True)
    return name, snapshot.name, snapshot


def _base_name(folder: Path) -> str:
    resolved = folder.resolve()
    # A folder inside the Hub's cache is models--organisation--name/snapshots/<commit>.
    if len(resolved.parts) > 2 and resolved.parent.name == "snapshots" and resolved.parts[-3].startswith("models--"):
        return resolved.parts[-3].removeprefix("models--").replace("--", "/")
    return resolved.name


def name_of_model(model: SentenceTransformer | CrossEncoder) -> str:
    """The Hub id that a loaded model knows of itself, else its folder's base name, else its class; never a path."""
    if model.model_card_data.model_id:
        return str(model.model_card_data.model_id)
    name = "" if model.config is None else str(model.config._name_or_path)
    if is_hub_id(name):
        return name
    return _base_name(Path(name)) if name else type(model).__name__


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(
            f"{path.name} of teacher {_base_name(path.parent)!r} is not valid JSON ({error}): fetch the model again."
        ) from error


def model_class_of(folder: Path, name: str) -> type[SentenceTransformer] | type[CrossEncoder]:
    """Bi- or cross-encoder, by the folder's files: as sentence-transformers 6 decides, but guessing less.

    Raises:
        ValueError: if the folder holds neither, naming what it holds.
    """
    if (folder / "modules.json").exists():
        types = [str(module.get("type", "")) for module in _read_settings(folder / "modules.json")]
        model_type = _read_settings(folder / "config_sentence_transformers.json").get(
            "model_type", "SentenceTransformer"
        )
        if model_type == "CrossEncoder" or any(kind.endswith(".LogitScore") for kind in types):
            return CrossEncoder
        if model_type == "SentenceTransformer":
            return SentenceTransformer
        raise ValueError(f"Teacher {name!r} is a {model_type}. {KIND_RULE}; {KIND_REMEDY}.")
    config = _read_settings(folder / "config.json")
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture.endswith("ForSequenceClassification"):
        return CrossEncoder
    if architecture.endswith(("Model", "ForMaskedLM", "ForPreTraining")) and not architecture.endswith("LMHeadModel"):
        warnings.warn(
            f"Teacher {name!r} is a plain {architecture} without modules.json: its token vectors are averaged, as "
            "sentence-transformers does. An encoder never trained for similarity is a weak teacher.",
            UserWarning,
            stacklevel=3,
        )
        return SentenceTransformer
    raise ValueError(
        f"Teacher {name!r} has the architecture {architecture!r} and no modules.json. {KIND_RULE}; {KIND_REMEDY}."
    )


def check_files(folder: Path, name: str) -> None:
    """Raise ValueError if a part of the model has broken weights, or pickled ones and no safetensors beside them."""
    skipped = ("checkpoint-", "onnx", "openvino", ".")
    folders = [folder] + [
        path
        for path in folder.rglob("*")
        if path.is_dir() and not any(part.startswith(skipped) for part in path.relative_to(folder).parts)
    ]
    for place in folders:
        check_weight_files(place)
        pickles = sorted(path.name for pattern in PICKLED_WEIGHTS for path in place.glob(pattern))
        if pickles and not any(place.glob("*model*.safetensors")):
            raise ValueError(
                f"Teacher {name!r} has only pickled weights ({pickles[0]}); pickles can run code and are never "
                "loaded. Convert it once, where you trust it, with save_pretrained(safe_serialization=True), or "
                "choose a model that has .safetensors files."
            )
