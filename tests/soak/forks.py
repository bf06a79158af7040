"""Children of a process that has imported everything: a run starts in no time and can be killed at any moment."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from flipped_kd.publishing.card import CARD_TEMPLATE, _templates


def prepare() -> None:
    """Call once, before the first child: what is there now is no garbage, and no child need look at it."""
    gc.collect()
    gc.freeze()
    # Half of the time of loading a model and most of writing a card, and kept for the process.
    get_checkpoint_conversion_mapping("qwen2")
    _templates().get_template(CARD_TEMPLATE)


def start(job: Callable[[], None], log: Path) -> int:
    """Run `job` in a child that writes to `log`, and give its process number.

    The parent must have run no torch operation before: threads do not survive a fork.
    """
    child = os.fork()
    if child == 0:
        _work(job, log)
    return child


def wait(child: int) -> int:
    """Wait for a child; 0 if it went well, minus the signal if one killed it, else 1."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(job: Callable[[], None], log: Path) -> int:
    """Start a child and wait for it."""
    return wait(start(job, log))


def must(status: int, log: Path) -> None:
    """Stop unless a child went well, with the end of what it wrote."""
    if status != 0:
        raise SystemExit(f"a child ended with {status}:\n{log.read_text(encoding='utf-8')[-2000:]}")


def _work(job: Callable[[], None], log: Path) -> NoReturn:
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, sys.stdout.fileno())
        os.dup2(descriptor, sys.stderr.fileno())
        job()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # nothing of the parent's is cleaned up twice
