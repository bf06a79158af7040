"""The command as a tool: help at once, one line for an error, exit codes, no token anywhere."""

from __future__ import annotations

import configparser
import json
import logging
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
import transformers

import flipped_kd
from flipped_kd.cli.main import VERBS, main
from tests import warm_python
from tests.cli.helpers import ROOT, environment, pair_rows, read_rows, run, write_rows
from tests.hub.fixtures import connected

TOKEN = "hf_" + "s" * 34


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import json, sys\n"
        "from flipped_kd.cli.main import VERBS, main\n"
        "codes = [main([*verb, '--help']) for verb in [[], *([v] for v in VERBS if v != 'train')]]\n"
        "codes += [main(['--version']), main(['predict']), main(['nothing'])]\n"
        "print(json.dumps([codes, [*sys.modules]]), file=sys.stderr)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    codes, loaded = json.loads(found.stderr.splitlines()[-1])
    assert codes == [0] * len(VERBS) + [0, 2, 2]
    assert "argparse" in loaded
    assert not {"torch", "numpy", "pyarrow", "transformers", "datasets", "huggingface_hub", "yaml"} & set(loaded)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_help_of_each_verb_names_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: flipped-kd {verb} ") and max(map(len, text.splitlines())) < 120
    assert callable(getattr(import_module(f"flipped_kd.cli.{VERBS[verb]}"), verb.replace("-", "_")))


def test_help_names_every_verb_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n    {verb}" in text for verb in VERBS) and "130 interrupted" in text and "HF_TOKEN" in text


def test_help_of_train_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--help") == 0
    text = capsys.readouterr().out
    assert "usage: flipped-kd train" in text
    for setting in ("--student", "--train_file", "--mcl_weight", "--learning_rate", "--config"):
        assert setting in text


