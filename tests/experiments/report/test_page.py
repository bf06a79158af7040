"""The report page: all of a finished experiment, its numbers, nothing from elsewhere, and no text taken for HTML."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flipped_kd.cli.main import main
from flipped_kd.evaluation.run_files import ARTIFACTS_FILE, EXAMPLES_FILE
from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.experiments.compare import run_comparison
from flipped_kd.experiments.report.data import gather
from flipped_kd.experiments.report.page import render_page, write_page
from flipped_kd.training.config import FlippedDistillationConfig
from tests.cli.helpers import pair_rows, write_rows
from tests.json_files import report_of

ROOT = Path(__file__).parents[3]
EVIL = "<script>alert('pay')</script> & \"more\" <img src=x onerror=alert(1)> $a_b$"
SECTIONS = ["results", "teacher", "scores", "updates", "space", "training", "ablation", "mistakes", "made"]
VOID = {"meta", "img", "br", "link", "input", "hr"}
SWEEP = [
    {
        **{"set": "tiny", "name": f"margin={margin}", "seed": seed, "settings": {"margin": margin}},
        "metrics": {"both": {"f1": margin + 0.1 * seed, "auc": 0.5}},
    }
    for margin in (0.0, 0.08)
    for seed in (0, 1)
]
RUNS = [
    {
        **{"set": "tiny", "name": name, "seed": seed, "settings": {"dist_weight": weight}},
        "metrics": {system: {"f1": weight + 0.1 * seed, "auc": 0.5 + 0.1 * weight}},
    }
    for name, weight, system in (("full", 0.5, "both"), ("<b>plain</b>", 0.25, "both"), ("peer", 0.1, "answer"))
    for seed in (0, 1)
]


class Page(HTMLParser):
    """Collects what a browser would fetch or run, ids, headings and cells; refuses elements closed out of turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.sections: list[str] = []
        self.levels: list[int] = []
        self.cells: list[str] = []
        self.svg_labels: list[str] = []
        self.missing: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.handlers += [name for name in values if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "section":
            self.sections.append(values["id"])
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "svg":
            self.svg_labels.append(values["aria-label"])
        if values.get("class") == "missing":
            self.missing.append("")
        (self.links if tag == "a" else self.fetched).extend(
            values[name] for name in ("src", "href", "xlink:href", "srcset", "data") if name in values
        )

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data
        if self.open and self.open[-1] == "p" and self.missing and not self.missing[-1]:
            self.missing[-1] = data


@pytest.fixture(scope="module")
def out(student_dir: Path, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment of two seeds; the texts of the test pairs look like HTML."""
    folder = tmp_path_factory.mktemp("experiment")
    for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
        rows = pair_rows(40, seed=seed)
        if name == "test":
            rows = [row | {"text_a": f"{row['text_a']} {EVIL}"} for row in rows]
        write_rows(folder / f"{name}.jsonl", rows)
    files = {f"{name}_file": str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    run_comparison(
        StudentArguments(student=str(student_dir), lora_r=4),
        DataArguments(**files, teacher=str(teacher_dir), seeds=2),
        FlippedDistillationConfig(
            output_dir=str(folder / "out"),
            max_steps=4,
            logging_steps=1,
            per_device_train_batch_size=8,
            save_strategy="no",
            learning_rate=0.003,
            use_cpu=True,
            disable_tqdm=True,
        ),
    )
    return folder / "out"


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    """The page, with an ablation that has swept the margin and compared three runs."""
    write_rows(out / "rows.jsonl", SWEEP + RUNS)
    return write_page(out, out / "rows.jsonl").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def old_report() -> dict[str, Any]:
    """A report without evidence or a check of the teacher, as they once were: that of the mini recipe's card."""
    report = report_of(ROOT / "model_cards" / "fin_mini")
    del report["teacher_check"]
    return report


def test_every_part_is_there_and_nothing_is_missing(page: Page) -> None:
    assert page.sections == SECTIONS
    assert page.missing == [] and page.open == []
    names = ("F1", "AUC", "threshold", "probabilities", "Precision", "norm", "Alignment", "texts", "L_dist", "margin")
    assert all(any(name in label for label in page.svg_labels) for name in names)


def test_headings_are_nested_and_ids_unique(page: Page) -> None:
    assert page.levels[0] == 1 and page.levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.levels, page.levels[1:], strict=False))
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} == set(SECTIONS)


def test_runs_of_the_ablation_are_compared_like_with_like(page: Page) -> None:
    """Runs of a sweep are drawn as a curve and are no rows; the peer has no second score to compare."""
    first = page.cells.index("full")
    assert page.cells[first : first + 15] == [
        *("full", "0.550 ± 0.071", "0.550 ± 0.000", "", ""),
        *("<b>plain</b>", "0.300 ± 0.071", "0.525 ± 0.000", "+0.250 ± 0.000 (2/2)", "+0.025 ± 0.000 (2/2)"),
        *("peer", "0.150 ± 0.071", "0.510 ± 0.000", "", ""),
    ]
    assert "margin=0.08" not in page.cells and any("Runs: tiny" in label for label in page.svg_labels)


def test_it_opens_without_a_network(html: str, page: Page) -> None:
    assert all(source.startswith("#") for source in page.fetched)  # parts of the page itself
    assert {source[1:] for source in page.fetched} <= set(page.ids)
    assert {link for link in page.links if not link.startswith("#")} == {"https://arxiv.org/abs/2507.05617"}
    assert not re.search(r"@import|url\((?!#)|@font-face", html)
    assert not {"script", "iframe", "object", "embed", "link", "img"} & page.tags


