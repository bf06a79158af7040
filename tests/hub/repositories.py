"""What the loopback Hub keeps on disk: contents under their hash, and repositories made of immutable commits."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

# Files of these names go to large file storage whatever their size, as in the .gitattributes of a new repository.
LARGE_PATTERNS = (
    *("*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.gguf", "*.gz", "*.h5", "*.joblib", "*.model", "*.msgpack"),
    *("*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt", "*.pth", "*.rar"),
    *("*.safetensors", "*.tar", "*.tflite", "*.tgz", "*.wasm", "*.xz", "*.zip", "*.zst", "*tfevents*"),
)
GIT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_PATTERNS).encode()
# Beyond this size (bytes) every file is a large one.
REGULAR_LIMIT = 10 * 1024 * 1024


class HubError(Exception):
    """An answer other than success: HTTP status, what was wrong, and the Hub's code for it if it has one."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers: dict[str, str] = {"X-Error-Message": message, **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_id(content: bytes, kind: str = "blob") -> str:
    """git's id of an object, 40 hexadecimal digits."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file goes to large file storage: by its name, its size, or binary content."""
    name = PurePosixPath(path).name
    return size > REGULAR_LIMIT or b"\0" in sample or any(fnmatch.fnmatch(name, rule) for rule in LARGE_PATTERNS)


class ContentStore:
    """Files named by the SHA-256 of what is in them. A content is there as a whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "objects"
        self._uploads = folder / "uploads"
        for each in (self.folder, self._uploads):
            each.mkdir(parents=True)

    def path(self, sha256: str) -> Path:
        """Where the content of this hash is, or would be."""
        return self.folder / sha256

    def size(self, sha256: str) -> int | None:
        """Bytes of a content; None if it is not here."""
        path = self.path(sha256)
        return path.stat().st_size if path.is_file() else None

    def add(self, chunks: Iterable[bytes], expected: str | None = None) -> str:
        """Keep a content and return its hash; HubError 400 if it is not the expected one, and nothing is kept."""
        digest = hashlib.sha256()
        unfinished = self._uploads / uuid.uuid4().hex
        try:
            with unfinished.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            found = digest.hexdigest()
            if expected is not None and found != expected:
                raise HubError(400, f"The content has the SHA-256 {found}, announced was {expected}")
            os.replace(unfinished, self.path(found))
        finally:
            unfinished.unlink(missing_ok=True)
        return found

    def add_part(self, sha256: str, number: int, chunks: Iterable[bytes]) -> str:
        """Keep one part of a content that comes in several, and return the part's MD5."""
        content = b"".join(chunks)
        self._part(sha256, number).write_bytes(content)
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    def join_parts(self, sha256: str, etags: Mapping[int, str]) -> None:
        """Make a content of its parts; `etags`: the MD5 that was answered for each part."""
        parts = [self._part(sha256, number) for number in sorted(etags)]
        if sorted(etags) != list(range(1, len(etags) + 1)) or not all(part.is_file() for part in parts):
            raise HubError(400, f"Parts {sorted(etags)} of {sha256} are not what was uploaded")
        contents = [part.read_bytes() for part in parts]
        for number, content in zip(sorted(etags), contents, strict=True):
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != etags[number]:
                raise HubError(400, f"Part {number} of {sha256} is another one than the ETag says")
        self.add(contents, sha256)
        for part in parts:
            part.unlink()

    def _part(self, sha256: str, number: int) -> Path:
        return self._uploads / f"{sha256}.{number}"


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit; `blob_id` is git's id of the content, of the pointer for a file in large file storage."""

    size: int
    sha256: str
    blob_id: str
    large: bool

    @classmethod
    def regular(cls, content: bytes) -> StoredFile:
        """A file that is in git itself."""
        return cls(len(content), hashlib.sha256(content).hexdigest(), git_id(content), False)

    @classmethod
    def in_large_storage(cls, sha256: str, size: int) -> StoredFile:
        """A file of which git has only the pointer."""
        return cls(size, sha256, git_id(_pointer(sha256, size)), True)

    @property
    def etag(self) -> str:
        """What the download client names its cached copy by."""
        return self.sha256 if self.large else self.blob_id

    @property
    def pointer_size(self) -> int:
        """Bytes of the pointer in git."""
        return len(_pointer(self.sha256, self.size))


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files; never changed."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, StoredFile]

    def file(self, path: str) -> StoredFile:
        """The file of this path; HubError 404 EntryNotFound."""
        if path not in self.files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": self.oid})
        return self.files[path]


@dataclass
class Changes:
    """What a commit does to the files."""

    added: dict[str, StoredFile] = field(default_factory=dict)
    deleted_files: list[str] = field(default_factory=list)
    deleted_folders: list[str] = field(default_factory=list)

    def apply(self, files: Mapping[str, StoredFile]) -> dict[str, StoredFile]:
        """The files after the changes; HubError 404 if something to delete is not there."""
        after = dict(files)
        for path in self.deleted_files:
            if path not in after:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            del after[path]
        for folder in self.deleted_folders:
            inside = [path for path in after if path.startswith(folder.rstrip("/") + "/")]
            if not inside:
                raise HubError(404, "A folder with this name doesn't exist", "EntryNotFound")
            for path in inside:
                del after[path]
        return dict(sorted({**after, **self.added}.items()))


class Repository:
    """Commits, branches and tags of one model repository."""

    def __init__(self, repo_id: str, private: bool, store: ContentStore, folder: Path) -> None:
        self.id = repo_id
        self.private = private
        self.created = now()
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        store.add([GIT_ATTRIBUTES])
        first = Changes({".gitattributes": StoredFile.regular(GIT_ATTRIBUTES)})
        self.branches["main"] = self._new_commit(None, first, "initial commit", "", "system").oid

    @property
    def owner(self) -> str:
        """The namespace."""
        return self.id.split("/")[0]

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag, a commit id or its first 7 digits or more; HubError 404 RevisionNotFound."""
        for prefix, names in (("refs/heads/", self.branches), ("refs/tags/", self.tags)):
            name = revision.removeprefix(prefix)
            if name in names:
                return self.commits[names[name]]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            found = [commit for oid, commit in self.commits.items() if oid.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> list[Commit]:
        """A commit and those before it, newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def commit(
        self, branch: str, changes: Changes, title: str, message: str, author: str, parent: str | None
    ) -> Commit:
        """Add a commit to a branch; HubError 412 if `parent` is given and is not the head of it."""
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = self.commits[self.branches[branch]]
        if parent is not None and not head.oid.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        new = self._new_commit(head, changes, title, message, author)
        self.branches[branch] = new.oid
        return new

    def _new_commit(self, parent: Commit | None, changes: Changes, title: str, message: str, author: str) -> Commit:
        files = changes.apply(parent.files if parent else {})
        facts: dict[str, Any] = {
            "parent": parent.oid if parent else None,
            "title": title,
            "message": message,
            "author": author,
            "date": now(),
        }
        listing = {path: asdict(file) for path, file in files.items()}
        written = json.dumps({"repository": self.id, **facts, "files": listing}, indent=1).encode()
        new = Commit(oid=git_id(written, "commit"), files=MappingProxyType(files), **facts)
        (self._folder / f"{new.oid}.json").write_bytes(written)
        self.commits[new.oid] = new
        return new
