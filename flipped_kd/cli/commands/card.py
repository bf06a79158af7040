"""`flipped-kd card`: write or print a model card."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ...publishing.card import render_card, write_card
from ...publishing.card_data import card_data
from ...publishing.files import kind_of
from ..models import refuse_hub_cache


def card(options: Namespace) -> None:
    """Write or print a model card."""
    merged = kind_of(Path(options.folder)) != "adapter"
    about = {"report": options.report, "repo_id": options.repo_id, "merged": merged, "adapter": options.adapter}
    if options.show:
        print(render_card(card_data(options.folder, **about)), end="", file=options.stdout, flush=True)
    else:
        refuse_hub_cache(options.folder, "print the card by --print")
        print(write_card(options.folder, **about, overwrite=options.overwrite), file=options.screen)
