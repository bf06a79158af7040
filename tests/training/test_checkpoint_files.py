"""Checkpoints on disk: how many are kept, and what may be written anew without one counting as broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from flipped_kd.training import checkpoint_files
from flipped_kd.training.checkpoint_files import (
    MANIFEST_FILE,
    complete_checkpoints,
    missing_from,
    rotate,
    write_manifest,
)

RESUMED_FROM = ("trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def kept(run: Path) -> list[int]:
    """Steps of the checkpoints that are there."""
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in run.glob("checkpoint-*"))


@pytest.mark.parametrize("best", [None, 2])
@pytest.mark.parametrize("limit", range(1, 9))
def test_the_newest_and_the_best_are_kept_up_to_the_limit(limit: int, best: int | None, tmp_path: Path) -> None:
    for step in range(1, 13):
        newest = tmp_path / f"checkpoint-{step}"
        newest.mkdir()
        is_there = best is not None and step >= best
        rotate(newest, limit, tmp_path / f"checkpoint-{best}" if is_there else None)
        expected = set(range(max(1, step - limit + 1), step + 1))
        if is_there and best not in expected:
            expected = {best, *sorted(expected)[-max(1, limit - 1) :]}
        assert kept(tmp_path) == sorted(expected)


def test_the_manifest_is_written_once_its_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is then put there itself: after a power cut it would else vouch for files that are not."""
    synced: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(
        checkpoint_files,
        "sync_tree",
        lambda folder: synced.append((folder, sorted(path.name for path in folder.iterdir()))),
    )
    (tmp_path / "optimizer.pt").write_bytes(b"as saved")
    write_manifest(tmp_path, processes=1)
    assert synced == [(tmp_path, ["optimizer.pt"]), (tmp_path, [MANIFEST_FILE, "optimizer.pt"])]


def test_a_card_or_a_score_that_was_written_anew_breaks_nothing(tmp_path: Path) -> None:
    """As by `flipped-kd card` and `calibrate`; weights that have changed are another matter."""
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    for name in (*RESUMED_FROM, "README.md", "match_score.json"):
        (checkpoint / name).write_bytes(b"as saved")
    write_manifest(checkpoint, processes=1)
    (checkpoint / "README.md").write_bytes(b"edited by hand")
    (checkpoint / "match_score.json").unlink()
    assert complete_checkpoints(tmp_path) == [checkpoint]
    (checkpoint / "optimizer.pt").write_bytes(b"cut")
    assert missing_from(checkpoint) == ["optimizer.pt (3 of 8 bytes)"]
