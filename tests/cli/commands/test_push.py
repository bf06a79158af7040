"""push to a Hub; what fails says so without the token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.cli.helpers import (
    run,
)
from tests.hub.server import LoopbackHub


def test_push(folder: Path, tmp_path: Path, hub: LoopbackHub, online: HfApi, capsys) -> None:
    adapter, merged = folder / "adapter", tmp_path / "merged"
    assert run("push", adapter, "tester/one", "--merged", "--merged-dir", merged, "--private", "--quiet") == 0
    urls = capsys.readouterr().out.splitlines()
    assert urls == [f"{hub.endpoint}/tester/one", f"{hub.endpoint}/tester/one-merged"]
    assert hub.repositories["tester/one"].private and hub.repositories["tester/one-merged"].private
    assert run("push", merged, "tester/two", "--message", "again") == 0
    assert "model.safetensors" in hub.repositories["tester/two"].at("main").files
    assert capsys.readouterr().out == f"{hub.endpoint}/tester/two\n"
    # What was pushed is used by its name; the base's folder was told to nobody.
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    named = ("--base-model", base)
    assert (
        run("evaluate", "tester/one", folder / "pairs.jsonl", *named, "--score", "answer", "-o", "-", "--quiet") == 0
    )
    pushed = json.loads(capsys.readouterr().out)
    assert run("evaluate", adapter, folder / "pairs.jsonl", "--score", "answer", "-o", "-", "--quiet") == 0
    local = json.loads(capsys.readouterr().out)
    assert pushed["scores"] == local["scores"] and pushed["model"] == "tester/one"


def test_push_that_fails_says_so_without_the_token(
    folder: Path, hub: LoopbackHub, online: HfApi, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    adapter = folder / "adapter"
    wrong = "hf_" + "w" * 34
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", wrong)
        assert run("push", adapter, "tester/three", "--debug") == 1
    out, err = capfd.readouterr()
    assert err.splitlines()[-1].startswith("flipped-kd: error: ") and wrong not in out + err and "hf auth login" in err
    hub.faults.answer("/commit/", status=500, times=1000)
    assert run("push", adapter, "tester/three", "--debug") == 1
    out, err = capfd.readouterr()
    assert "Repeat the command" in err.splitlines()[-1] and hub.token not in out + err
    hub.faults.clear()
    assert run("push", adapter, "tester/three") == 0
    assert "adapter_model.safetensors" in hub.repositories["tester/three"].at("main").files