def test_texts_are_never_html(html: str, page: Page) -> None:
    assert page.handlers == [] and "<script" not in html and "<img" not in html
    assert any(EVIL in cell for cell in page.cells)  # shown as it is


def test_pictures_take_the_pages_colours(html: str) -> None:
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert not re.search(r"#(000000|ffffff|dddddd|666666)\b", svg)
        assert "<style" not in svg and "<image" not in svg
    assert "currentColor" in html and "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_numbers_are_the_reports(out: Path, page: Page) -> None:
    report = report_of(out)
    for values in report["systems"].values():
        for metric in ("f1", "accuracy", "auc", "average_precision"):
            assert f"{values[metric]:.4f} ± {values['std'][metric]:.4f}" in page.cells
    for values in report["differences"].values():
        for metric in ("f1", "auc"):
            assert f"{values[metric]:+.4f} ± {values['std'][metric]:.4f}" in page.cells
    for row in report["teacher_check"]["threshold_curve"]:
        assert f"{row['dropped_positive_share']:.1%}" in page.cells
    arrays = [np.load(out / "runs" / f"seed-{seed}" / "llm_flipped" / ARTIFACTS_FILE) for seed in report["seeds"]]
    moved = np.linalg.norm(np.mean([one["b_moved"] for one in arrays], 0))
    assert f"{moved:.4g}" in page.cells


def test_mistakes_are_those_of_the_first_seed(out: Path, page: Page) -> None:
    examples = json.loads((out / "runs" / "seed-42" / EXAMPLES_FILE).read_text(encoding="utf-8"))
    assert set(examples["mistakes"]) == {"teacher", "llm_sft", "llm_flipped"}
    for part in (*examples["mistakes"].values(), examples["only_flipped"]):
        for pair in part["pairs"]:
            assert pair["text_a"] in page.cells and pair["text_b"] in page.cells
        assert f"{part['count']} of 40 test pairs" in page.text


def test_every_picture_is_a_file_too(out: Path, page: Page) -> None:
    files = list((out / "plots").iterdir())
    assert len(files) == len(page.svg_labels) and all(path.suffix == ".png" for path in files)
    for path in files:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.width > 500


def test_what_was_judged_is_what_the_table_says(out: Path) -> None:
    """Decisions from the evidence give the F1 of the report."""
    data = gather(out)
    names = {"teacher": "teacher", "llm_sft": "llm_sft_both", "llm_flipped": "llm_flipped_both"}
    for number, seed in enumerate(data.seeds):
        gold = seed.labels.astype(bool)
        for name, system in names.items():
            hits = (seed.judged[name].predicted & gold).sum()
            f1 = 2 * hits / (seed.judged[name].predicted.sum() + gold.sum())
            assert f1 == pytest.approx(data.report["systems"][system]["by_seed"]["f1"][number])


def test_the_same_folder_gives_the_same_page(out: Path, html: str) -> None:
    assert render_page(gather(out, out / "rows.jsonl")) == html


def test_an_older_report_gets_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(old_report()), encoding="utf-8")
    page = Page(write_page(tmp_path).read_text(encoding="utf-8"))
    assert page.sections == SECTIONS and page.open == []
    # Each part that is missing says what gives it.
    assert len(page.missing) == 6
    assert all("--output_dir" in words or "--ablation" in words for words in page.missing)
    assert any("accelerate launch recipes/train_fin.py" in words for words in page.missing)
    assert f"{old_report()['systems']['llm_flipped_both']['auc']:.4f}" in page.text


def test_parts_that_were_removed_are_left_out(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for student in ("llm_sft", "llm_flipped"):
        (copy / "runs" / "seed-42" / student / ARTIFACTS_FILE).unlink()
        (copy / "runs" / "seed-43" / student / "scores.npz").unlink()
    data = gather(copy)
    assert [bool(seed.judged) for seed in data.seeds] == [True, False]
    page = Page(render_page(data))
    assert len(page.missing) == 1 and "ablation" in page.missing[0]  # the other seed has them


def test_paths_of_the_machine_are_not_told(out: Path, html: str, tmp_path: Path) -> None:
    assert str(out.parent) not in html
    told = json.dumps(old_report() | {"student": "/home/ann/models/student-x", "command": "python /home/ann/train.py"})
    (tmp_path / "report.json").write_text(told, encoding="utf-8")
    shown = render_page(gather(tmp_path))
    assert "student-x" in shown and "python train.py" in shown and "/home/ann" not in shown


def test_broken_folders_are_refused(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="holds no report.json"):
        write_page(tmp_path)
    report = tmp_path / "report.json"
    for content, words in (
        ("{", "no valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "lacks"),
        (None, "newer|reads up to"),
    ):
        newer = json.dumps(old_report() | {"format_version": 99})
        report.write_text(content or newer, encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            write_page(tmp_path)
    report.write_text(json.dumps(old_report()), encoding="utf-8")
    with pytest.raises(ValueError, match="no such file"):
        write_page(tmp_path, tmp_path / "rows.jsonl")
    (tmp_path / "runs" / "seed-0").mkdir(parents=True)
    (tmp_path / "runs" / "seed-0" / ARTIFACTS_FILE).write_bytes(b"half a file")
    assert main(["report", str(tmp_path)]) == 2
    assert "is broken" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.json"]


def test_the_command_prints_where_the_page_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = old_report()
    report["runs"] = [{"seed": seed} for seed in report["seeds"]]  # quicker: no curves to draw
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from flipped_kd.cli.main import main; code = main(['report', '--help']); "
        "print('torch' in sys.modules, 'matplotlib' in sys.modules, code)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False False 0" and "--ablation" in run.stdout
