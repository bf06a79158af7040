"""Nothing of the machine and no token reaches what is told of a run's origin."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flipped_kd.utils.provenance import (
    commit_of,
    is_hub_id,
    library_versions,
    shown_command,
    shown_name,
    without_paths,
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("gpt2", "gpt2"),
        ("/data/models/student", "student"),
        ("/data/models/student/", "student"),
        ("~/models/student", "student"),
        ("../student", "student"),
        ("./models/student", "student"),
        ("a/b/student", "student"),
        (r"C:\models\student", "student"),
        (None, None),
    ],
)
def test_local_names_are_cut_and_hub_names_are_not(name: str | None, shown: str | None) -> None:
    assert shown_name(name) == shown


def test_a_relative_folder_that_exists_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "student").mkdir(parents=True)
    assert is_hub_id("models/student")
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("models/student")
    assert shown_name("models/student") == "student"
    assert shown_name(".") == tmp_path.name


def test_paths_inside_json_values_are_cut() -> None:
    value = {
        "a": "/home/me/x y/data.jsonl",
        "b": ["see /home/me/log.txt, or C:\\Users\\me\\log.txt", 3, None],
        "c": "https://huggingface.co/org/name and/or org/name 1/2",
        "d": {"e": r"D:\data\pairs.csv"},
    }
    assert without_paths(value) == {
        "a": "data.jsonl",
        "b": ["see log.txt, or log.txt", 3, None],
        "c": "https://huggingface.co/org/name and/or org/name 1/2",
        "d": {"e": "pairs.csv"},
    }


def test_the_command_holds_neither_path_nor_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    secret = "hf_" + "a1B2" * 8
    argv = [
        str(tmp_path / "recipes" / "train_fin.py"),
        "--student",
        "org/name",
        "--train_file",
        str(tmp_path / "t.jsonl"),
    ]
    argv += ["--hub_token", secret, f"--output_dir={tmp_path}/out", f"--hub_token={secret}", "--run_name", secret]
    argv += ["--instruction", "same or not?", "--learning_rate", "1e-3", "--flag"]
    assert shown_command(argv) == (
        "python recipes/train_fin.py --student org/name --train_file t.jsonl --output_dir=out "
        "--run_name '***' --instruction 'same or not?' --learning_rate 1e-3 --flag"
    )


def test_the_command_says_how_it_was_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert shown_command(["recipes/train_fin.py"]) == "accelerate launch recipes/train_fin.py"
    assert shown_command(["/usr/bin/flipped-kd", "train"]) == "flipped-kd train"


def test_versions_are_those_of_the_libraries() -> None:
    import torch
    import transformers

    versions = library_versions()
    assert versions["transformers"] == transformers.__version__
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_clone_of_something_else_tells_no_commit_of_what_is_installed_in_it(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=me", "-c", "user.email=me@here")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    installed, own = tmp_path / ".venv" / "package", tmp_path / "own"
    for folder in (installed, own):
        folder.mkdir(parents=True)
        (folder / "code.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv\n")
    git("init")
    assert commit_of(own) is None
    git("add", ".")
    git("commit", "-m", "first")
    assert commit_of(installed) is None
    commit = commit_of(own)
    assert commit is not None and not commit.endswith("+")
    (own / "code.py").write_text("changed")
    assert commit_of(own) == f"{commit}+"
