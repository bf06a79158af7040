"""Every shipped configuration parses: known keys, values in range."""

from __future__ import annotations

from pathlib import Path

import pytest

from flipped_kd.config import DataArguments, FlippedDistillationConfig, StudentArguments, parse_settings

CONFIGS = sorted((Path(__file__).parents[1] / "recipes" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_parses(path: Path) -> None:
    student, data, config = parse_settings(
        (StudentArguments, DataArguments, FlippedDistillationConfig), ["--config", str(path)]
    )
    assert config.output_dir == f"outputs/{path.stem}"
    full = path.stem.endswith("_full")
    assert bool(data.dataset_name and data.teacher and student.student) == full
    assert student.trust_remote_code is False


def test_a_mini_and_a_full_setting_are_shipped() -> None:
    assert {"fin_mini", "fin_full"} <= {path.stem for path in CONFIGS}
