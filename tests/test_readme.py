"""The README's code runs, and its commands use flags and targets that exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from flipped_kd.config import DataArguments, FlippedDistillationConfig, StudentArguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_commands_are_the_two_of_the_set_up() -> None:
    first = re.search(r"```bash\n(.*?)```", README, re.DOTALL)
    assert first and [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


@pytest.mark.parametrize("number", range(len(PYTHON_BLOCKS)))
def test_python_blocks_run(
    number: int, student_dir: Path, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tests' tiny models in place of those that `make demo` builds."""
    code = PYTHON_BLOCKS[number]
    code = code.replace("outputs/demo/mini_models/student", str(student_dir))
    code = code.replace("outputs/demo/mini_models/teacher", str(teacher_dir))
    code = code.replace("recipes/data", str(ROOT / "recipes" / "data")).replace("outputs/mine", str(tmp_path / "mine"))
    code = code.replace("num_train_epochs=1", "max_steps=2")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, f"README block {number}", "exec"), names)
    if "probability" in names:
        assert names["probability"].shape == (500,)  # type: ignore[attr-defined]
        assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()


def test_flags_in_commands_exist() -> None:
    classes = (StudentArguments, DataArguments, FlippedDistillationConfig)
    known = {field.name for cls in classes for field in dataclasses.fields(cls)} | {"config", "help"}
    recipes = README.replace("python -m benchmarks --quick", "")
    used = set(re.findall(r"--([a-z]\w*)", recipes))
    assert used and used <= known


def test_files_named_exist() -> None:
    for name in re.findall(r"\b(?:recipes|docs|benchmarks)/[\w/]+\.(?:py|yaml|md|jsonl)\b", README):
        assert (ROOT / name).is_file(), name
