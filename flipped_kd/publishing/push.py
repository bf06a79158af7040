"""Pushing a folder to the Hub: which files go, what is checked before, and errors that say what to do.

- Only files that a reader of the repository needs are sent (`uploadable`): no pickles, no optimizer, no logs.
- Everything is checked on this machine first: contracts, the card's metadata, no token in any text.
- A push that fails changes nothing here and can be repeated; large files that arrived are not sent again.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..evaluation.match_score import SCORE_FILE
from ..inference.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter, local_folder, read_adapter_config
from ..prompts.pair_prompt import PROMPT_FILE
from ..students.lora_encoder import ENCODER_FILE, MATRICES_FILE
from ..utils.redaction import known_tokens, redact

logger = logging.getLogger(__name__)
MERGE_FILE = "merge_report.json"
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
CONTRACT_FILES = (PROMPT_FILE, ENCODER_FILE, MATRICES_FILE, SCORE_FILE, MERGE_FILE)
DOCUMENT_FILES = (CARD_FILE, "LICENSE*", "NOTICE*", "*.png", "*.svg", "plots/*.png", "plots/*.svg")
ALLOWED = ADAPTER_FILES + TOKENIZER_FILES + MODEL_FILES + CROSS_ENCODER_FILES + CONTRACT_FILES + DOCUMENT_FILES
TOKEN = re.compile(rb"(?:hf|api_org)_[A-Za-z0-9]{30,}")
LOCAL_PATH = re.compile(r"^(?:[~/\\]|\.{1,2}[/\\]|[A-Za-z]:[\\/])")
# What a reader's tools would act on if an earlier push left it behind.
MERGED_FILES = (*MODEL_FILES, *CROSS_ENCODER_FILES, MATRICES_FILE, MERGE_FILE)
REPLACED = {"adapter": (SCORE_FILE, *MERGED_FILES), "merged model": (SCORE_FILE, *MERGED_FILES, *ADAPTER_FILES)}


class PublishError(RuntimeError):
    """Something that must not be published, or a push that did not succeed. Nothing local was lost."""


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload an adapter folder or a merged folder as one commit, or nothing.

    What an earlier push left in the repository and this one no longer has (match_score.json, weights, the files of
    sentence-transformers) is deleted by the same commit: readers would act on it.

    Args:
        folder: what FlippedDistillationTrainer or `merge_adapter` wrote. Files of other kinds stay here; a log line
            names them.
        repo_id: "name" or "owner/name"; created if it is not there.
        private: True makes a new repository private and refuses one that is public. None takes the Hub's default.
        revision: branch to commit to, created if it is not there; by default "main".
        token: with write access; by default the one of `hf auth login` or HF_TOKEN.
        commit_message: by default "Upload" and the kind of folder.

    Returns:
        URL of the repository (of the branch, if `revision` is given).

    Raises:
        ValueError: repo_id is no possible name, or the folder lacks a contract.
        PublishError: a file holds a token, the card's metadata are invalid, or the Hub could not be reached or
            refused. No message contains a token.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    kind = kind_of(folder)
    files = uploadable(folder, token)
    left_out = sorted(set(_files(folder)) - set(files))
    if left_out:
        logger.warning("%s: not uploaded, for no reader needs them: %s", folder, ", ".join(map(str, left_out)))
    if kind == "adapter":
        _warn_of_local_base(folder)
    check_card(folder)
    hub = _Hub(token)
    repo_id = hub.open_repository(repo_id, private)
    additions = {str(path): folder / path for path in files}
    return hub.commit(additions, REPLACED[kind], repo_id, revision, commit_message or f"Upload {kind}")


def kind_of(folder: Path) -> str:
    """ "adapter" or "merged model", of a folder that holds all that a reader needs.

    Raises:
        ValueError: it is no folder, or lacks something.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that FlippedDistillationTrainer or merge_adapter wrote.")
    return "adapter" if is_adapter(local_folder(folder)) else "merged model"


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless the Hub could have a repository of that name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r} cannot be a name on the Hub: {error} Give 'owner/name'.") from None


def uploadable(folder: Path, token: str | None = None) -> list[PurePosixPath]:
    """The files of `folder`, relative to it, that a push may send: an allow-list, at most one folder deep.

    Raises:
        PublishError: one of them holds a token of the Hub.
    """
    files = [path for path in _files(folder) if _matches(path, ALLOWED)]
    secrets = [secret.encode() for secret in known_tokens(token)]
    for path in files:
        content = b"" if path.suffix in (".safetensors", ".png", ".model") else (folder / path).read_bytes()
        if TOKEN.search(content) or any(secret in content for secret in secrets):
            raise PublishError(
                f"{folder / path} holds a token of the Hub: take it out, and revoke it if others could read it. "
                "Nothing was uploaded."
            )
    return files


