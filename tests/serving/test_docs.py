"""docs/serving.md: its commands parse, its requests and clients work, its tables name what is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.cli.parser import build_parser
from flipped_kd.serving.corpus import CorpusSource
from tests.serving.running import Running, running

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
BASH = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
# A command ends with its line, unless a backslash carries it on.
COMMANDS = [line.strip() for block in BASH for line in block.replace("\\\n", " ").splitlines()]
REQUESTS = [command for command in COMMANDS if command.startswith("curl")]
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
TOKEN = "a-token-of-tests"


@pytest.fixture(scope="module")
def documented(load: Any, corpus_file: Path) -> Iterator[Running]:
    """With a token, which the examples do not send: it is put into their requests."""
    with running(load, CorpusSource(str(corpus_file)), token=TOKEN) as server:
        yield server


def test_there_is_an_example_for_each_interface() -> None:
    assert len(REQUESTS) == 6 and len(PYTHON) == 5
    for route in ("/rerank", "/v1/embeddings", "/v1/rerank", "/match", "/search", "/corpus/reload"):
        assert any(f"{ADDRESS}{route} " in request for request in REQUESTS), route


def test_commands_parse() -> None:
    served = [command.partition("flipped-kd ")[2] for command in COMMANDS if "flipped-kd serve" in command]
    assert len(served) == 2
    for command in served:
        build_parser().parse_args(shlex.split(command))
    options = set(re.findall(r"`(--[a-z-]+)", TEXT))
    helped = build_parser()._subparsers._group_actions[0].choices["serve"].format_help()  # type: ignore[union-attr,index]
    assert len(options) > 12 and all(option in helped for option in options)


@pytest.mark.parametrize("command", REQUESTS, ids=[re.findall(r"8000(\S+)", request)[0] for request in REQUESTS])
def test_requests_are_answered(documented: Running, command: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    words = [word.replace(ADDRESS, documented.url) for word in shlex.split(command)]
    if "Authorization: Bearer $FLIPPED_KD_TOKEN" in words:
        words[words.index("Authorization: Bearer $FLIPPED_KD_TOKEN")] = f"Authorization: Bearer {TOKEN}"
    else:
        words += ["-H", f"Authorization: Bearer {TOKEN}"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_clients_work(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server without a token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found: dict[str, Any] = {}
    for number, code in enumerate(PYTHON):
        exec(compile(code.replace(ADDRESS, server.url), f"docs/serving.md block {number}", "exec"), found)
    assert len(found["cosines"]) == 2 and found["best"] in (0, 1)
    assert len(found["vectors"][0]) == len(found["vector"])
    assert 0 <= found["probability"] <= 1 and found["match"] == (found["probability"] >= 0.9)
    assert len(found["texts"]) == 2


def test_tables_name_what_is_there(server: Running) -> None:
    routes = set(re.findall(r"`(?:GET|POST) (/[\w/]+)`", TEXT))
    assert routes == set(server.client.get("/openapi.json").json()["paths"])
    told = {name for name in re.findall(r"`(flipped_kd_\w+)", TEXT)}
    there = set(re.findall(r"^# TYPE (\w+) ", server.client.get("/metrics").text, re.M))
    assert {name for name in there if not name.endswith("_created")} == told


def test_limits_are_those_of_the_command() -> None:
    defaults = vars(build_parser().parse_args(["serve", "MODEL"]))
    for option, value in re.findall(r"`--(max-[a-z-]+|timeout)` ([\d,]+)", TEXT):
        assert defaults[option.replace("-", "_")] == int(value.replace(",", "")), option
    assert f"up to {defaults['wait_ms']:g} ms" in TEXT
