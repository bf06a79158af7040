"""The package as users install it: a wheel, not a checkout. Files that the wheel forgets are missed only here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What the wheel is made from; not .venv, outputs and what an earlier build has left.
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "flipped_kd")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel; what it needs comes from the environment of the tests."""
    copy, wheels, target = (tmp_path_factory.mktemp(name) for name in ("sources", "wheels", "installed"))
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, capture_output=True
    )
    return target


def run(installed: Path, folder: Path, *command: str) -> str:
    """What a command prints that runs on the installed package alone, in a folder without a checkout."""
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    place = run(installed, tmp_path, "-c", "import flipped_kd; print(flipped_kd.__file__)")
    assert Path(place.strip()).is_relative_to(installed)
    assert (installed / "flipped_kd" / "py.typed").is_file()
    assert {path.name for path in (installed / "flipped_kd" / "serving").glob("*.[hj]*")} == {
        "page.html",
        "reference.html.jinja",
    }


def test_the_readmes_first_import(installed: Path, tmp_path: Path) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("from flipped_kd import"))
    assert run(installed, tmp_path, "-c", f"{line}\nprint('imported')") == "imported\n"


def test_the_command_helps(installed: Path, tmp_path: Path) -> None:
    (script,) = (installed / "bin").glob("flipped-kd")
    assert run(installed, tmp_path, str(script), "--help").startswith("usage: flipped-kd")
    assert run(installed, tmp_path, "-m", "flipped_kd", "predict", "--help").startswith("usage: flipped-kd predict")


@pytest.mark.slow
def test_a_card_and_a_report_are_rendered(installed: Path, comparison_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(comparison_dir, folder)
    (folder / "README.md").unlink(missing_ok=True)
    printed = run(installed, tmp_path, "-m", "flipped_kd", "card", str(folder))
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\n") and "README.md" in printed
    run(installed, tmp_path, "-m", "flipped_kd", "report", str(folder))
    assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")