def _warn_of_local_base(folder: Path) -> None:
    base = read_adapter_config(folder).base_model_name_or_path
    if base is None or not _is_hub_name(base) or Path(base).is_dir():
        logger.warning(
            "%s names its base by a local folder: whoever loads the adapter must say base_model=...; train from a Hub "
            "name, or push the merged model",
            folder / ADAPTER_CONFIG,
        )


def check_card(folder: Path) -> None:
    """Raise PublishError unless the metadata of README.md, if there is one, is what the Hub accepts.

    Checked without the Hub: the YAML, the results in `model-index`, and that no value is a path of this machine.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return
    try:
        # The class reads the YAML leniently and the constructor of its data strictly.
        card = ModelCard(path.read_text(encoding="utf-8"))
        metadata = card.data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        raise PublishError(f"the metadata at the top of {path} is invalid: {error} Nothing was uploaded.") from error
    for name, value in _strings(metadata):
        if LOCAL_PATH.match(value) or (name == "base_model" and not _is_hub_name(value)):
            raise PublishError(
                f"{path}: {name} is {value!r}, a path of this machine: give a Hub name or leave it out. Nothing was "
                "uploaded."
            )


def open_repository(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Create the repository unless it is there, and return its whole name ("owner/name").

    Raises:
        ValueError: no such name is possible.
        PublishError: private=True and the repository is public; or the Hub could not be reached or refused.
    """
    check_repo_id(repo_id)
    return _Hub(token).open_repository(repo_id, private)


def failure_of(error: BaseException, what: str, token: str | None = None) -> PublishError:
    """A PublishError that says what to do about an error of the Hub's client, without any token."""
    status, transport = None, False
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        status = status or getattr(getattr(cause, "response", None), "status_code", None)
        transport = transport or isinstance(cause, ConnectionError | TimeoutError) or _is_transport(cause)
        cause = cause.__cause__ or cause.__context__
    if status in (401, 403):
        remedy = "Log in with `hf auth login`, or give a token with write access to this repository."
    elif status == 404:
        remedy = "Check the name of the repository, and that the token may see it."
    elif transport or (status is not None and (status >= 500 or status in (408, 429))):
        remedy = "Repeat the command later: what has arrived is not sent again."
    else:
        remedy = "Mend what it names and repeat the command."
    said = " ".join(redact(f"{type(error).__name__}: {error}", token).split())
    return PublishError(f"{what} failed ({said}). Nothing on this machine was changed. {remedy}")


class _Hub:
    """The Hub's client with one token. Errors it raises are those of `failure_of`, outside of the client's own.

    A chained exception would print the client's message, which may hold the token (an illegal header is quoted).
    """

    def __init__(self, token: str | None) -> None:
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise ValueError("the token is empty or holds characters that no token has (white space?): give it again.")
        self.token = token
        self.api = HfApi(token=token)

    def open_repository(self, repo_id: str, private: bool | None) -> str:
        failure = None
        try:
            whole = self.api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            # For a repository that is there already `private` was not looked at.
            is_private = bool(self.api.model_info(whole).private) if private else None
        except Exception as error:  # whatever the client raises may hold the token
            failure = failure_of(error, f"opening the repository {repo_id!r}", self.token)
        if failure is not None:
            raise failure
        if is_private is False:
            raise PublishError(
                f"private=True, but the repository {whole!r} is there and public: make it private "
                f"(HfApi().update_repo_settings({whole!r}, private=True)) or push to another one. Nothing was "
                "uploaded."
            )
        return whole

    def commit(
        self, files: dict[str, Path], replaced: Iterable[str], repo_id: str, revision: str | None, message: str
    ) -> str:
        failure = None
        operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        try:
            if revision is not None:
                self.api.create_branch(repo_id, branch=revision, exist_ok=True)
            there = set(self.api.list_repo_files(repo_id, revision=revision)) - files.keys()
            operations += [
                CommitOperationDelete(name) for name in sorted(there) if _matches(PurePosixPath(name), replaced)
            ]
            self.api.create_commit(repo_id, operations, commit_message=message, revision=revision)
        except Exception as error:  # as above
            failure = failure_of(error, f"uploading to {repo_id!r}", self.token)
        if failure is not None:
            raise failure
        return f"{self.api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")


def _files(folder: Path) -> list[PurePosixPath]:
    """Files in the folder and in its sub-folders, without hidden ones, ours ("_...") and checkpoints."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_", "checkpoint-")):
            continue
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [PurePosixPath(file.relative_to(folder).as_posix()) for file in inside if file.is_file()]
    return found


def _matches(path: PurePosixPath, patterns: Iterable[str]) -> bool:
    """Whether the whole path matches one of the patterns; a star never reaches over a slash."""
    split = (PurePosixPath(pattern).parts for pattern in patterns)
    return any(len(parts) == len(path.parts) and all(map(fnmatchcase, path.parts, parts)) for parts in split)


def _is_hub_name(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every string in nested YAML, with the place where it stands."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, name)


def _is_transport(error: BaseException) -> bool:
    """An error of the connection in httpx, which huggingface_hub brings along."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
