"""What the ranks of every test here start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest


@pytest.fixture(scope="module")
def inputs(
    student_dir: Path,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Makes a folder with student, teacher, pairs and held_out, all that the ranks' scripts read."""

    def make(odd: bool = False) -> Path:
        """With `odd` one rank has a row more of held_out to score than the other."""
        folder = tmp_path_factory.mktemp("ranks")
        (folder / "student").symlink_to(student_dir)
        (folder / "teacher").symlink_to(teacher_dir)
        pairs.save_to_disk(str(folder / "pairs"))
        (held_out.select(range(23)) if odd else held_out).save_to_disk(str(folder / "held_out"))
        return folder

    return make
