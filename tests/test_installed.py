"""The package as users install it: a wheel, not a checkout. Files that the wheel forgets are missed only here."""

from __future__ import annotations

import json
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


def test_the_command_helps(installed: Path, tmp_path: Path) -> None:
    (script,) = (installed / "bin").glob("flipped-kd")
    assert run(installed, tmp_path, str(script), "--help").startswith("usage: flipped-kd")
    assert run(installed, tmp_path, "-m", "flipped_kd", "predict", "--help").startswith("usage: flipped-kd predict")


@pytest.mark.slow
def test_report_card_and_the_readmes_first_import(installed: Path, comparison_dir: Path, tmp_path: Path) -> None:
    """One after the other in one process, which has to import all that they need."""
    folder = tmp_path / "run"
    shutil.copytree(comparison_dir, folder)
    (folder / "README.md").unlink(missing_ok=True)
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    code = [
        "import json, sys",
        "from flipped_kd.cli.main import main",
        f"codes = [main(['report', {str(folder)!r}])]",
        "loaded = [*sys.modules]",
        f"codes.append(main(['card', {str(folder)!r}]))",
        next(line for line in lines if line.startswith("from flipped_kd import")),
        "print(json.dumps([codes, loaded]))",
    ]
    printed = run(installed, tmp_path, "-c", "\n".join(code))
    codes, loaded = json.loads(printed.splitlines()[-1])
    assert codes == [0, 0] and "README.md" in printed
    assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\n")
    # Heavy libraries that a page has no use for: it would wait for their import.
    assert "matplotlib" in loaded and not {"transformers.trainer", "sentence_transformers"} & set(loaded)
