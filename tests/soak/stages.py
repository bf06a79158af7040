"""Kill a run at every stage of saving: what is left on the disk, and what the resumed run makes of it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flipped_kd.training import checkpoint_files, checkpoints
from flipped_kd.training.checkpoint_files import STAGING_FOLDER, checkpoints_in, missing_from
from flipped_kd.training.checkpoints import CheckpointingTrainer
from tests.soak import forks, tiny_run

# The third save: two older checkpoints are there, and one of them is due to be removed.
SAVE = 3
FIRST, SECOND, THIRD, LAST = (f"checkpoint-{step}" for step in tiny_run.SAVED)
WRITES_A_SAVE = 3  # calls of torch.save: optimizer, scheduler, random states


@dataclass
class Stage:
    """A place to die at.

    Attributes:
        name: what has been done by then.
        arm: makes the process kill itself there.
        newest: the checkpoint the next process goes on from.
    """

    name: str
    arm: Callable[[], None]
    newest: str


def die() -> None:
    """As kill -9: nothing is flushed, closed or cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_instead(owner: Any, name: str, call: int = 1, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Die at the beginning of a call of `owner.name`: of the `call`-th for which `when` holds."""
    real, calls = getattr(owner, name), itertools.count(1)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs) and next(calls) == call:
            die()
        return real(*args, **kwargs)

    setattr(owner, name, dying)


def _die_in_half_a_file() -> None:
    real, calls = torch.save, itertools.count(1)

    def dying(content: Any, path: str) -> None:
        real(content, path)
        if next(calls) == (SAVE - 1) * WRITES_A_SAVE + 1:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    torch.save = dying


def _die_in_half_a_manifest() -> None:
    real, calls = checkpoints.write_manifest, itertools.count(1)

    def dying(folder: Path, processes: int) -> None:
        real(folder, processes)
        if next(calls) == SAVE:
            manifest = folder / checkpoint_files.MANIFEST_FILE
            os.truncate(manifest, manifest.stat().st_size // 2)
            die()

    checkpoints.write_manifest = dying


def _die_in_half_a_removal() -> None:
    real = shutil.rmtree

    def dying(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name.startswith("removed-"):
            next(Path(path).glob("*.safetensors")).unlink()
            die()
        real(path, *args, **kwargs)

    shutil.rmtree = dying  # type: ignore[assignment]


def _renames_staged(path: Path, target: Path) -> bool:
    return path.parent.name == STAGING_FOLDER and target.name == LAST


STAGES = (
    Stage("nothing written", lambda: die_instead(CheckpointingTrainer, "save_model", SAVE), SECOND),
    Stage("adapter", lambda: die_instead(CheckpointingTrainer, "_save_optimizer_and_scheduler", SAVE), SECOND),
    Stage("adapter and half the optimizer", _die_in_half_a_file, SECOND),
    Stage("adapter and optimizer", lambda: die_instead(CheckpointingTrainer, "_save_rng_state", SAVE), SECOND),
    Stage("all but the manifest", lambda: die_instead(checkpoints, "write_manifest", SAVE), SECOND),
    Stage("half the manifest", _die_in_half_a_manifest, SECOND),
    Stage("all but the name", lambda: die_instead(checkpoints, "name_checkpoint", SAVE), THIRD),
    Stage("all, nothing old removed", lambda: die_instead(checkpoints, "rotate", SAVE), THIRD),
    Stage("half of an old one removed", _die_in_half_a_removal, THIRD),
)
# Here the run is finished, goes on from the checkpoint before its last on command, and saves the last anew.
REPLACING = Stage("an old one moved aside", lambda: die_instead(Path, "rename", when=_renames_staged), LAST)


def walk(folder: Path, whole: Path) -> list[dict[str, Any]]:
    """Kill a run at each stage and resume it; facts by stage, see test_kills.py."""
    return [
        _facts(stage, folder, folder / f"stage-{number}", whole) for number, stage in enumerate((*STAGES, REPLACING))
    ]


def _facts(stage: Stage, folder: Path, out: Path, whole: Path) -> dict[str, Any]:
    killed_log, log = (out.with_name(f"{out.name}{ending}") for ending in (".killed.log", ".log"))
    resume: str | bool = True
    if stage is REPLACING:
        forks.run(lambda: tiny_run.train(folder, out), killed_log)
        resume = str(out / THIRD)

    def killed() -> None:
        stage.arm()
        tiny_run.train(folder, out, resume)

    status = forks.run(killed, killed_log)
    named = {path.name: missing_from(path) for path in checkpoints_in(out)}
    left = sorted(path.name for path in (out / STAGING_FOLDER).glob("*"))
    ended = forks.run(lambda: tiny_run.train(folder, out), log)
    told = log.read_text(encoding="utf-8")
    return {
        "stage": stage.name,
        "killed": status,
        "named": named,
        "left": left,
        "resumed": f"resuming from {out / stage.newest}\n" in told,
        "told": [name for name in left if f"removing {out / STAGING_FOLDER / name}, left by" in told],
        "kept": sorted(path.name for path in out.iterdir() if path.is_dir()),
        "differences": tiny_run.differences(out, whole) if ended == 0 else [told[-2000:]],
    }
