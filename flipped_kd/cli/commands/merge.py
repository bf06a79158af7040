"""`flipped-kd merge`: merge adapters into their base."""

from __future__ import annotations

import logging
import os
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from ...publishing.combine import combine_adapters
from ...publishing.files import MERGE_FILE
from ...publishing.merge import merge_adapter
from ...utils.atomic import check_target
from ...utils.locking import sole_writer_of
from ..arguments import UsageError
from ..runtime import hide_bars

logger = logging.getLogger(__name__)


def merge(options: Namespace) -> None:
    """Merge adapters into their base."""
    several = len(options.adapters) > 1
    if several and options.revision is not None:
        raise UsageError("--revision is of a single adapter: give several as folders")
    if not several and (options.weights is not None or options.adapter_only or options.method != "cat"):
        raise UsageError("--weights, --method and --adapter-only are for several adapters")
    if options.adapter_only and (options.overwrite or options.no_sentence_transformers):
        raise UsageError("--overwrite and --no-sentence-transformers are of merged models: leave them out")
    hide_bars(options)
    with sole_writer_of(Path(os.path.realpath(options.output))):
        _merge(options, several)


def _merge(options: Namespace, several: bool) -> None:
    combined: dict[str, Any] = {
        "weights": options.weights,
        "method": options.method,
        "base_model": options.base_model,
    }
    if options.adapter_only:
        print(combine_adapters(options.adapters, options.output, **combined), file=options.screen)
        return
    check_target(Path(options.output), MERGE_FILE if options.overwrite else None)  # before adapters are combined
    with tempfile.TemporaryDirectory(prefix="flipped-kd-") as scratch:
        adapter = options.adapters[0]
        if several:
            adapter = combine_adapters(options.adapters, Path(scratch, "adapter"), **combined)
        report = merge_adapter(
            adapter,
            options.output,
            base_model=options.base_model,
            revision=options.revision,
            sentence_transformers=not options.no_sentence_transformers,
            overwrite=options.overwrite,
        )
    difference = max(report.answer_difference, report.similarity_difference, report.encode_difference)
    logger.info("scores and vectors of %d pairs differ by at most %.1e", report.probe_pairs, difference)
    if report.reason:
        logger.info("not in the layout of CrossEncoder: %s", report.reason)
    print(report.folder, file=options.screen)
