"""Our small JSON files: what is refused, and how it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from flipped_kd.utils.json_files import check_version, read_versioned


def test_a_file_of_this_release_or_an_older_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    for version in (1, 2):
        path.write_text(f'{{"format_version": {version}, "size": 3}}')
        assert read_versioned(path, 2) == {"format_version": version, "size": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format_version": 3}', r"format_version 3, this release reads up to 2: upgrade flipped_kd"),
        ('{"format_version": 0}', r"format_version 0, no whole number from 1: make it anew"),
        ('{"format_version": "2"}', r"format_version '2', no whole number"),
        ('{"format_version": true}', r"format_version True, no whole number"),
        ('{"size": 3}', r"format_version None, no whole number"),
        ("[]", r"holds a list, not a JSON object: make it anew"),
        ('{"format_version": 1', r"no valid JSON.*make it anew"),
        (None, r"cannot be read.*give an existing file"),
    ],
)
def test_others_are_refused_with_file_and_remedy(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=rf"settings\.json.*{message}"):
        read_versioned(path, 2, "make it anew")


def test_what_it_was_found_in_is_named() -> None:
    check_version(2, 2, "the report")
    with pytest.raises(ValueError, match="the report has format_version 5"):
        check_version(5, 2, "the report")
