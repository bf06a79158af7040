"""All that the report page shows, gathered from a finished experiment's folder; what is not there is left out."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluation.comparison import REPORT_KEYS, REPORT_VERSION, SplitScores, completed
from ...evaluation.mistakes import STUDENTS, Judged, judge_systems
from ...evaluation.run_files import ARTIFACTS_FILE, EXAMPLES_FILE, REPORT_FILE, SCORES_FILE
from ...utils.json_files import check_version, read_json_object
from ...utils.provenance import without_paths
from .sweeps import read_sweep_rows

AGAIN = "give the recipe's command again"


@dataclass(frozen=True)
class SeedData:
    """What the runs of one seed have left. Where a file is not there, its arrays are {}.

    Attributes:
        shared: arrays of the seed's evidence.npz, see `artifacts.keep_seed`.
        students: by student, arrays of its evidence.npz, see `artifacts.write_artifacts`.
        judged: by system; empty without the scores of both students and of the teacher.
        examples: evidence.json.
    """

    shared: Mapping[str, np.ndarray]
    students: Mapping[str, Mapping[str, np.ndarray]]
    judged: Mapping[str, Judged]
    examples: Mapping[str, Any]

    @property
    def labels(self) -> np.ndarray:
        """Gold labels (n,) of the test pairs."""
        return self.shared["labels_test"]


@dataclass(frozen=True)
class ReportData:
    """What the page is made of.

    Attributes:
        report: report.json.
        seeds: what each seed has left, in the order of the report.
        ablation_rows: rows of an ablation; None if none was named.
    """

    report: Mapping[str, Any]
    seeds: Sequence[SeedData]
    ablation_rows: Sequence[Mapping[str, Any]] | None = None

    @property
    def several(self) -> bool:
        """Whether there is a spread over seeds."""
        return len(self.report["seeds"]) > 1


def gather(folder: Path, ablation: Path | None = None) -> ReportData:
    """Read a finished experiment's folder.

    Args:
        folder: the output folder of a recipe, with report.json.
        ablation: JSON Lines of an ablation's rows.

    Raises:
        ValueError: the folder holds no report.json, it is of a newer version, or a file is broken.
    """
    report = _read_report(folder / REPORT_FILE)
    runs = [folder / "runs" / f"seed-{seed}" for seed in report["seeds"]]
    rows = read_sweep_rows(ablation) if ablation is not None else None
    trained = [name for name in STUDENTS if name in report["systems"]]
    return ReportData(report, [_read_seed(run, trained) for run in runs], rows)


def _read_report(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no report.json: give the output folder of a finished training.")
    report = read_json_object(path, AGAIN)
    missing = [key for key in REPORT_KEYS if key not in report]
    if missing:
        raise ValueError(f"{path} lacks {missing}: give the output folder of a finished training.")
    check_version(report.get("format_version", 1), REPORT_VERSION, path)
    return completed(without_paths(report))


def _read_seed(folder: Path, trained: Sequence[str]) -> SeedData:
    shared = _read_arrays(folder / ARTIFACTS_FILE)
    students = {name: _read_arrays(folder / name / ARTIFACTS_FILE) for name in trained}
    scores = {name: _read_arrays(folder / name / SCORES_FILE) for name in trained}
    judged: dict[str, Judged] = {}
    if shared and all(scores.values()):
        judged = judge_systems(
            shared["labels_validation"],
            SplitScores.of(shared, "teacher"),
            {
                name: (SplitScores.of(arrays, "answer"), SplitScores.of(arrays, "similarity"))
                for name, arrays in scores.items()
            },
        )
    path = folder / EXAMPLES_FILE
    return SeedData(shared, students, judged, read_json_object(path, AGAIN) if path.is_file() else {})


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; {} where there is none."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is broken ({error}): remove its folder and give the recipe's command again."
        ) from error
