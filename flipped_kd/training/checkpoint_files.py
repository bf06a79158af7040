"""Checkpoints on disk: how one gets its name, what a whole one holds, which to resume from, which to remove."""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..evaluation.match_score import SCORE_FILE
from ..publishing.files import CARD_FILE
from ..utils.atomic import sync_tree, take_name

logger = logging.getLogger(__name__)
# Written last into a checkpoint. With "_" as the staging folder, so that no push takes them along.
MANIFEST_FILE = "_manifest.json"
STAGING_FOLDER = "_saving"
MANIFEST_VERSION = 1
# What `flipped-kd card` and `calibrate` write anew, and resuming does not read.
REWRITTEN = {CARD_FILE, SCORE_FILE}
_NAME = re.compile(r"checkpoint-(\d+)")
# What resuming reads, by the name it has in plain training; any one of the patterns will do. FSDP writes weights and
# optimizer as folders or .bin files, DeepSpeed everything but the adapter into global_step*.
_NEEDED = {
    "trainer_state.json": ("trainer_state.json",),
    "adapter_model.safetensors": ("adapter_model.safetensors", "pytorch_model_fsdp*", "global_step*"),
    "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "rng_state.pth": ("rng_state*.pth",),
}


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name, -1 where it is no name of one."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def checkpoints_in(folder: Path) -> list[Path]:
    """Folders named as checkpoints, whole or not, by step."""
    found = [path for path in folder.glob("checkpoint-*") if step_of(path) >= 0 and path.is_dir()]
    return sorted(found, key=step_of)


def write_manifest(checkpoint: Path, processes: int) -> None:
    """Put every file on the disk and, after them, the list of their names and sizes: the checkpoint is whole now."""
    files = {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    sync_tree(checkpoint)
    manifest = {"format_version": MANIFEST_VERSION, "processes": processes, "files": files}
    (checkpoint / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    sync_tree(checkpoint)


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None where there is none, or half of one."""
    try:
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def missing_from(checkpoint: Path, rng_file: str | None = None) -> list[str]:
    """What a folder lacks of a checkpoint that can be resumed: file names, with the reason where a file is damaged.

    With a manifest every file must be there in its size, but for card and match score. Without one (a checkpoint of
    plain transformers, or one from the Hub) the needed files must be there, and those of known format must not be cut
    short.

    Args:
        checkpoint: the folder.
        rng_file: the random state's file of one process, where it must be there too.
    """
    if not checkpoint.is_dir():
        return ["the folder itself"]
    manifest = read_manifest(checkpoint)
    if manifest is None:
        damaged = [path.name for path in sorted(checkpoint.iterdir()) if not _readable(path)]
        lacks = [f"{name} (damaged)" for name in damaged]
    else:
        lacks = _differences(checkpoint, manifest)
    lacks += [
        name
        for name, patterns in _NEEDED.items()
        if name not in lacks and not any(any(checkpoint.glob(pattern)) for pattern in patterns)
    ]
    if rng_file is not None and not any(name.startswith("rng_state") for name in lacks):
        lacks += [] if (checkpoint / rng_file).is_file() else [rng_file]
    return lacks


def _differences(checkpoint: Path, manifest: dict[str, Any]) -> list[str]:
    lacks = []
    for name, size in manifest["files"].items():
        file = checkpoint / name
        if name in REWRITTEN:
            continue
        if not file.is_file():
            lacks.append(name)
        elif file.stat().st_size != size:
            lacks.append(f"{name} ({file.stat().st_size} of {size} bytes)")
    return lacks


def _readable(path: Path) -> bool:
    """Whether a file of known format has its end: JSON its bracket, safetensors its last tensor, a zip its index."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        elif path.suffix in (".pt", ".pth"):
            return zipfile.is_zipfile(path)
    except (ValueError, SafetensorError):
        return False
    return True


def complete_checkpoints(folder: Path, *, warn: bool = True) -> list[Path]:
    """Checkpoints in a run's folder that can be resumed, by step, newest first: no clock takes part.

    Each incomplete one that is newer than all of them is named in a warning, with what it lacks.
    """
    found = []
    for checkpoint in reversed(checkpoints_in(folder)):
        lacks = missing_from(checkpoint)
        if not lacks:
            found.append(checkpoint)
        elif warn and not found:
            logger.warning("skipping %s, which is incomplete: it lacks %s", checkpoint, ", ".join(lacks))
    return found


def name_checkpoint(staged: Path, run: Path) -> Path:
    """Move a whole checkpoint from the staging folder to its place; one that is there is replaced.

    A kill at any moment leaves at least one of the two whole, and `finish_interrupted` finds it.
    """
    target = run / staged.name
    take_name(staged, target, staged.with_name(f"replaced-{staged.name}"))
    return target


def finish_interrupted(run: Path) -> None:
    """Clear what a killed process left half-way: a save that lacked only its name gets it, all else is removed."""
    staging = run / STAGING_FOLDER
    for staged in checkpoints_in(staging):
        manifest = read_manifest(staged)
        if manifest is not None and not _differences(staged, manifest):
            logger.info("%s was whole when its process was killed: giving it its name", staged.name)
            name_checkpoint(staged, run)
        else:
            logger.warning("removing %s, left by a process that was killed while it saved", staged)
    shutil.rmtree(staging, ignore_errors=True)


def rotate(newest: Path, limit: int | None, best: Path | None = None, busy: Collection[str] = ()) -> None:
    """Remove older checkpoints of `newest`'s run until `limit` are left; `newest` and `best` stay in any case.

    By step, where transformers goes by modification time: with a clock that was set back, the newest would go first.
    Steps beyond `newest` are of an earlier run in the same folder and go before all others. Names in `busy`, of what
    is being uploaded, stay until a later call.
    """
    if limit is None or limit <= 0:
        return
    step = step_of(newest)
    kept = {newest.name} | ({best.name} if best is not None and best.is_dir() else set())
    others = [path for path in checkpoints_in(newest.parent) if path.name not in kept]
    others.sort(key=lambda path: (step_of(path) <= step, step_of(path)))
    staging = newest.parent / STAGING_FOLDER
    for old in others[: max(0, len(others) - max(0, limit - len(kept)))]:
        if old.name in busy:
            continue
        # It loses its name first, so that a kill leaves no half of it under that name.
        aside = staging / f"removed-{old.name}"
        staging.mkdir(exist_ok=True)
        old.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(staging, ignore_errors=True)
