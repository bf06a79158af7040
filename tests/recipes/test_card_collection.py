"""The cards of the repository are made of the data beside them, and a finished run is taken over without its paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from flipped_kd.evaluation.plots import report_digest
from flipped_kd.students.gguf import GgufBase
from recipes.card_collection import LOGGED, main
from tests.json_files import report_of

COLLECTION = Path(__file__).parents[2] / "model_cards"
CARDS = sorted(path.relative_to(COLLECTION) for path in COLLECTION.glob("*/**/README.md"))
PLACE = "/home/somebody/outputs"


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below `folder`."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The real run of the repository as an output folder would hold it: with paths, whole logs and weights."""
    folder = tmp_path / "outputs" / "run"
    shutil.copytree(COLLECTION / "fin_mini", folder, ignore=shutil.ignore_patterns("*.md", "*.png", "merged"))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = f"{PLACE}/mini_models/student"
    config["target_modules"] = config["target_modules"][::-1]
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    report = report_of(folder)
    for run in report["runs"]:
        for system in ("llm_sft", "llm_flipped"):
            log = [entry | {"grad_norm": 1.0, "learning_rate": 0.1} for entry in run[system]["log_history"]]
            run[system]["log_history"] = [*log, {"step": 9, "eval_loss_sup": 1.0}, {"step": 9, "train_runtime": 3.0}]
    report["command"] += f" --config {PLACE}/mini.yaml"
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(bytes(1000))
    return folder


def test_cards_of_the_repository_are_made_of_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Byte for byte, without training anything."""
    assert CARDS
    copy = tmp_path / "model_cards"
    shutil.copytree(COLLECTION, copy)
    for card in CARDS:
        (copy / card).unlink()
    main(["--render", str(copy)])
    assert [Path(line).relative_to(copy) for line in capsys.readouterr().out.splitlines()] == CARDS
    assert contents(copy) == contents(COLLECTION)


def test_plots_of_the_repository_are_drawn_from_its_reports() -> None:
    plots = sorted(COLLECTION.glob("*/*.png"))
    assert plots
    for path in plots:
        with Image.open(path) as picture:
            assert picture.text["Source"] == report_digest(report_of(path.parent)), path  # type: ignore[attr-defined]


def test_a_run_is_taken_over_without_paths_weights_and_idle_logs(output: Path, tmp_path: Path) -> None:
    target = tmp_path / "cards" / "fin_mini"
    main(["--adopt", str(output), str(target)])
    adopted = contents(target)
    assert not [
        name for name, content in adopted.items() if b"somebody" in content or str(tmp_path).encode() in content
    ]
    assert b"--config mini.yaml" in adopted[Path("README.md")]
    entries = [
        entry
        for run in report_of(target)["runs"]
        for system in ("llm_sft", "llm_flipped")
        for entry in run[system]["log_history"]
    ]
    assert entries and all({"step", "loss"} <= set(entry) <= set(LOGGED) for entry in entries)
    # All but the command we have added to is as the repository has it.
    assert set(adopted) == set(contents(COLLECTION / "fin_mini"))
    for name in ("adapter_config.json", "pair_prompt.json", "lora_encoder.json", "match_score.json"):
        assert adopted[Path(name)] == (COLLECTION / "fin_mini" / name).read_bytes()
    original = report_of(COLLECTION / "fin_mini")
    assert report_of(target) == original | {"command": original["command"] + " --config mini.yaml"}


def test_taking_over_what_was_taken_over_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "fin_mini"
    for _ in range(2):  # the second time over the files of the first
        main(["--adopt", str(COLLECTION / "fin_mini"), str(target)])
        pictures = {path for path in contents(target) if path.suffix == ".png"}  # their bytes depend on matplotlib
        adopted, original = contents(target), contents(COLLECTION / "fin_mini")
        assert {path: adopted[path] for path in adopted if path not in pictures} == {
            path: original[path] for path in original if path not in pictures
        }


def test_nothing_of_the_run_before_stays(output: Path, tmp_path: Path) -> None:
    target = tmp_path / "cards" / "mine"
    GgufBase("base.gguf", "0" * 64).save_pretrained(output)
    main(["--adopt", str(output), str(target)])
    assert {"match_score.json", "gguf_base.json", "losses.png"} <= {str(path) for path in contents(target)}
    (target / "notes.txt").write_text("by hand")
    for name in ("match_score.json", "gguf_base.json"):
        (output / name).unlink()
    report = report_of(output)
    for run in report["runs"]:
        for system in ("llm_sft", "llm_flipped"):
            run[system]["log_history"] = []
    (output / "report.json").write_text(json.dumps(report), encoding="utf-8")
    main(["--adopt", str(output), str(target)])
    left = {str(path) for path in contents(target)}
    assert not {"match_score.json", "gguf_base.json", "losses.png"} & left and {"results.png", "notes.txt"} <= left
    assert not [name for name in ("losses.png", "A rounded base") if name in (target / "README.md").read_text("utf-8")]


@pytest.mark.parametrize("name", ["report.json", "adapter_config.json", "pair_prompt.json"])
def test_an_unfinished_run_is_not_taken_over(
    name: str, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / name).unlink()
    with pytest.raises(SystemExit) as status:
        main(["--adopt", str(output), str(tmp_path / "target")])
    assert status.value.code == 1 and name in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["--render", str(tmp_path)])
    assert status.value.code == 1 and "--adopt" in capsys.readouterr().err
