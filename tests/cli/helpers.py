"""A tiny adapter and files of pairs for the tests of `flipped-kd`, and how to run the command."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from flipped_kd.cli.main import main
from flipped_kd.data.table_jobs import TableJob
from flipped_kd.evaluation.match_score import LogOdds, MatchScore
from flipped_kd.utils.choices import SCORE_KINDS
from tests.adapters import make_adapter
from tests.conftest import make_pairs
from tests.warm_python import ROOT, Program

# Thresholds that part the pairs otherwise than the natural one.
ODDS = {
    "answer": LogOdds(1.0, 0.0, 0.0, threshold=1.0),
    "similarity": LogOdds(0.0, 3.0, -1.0, threshold=1.5),
    "both": LogOdds(0.5, 2.0, 0.25, threshold=1.1),
}

NEAR: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
# Options of a training of two steps.
QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--save_strategy", "no", "--disable_tqdm", "True"]


def run(*arguments: object) -> int:
    """The exit code of a command."""
    return main([str(argument) for argument in arguments])


def quietly(*arguments: object) -> int:
    """The exit code of a command without progress."""
    return run(*arguments, "--quiet")


def tuples(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["text_a"], row["text_b"]) for row in rows]


def failing_at(number: int) -> Callable[..., None]:
    """A `TableJob._write` to which the disk says no at part `number`."""
    write = TableJob._write

    def failing(self: TableJob, chunk: Any, result: pa.Table) -> None:
        if chunk.number == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(self, chunk, result)

    return failing


def adapter_with_scores(folder: Path, base: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random adapter with a match score."""
    make_adapter(folder, base, tokenizer, score=False)
    MatchScore({kind: ODDS[kind] for kind in SCORE_KINDS}, "both").save_pretrained(folder)
    return folder


def pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Labelled pairs, each with a column of its own."""
    return [dict(row) | {"number": number} for number, row in enumerate(make_pairs(count, seed))]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """As JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """Of a file, or of the text itself."""
    text = path.read_text(encoding="utf-8") if isinstance(path, Path) else path
    return [json.loads(line) for line in text.splitlines()]


def environment(**more: str) -> dict[str, str]:
    """Offline, on the CPU."""
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **quiet, **more}


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """`flipped-kd` in a process of its own."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()} | options
    return Program(["-m", "flipped_kd", *arguments], cwd=ROOT, **options)


def closed_pipe() -> TextIO:
    """A text stream whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="utf-8")


def through_pipe(path: Path, write: Callable[[], Any]) -> bytes:
    """What comes out of a named pipe, made at `path`, while `write` runs; it is a pipe afterwards too."""
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    reader.start()
    write()
    reader.join(timeout=30)
    assert stat.S_ISFIFO(path.lstat().st_mode) and found, "a reader waits for ever"
    return found[0]


def null_device(path: Path) -> bool:
    """Make a null device at `path`; False where this process may not."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.write_bytes(b"gone")
    except PermissionError:
        return False
    return True


def is_device(path: Path) -> bool:
    return stat.S_ISCHR(path.lstat().st_mode)
