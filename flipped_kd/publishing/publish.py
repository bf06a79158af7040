"""Publishing an adapter, and the model merged from it; repeated after a failure, what is done is not done again."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from ..students.gguf import GgufBase
from .card import write_card
from .files import kind_of, uploadable
from .merge import MergeReport, fingerprint, merge_adapter
from .push import check_card, check_repo_id, push_folder, whole_name

logger = logging.getLogger(__name__)
MERGED_SUFFIX = "-merged"


@dataclass(frozen=True)
class PublishReport:
    """Where things are now.

    Attributes:
        adapter_url: repository of the adapter; None of one on a local GGUF file, whose merge alone is pushed.
        merged_url: repository of the merged model; None if it was not asked for.
        merge: what the merge has shown; None likewise.
    """

    adapter_url: str | None
    merged_url: str | None = None
    merge: MergeReport | None = None


def publish(
    adapter: str | os.PathLike[str],
    repo_id: str,
    *,
    merged: bool = False,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    base_model: str | os.PathLike[str] | None = None,
    merged_dir: str | os.PathLike[str] | None = None,
    commit_message: str | None = None,
) -> PublishReport:
    """Write the card and push an adapter folder, and with `merged` the merged model too.

    The merge comes first: if adapter and merged model do not agree, nothing is uploaded. It stays in `merged_dir`, and
    a repeated call uses it again as long as the adapter is the same.

    Args:
        adapter: folder that FlippedDistillationTrainer wrote.
        repo_id: of the adapter; the merged model goes to f"{repo_id}-merged".
        merged: merge and push the merged model too.
        private: True makes new repositories private and refuses public ones. None takes the Hub's default.
        token: with write access; by default the one of `hf auth login` or HF_TOKEN.
        revision: branch to commit to, in both repositories.
        base_model: the base's folder or Hub name for the merge, if not the one the adapter names.
        merged_dir: where the merged model is kept; by default beside the adapter, "-merged" added to its name.
        commit_message: of both commits.

    Raises:
        ValueError: the adapter lacks a contract, or the name or the base is unusable.
        PublishError: the merge does not agree, something must not be uploaded, or the Hub failed; nothing local is
            lost then, and the call can be repeated.
    """
    folder = Path(adapter)
    repository = {"private": private, "revision": revision, "token": token, "commit_message": commit_message}
    check_repo_id(repo_id)
    if kind_of(folder) != "adapter":
        raise ValueError(f"{folder} holds a merged model: push it by push_folder, or give the adapter's folder.")
    # A token in a file, and a card that the Hub would refuse, are found before any work.
    uploadable(folder, token)
    repo_id = whole_name(repo_id, token)  # the card's snippets load it
    write_card(folder, repo_id=repo_id)
    check_card(folder)
    if not merged:
        return PublishReport(push_folder(folder, repo_id, **repository))  # type: ignore[arg-type]
    merged_id = repo_id + MERGED_SUFFIX
    check_repo_id(merged_id)
    whole = Path(os.path.abspath(folder))
    target = Path(merged_dir) if merged_dir is not None else whole.with_name(whole.name + MERGED_SUFFIX)
    report = _merged(folder, target, base_model, token)
    write_card(target, repo_id=merged_id, merged=True, adapter=folder)
    gguf = GgufBase.from_pretrained(folder)
    adapter_url = None
    if gguf is None or gguf.repo_id is not None:
        adapter_url = push_folder(folder, repo_id, **repository)  # type: ignore[arg-type]
    merged_url = push_folder(target, merged_id, **repository)  # type: ignore[arg-type]
    return PublishReport(adapter_url, merged_url, report)


def _merged(folder: Path, target: Path, base_model: str | os.PathLike[str] | None, token: str | None) -> MergeReport:
    """The merge of the adapter in `target`, made now unless it is there."""
    try:
        report = MergeReport.load(target)
    except ValueError:
        report = None
    if report is not None and report.fingerprint == fingerprint(folder, base_model):
        logger.info("%s holds the merge of this adapter already", target)
        return report
    return merge_adapter(folder, target, base_model=base_model, token=token, overwrite=True)
