"""The files of a repository: which there are, which are sent, and none with a token in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..evaluation.match_score import SCORE_FILE
from ..inference.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter, local_folder
from ..prompts.pair_prompt import PROMPT_FILE
from ..students.base_weights import BASE_FILE
from ..students.gguf import GGUF_FILE
from ..students.lora_encoder import ENCODER_FILE, MATRICES_FILE
from ..utils.redaction import TOKEN_BYTES, known_tokens
from .errors import PublishError

MERGE_FILE = "merge_report.json"
# In a merged model: what its card tells of the adapter. With "_", so that no push takes it along.
ADAPTER_FOLDER = "_adapter"
CARD_FILE = "README.md"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",  # sentencepiece
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
)
CROSS_ENCODER_FILES = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_LogitScore/config.json",
)
CONTRACT_FILES = (PROMPT_FILE, ENCODER_FILE, MATRICES_FILE, SCORE_FILE, MERGE_FILE, GGUF_FILE, BASE_FILE)
DOCUMENT_FILES = (CARD_FILE, "LICENSE*", "NOTICE*", "*.png", "*.svg", "plots/*.png", "plots/*.svg")
ALLOWED = ADAPTER_FILES + TOKENIZER_FILES + MODEL_FILES + CROSS_ENCODER_FILES + CONTRACT_FILES + DOCUMENT_FILES
# What a reader's tools would act on if an earlier push left it behind.
MERGED_FILES = (*MODEL_FILES, *CROSS_ENCODER_FILES, MATRICES_FILE, MERGE_FILE)
REPLACED = {
    "adapter": (SCORE_FILE, GGUF_FILE, BASE_FILE, *MERGED_FILES),
    "merged model": (SCORE_FILE, GGUF_FILE, BASE_FILE, *MERGED_FILES, *ADAPTER_FILES),
}


def kind_of(folder: Path) -> str:
    """ "adapter" or "merged model", of a folder that holds all that a reader needs.

    Raises:
        ValueError: it is no folder, or lacks something.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that FlippedDistillationTrainer or merge_adapter wrote.")
    return "adapter" if is_adapter(local_folder(folder)) else "merged model"


def uploadable(folder: Path, token: str | None = None) -> list[PurePosixPath]:
    """The files of `folder`, relative to it, that a push may send: an allow-list, at most one folder deep.

    Raises:
        PublishError: one of them holds a token of the Hub.
    """
    files = [path for path in files_in(folder) if matches_any(path, ALLOWED)]
    secrets = [secret.encode() for secret in known_tokens(token)]
    for path in files:
        content = b"" if path.suffix in (".safetensors", ".png", ".model") else (folder / path).read_bytes()
        if TOKEN_BYTES.search(content) or any(secret in content for secret in secrets):
            raise PublishError(
                f"{folder / path} holds a token of the Hub: take it out, and revoke it if others could read it. "
                "Nothing was uploaded."
            )
    return files


def files_in(folder: Path) -> list[PurePosixPath]:
    """Files in the folder and in its sub-folders, without hidden ones, ours ("_...") and checkpoints."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_", "checkpoint-")):
            continue
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [PurePosixPath(file.relative_to(folder).as_posix()) for file in inside if file.is_file()]
    return found


def matches_any(path: PurePosixPath, patterns: Iterable[str]) -> bool:
    """Whether the whole path matches one of the patterns; a star never reaches over a slash."""
    split = (PurePosixPath(pattern).parts for pattern in patterns)
    return any(len(parts) == len(path.parts) and all(map(fnmatchcase, path.parts, parts)) for parts in split)


def contents_digest(folder: Path) -> str:
    """SHA-256 over the small files of an adapter or a merged model, and over an adapter's or encoder's own weights."""
    digest = hashlib.sha256()
    for name in (*ADAPTER_FILES, "tokenizer.json", "tokenizer_config.json", *CONTRACT_FILES):
        path = folder / name
        if path.is_file():
            digest.update(f"{name} {path.stat().st_size}".encode() + path.read_bytes())
    return digest.hexdigest()
