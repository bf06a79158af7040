"""Long work over a table file that may be interrupted at any point and goes on when it is started again.

The rows are cut into parts of a fixed number of rows. What is computed for a part is one Arrow file in
`<target>.partial/`, written whole and renamed; when all are there, the input is read once more, the parts are put
beside its rows, and the result gets its name by one rename. A part is used again only if it was made by the same work
(the manifest: release, options, digests of input and model), from the same texts (its own digest) and is undamaged
(its name carries a digest of its bytes). Parts do not depend on each other, so any number of processes may share them
out.

One job at a time has a target: hold `utils.locking.sole_writer_of` from `start` to the end. Symbolic links to the
target are followed; into a device or a pipe the result is written instead.

One file, though long: one class, whose manifest, parts and joining must agree on what is finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from ..utils.atomic import explained, is_passage, pass_on, place_of, write_atomically
from ..utils.json_files import write_json
from ..utils.version import __version__
from .table_writers import Layout, open_writer
from .text_tables import Chunk, Scan, TextTable, scan

logger = logging.getLogger(__name__)
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
METADATA_KEY = b"flipped_kd"

# Round what is written at a place.
clear_write_error = partial(
    explained,
    "cannot be written ({reason}); what is finished is kept: make room there or write elsewhere, and repeat the "
    "command",
)
# What is computed for the rows of a part.
Compute = Callable[[Chunk], pa.Table]
# Puts what was computed for all rows into another order, and may leave out some of it.
Arrange = Callable[[pa.Table], pa.Table]


class TableJob:
    """The work on one table with one target.

    Call `start` (in the main process), load the model, `begin` (main process), `fill` (every process), `join` (main
    process).

    Args:
        table: what to read.
        target: the file to write, or a device or pipe to write into.
        format: its format, see `table_writers.open_writer`.
        options: everything the result depends on besides texts and model; plain JSON values by option.
        keep_rows: whether the rows of the input are written too, each with what was computed for it.
        restart: drop unfinished work of other input or options.
        overwrite: replace a target that exists.
    """

    def __init__(
        self,
        table: TextTable,
        target: Path,
        format: str,
        options: Mapping[str, Any],
        *,
        keep_rows: bool = True,
        restart: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.table, self.target, self.format = table, place_of(target), format
        self.folder = self.target.with_name(self.target.name + ".partial")
        self.keep_rows, self.restart, self.overwrite = keep_rows, restart, overwrite
        every = {
            **options,
            "columns": list(table.columns.values()),
            "id_column": None if table.id_column is None else table.id_column[1],
            "part_rows": table.part_rows,
            "skip_bad_rows": table.skip_bad_rows,
        }
        self._identity: dict[str, Any] = {"release": __version__, "options": json.loads(json.dumps(every))}
        self._scan = Scan(Layout())
        self._run = ""
        self._parts: dict[int, list[Path]] = {}

    # ---- Beginning ----

    def start(self, reserved: Sequence[str]) -> Scan:
        """Read the input once and compare it with unfinished work, before any model is loaded.

        Raises:
            ValueError: the input is bad; the target exists; or the partial folder is of other input or options.
        """
        if self.target.is_dir():
            raise ValueError(f"{self.target} is a folder: give the name of a file.")
        if self.target.exists() and self.table.source.path.samefile(self.target):
            raise ValueError(f"{self.target} is the input: write to another file.")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is in the way of unfinished work: move it.")
        if self.target.is_file() and not self.overwrite and not self._was_joined():
            raise ValueError(f"{self.target} exists: give another file, or --overwrite to replace it.")
        self._scan = scan(self.table, reserved, self.keep_rows, self.format != "parquet")
        self._identity["input"] = self._scan.digest
        if not self._was_joined():
            self._check_manifest()
        return self._scan

    def begin(self, model: str) -> bool:
        """Make the partial folder ready; False if an earlier run had finished all but the cleaning up.

        `model` is a digest of all that decides what the model computes. Raises ValueError as `start`, now also for
        another model, and OSError where the folder cannot be written.
        """
        self._identity["model"] = model
        if self._was_joined():
            same = self._differences() == []
            self._drop()
            if same:
                return False
            if not self.overwrite:
                raise ValueError(f"{self.target} exists: give another file, or --overwrite to replace it.")
        self._check_manifest()
        with clear_write_error(self.folder):
            if self.restart:
                self._drop()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_manifest()
        self.attach()
        return True

    def is_begun(self) -> bool:
        """Whether there is work to do or to join: the manifest is there."""
        return self._manifest() is not None

    def attach(self) -> None:
        """Find what is there, after `begin`; the other processes call it once the main one has come so far."""
        found = json.dumps(self._manifest(), sort_keys=True)
        self._run = hashlib.blake2b(found.encode(), digest_size=16).hexdigest()
        self._list_parts()

    def _list_parts(self) -> None:
        self._parts = {}
        for path in sorted(self.folder.glob("part-*.arrow")):
            self._parts.setdefault(int(path.name.split("-")[1]), []).append(path)

    def _write_manifest(self, **more: Any) -> None:
        manifest = {"format_version": FORMAT_VERSION, **self._identity, **more}
        write_json(self.folder / MANIFEST, manifest)

    def _manifest(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _drop(self) -> None:
        """Remove the partial folder; the manifest last, so that what is left of an interrupted removal is known."""
        if self._manifest() is not None:
            for path in sorted(self.folder.iterdir(), key=lambda path: path.name == MANIFEST):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _differences(self) -> list[str]:
        """What the manifest says otherwise, in words."""
        found = self._manifest()
        if found is None:
            return ["it has no manifest"]
        if found.get("format_version") != FORMAT_VERSION:
            return ["it was written by another release"]
        words = {
            "release": "it was written by another release",
            "input": "the input has changed",
            "model": "the model has changed",
        }
        different = [words[key] for key in words if key in self._identity and found.get(key) != self._identity[key]]
        old, new = found.get("options", {}), self._identity["options"]
        different += [
            f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
        return different

    def _check_manifest(self) -> None:
        # Interrupted before the manifest had its name, the folder holds nothing but its draft.
        if not self.folder.exists() or all(path.name.startswith(".tmp-") for path in self.folder.iterdir()):
            return
        if self._manifest() is None:
            raise ValueError(f"{self.folder} is in the way and is no unfinished work of flipped-kd: move it.")
        different = self._differences()
        if different and not self.restart:
            raise ValueError(
                f"{self.folder} holds the unfinished work of another command ({'; '.join(different)}): repeat that "
                "command, or give --restart to drop it."
            )

    def _was_joined(self) -> bool:
        """Whether the target is what the partial folder was joined into, and only the cleaning up was interrupted."""
        joined = (self._manifest() or {}).get("joined")
        if joined is None or not self.target.is_file():
            return False
        return self.target.stat().st_size == joined["size"] and _file_digest(self.target) == joined["digest"]

    # ---- Work ----

    def fill(
        self, compute: Compute, *, rank: int = 0, world: int = 1, progress: Callable[[int], Any] = lambda rows: None
    ) -> None:
        """Compute every missing part that is this process's: those whose number is `rank` modulo `world`.

        Args:
            compute: n rows -> table of n rows (of any number, where the rows of the input are not kept).
            rank: number of this process.
            world: number of processes.
            progress: told the number of rows after each part.
        """
        for chunk in self.table.chunks():
            if chunk.number % world != rank:
                continue
            if len(chunk.rows) and self._read(chunk) is None:
                self._write(chunk, compute(chunk))
            progress(len(chunk.rows))

    def _write(self, chunk: Chunk, result: pa.Table) -> None:
        metadata = {METADATA_KEY: json.dumps({"run": self._run, "texts": chunk.digest})}
        sink = pa.BufferOutputStream()
        result = result.replace_schema_metadata(metadata)
        with pa.ipc.new_file(sink, result.schema) as writer:
            writer.write_table(result)
        data = sink.getvalue()
        digest = hashlib.blake2b(data, digest_size=8).hexdigest()
        with clear_write_error(self.folder):
            write_atomically(self.folder / f"part-{chunk.number:06d}-{digest}.arrow", data)

    def _read(self, chunk: Chunk) -> pa.Table | None:
        """The chunk's part, if there is one that is whole and was made by this work from these texts."""
        for path in self._parts.get(chunk.number, []):
            if hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() != path.stem.rpartition("-")[2]:
                logger.warning("%s is damaged (its bytes do not match its name) and is computed again", path)
                path.unlink(missing_ok=True)
                continue
            with pa.OSFile(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            if json.loads(table.schema.metadata[METADATA_KEY]) == {"run": self._run, "texts": chunk.digest}:
                return table.replace_schema_metadata(None)
        return None

    # ---- End ----

    def join(self, added: pa.Schema, arrange: Arrange | None = None) -> None:
        """Put the parts beside the rows of the input into the target, and remove the partial folder.

        Args:
            added: the columns that `compute` gives.
            arrange: applied to all parts together, in memory, where the rows of the input are not kept.

        Raises:
            RuntimeError: the input has changed meanwhile, so that a part does not belong to it.
            OSError: the target cannot be written.
        """
        self._list_parts()
        for left in self.folder.glob("joined*.tmp"):  # by a kill
            left.unlink(missing_ok=True)
        # A name of its own: where the file system has no locks, two commands would else write into one file.
        joined = self.folder / f"joined-{uuid.uuid4().hex}.tmp"
        with clear_write_error(self.folder), open(joined, "wb") as file:
            self._write_all(file, added, arrange)
            file.flush()
            os.fsync(file.fileno())
        with clear_write_error(self.target):
            if is_passage(self.target):
                pass_on(joined, self.target)
            else:
                self._write_manifest(joined={"size": joined.stat().st_size, "digest": _file_digest(joined)})
                os.replace(joined, self.target)
            self._drop()

    def _write_all(self, file: BinaryIO, added: pa.Schema, arrange: Arrange | None) -> None:
        writer = open_writer(self.format, file, self._scan.layout, added, self._scan.rows)
        try:
            if arrange is None:
                for chunk, part in self._in_order(added):
                    writer.write(chunk.rows if self.keep_rows else None, part)
            else:
                parts = [part for _, part in self._in_order(added)]
                writer.write(None, arrange(pa.concat_tables(parts or [added.empty_table()])))
            writer.close()
        except BaseException:
            writer.abandon()
            raise

    def _in_order(self, added: pa.Schema) -> Iterator[tuple[Chunk, pa.Table]]:
        """Every chunk of the input with its part."""
        count = 0
        for count, chunk in enumerate(self.table.chunks(), start=1):
            same = chunk.digest in self._scan.digests[chunk.number : count]
            part = self._read(chunk) if len(chunk.rows) else added.empty_table()
            if not same or part is None:
                raise self._changed()
            yield chunk, part
        if count < len(self._scan.digests):
            raise self._changed()

    def _changed(self) -> RuntimeError:
        return RuntimeError(
            f"{self.table.source.name!r} or {self.folder} was changed while it was worked on: repeat the command, "
            "with --restart if the input has changed."
        )


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
