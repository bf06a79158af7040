"""Reading settings: defaults, YAML and flags in their order, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.experiments.parsing import parse_settings
from flipped_kd.training.config import FlippedDistillationConfig

CLASSES = (StudentArguments, DataArguments, FlippedDistillationConfig)


@dataclass
class Small:
    """A few fields of every kind."""

    margin: float = field(default=0.06)
    max_length: int = field(default=256)
    loud: bool = field(default=False)
    quick: bool = field(default=True)
    name: str = field(default="x")
    maybe: float | None = field(default=None)
    names: list[str] | None = field(default=None)
    options: dict[str, Any] | str | None = field(default=None)


def read(tmp_path: Path, yaml: str = "", *flags: str, defaults: dict[str, Any] | None = None) -> Small:
    (tmp_path / "settings.yaml").write_text(yaml, encoding="utf-8")
    (settings,) = parse_settings([Small], ["--config", str(tmp_path / "settings.yaml"), *flags], defaults)
    return settings


# ---- Order ---------------------------------------------------------------------------------------------------------


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    yaml = "margin: 0.2\nmax_length: 100\n"
    settings = read(tmp_path, yaml, "--margin", "0.1", defaults={"margin": 0.3, "max_length": 50, "name": "recipe"})
    assert (settings.margin, settings.max_length, settings.name, settings.loud) == (0.1, 100, "recipe", False)


def test_the_config_flag_may_stand_anywhere_and_be_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("margin: 0.2\n")
    for argv in (["--name", "y", f"--config={path}"], ["--config", str(path), "--name", "y"]):
        (settings,) = parse_settings([Small], argv)
        assert (settings.margin, settings.name) == (0.2, "y")


def test_without_file_and_flags_the_classes_defaults_stand() -> None:
    assert parse_settings([Small], []) == (Small(),)


def test_several_classes_are_filled_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("student: org/model\nteacher: org/teacher\nmargin: 0.1\nlora_target_modules: [q_proj, v_proj]\n")
    argv = ["--config", str(path), "--seeds", "3", "--output_dir", str(tmp_path), "--encoder_layers=-2,-1"]
    student, data, config = parse_settings(CLASSES, argv, {"learning_rate": 5e-4})
    assert (student.student, student.lora_target_modules) == ("org/model", "q_proj,v_proj")
    assert (data.teacher, data.seeds) == ("org/teacher", 3)
    assert (config.margin, config.learning_rate, config.encoder_layers) == (0.1, 5e-4, "-2,-1")


# ---- Values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yaml", "name", "expected"),
    [
        ("margin: 3e-2", "margin", 0.03),  # YAML 1.1 reads 3e-2 as a string
        ("margin: 1", "margin", 1.0),
        ("loud: yes", "loud", True),
        ("quick: false", "quick", False),
        ("name: no", "name", "no"),  # and this as a boolean
        ("name: 5", "name", "5"),
        ("name: [3, 4]", "name", "3,4"),
        ("name: last:2", "name", "last:2"),
        ("maybe: null", "maybe", None),
        ("maybe: 2", "maybe", 2.0),
        ("names: [a, b]", "names", ["a", "b"]),
        ("options: {use_reentrant: false}", "options", {"use_reentrant": False}),
        ("name: on", "name", "on"),
        ("name: True", "name", "True"),
        ("name: 0123456", "name", "0123456"),  # a commit, not a number of base 8
        ("name: 12e4567", "name", "12e4567"),
        ("name: 1_000", "name", "1_000"),
        ("name: 2024-01-31", "name", "2024-01-31"),
        ("name: [on, 010]", "name", "on,010"),
        ("names: [a, no, 1]", "names", ["a", "no", "1"]),
        ("loud: on", "loud", True),
        ("quick: off", "quick", False),
        ("max_length: 1_000", "max_length", 1000),
        ("maybe: 1e-6", "maybe", 1e-6),
        ("# nothing", "margin", 0.06),
    ],
)
def test_yaml_values_get_the_type_of_their_field(tmp_path: Path, yaml: str, name: str, expected: Any) -> None:
    value = getattr(read(tmp_path, yaml), name)
    assert value == expected
    assert type(value) is type(expected)


def test_values_inside_of_mappings_are_read_as_numbers_and_truth_values(tmp_path: Path) -> None:
    yaml = 'options: {a: 1e-6, b: 1E5, c: .5e-1, d: no, e: "1e-6", f: [2e-3, on, x], g: {h: 1.0e-3, on: 3}, i: null}'
    options: Any = read(tmp_path, yaml).options
    assert options == {
        **{"a": 1e-6, "b": 1e5, "c": 0.05, "d": False, "e": "1e-6"},
        **{"f": [0.002, True, "x"], "g": {"h": 0.001, "on": 3}, "i": None},
    }
    assert type(options["a"]) is type(options["b"]) is float and options["d"] is False


def test_a_schedule_and_a_column_of_a_recipe_are_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "text_a_column: on\nteacher_revision: 0012345\nlr_scheduler_type: cosine_with_min_lr\n"
        "lr_scheduler_kwargs: {min_lr: 1e-6}\nsave_strategy: no\neval_strategy: off\n"
    )
    _, data, config = parse_settings(CLASSES, ["--config", str(path), "--output_dir", str(tmp_path)])
    assert (data.text_a_column, data.teacher_revision) == ("on", "0012345")
    assert config.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert config.save_strategy == config.eval_strategy == "no"


@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        (["--loud"], "loud", True),
        (["--loud", "true"], "loud", True),
        (["--loud", "false"], "loud", False),
        (["--quick", "false"], "quick", False),
        (["--no_quick"], "quick", False),
        (["--max-length", "99"], "max_length", 99),
        (["--names", "a", "b"], "names", ["a", "b"]),
        (["--name", ""], "name", ""),
    ],
)
def test_flags_are_read_as_their_fields(tmp_path: Path, flags: list[str], name: str, expected: Any) -> None:
    assert getattr(read(tmp_path, "", *flags), name) == expected


def test_boolean_flags_override_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, "loud: true\nquick: false", "--loud", "false", "--quick", "true") == Small(
        loud=False, quick=True
    )


# ---- Refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("margn: 0.1", r"settings.yaml: unknown key 'margn'; did you mean margin\?"),
        ("zzzzzz: 1", "unknown key 'zzzzzz': see --help"),
        ("1: 2", "unknown key 1"),
        ("margin:", "margin has no value: give one, or leave the line out"),
        ("margin: [0.1, 0.2]", r"margin=\[0.1, 0.2\] is a list: give a single value"),
        ("name: {a: 1}", "name={'a': 1} is a dict"),
        ("a: b: c", "is not valid YAML"),
        ("\t- x", "is not valid YAML"),
        (
            "margin: 0.1\nname: x\nmargin: 0.2",
            r"YAML: .margin. stands here for the second time\n.*line 3",
        ),
        ("- margin", "must hold 'key: value' lines, not a list"),
        ("margin", "must hold 'key: value' lines, not a str"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_remedy(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, yaml)


def test_yaml_cannot_make_python_objects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not valid YAML"):
        read(tmp_path, f"name: !!python/object/apply:os.system ['touch {tmp_path / 'ran'}']")
    assert not (tmp_path / "ran").exists()


def test_an_absent_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--config .*absent.yaml: no such file"):
        parse_settings([Small], ["--config", str(tmp_path / "absent.yaml")])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not valid YAML"):
        parse_settings([Small], ["--config", str(tmp_path / "binary.yaml")])


def test_unknown_recipe_defaults_are_refused() -> None:
    with pytest.raises(ValueError, match="the recipe's defaults: unknown key 'margn'; did you mean margin"):
        parse_settings([Small], [], {"margn": 1})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--margn", "0.1"], r"unknown argument '--margn'; did you mean --margin\?"),
        (["--max", "3"], "unknown argument '--max'"),  # no abbreviations
        (["--max-lenght=3"], "unknown argument '--max-lenght=3'; did you mean --max_length"),
        (["stray"], "unknown argument 'stray'"),
    ],
)
def test_unknown_flags_are_refused_with_the_nearest_known(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings([Small], flags)


@pytest.mark.parametrize("source", ["yaml", "flag"])
def test_a_token_is_no_setting_and_not_repeated(tmp_path: Path, source: str) -> None:
    (tmp_path / "own.yaml").write_text("hub_token: hf_secret\n")
    flags = ["--config", str(tmp_path / "own.yaml")] if source == "yaml" else ["--hub_token", "hf_secret"]
    with pytest.raises(ValueError, match=r"hub_token is no setting here.* HF_TOKEN\.$") as error:
        parse_settings([FlippedDistillationConfig], [*flags, "--output_dir", str(tmp_path)])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("source", ["yaml", "flag", "default"])
@pytest.mark.parametrize(("name", "value"), [("margin", "abc"), ("max_length", 12.5), ("max_length", True)])
def test_values_of_the_wrong_type_end_with_argparse_naming_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, name: str, value: Any
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        if source == "yaml":
            read(tmp_path, f"{name}: {value}")
        elif source == "flag":
            read(tmp_path, "", f"--{name}", str(value))
        else:
            read(tmp_path, defaults={name: value})
    assert exit_info.value.code == 2
    assert f"argument --{name}" in capsys.readouterr().err


def test_help_lists_every_field_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_settings(CLASSES, ["--help"], prog="train_fin.py")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: train_fin.py")
    for name in ("--config", "--margin", "--student", "--train_file", "--learning_rate"):
        assert f"\n  {name} " in text or f"\n  {name}," in text
