"""The Makefile, with a Python in .venv that only notes what it is asked: what is refused, and what is made anew."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.helpers import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
# Gives its version, makes a .venv with itself, and fails at installing what `FAILS` names.
PYTHON = """#!/bin/sh
case "$*" in
    *sys.version_info*print*|*print*sys.version_info*) echo {version}; exit ;;
    *venv*) mkdir -p .venv/bin; rm -f .venv/.[a-z]*; cp "$0" .venv/bin/python ;;
esac
echo "$FLIPPED_KD_STUDENT|$*" >> asked
test -z "$FAILS" || case "$*" in *"$FAILS"*) exit 1 ;; esac
"""


def python(path: Path, version: str = "3.11") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PYTHON.format(version=version), encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with a finished .venv of Python 3.11."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    python(folder / ".venv" / "bin" / "python")
    (folder / ".venv" / ".installed").touch()
    return folder


def make(clone: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A run of its own: what the make of these tests was given says nothing to it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for name in ("PYTHON", "STUDENT", "ARGS"):
        inherited.pop(name, None)
    (clone / "asked").unlink(missing_ok=True)
    return subprocess.run(
        ["make", *arguments], cwd=clone, env=inherited | variables, capture_output=True, text=True, check=False
    )


def asked(clone: Path) -> list[str]:
    """What a Python was asked in the last run, after the student that it was told."""
    return (clone / "asked").read_text(encoding="utf-8").splitlines() if (clone / "asked").exists() else []


def test_a_student_of_the_benchmarks_may_have_spaces_in_its_path(clone: Path) -> None:
    assert make(clone, "bench", "STUDENT=/models/my model.gguf").returncode == 0
    assert asked(clone) == ["/models/my model.gguf|-m benchmarks"]


def test_a_student_that_the_demo_does_not_take_is_refused(clone: Path) -> None:
    refused = make(clone, "demo", "STUDENT=/models/x.gguf")
    assert refused.returncode == 2 and not asked(clone)
    assert "make demo takes no STUDENT but tiny, not /models/x.gguf. Leave it out, or" in refused.stderr
    for arguments in (["demo"], ["demo", "STUDENT=tiny"], ["bench", "STUDENT=/models/x.gguf"]):
        assert make(clone, "-n", *arguments).returncode == 0, arguments


def test_another_python_than_that_of_the_venv_is_refused(clone: Path) -> None:
    other, same = python(clone / "python3.12", "3.12"), python(clone / "python3.11")
    for target in ("install", "lint"):
        refused = make(clone, target, f"PYTHON={other}")
        assert refused.returncode == 2 and not asked(clone)
        assert f".venv is of Python 3.11, and PYTHON={other} is 3.12. Remove .venv first: make distclean" in (
            refused.stderr
        )
    assert make(clone, "install", f"PYTHON={same}").returncode == 0
    assert make(clone, "install", PYTHON=str(other)).returncode == 0  # a habit of this shell, not asked for now
    assert make(clone, "distclean", f"PYTHON={other}").returncode == 0
    assert make(clone, "install", f"PYTHON={other}").returncode == 0
    assert any("-m venv" in line for line in asked(clone)) and (clone / ".venv" / ".installed").exists()


def test_an_interrupted_installation_for_the_docs_is_made_anew(clone: Path) -> None:
    first = f"PYTHON={python(clone / 'python')}"
    assert make(clone, ".venv/.docs-installed", first, FAILS="[docs]").returncode == 2
    assert len(asked(clone)) == 1 and (clone / ".venv.unfinished").exists()
    assert make(clone, ".venv/.docs-installed", first).returncode == 0
    made = [part for line in asked(clone) for part in ("-m venv", "[test,dev]", "[docs]") if part in line]
    assert made == ["-m venv", "[test,dev]", "[docs]"] and not (clone / ".venv.unfinished").exists()
    assert make(clone, ".venv/.docs-installed", first).returncode == 0 and not asked(clone)
