"""Servers killed at random, some while they save their index, lose none: see serving.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flipped_kd import SearchIndex
from tests import warm_python
from tests.cli.helpers import ROOT, environment
from tests.soak.serving import Kill, Server, corpus, table, version_of

KILLS = 6


@pytest.mark.slow
def test_killed_servers_find_whole_indexes_again(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    run = warm_python.run(
        ["-m", "tests.soak.serving", "--kills", KILLS, "--report", report],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert report.is_file(), run.stderr[-3000:]
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    assert len(found["kills"]) == KILLS and found["last"] == [] and run.returncode == 0
    assert not any(kill["faults"] for kill in found["kills"])
    assert any(kill["hit"] == "saving" for kill in found["kills"])


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda folder: (folder / "texts.jsonl").write_text('{"text": "wh'), "is broken"),
        (lambda folder: (folder / "embeddings.safetensors").unlink(), "is broken"),
        (lambda folder: SearchIndex(["card 1"], torch.ones(1, 2), {}).save(folder, overwrite=True), "another corpus"),
        (lambda folder: folder.with_name(".index.partial-0-replaced").mkdir(), None),
    ],
)
def test_the_soak_sees_what_is_wrong(tmp_path: Path, spoil: Any, fault: str | None) -> None:
    server = Server(tmp_path)
    server.change()
    SearchIndex(corpus(1), torch.ones(len(corpus(1)), 2), {}).save(tmp_path / "index")
    spoil(tmp_path / "index")
    server.look()
    version, faults = json.loads((tmp_path / "found.json").read_text())
    if fault is None:  # what a kill leaves is put right
        assert version == 1 and faults == []
    else:
        assert version is None and fault in faults[0]


def test_versions_are_told_apart() -> None:
    assert version_of(corpus(3)) == 3
    for texts in ([], corpus(3)[1:], corpus(3)[:-1], [*corpus(3)[:-1], "card 0"]):
        assert version_of(texts) is None


def test_the_table_counts_faults() -> None:
    kills = [Kill(1.0, "saving", 2, []), Kill(1.0, "starting or serving", None, ["the index is broken"])]
    lines = [line.rsplit(maxsplit=1) for line in table(kills, ["fault"]).splitlines()]
    found = {name.strip(): int(count) for name, count in lines}
    assert found["kills"] == 2 and found["while saving"] == 1
    assert found["indexes lost, half-written or another's"] == found["faults of the last server"] == 1
