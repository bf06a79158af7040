"""Every command keeps one rule about its output: one writer, nothing replaced unasked, links and pipes respected."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flipped_kd.cli.main import VERBS, main
from flipped_kd.data.table_jobs import TableJob
from flipped_kd.evaluation.match_score import MatchScore
from flipped_kd.utils.locking import sole_writer_of
from tests.cli.helpers import (
    adapter_with_scores,
    closed_pipe,
    is_device,
    null_device,
    pair_rows,
    read_rows,
    start,
    through_pipe,
    write_rows,
)

ROWS = 24
TABLES = {
    "predict": ["{adapter}", "{pairs}"],
    "encode": ["{adapter}", "{pairs}", "--text-column", "text_a"],
    "rank": ["{adapter}", "where is my card", "{pairs}", "--text-column", "text_b"],
    "search": ["{adapter}", "{pairs}", "{corpus}", "--query-column", "text_a", "--text-column", "text_b"],
}
REPORTS = {
    "evaluate": ["{adapter}", "{pairs}"],
    "calibrate": ["{adapter}", "{pairs}"],
    "check-teacher": ["{teacher}", "{pairs}"],
}
COMMANDS = TABLES | REPORTS


@pytest.fixture(scope="module")
def models(student_dir: Path, tokenizer, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    adapter = adapter_with_scores(tmp_path_factory.mktemp("outputs") / "adapter", student_dir, tokenizer)
    return {"adapter": adapter, "teacher": teacher_dir}


@pytest.fixture
def command(models: dict[str, Path], tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a verb on pairs in a folder of their own."""
    (tmp_path / "in").mkdir()
    files = {name: write_rows(tmp_path / "in" / f"{name}.jsonl", pair_rows(ROWS)) for name in ("pairs", "corpus")}

    def words(verb: str, *more: object) -> list[str]:
        given = [word.format(**models, **files) for word in COMMANDS[verb]]
        return [verb, *given, *map(str, more), "--quiet"]

    return words


def rows_of(verb: str) -> int:
    return ROWS * 10 if verb == "search" else ROWS


def is_whole(verb: str, content: bytes) -> bool:
    """Whether it is the whole result of a verb."""
    if verb in TABLES:
        return len(read_rows(content.decode())) == rows_of(verb)
    return isinstance(json.loads(content), dict)


# ---- One writer ----