def test_version_and_entry_point(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"flipped-kd {flipped_kd.__version__}\n"
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    command, _, place = metadata["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = place.partition(":")
    assert command == "flipped-kd" and getattr(import_module(module), function) is main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["--debgu", "report", "m"], "did you mean --debug? (see flipped-kd --help)"),
        (["predict"], "required: MODEL, PAIRS"),
        (
            ["predict", "m", "p", "--scor", "both"],
            "did you mean --score? (see flipped-kd predict --help)",
        ),
        (["predict", "m", "p", "--text_a_column=q"], "did you mean --text-a-column?"),
        (["report", "m", "n"], "unrecognized arguments: n (see flipped-kd report --help)"),
        (["predict", "m", "p", "--score", "cosine"], "'cosine'"),
        (["predict", "m", "p", "--batch-size", "0"], "--batch-size: '0' is no whole number from 1"),
        (["predict", "m", "p", "--threshold", "1.5"], "'1.5' is no number from 0 to 1"),
        (["predict", "m", "absent.jsonl"], "'absent.jsonl' does not exist"),
        (["predict", "m", "p.xls"], "ends in one of"),
        (["predict", "m", "p.jsonl", "-o", "out.npy"], "'.npy'"),
        (["predict", "m", "-", "--restart"], "--output"),
        (["search", "m", "q", "c", "--top-k", "5", "--rerank", "3"], "--rerank 3 is less than --top-k 5"),
        (["search", "m", "q", "c", "--score", "answer"], "--rerank 10"),
        (["rank", "m", " ", "d.jsonl"], "QUERY is empty"),
        (["evaluate", "m", "p.jsonl", "-o", "absent/metrics.json"], "absent/metrics.json"),
        (["calibrate", "m", "p.jsonl", "--min-precision", "0"], "--min-precision 0 asks for nothing"),
        (["merge", "a", "-o", "out", "--weights", "1"], "several adapters"),
        (["merge", "a", "-o", "out", "--method", "svd"], "several adapters"),
        (["merge", "a", "b", "-o", "out", "--adapter-only", "--overwrite"], "are of merged models"),
        (["push", "a", "me/x", "--base-model", "b"], "are for --merged"),
        (["search", "m", "-", "-"], "both -"),
        (["merge", "a"], "required: -o/--output"),
        (["train", "--learning_rate", "fast"], "learning-rate: invalid float value: 'fast'"),
        (["train", "--learning_rte", "1"], "did you mean --learning_rate"),
        (["train", "--config", "absent.yaml"], "absent.yaml: no such file"),
        (["push", "absent", "me/x"], "absent is no folder"),
        (["card", "absent"], "absent is no folder"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("flipped-kd: error: ") and err.count("\n") == 1
    assert message in err and not list(tmp_path.iterdir())


def test_a_report_replaces_no_file_of_the_model(adapter: Path, tmp_path: Path, capsys) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [row | {"label": n % 2} for n, row in enumerate(pair_rows(4))])
    before = (adapter / "adapter_config.json").read_bytes()
    for arguments in (("evaluate", adapter, pairs), ("calibrate", adapter, pairs), ("check-teacher", adapter, pairs)):
        assert run(*arguments, "-o", adapter / "adapter_config.json", "--overwrite") == 2
        assert "is a file of the input" in capsys.readouterr().err
    assert (adapter / "adapter_config.json").read_bytes() == before


def test_bad_rows_and_models_are_code_2(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [*pair_rows(3), {"text_a": "a", "text_b": ""}])
    good = write_rows(tmp_path / "good.jsonl", pair_rows(3))
    for model, pairs, message in (
        (tmp_path / "absent", bad, "row 3"),  # the input is read before the model
        (tmp_path / "absent", good, "absent"),
        (tmp_path, good, "holds neither adapter_config.json"),
    ):
        assert run("predict", model, pairs, "-o", tmp_path / "out.jsonl") == 2
        err = capsys.readouterr().err
        assert err.count("flipped-kd: error: ") == 1 and message in err and "Traceback" not in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl"]


@pytest.mark.parametrize("verb", ["predict", "base", "gguf", "check-teacher", "train"])
def test_a_network_that_is_not_there_is_code_1(
    verb: str, adapter: Path, teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As --help says: the same command may succeed later. A name that is none stays code 2."""
    good = str(write_rows(tmp_path / "good.ndjson", pair_rows(6)))
    files = [f"--{split}_file={good}" for split in ("train", "validation", "test")]
    absent = "some-owner/absent"
    arguments = {
        "predict": ["predict", absent, good],
        "base": ["predict", adapter, good, "--base-model", absent],
        "gguf": ["predict", adapter, good, "--base-model", f"{absent}:tiny.gguf"],
        "check-teacher": ["check-teacher", absent, good],
        "train": ["train", "--student", absent, "--teacher", teacher_dir, *files, f"--output_dir={tmp_path}/out"],
    }[verb]
    # Nothing listens at this port.
    nobody: Any = SimpleNamespace(endpoint="http://127.0.0.1:9", variables=lambda home, token: {})
    with connected(nobody, tmp_path / "home"):
        assert run(*arguments) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("flipped-kd: error: ")
        assert run("predict", "./absent/model", good) == 2


def test_debug_shows_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "m", tmp_path / "absent.jsonl", "--debug") == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("flipped-kd: error: ")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 2,000 bytes: the system refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_is_code_1_and_loses_nothing(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(40))
    target = tmp_path / "out.jsonl"
    command = ("predict", adapter, pairs, "-o", target, "--part-rows", 10, "--quiet")
    request.getfixturevalue("small_disk")
    assert run(*command) == 1  # parts are small; the whole is not
    resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
    err = capsys.readouterr().err
    assert "cannot be written" in err and "repeat the command" in err and err.count("\n") == 1
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.jsonl.partial").glob("part-*")}
    assert len(parts) == 4 and not target.exists()
    assert run(*command) == 0
    assert [row["number"] for row in read_rows(target)] == list(range(40))


def test_the_home_folder_may_be_a_tilde(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(3))
    assert run("predict", adapter, pairs, "--output=~/new/out.jsonl") == 0
    assert len(read_rows(tmp_path / "home" / "new" / "out.jsonl")) == 3 and not Path("~").exists()


def test_a_full_standard_output_is_code_1(adapter: Path, tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(3))
    command = ["-m", "flipped_kd", "predict", adapter, pairs, "--quiet"]
    with open("/dev/full", "wb") as full:
        found = warm_python.run(
            command, cwd=ROOT, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == "flipped-kd: error: No space left on device"


def test_interrupted_is_code_130(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import _thread

    from flipped_kd.data.table_jobs import TableJob

    write = TableJob._write

    def interrupted(self: TableJob, *part: object) -> None:
        write(self, *part)  # type: ignore[arg-type]
        _thread.interrupt_main()  # what Ctrl-C does

    monkeypatch.setattr(TableJob, "_write", interrupted)
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(6))
    assert run("predict", adapter, pairs, "-o", tmp_path / "out.jsonl", "--part-rows", 2) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("flipped-kd: interrupted; the same command goes on")
    assert len(list((tmp_path / "out.jsonl.partial").glob("part-*"))) == 1
    # Of what is shown on the screen nothing is kept.
    monkeypatch.setattr(flipped_kd.cli.main, "_run", lambda options: _thread.interrupt_main())
    assert run("predict", adapter, pairs) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "flipped-kd: interrupted"


# ---- Tokens ----


def test_a_token_is_never_shown(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the one of the environment nor one that was given by mistake, in any message or file."""
    secret = "not-of-the-usual-form-1234"
    monkeypatch.setenv("HF_TOKEN", secret)
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(3))
    for arguments in (
        ["predict", adapter, pairs, "--token", TOKEN],
        ["predict", f"tester/{TOKEN}", pairs, "--debug"],
        ["predict", f"tester/{secret}", pairs, "--debug"],
        ["push", adapter, f"{secret}/{TOKEN}", "--debug"],
        ["train", f"--hub_tken={TOKEN}"],
        ["train", f"--{secret}"],
    ):
        assert run(*arguments) in (1, 2)
        out, err = capfd.readouterr()
        assert err and TOKEN not in out + err and secret not in out + err
    logging.getLogger("flipped_kd").error("with %s and %s", TOKEN, secret)
    assert run("predict", adapter, pairs, "-o", tmp_path / "out.jsonl", "--debug") == 0
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret.encode() not in written and TOKEN.encode() not in written


def test_log_and_warnings_are_lines_on_standard_error(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [*pair_rows(3), {"text_a": "a"}])
    command = ("predict", adapter, pairs, "-o", tmp_path / "out.jsonl", "--skip-bad-rows", "--overwrite")
    assert run(*command) == 0
    out, err = capsys.readouterr()
    assert out == "" and all(line.startswith("flipped-kd: ") for line in err.splitlines())
    assert "1 bad rows are left out" in err and "out.jsonl: 3 rows" in err
    assert run(*command, "--quiet") == 0
    assert capsys.readouterr().err.splitlines() == ["flipped-kd: pairs.jsonl: 1 bad rows are left out"]


def test_without_standard_error_nothing_is_said_but_the_result(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `2>&-`: Python has no stream then, and print would take standard output in its place."""
    monkeypatch.setattr(sys, "stderr", None)
    pairs = write_rows(tmp_path / "pairs.jsonl", [*pair_rows(3), {"text_a": "a"}])
    assert run("predict", adapter, pairs, "--skip-bad-rows") == 0
    assert len(read_rows(capsys.readouterr().out)) == 3
    assert run("evaluate", adapter, pairs) == 2
    assert run("predict", adapter, pairs, "--debug") == 2
    assert run("predict", adapter) == 2
    assert capsys.readouterr().out == "" and sys.stderr is None


@pytest.mark.parametrize("verb", ["predict", "evaluate", "check-teacher", "merge"])
def test_quiet_shows_no_progress(
    verb: str, adapter: Path, teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of no library either, which each have a switch of their own."""
    for enable in (
        datasets.enable_progress_bars,
        huggingface_hub.utils.enable_progress_bars,
        transformers.utils.logging.enable_progress_bar,
    ):
        enable()
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(40))
    model = teacher_dir if verb == "check-teacher" else adapter
    given = ["-o", tmp_path / "merged"] if verb == "merge" else [pairs]
    assert run(verb, model, *given, "--quiet") == 0
    assert not re.search(r"%\||examples", capsys.readouterr().err)


def test_verbs_of_one_process_refuse_several(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("evaluate", "m", "p") == 2
    assert "without accelerate launch" in capsys.readouterr().err
