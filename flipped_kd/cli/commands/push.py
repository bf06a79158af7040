"""`flipped-kd push`: upload an adapter or a merged model."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ...publishing.card import write_card
from ...publishing.files import kind_of
from ...publishing.publish import publish
from ...publishing.push import push_folder, whole_name
from ..arguments import UsageError
from ..models import refuse_hub_cache
from ..runtime import hide_bars


def push(options: Namespace) -> None:
    """Upload an adapter or a merged model."""
    hide_bars(options)
    private = True if options.private else None
    if not options.merged and (options.base_model is not None or options.merged_dir is not None):
        raise UsageError("--base-model and --merged-dir are for --merged: add it, or leave them out")
    refuse_hub_cache(options.folder, "push from the folder that it was trained in")  # a card is written into it
    if kind_of(Path(options.folder)) == "adapter":
        report = publish(
            options.folder,
            options.repo_id,
            merged=options.merged,
            private=private,
            revision=options.revision,
            base_model=options.base_model,
            merged_dir=options.merged_dir,
            commit_message=options.message,
        )
        urls = [report.adapter_url, report.merged_url]
    else:
        if options.merged:
            raise UsageError(f"--merged: {options.folder} is merged already: leave the option out")
        repo_id = whole_name(options.repo_id)
        write_card(options.folder, repo_id=repo_id, merged=True)
        urls = [
            push_folder(
                options.folder,
                repo_id,
                private=private,
                revision=options.revision,
                commit_message=options.message,
            )
        ]
    for url in filter(None, urls):
        print(url, file=options.screen)
