"""Pushing a folder to the Hub: which files go, what is checked before, and errors that say what to do."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..inference.loading import ADAPTER_CONFIG, read_adapter_config
from ..students.gguf import GgufBase
from ..utils.json_files import read_json_object
from ..utils.provenance import CACHED_SNAPSHOT
from ..utils.redaction import SENDABLE
from .errors import PublishError, failure_of
from .files import CARD_FILE, REPLACED, files_in, kind_of, matches_any, uploadable

logger = logging.getLogger(__name__)
T = TypeVar("T")
LOCAL_PATH = re.compile(r"^(?:[~/\\]|\.{1,2}[/\\]|[A-Za-z]:[\\/])")


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

    Examples:
        `adapter` is the folder of a trained adapter.

        >>> push_folder(adapter, "tester/matcher", private=True).endswith("/tester/matcher")
        True
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    kind = kind_of(folder)
    files = uploadable(folder, token)
    left_out = sorted(set(files_in(folder)) - set(files))
    if left_out:
        logger.warning("%s: not uploaded, for no reader needs them: %s", folder, ", ".join(map(str, left_out)))
    if kind == "adapter":
        _check_base(folder)
    check_card(folder)
    hub = _Hub(token)
    repo_id = hub.open_repository(repo_id, private)
    additions: dict[str, Path | bytes] = {str(path): folder / path for path in files}
    if kind == "adapter" and (config := published_config(folder)) is not None:
        additions[ADAPTER_CONFIG] = config
    return hub.commit(additions, REPLACED[kind], repo_id, revision, commit_message or f"Upload {kind}")


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless the Hub could have a repository of that name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r} cannot be a name on the Hub: {error} Give 'owner/name'.") from None


def _check_base(folder: Path) -> None:
    """Refuse an adapter on a GGUF file that nobody else has; warn of a base in a local folder."""
    base = read_adapter_config(folder).base_model_name_or_path
    gguf = GgufBase.from_pretrained(folder)
    if gguf is not None:
        refuse_local_gguf(gguf)
        return
    if base is None or not _is_hub_name(base) or Path(base).is_dir():
        logger.warning(
            "%s names its base by a local folder, which is not told to others: whoever loads the adapter must say "
            "base_model=...; train from a Hub name, or push the merged model",
            folder / ADAPTER_CONFIG,
        )


def published_config(folder: Path) -> bytes | None:
    """adapter_config.json as others may read it, without a path of this machine; None where it can go as it is.

    A base that came from the Hub's cache is named as it is there. Another folder's name would be taken for a Hub name.
    """
    settings = read_json_object(folder / ADAPTER_CONFIG)
    base = settings.get("base_model_name_or_path")
    gguf = GgufBase.from_pretrained(folder)
    if gguf is not None and gguf.repo_id is not None:
        return None  # owner/name:FILE.gguf
    if not base or (_is_hub_name(base) and not Path(base).is_dir()):
        return None
    if cached := CACHED_SNAPSHOT.search(base):
        settings |= {"base_model_name_or_path": f"{cached[1]}/{cached[2]}", "revision": cached[3]}
    else:
        settings["base_model_name_or_path"] = None
    return (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()


def refuse_local_gguf(base: GgufBase | None) -> None:
    """Raise PublishError for the base of an adapter that is a GGUF file on this machine alone; None is none."""
    if base is not None and base.repo_id is None:
        raise PublishError(
            f"the adapter is on the local file {base.file}, which a reader of the repository would not have: merge it "
            "and push the merged folder, or train from a Hub name (owner/name:FILE.gguf). Nothing was uploaded."
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


def whole_name(repo_id: str, token: str | None = None) -> str:
    """ "owner/name" of a repository whose owner, where none is given, is whoever the token belongs to.

    Raises:
        ValueError: no such name is possible.
        PublishError: the Hub could not be asked.
    """
    check_repo_id(repo_id)
    return repo_id if "/" in repo_id else f"{_Hub(token).user()}/{repo_id}"


def open_repository(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Create the repository unless it is there, and return its whole name ("owner/name").

    Raises:
        ValueError: no such name is possible.
        PublishError: private=True and the repository is public; or the Hub could not be reached or refused.
    """
    check_repo_id(repo_id)
    return _Hub(token).open_repository(repo_id, private)


class _Hub:
    """The Hub's client with one token. Errors it raises are those of `failure_of`, outside of the client's own.

    A chained exception would print the client's message, which may hold the token (an illegal header is quoted).
    """

    def __init__(self, token: str | None) -> None:
        if token is not None and not SENDABLE.fullmatch(token):
            raise ValueError("the token is empty or holds characters that no token has (white space?): give it again.")
        self.token = token
        self.api = HfApi(token=token)

    def _asked(self, what: str, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except Exception as error:  # whatever the client raises may hold the token
            failure = failure_of(error, what, self.token)
        raise failure

    def user(self) -> str:
        return self._asked("asking the Hub whose token this is", lambda: str(self.api.whoami()["name"]))

    def open_repository(self, repo_id: str, private: bool | None) -> str:
        def opened() -> tuple[str, bool | None]:
            whole = self.api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            # For a repository that is there already `private` was not looked at.
            return whole, bool(self.api.model_info(whole).private) if private else None

        whole, is_private = self._asked(f"opening the repository {repo_id!r}", opened)
        if is_private is False:
            raise PublishError(
                f"private=True, but the repository {whole!r} is there and public: make it private "
                f"(HfApi().update_repo_settings({whole!r}, private=True)) or push to another one. Nothing was "
                "uploaded."
            )
        return whole

    def commit(
        self, files: dict[str, Path | bytes], replaced: Iterable[str], repo_id: str, revision: str | None, message: str
    ) -> str:
        operations: list[Any] = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]

        def committed() -> None:
            if revision is not None:
                self.api.create_branch(repo_id, branch=revision, exist_ok=True)
            there = set(self.api.list_repo_files(repo_id, revision=revision)) - files.keys()
            gone = (name for name in sorted(there) if matches_any(PurePosixPath(name), replaced))
            operations.extend(CommitOperationDelete(name) for name in gone)
            self.api.create_commit(repo_id, operations, commit_message=message, revision=revision)

        self._asked(f"uploading to {repo_id!r}", committed)
        return f"{self.api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")


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
