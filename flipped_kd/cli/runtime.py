"""What the verbs share: the processes of `accelerate launch`, and jobs over tables with their progress."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.utils import disable_progress_bars
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from ..data.table_jobs import Arrange, Compute, TableJob, clear_write_error
from ..data.table_pipes import stream
from ..data.table_writers import WRITABLE
from ..data.tables import STANDARD, TableSource, format_of, standard_input
from ..data.text_tables import TextTable, scan, tell_of_rows
from ..utils.atomic import place_of
from ..utils.devices import use_cpu_threads
from ..utils.locking import sole_writer_of
from .arguments import UsageError
from .outputs import refuse_inputs

logger = logging.getLogger(__name__)
NUMPY = {".npy": "npy"}
# The main process joins when the slowest one has finished; the default of ten minutes would end the run.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Work:
    """What a verb does with a table, once its model is there.

    Attributes:
        compute: what is computed for the rows of a part.
        added: the columns that it gives.
        model: digest of all that decides what the model computes.
        arrange: puts all that was computed into its final order.
    """

    compute: Compute
    added: pa.Schema
    model: str
    arrange: Arrange | None = None


def processes() -> int:
    """How many processes `accelerate launch` has started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched(options: Namespace) -> PartialState:
    """The processes that `accelerate launch` has started, this one alone without it."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(
        cpu=on_cpu or str(options.device).startswith("cpu"), **({"timeout": PATIENCE} if processes() > 1 else {})
    )
    if state.device.type == "cpu":
        use_cpu_threads()
    if not state.is_main_process:
        logging.getLogger("flipped_kd").setLevel(logging.ERROR)
    return state


def run_table_job(
    options: Namespace,
    source: str,
    columns: Mapping[str, str],
    depends_on: Mapping[str, Any],
    added: Sequence[str],
    open_work: Any,
    *,
    id_column: tuple[str, str] | None = None,
    keep_rows: bool = True,
    vectors: bool = False,
) -> None:
    """Do a verb's work on a table, in parts, resumable; or, for standard output, row by row.

    Args:
        options: of the command.
        source: the table, or "-".
        columns: its text columns by the option that sets them.
        depends_on: the options that change the result, by name.
        added: the columns that may be added.
        open_work: loads the model, given the `PartialState`, and returns `Work`.
        id_column: see `TextTable`.
        keep_rows: whether the table's own columns are written too.
        vectors: whether the output may be a .npy file.

    Raises:
        ValueError: bad input, found before the model is loaded; or unfinished work of another command.
        RuntimeError: another command is writing the output.
        OSError: the output cannot be written.
    """
    to_screen = options.output == STANDARD
    format = "jsonl" if to_screen else format_of(options.output, {**WRITABLE, **(NUMPY if vectors else {})})
    if processes() > 1 and STANDARD in (options.output, source):
        raise UsageError("several processes need files: give both input and --output a name")
    if to_screen and (options.overwrite or options.restart):
        raise UsageError("--overwrite and --restart are about a file: name it by --output")
    refuse_inputs(options.output, source)
    state = launched(options)
    target = place_of(options.output)
    alone = nullcontext() if to_screen or not state.is_main_process else sole_writer_of(target)
    with alone, _spooled(source, to_screen, options.output) as path:
        table = TextTable(TableSource(path), columns, options.part_rows, options.skip_bad_rows, id_column)
        if to_screen:
            if not table.source.is_standard:
                # What is wrong with a file is said before the model is loaded.
                scan(table, added, keep_rows, converts=True)
            work = open_work(state)
            file = options.stdout.buffer
            with _bar(options, state, None) as bar:
                counted = _counting(work.compute, bar)
                rows, bad = stream(table, file, counted, work.added, keep_rows=keep_rows, arrange=work.arrange)
            tell_of_rows(table, rows, bad)
            return
        job = TableJob(
            table,
            target,
            format,
            depends_on,
            keep_rows=keep_rows and format != "npy",
            restart=options.restart,
            overwrite=options.overwrite,
        )
        _run_in_parts(options, state, job, added, open_work)


def _run_in_parts(
    options: Namespace, state: PartialState, job: TableJob, added: Sequence[str], open_work: Any
) -> None:
    rows = None
    if state.is_main_process:
        found = job.start(added)
        rows = found.rows
        tell_of_rows(job.table, rows, found.bad)
    work = open_work(state)
    if state.is_main_process and not job.begin(work.model):
        logger.info("%s had been finished before", job.target)
    state.wait_for_everyone()
    if job.is_begun():
        job.attach()
        with _bar(options, state, rows) as bar:
            job.fill(work.compute, rank=state.process_index, world=state.num_processes, progress=bar.update)
        state.wait_for_everyone()
        if state.is_main_process:
            job.join(work.added, work.arrange)
            logger.info("%s: %d rows", job.target, rows)
    state.wait_for_everyone()


@contextmanager
def _spooled(source: str, to_screen: bool, output: str) -> Iterator[str]:
    """The table's path; standard input is copied to a file first where it has to be read more than once."""
    if source != STANDARD or to_screen:
        yield source
        return
    target = Path(output).absolute()
    # One name for each output: what a killed command has left is written over by the next one, which has the lock.
    path = target.with_name(f".{target.name}.standard-input.jsonl")
    try:
        private = partial(os.open, mode=0o600)  # it holds all texts
        with clear_write_error(path), open(path, "wb", opener=private) as file:
            shutil.copyfileobj(standard_input(), file)
        yield str(path)
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _counting(compute: Compute, bar: tqdm) -> Compute:
    def counted(chunk: Any) -> pa.Table:
        result = compute(chunk)
        bar.update(len(chunk.rows))
        return result

    return counted


def _bar(options: Namespace, state: PartialState, rows: int | None) -> tqdm:
    """Progress in rows: of all processes alike, shown by the main one."""
    total = None if rows is None else rows // state.num_processes
    hidden = not shows_progress(options) or not state.is_main_process
    return tqdm(total=total, unit=" rows", file=sys.stderr, disable=hidden)


def shows_progress(options: Namespace) -> bool:
    """Whether somebody looks on."""
    return not options.quiet and sys.stderr.isatty()


def hide_bars(options: Namespace) -> None:
    """Let the libraries show no progress either where nobody looks on."""
    if not shows_progress(options):
        datasets.disable_progress_bars()
        disable_progress_bars()
        disable_progress_bar()


def reading(options: Namespace) -> dict[str, Any]:
    """How a matcher is told to read many pairs."""
    return {"batch_size": options.batch_size, "show_progress_bar": shows_progress(options)}


def named_column(option: str, column: str | None) -> tuple[str, str] | None:
    return None if column is None else (option, column)


def id_type(column: str | None) -> pa.DataType:
    """Row numbers, or the values of a column as text."""
    return pa.int64() if column is None else pa.string()
