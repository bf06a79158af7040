"""The Dockerfile, which is not built here: each line is held against what it speaks of, or run."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.cli.parser import build_parser
from flipped_kd.utils.redaction import SERVER_TOKEN
from tests.cli.helpers import ROOT
from tests.serving.running import PATIENCE, Running, running

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
HADOLINT = Path(sys.executable).with_name("hadolint")


def lines() -> list[tuple[str, str]]:
    """Each instruction with what follows it."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.M))
    return [(words[0], words[2]) for line in joined.splitlines() if (words := line.partition(" "))[0]]


def only(instruction: str) -> str:
    (found,) = [rest for name, rest in lines() if name == instruction]
    return found


def copied() -> list[Path]:
    """What is copied, as its sources."""
    return [ROOT / name for name, rest in lines() if name == "COPY" for name in shlex.split(rest)[:-1]]


def is_sent(path: Path) -> bool:
    """Whether .dockerignore lets a path through: the last pattern that fits decides."""
    names = [path.relative_to(ROOT), *path.relative_to(ROOT).parents][:-1]
    sent = True
    for pattern in IGNORED:
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.removeprefix("!").removeprefix("**/")
        if any(fnmatch.fnmatch(str(name) if "**/" not in pattern else name.name, wanted) for name in names):
            sent = pattern.startswith("!")
    return sent


def test_the_image_is_small_and_without_rights() -> None:
    assert re.fullmatch(r"python:3\.11-slim", only("FROM"))
    names = [name for name, _ in lines()]
    assert int(only("USER")) > 0 and f"--uid {only('USER')}" in only("RUN")
    assert names.index("RUN") < names.index("USER") < names.index("ENTRYPOINT") and names.count("USER") == 1


def test_what_is_installed_is_there() -> None:
    command, _, more = only("RUN").partition(" && ")
    words = shlex.split(command)
    assert words[:2] == ["pip", "install"] and more.startswith("useradd ")
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    (wanted,) = re.findall(r"\.\[([\w,]+)\]", words[-1])
    assert set(wanted.split(",")) == {"serve", "search"} <= setup["options.extras_require"].keys()
    assert (
        words[words.index("-c") + 1] == "constraints.txt"
        and words[words.index("--extra-index-url") + 1] == "$TORCH_INDEX"
    )
    assert re.fullmatch(r"TORCH_INDEX=https://\S+/cpu", only("ARG"))
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)


def test_nothing_but_the_package_is_sent() -> None:
    assert all(path.exists() and is_sent(path) for path in copied())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    sent = {name for name in tracked if name and is_sent(ROOT / name)}
    if not sent:
        pytest.skip("not a checkout of git")
    assert {name.partition("/")[0] for name in sent} == {path.name for path in copied()}
    for name in (".git/config", "outputs/mine/adapter_model.safetensors", "flipped_kd/serving/__pycache__/app.pyc"):
        assert not is_sent(ROOT / name), name


def test_what_is_copied_makes_the_whole_package(tmp_path: Path) -> None:
    """With its templates and pages."""
    pytest.importorskip("setuptools")
    for path in copied():
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "dist", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"flipped_kd/serving/{name}" for name in ("page.html", "reference.html.jinja", "app.py")} <= held


def test_its_command_is_one_of_ours() -> None:
    name, *words = json.loads(only("ENTRYPOINT"))
    assert name == "flipped-kd"
    options = build_parser().parse_args(words)
    assert options.model == only("VOLUME") and str(options.port) == only("EXPOSE") and options.host == "0.0.0.0"
    (run,) = [line for line in PAGE.splitlines() if line.startswith("docker run")]
    image = "flipped-kd-serve"
    assert f"docker build -t {image} ." in PAGE
    before, _, after = run.partition(f" {image} ")
    build_parser().parse_args([*words, *shlex.split(after)])
    docker = shlex.split(before)
    assert docker[docker.index("-e") + 1] == SERVER_TOKEN
    assert any(word.endswith(f":{options.model}:ro") for word in docker)
    assert any(word.endswith(f":{options.port}") for word in docker)
    assert int(docker[docker.index("--stop-timeout") + 1]) > options.timeout


def test_the_health_check_says_whether_it_is_ready(server: Running, load: Any) -> None:
    command = only("HEALTHCHECK").partition("CMD ")[2]
    (program, *words) = json.loads(command)
    assert program == "python" and "http://127.0.0.1:8000/health" in words[-1]

    def check(url: str) -> int:
        return subprocess.run(
            [sys.executable, *(word.replace("http://127.0.0.1:8000", url) for word in words)]
        ).returncode

    assert check(server.url) == 0
    may_load = threading.Event()

    def slowly() -> Any:
        may_load.wait(PATIENCE)
        return load()

    with running(slowly, ready=False) as other:
        assert check(other.url) != 0  # 503
        may_load.set()
    assert check(other.url) != 0  # nobody listens


def test_it_is_written_as_one_should() -> None:
    if not HADOLINT.is_file():
        pytest.skip("hadolint is not installed: pip install -e '.[dev]'")
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
