"""Files of a repository, fetched from the Hub, with errors that say what the user can do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .redaction import SENDABLE, redact

LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
SUBFOLDERS = ["*/*"]  # checkpoints, other formats


@dataclass(frozen=True)
class Access:
    """How the Hub is asked."""

    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.token, str) and not SENDABLE.fullmatch(self.token):
            # The HTTP library would refuse it with a message that shows it.
            raise ValueError("the token is empty or holds white space or other control characters: copy it again.")


def is_network_failure(error: BaseException) -> bool:
    """Whether an error comes from a network that is not there, or a server that cannot answer now.

    Its causes are looked at, too. An access that was refused, a name that does not exist, and HF_HUB_OFFLINE=1 are
    none: trying again would not help.
    """
    for cause in causes(error):
        status = status_of(cause)
        if status is not None:
            return status >= 500 or status in (408, 429)
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        # httpx, which huggingface_hub brings along, has a TransportError for all that happens below HTTP.
        transport = any(kind.__name__ == "TransportError" for kind in type(cause).__mro__)
        if transport or isinstance(cause, ConnectionError | TimeoutError):
            return True
    return False


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the latest first."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        yield cause
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer that an error is about."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def fetch(
    name: str | os.PathLike[str],
    revision: str | None,
    access: Access,
    patterns: Sequence[str],
    subfolders: bool = False,
) -> Path:
    """The local folder of a repository's files that match, at one commit (the folder's name).

    Args:
        name: owner/name on the Hub.
        revision: branch, tag or commit; None for the default branch.
        access: how the Hub is asked.
        patterns: of the files, as in `fnmatch`.
        subfolders: those in folders too, which are commonly checkpoints and other formats.

    Raises:
        ValueError: it is no name of the Hub, or the files cannot be had; the message says what the user can do.
        OSError: the disk's own.
    """
    shown = f"{str(name)!r}" + (f" (revision {revision!r})" if revision else "")
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        raise ValueError(f"{shown} is neither an existing folder nor a Hub id (owner/name): check the path.") from None
    allowed = [*patterns, "*.py"] if access.trust_remote_code else [*patterns]
    try:
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                token=access.token,
                cache_dir=None if access.cache_dir is None else Path(access.cache_dir),
                allow_patterns=allowed,
                ignore_patterns=None if subfolders else SUBFOLDERS,
            )
        )
    except (HfHubHTTPError, HTTPError, OSError) as error:
        if getattr(error, "errno", None) in LOCAL_ERRORS:
            raise  # the disk's, not the Hub's
        raise ValueError(
            f"{shown} is no folder here and could not be had from the Hub: {_reason(error, access)} "
            f"({redact(str(error), access.token)})"
        ) from error


def _reason(error: Exception, access: Access) -> str:
    """What the user can do about a failed download."""
    who = "the token given" if isinstance(access.token, str) else "the token of this machine, if it has one,"
    if isinstance(error, GatedRepoError):
        return f"access to it must be asked for on its page, and {who} belong to who was granted it."
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository, or it is private and {who} does not open it. Check the name; log in."
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch, tag or commit. Check revision."
    status = status_of(error)
    if status in (401, 403):
        return f"{who} was refused. Log in again with `hf auth login`, or give another token."
    if status is not None:
        return f"the Hub answered {status}. Try again later."
    return "the Hub could not be reached, and nothing is cached. Check the connection, or give a folder."