@pytest.mark.parametrize("verb", TABLES)
def test_a_second_command_on_one_output_is_refused_at_once(
    verb: str, command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """While the first is at work; by another name of the same file too."""
    target, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)
    codes: list[int] = []
    fill = TableJob.fill

    def meanwhile(self: TableJob, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(TableJob, "fill", fill)
        for name, more in ((target, ()), (link, ()), (target, ("--restart", "--overwrite"))):
            codes.append(main(command(verb, "-o", name, "--part-rows", 5, *more)))
        fill(self, *arguments, **options)

    monkeypatch.setattr(TableJob, "fill", meanwhile)
    assert main(command(verb, "-o", target, "--part-rows", 5)) == 0
    assert codes == [1, 1, 1]
    assert capsys.readouterr().err.count("out.jsonl is being written by another process: wait") == 3
    assert is_whole(verb, target.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "link.jsonl", "out.jsonl"]


def test_a_second_process_is_refused_while_the_first_still_reads_its_input(
    models: dict[str, Path], command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.jsonl"
    first = start("predict", models["adapter"], "-", "-o", target, "--quiet", stdin=-1)
    until = time.monotonic() + 120
    while not (tmp_path / ".out.jsonl.standard-input.jsonl").exists():
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    assert main(command("predict", "-o", target)) == 1
    assert "is being written by another process" in capsys.readouterr().err and not target.exists()
    _, err = first.communicate((tmp_path / "in" / "pairs.jsonl").read_bytes(), timeout=120)
    assert first.returncode == 0, err.decode()[-3000:]
    assert is_whole("predict", target.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.jsonl"]


def test_a_folder_has_one_writer_too(
    models: dict[str, Path], command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """merge, and search --save-index while the index is made; who finds it made uses it along with others."""
    folder, link, adapter = tmp_path / "folder", tmp_path / "link", str(models["adapter"])
    link.symlink_to(folder)
    merges = (["merge", adapter], ["merge", adapter, adapter, "--adapter-only"])
    indexes = command("search", "--save-index", folder), command("search", "--save-index", link)
    with sole_writer_of(folder):
        for words in [[*merge, "-o", str(name)] for merge in merges for name in (folder, link)]:
            assert main(words) == 1
            assert "being written by another process: wait until it has ended, or give another --output" in (
                capsys.readouterr().err
            )
        for words in indexes:
            assert main(words) == 1
            assert "or give another --save-index" in capsys.readouterr().err
    assert main(indexes[0]) == 0
    with sole_writer_of(folder):
        assert main(indexes[1]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in", "link"]


def test_what_is_refused_leaves_no_folder(command: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "in" / "pairs.jsonl").write_text('{"text_a": "a"}\n')
    assert main(command("predict", "-o", tmp_path / "new" / "folder" / "out.jsonl")) == 2
    assert not (tmp_path / "new").exists()


# ---- Inputs and what is there ----


@pytest.mark.parametrize("verb", COMMANDS)
def test_an_input_is_never_replaced(
    verb: str, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "in" / "pairs.jsonl"
    before = pairs.read_bytes()
    names = {"soft.jsonl": pairs, "other.jsonl": tmp_path / "soft.jsonl"}
    for name, leads_to in names.items():
        (tmp_path / name).symlink_to(leads_to)
    os.link(pairs, tmp_path / "hard.jsonl")
    given = [pairs, *(tmp_path / name for name in (*names, "hard.jsonl"))]
    if verb == "search":
        given.append(tmp_path / "in" / "corpus.jsonl")
    for output in given:
        for more in ([], ["--overwrite"]):
            assert main(command(verb, "-o", output, *more)) == 2
            assert "is the input: write to another file" in capsys.readouterr().err
    assert pairs.read_bytes() == before == (tmp_path / "in" / "corpus.jsonl").read_bytes()


def test_neither_is_any_other_input(
    models: dict[str, Path], command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation pairs, a folder of pairs, a kept index."""
    validation = write_rows(tmp_path / "validation.jsonl", pair_rows(ROWS, seed=1))
    before = validation.read_bytes()
    asked = command("check-teacher", "--validation", validation, "--overwrite")
    assert main([*asked, "-o", str(validation)]) == 2
    assert "is the input" in capsys.readouterr().err and validation.read_bytes() == before
    pairs = tmp_path / "in" / "pairs.jsonl"
    before = pairs.read_bytes()
    assert main(["evaluate", str(models["adapter"]), str(tmp_path / "in"), "-o", str(pairs), "--overwrite"]) == 2
    assert "is a file of the input" in capsys.readouterr().err and pairs.read_bytes() == before
    assert main(command("search", "--save-index", tmp_path / "index")) == 0
    texts = tmp_path / "index" / "texts.jsonl"
    before = texts.read_bytes()
    by_index = ["search", str(models["adapter"]), str(pairs), str(tmp_path / "index"), "--query-column", "text_a"]
    assert main([*by_index, "-o", str(texts), "--overwrite"]) == 2 and texts.read_bytes() == before
    inside = command("search", "--save-index", tmp_path / "new", "-o", tmp_path / "new" / "hits.jsonl")
    assert main(inside) == 2 and "in the folder of --save-index" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", COMMANDS)
def test_what_is_there_is_replaced_only_where_that_is_asked(
    verb: str, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    target.write_text("precious")
    link.symlink_to(target)
    for name in (target, link):
        assert main(command(verb, "-o", name)) == 2
        assert "--overwrite to replace it" in capsys.readouterr().err and target.read_text() == "precious"
    assert main(command(verb, "-o", link, "--overwrite")) == 0
    assert is_whole(verb, target.read_bytes()) and link.is_symlink()


def test_a_page_is_replaced_only_where_that_is_asked(
    comparison_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(comparison_dir / "report.json", tmp_path)
    page = tmp_path / "report.html"
    page.write_text("edited by hand")
    assert main(["report", str(tmp_path)]) == 2
    assert "--overwrite to replace it" in capsys.readouterr().err and page.read_text() == "edited by hand"
    assert not (tmp_path / "plots").exists()
    assert main(["report", str(tmp_path), "--overwrite"]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_a_model_is_calibrated_anew_without_being_asked_twice(
    models: dict[str, Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(models["adapter"], adapter)
    before = MatchScore.from_pretrained(adapter).to_dict()
    own = command("calibrate")
    own[1] = str(adapter)
    assert main(own) == 0
    after = MatchScore.from_pretrained(adapter).to_dict()
    # The fixture's numbers were never fitted; which score is the default stays.
    assert after["log_odds"]["both"]["bias"] != before["log_odds"]["both"]["bias"]
    assert after["default"] == before["default"]
    assert main([*own, "-o", str(adapter / "match_score.json")]) == 2


def test_the_rule_is_stated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "An output that is there is replaced only with --overwrite, an input never." in text
    for verb in VERBS.keys() - {"train", "push", "serve"}:  # which go on with what they have begun
        assert main([verb, "--help"]) == 0
        assert "--overwrite" in capsys.readouterr().out, verb


# ---- Links, pipes and devices ----


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_link_a_pipe_and_a_device_stay_what_they_are(
    verb: str, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    def write(name: str) -> None:
        assert main(command(verb, "-o", tmp_path / name)) == 0

    (tmp_path / "disk").mkdir()
    (tmp_path / "link.jsonl").symlink_to("disk/out.jsonl")
    write("link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    whole = (tmp_path / "disk" / "out.jsonl").read_bytes()
    assert is_whole(verb, whole)
    assert through_pipe(tmp_path / "pipe.jsonl", lambda: write("pipe.jsonl")) == whole
    there = ["disk", "in", "link.jsonl", "pipe.jsonl"]
    if null_device(tmp_path / "null.jsonl"):
        write("null.jsonl")
        (tmp_path / "of_null.jsonl").symlink_to("null.jsonl")
        write("of_null.jsonl")
        assert is_device(tmp_path / "null.jsonl") and (tmp_path / "of_null.jsonl").is_symlink()
        there = [*there, "null.jsonl", "of_null.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(there)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out.jsonl"]


def test_formats_that_are_no_text_go_through_a_pipe_too(command: Callable[..., list[str]], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.npy"
    found = through_pipe(pipe, lambda: main(command("encode", "-o", pipe)))
    assert np.load(io.BytesIO(found)).shape[0] == ROWS


def test_a_reader_that_leaves_a_pipe_is_told_of_and_loses_nothing(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pipe = tmp_path / "pipe.jsonl"

    def broken(*_arguments: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr("flipped_kd.utils.atomic.shutil.copyfileobj", broken)
        through_pipe(pipe, lambda: main(command("predict", "-o", pipe)))
    err = capsys.readouterr().err
    assert "pipe.jsonl" in err and "what is finished is kept" in err and err.count("\n") == 1
    assert len(list((tmp_path / "pipe.jsonl.partial").glob("part-*"))) == 1


def test_folders_are_made_where_their_links_lead(
    models: dict[str, Path], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """merge, of one adapter and of several, and search --save-index."""
    (tmp_path / "disk" / "there").mkdir(parents=True)
    adapter = str(models["adapter"])
    for name, words in {
        "there": ["merge", adapter, "-o"],
        "combined": ["merge", adapter, adapter, "--adapter-only", "-o"],
        "index": command("search", "--save-index"),
    }.items():
        link = tmp_path / f"to_{name}"
        link.symlink_to(tmp_path / "disk" / name)
        words = words if words[0] == "merge" else [word for word in words if word != "--quiet"]
        assert main([*words, str(link)]) == 0
        assert link.is_symlink() and any((tmp_path / "disk" / name).iterdir())
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["combined", "index", "there"]
    assert (tmp_path / "disk" / "there" / "model.safetensors").is_file()


# ---- The screen ----


@pytest.mark.parametrize("verb", REPORTS)
def test_what_is_written_does_not_hang_on_the_screen(
    verb: str, command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    assert main(command(verb, "-o", tmp_path / "out.json")) == 0
    assert is_whole(verb, (tmp_path / "out.json").read_bytes())


@pytest.mark.parametrize("more", [["-o", "-"], []])
@pytest.mark.parametrize("verb", ["predict", "evaluate", "check-teacher"])
def test_a_result_for_the_screen_that_nobody_reads_is_a_failure(
    verb: str, more: list[str], command: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    assert main(command(verb, *more)) == 1
    assert "error" not in capfd.readouterr().err  # whoever has seen enough asks for no words


def test_the_place_of_a_card_need_not_be_seen(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(models["adapter"], adapter)
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    monkeypatch.setattr(sys, "stderr", closed_pipe())
    assert main(["card", str(adapter)]) == 0 and (adapter / "README.md").is_file()
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    assert main(["card", str(adapter), "--print"]) == 1


def test_a_screen_without_a_letter_shows_it_as_an_escape(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "Δ银"
    shutil.copytree(models["adapter"], adapter)
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(ROWS))
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="cp1252"))
    assert main(["card", str(adapter), "--print"]) == 0
    assert "\\u0394\\u94f6" in shown.getvalue().decode("cp1252")
    assert main(["card", str(adapter)]) == 0
    assert "Δ银" in (adapter / "README.md").read_text(encoding="utf-8")
    shown.seek(0)
    shown.truncate()
    assert main(["evaluate", str(adapter), str(pairs), "-o", "-", "--quiet"]) == 0
    assert json.loads(shown.getvalue().decode("cp1252"))["model"] == "Δ银"
