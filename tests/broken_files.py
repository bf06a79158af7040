"""Ways in which a large file is not what it should be."""

from __future__ import annotations

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"
# What an error calls each of them.
BREAKS = {"pointer": "a pointer of Git LFS", "cut": "broken or truncated", "empty": "broken or truncated"}


def break_file(path: Path, how: str) -> None:
    """Leave a pointer, the first half or nothing in the place of a file."""
    content = path.read_bytes()
    path.write_bytes({"pointer": POINTER, "cut": content[: len(content) // 2], "empty": b""}[how])
