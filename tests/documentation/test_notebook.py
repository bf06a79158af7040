"""The notebook runs from end to end on its CPU path, on the real models that it is written for."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from tests.documentation.pages import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
# Training pairs, test pairs and steps of its CPU path, and what stands for them here.
BUDGET, QUICKLY = "(240, 64, 4)", "(96, 48, 2)"


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert [cell for cell in cells if cell.outputs or cell.execution_count is not None] == []


@pytest.mark.slow
@pytest.mark.shared
def test_the_notebook_runs_on_a_cpu(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install -e '.[test]'")
    student = shared / "models" / "smollm2-135m-instruct-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    teacher = shared / "models" / "all-MiniLM-L6-v2"
    if missing := [str(path) for path in (student, teacher) if not path.exists()]:
        pytest.skip(f"the notebook's models are not there: {', '.join(missing)}")
    settings = {"FLIPPED_KD_STUDENT": student, "FLIPPED_KD_TEACHER": teacher, "PYTHONPATH": ROOT}
    for name, value in (settings | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}).items():
        monkeypatch.setenv(name, str(value))
    # In the place of the checkout: what the notebook writes stays out of it.
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (cell for cell in notebook.cells if BUDGET in cell.source)
    cell.source = cell.source.replace(BUDGET, QUICKLY)
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stdout"
    )
    auc = {name: float(value) for name, value in re.findall(r"^(.+?) +AUC ([\d.]+)$", printed, re.MULTILINE)}
    assert len(auc) == 5
    # What it says it shows: the vectors are good before any step, and what is made of them after.
    assert auc["student, before any step"] > 0.6 and auc["student: both"] > 0.6
    ranked = re.findall(r"^[\d.]+  (.+)$", printed, re.MULTILINE)
    assert len(ranked) == 4 and ranked[0] == "How do I freeze my card?"
    assert (tmp_path / "outputs" / "quickstart" / "adapter_model.safetensors").is_file()
