"""Measures of the report against slow references, and plots that draw just what they are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import precision_recall_curve

from flipped_kd.evaluation.mistakes import Judged
from flipped_kd.evaluation.plots import BLACK, BLUE, ORANGE
from flipped_kd.experiments.report.ablation import ablation
from flipped_kd.experiments.report.data import ReportData, SeedData
from flipped_kd.experiments.report.figures import new_panel, picture, plain
from flipped_kd.experiments.report.plots import (
    NORMS,
    draw_dropped,
    draw_losses,
    draw_precision_recall,
    draw_results,
    draw_scores,
    draw_updates,
    mean_norms,
    module_parts,
    moved_share,
)
from flipped_kd.experiments.report.space import alignment, draw_space, principal_components, spread_of, uniformity
from flipped_kd.experiments.report.sweeps import draw_sweeps, read_sweep_rows
from tests.cli.helpers import write_rows
from tests.experiments.ablation.test_plots import complete
from tests.experiments.ablation.test_significance import few_draws, rows_of  # noqa: F401


def unit(draw: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = draw.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def seed() -> SeedData:
    """Evidence of 30 test pairs of which 10 were sampled, 12 texts, a student of two layers."""
    draw = np.random.default_rng(0)
    labels = np.tile([0, 1], 15).astype(np.int8)
    shared = {
        "labels_test": labels,
        "pairs": draw.integers(0, 12, (10, 2)),
        "pair_labels": np.tile([0, 1], 5),
        "groups": np.array([0, 0, 0, 1, 1, -1, -1, -1, -1, -1, -1, -1]),
        "vectors": unit(draw, 12, 8),
    }
    norms = ("a_start", "a_moved", "b_moved", "update")
    modules = np.array(["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"])
    students = {
        name: {"before": unit(draw, 12, 6), "after": unit(draw, 12, 6), "modules": modules}
        | {norm: draw.random(2) for norm in norms}
        for name in ("llm_sft", "llm_flipped")
    }
    judged = {name: Judged(draw.random(30), draw.random(30) > 0.5) for name in ("teacher", "llm_sft", "llm_flipped")}
    return SeedData(shared, students, judged, {})


# ---- Measures ----


def test_alignment_and_uniformity_by_loops() -> None:
    draw = np.random.default_rng(0)
    a, b = unit(draw, 7, 4).astype(np.float64), unit(draw, 7, 4).astype(np.float64)
    distances = [
        sum((x - y) ** 2 for x, y in zip(first, second, strict=True)) for first, second in zip(a, b, strict=True)
    ]
    assert alignment(a, b) == pytest.approx(sum(distances) / 7)
    kernel = [np.exp(-2 * np.sum((a[i] - a[j]) ** 2)) for i in range(7) for j in range(i)]
    assert uniformity(a) == pytest.approx(np.log(sum(kernel) / len(kernel)))


def test_alignment_and_uniformity_at_their_ends() -> None:
    point = np.tile(unit(np.random.default_rng(1), 1, 5), (6, 1))
    assert alignment(point, point) == 0 and uniformity(point) == pytest.approx(0, abs=1e-6)
    assert alignment(point, -point) == pytest.approx(4)
    assert uniformity(np.stack([point[0], -point[0]])) == pytest.approx(-8)


def test_spread_is_of_the_matching_pairs_and_all_texts(seed: SeedData) -> None:
    found = spread_of(seed)
    assert list(found) == ["teacher", "student, before training", "plain fine-tuning, after", "flipped, after"]
    vectors = seed.students["llm_flipped"]["after"]
    matching = seed.shared["pairs"][seed.shared["pair_labels"] == 1]
    assert found["flipped, after"][0] == pytest.approx(alignment(vectors[matching[:, 0]], vectors[matching[:, 1]]))
    assert found["flipped, after"][1] == uniformity(vectors)


def test_components_are_those_of_scikit_learn() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1] + 10
    points, share = principal_components(vectors)
    peer = PCA(2).fit(vectors)
    np.testing.assert_allclose(np.abs(points), np.abs(peer.transform(vectors)))
    np.testing.assert_allclose(share, peer.explained_variance_ratio_)
    np.testing.assert_allclose(principal_components(vectors @ np.eye(6))[0], points)
    assert (points[np.abs(points).argmax(0), [0, 1]] > 0).all()


def test_equal_vectors_are_one_point() -> None:
    points, share = principal_components(np.ones((4, 3), np.float32))
    assert not points.any() and not share.any()


# ---- What is drawn ----


def test_histograms_are_shares_of_each_class(seed: SeedData) -> None:
    drawings = list(draw_scores([seed, seed]))
    assert [drawing.name for drawing in drawings] == ["scores_teacher", "scores_sft", "scores_flipped"]
    for drawing in drawings:
        (panel,) = drawing.figure.axes
        assert "probability" in panel.get_xlabel() and "%" in panel.get_ylabel()
        # The outline of each class is drawn twice, as area and as line.
        tops = [patch.get_path().vertices[:, 1] for patch in panel.patches]
        assert len(tops) == 4
    names, labels = zip(*((p.get_hatch(), p.get_label()) for p in drawings[0].figure.axes[0].patches), strict=True)
    assert "////" in names and "gold: match" in labels  # told apart without colour


def test_precision_and_recall_are_scikit_learns(seed: SeedData) -> None:
    (drawing,) = draw_precision_recall([seed])
    lines = {str(line.get_label()).partition(" (")[0]: line for line in drawing.figure.axes[0].lines}
    precision, recall, _ = precision_recall_curve(seed.labels, seed.judged["llm_flipped"].probability)
    np.testing.assert_array_equal(lines["flipped"].get_xdata(), recall)
    np.testing.assert_array_equal(lines["flipped"].get_ydata(), precision)
    styles = {
        (lines[name].get_color(), lines[name].get_linestyle()) for name in ("teacher", "plain fine-tuning", "flipped")
    }
    assert styles == {(BLACK, "-"), (ORANGE, "--"), (BLUE, "-.")}
    assert lines["guessing"].get_ydata()[0] == 0.5


def test_norms_are_means_over_the_seeds_that_have_both(seed: SeedData) -> None:
    other = SeedData({}, {"llm_sft": seed.students["llm_flipped"], "llm_flipped": seed.students["llm_sft"]}, {}, {})
    half = SeedData({}, {"llm_sft": seed.students["llm_sft"], "llm_flipped": {}}, {}, {})
    modules, norms = mean_norms([seed, other, half])
    assert [module_parts(name) for name in modules] == [("0", "mlp.up_proj"), ("1", "self_attn.q_proj")]
    for norm in ("a_moved", "update"):
        mean = (seed.students["llm_sft"][norm] + seed.students["llm_flipped"][norm]) / 2
        np.testing.assert_allclose(norms["llm_sft"][norm], mean)
    assert mean_norms([half]) == ([], {})
    for drawing in draw_updates(modules, norms):
        norm = drawing.name.removeprefix("updates_")
        drawn = {line.get_label(): line.get_ydata() for line in drawing.figure.axes[0].lines}
        np.testing.assert_allclose(drawn["flipped"], norms["llm_flipped"][norm])
        np.testing.assert_allclose(drawn["plain fine-tuning"], norms["llm_sft"][norm])


def test_an_embedding_neither_divides_by_zero_nor_hides_the_others(seed: SeedData) -> None:
    assert moved_share({"a_start": np.array([0.0, 2.0, 4.0]), "a_moved": np.array([9.0, 1.0, 1.0])}) == 0.375
    assert np.isnan(moved_share({"a_start": np.zeros(2), "a_moved": np.ones(2)}))
    few, many = np.array([1.0, 2.0, 3.0]), np.array([30.0, 1.0, 1.0])
    for values, scale in ((few, "linear"), (many, "log")):
        norms = {name: dict.fromkeys(NORMS, values) for name in ("llm_sft", "llm_flipped")}
        (drawing, *_) = draw_updates(["model.embed_tokens", "layers.0.up_proj", "layers.1.up_proj"], norms)
        (panel,) = drawing.figure.axes
        assert panel.get_yscale() == scale and ("log scale" in panel.get_ylabel()) == (scale == "log")


def test_modules_of_other_adapters_are_not_averaged(seed: SeedData) -> None:
    fewer = {
        name: value[:1] if name not in ("before", "after") else value
        for name, value in seed.students["llm_sft"].items()
    }
    assert mean_norms([SeedData({}, {"llm_sft": fewer, "llm_flipped": seed.students["llm_flipped"]}, {}, {})]) == (
        [],
        {},
    )


def test_space_shows_the_same_texts_in_each_plot(seed: SeedData) -> None:
    drawings = list(draw_space(seed))
    assert len(drawings) == 4
    for drawing in drawings:
        (panel,) = drawing.figure.axes
        assert [len(points.get_offsets()) for points in panel.collections] == [7, 3, 2]
        assert "% of the variance" in panel.get_xlabel() and "% of the variance" in panel.get_ylabel()
        (legend,) = drawing.figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["other texts", "1", "2"]
    assert list(draw_space(SeedData({}, seed.students, {}, {}))) == []


def test_curves_are_those_of_the_report(report: dict[str, Any]) -> None:
    names = [drawing.name for drawing in draw_losses(report)]
    assert names == ["loss_sup", "loss_dist", "loss_mcl"]
    assert list(draw_dropped(report)) == []  # it was not logged then
    for run in report["runs"]:
        run["llm_flipped"]["log_history"] = [
            {"step": n, "dropped_positive": n / 10, "dropped_negative": 0} for n in (1, 2)
        ]
    (drawing,) = draw_dropped(report)
    assert len(drawing.figure.axes[0].lines) == 2 * len(report["runs"])
    np.testing.assert_allclose(drawing.figure.axes[0].lines[0].get_ydata(), [10, 20])
    assert [drawing.name for drawing in draw_results(report)] == ["results_f1", "results_auc"]


# ---- Sweeps ----


def row(seed: int = 0, of: str = "tiny", f1: float = 0.5, **settings: Any) -> dict[str, Any]:
    """A row of an ablation."""
    return {"set": of, "name": "run", "seed": seed, "settings": settings, "metrics": {"both": {"f1": f1, "auc": f1}}}


def test_sweeps_draw_means_and_count_the_unchanged_run_at_its_value() -> None:
    rows = [row(0, f1=0.6), row(1, f1=0.8)]
    rows += [row(seed, f1=value + seed / 10, margin=value) for value in (0.0, 0.12) for seed in (0, 1)]
    rows += [row(0, margin=0.3, temperature=0.1), row(0, dist_loss="kl")]  # more changed than the margin
    drawings = list(draw_sweeps(rows, {"margin": 0.06}))
    assert [drawing.name for drawing in drawings] == ["sweep_margin_f1_tiny", "sweep_margin_auc_tiny"]
    (panel,) = drawings[0].figure.axes
    line = next(line for line in panel.lines if line.get_label() == "both scores")
    np.testing.assert_allclose(line.get_xdata(), [0, 0.06, 0.12])
    np.testing.assert_allclose(line.get_ydata(), [0.05, 0.7, 0.17])
    assert "rad" in panel.get_xlabel()
    # What the ablation's own base gave is told by the rows, not by the run that the page is of.
    for unchanged in rows[:2]:
        unchanged["resolved"] = {"margin": 0.1}
    (panel,) = next(draw_sweeps(rows, {"margin": 0.06})).figure.axes
    line = next(line for line in panel.lines if line.get_label() == "both scores")
    np.testing.assert_allclose(line.get_xdata(), [0, 0.1, 0.12])


def test_points_of_a_sweep_are_of_the_same_seeds() -> None:
    """The unchanged run has more of them, and stands a second time as a run of the sweep."""
    rows = [row(seed, f1=0.5 + seed / 10) for seed in range(4)]
    rows += [row(seed, f1=0.5 + seed / 10, margin=value) for value in (0.0, 0.06, 0.12) for seed in (0, 1)]
    drawing = next(draw_sweeps(rows, {"margin": 0.06}))
    line = next(line for line in drawing.figure.axes[0].lines if line.get_label() == "both scores")
    np.testing.assert_allclose(line.get_ydata(), [0.55, 0.55, 0.55])
    assert "means over 2 seeds" in drawing.words


def test_thresholds_are_swept_in_pairs_too_and_other_trainers_are_no_unchanged_run() -> None:
    rows = [row(f1=0.5), row(f1=0.6, positive_threshold=0.7, negative_threshold=0.3)]
    rows += [row(f1=0.9, positive_threshold=0.3, negative_threshold=0.5)]  # no pair
    rows += [row() | {"metrics": {"answer": {"f1": 0.1, "auc": 0.1}}}]  # a peer's: no settings of ours
    drawings = list(draw_sweeps(rows, {"positive_threshold": 0.5, "negative_threshold": 0.5, "margin": 0.06}))
    assert [drawing.name for drawing in drawings] == ["sweep_thresholds_f1_tiny", "sweep_thresholds_auc_tiny"]
    lines = {line.get_label(): line for line in drawings[0].figure.axes[0].lines}
    np.testing.assert_allclose(lines["both scores"].get_xdata(), [0.5, 0.7])
    np.testing.assert_allclose(lines["both scores"].get_ydata(), [0.5, 0.6])
    assert "answer" not in lines


def test_each_pair_set_has_its_own_plots_and_one_value_has_none() -> None:
    rows = [row(of=name, positive_threshold=value) for name in ("a", "b/c") for value in (0.3, 0.5)]
    rows += [row(of="d", positive_threshold=0.5), row(margin=0.1)]
    names = [drawing.name for drawing in draw_sweeps(rows, {})]
    assert names == [f"sweep_positive_threshold_{metric}_{of}" for of in ("a", "b_c") for metric in ("f1", "auc")]


def test_rows_are_read_without_a_set_and_up_to_an_unfinished_line(tmp_path: Path) -> None:
    good = json.dumps({"name": "x", "seed": 1, "settings": {"margin": 0.1}, "metrics": {"both": {"f1": 0.5}}})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{good}\n\n{good}\n{good[:30]}", encoding="utf-8")
    assert len(read_sweep_rows(path)) == 2 and read_sweep_rows(path)[0]["set"] == ""
    path.write_text(f"{good[:30]}\n{good}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is no row"):
        read_sweep_rows(path)


def test_rows_that_keep_scores_of_single_pairs_have_intervals(tmp_path: Path) -> None:
    rows = complete(rows_of("full", 1.5) + rows_of("plain", 0.3))
    for row in rows:
        for values in row["metrics"].values() if row["name"] == "full" else ():
            values.update({metric: value + 0.2 for metric, value in values.items()})
    write_rows(tmp_path / "rows.jsonl", [row | {"settings": {"margin": 0.1, "seed": 0}} for row in rows])
    data = ReportData({"settings": {"training": {}}}, [], read_sweep_rows(tmp_path / "rows.jsonl"))
    (table,) = ablation(data, lambda drawings: []).tables
    assert [row[0] for row in table.rows] == ["full", "plain"]
    assert table.rows[1][4].startswith("+0.200 [+0.") and table.rows[1][4].endswith(" (3/3)*")


# ---- Pictures ----


def test_names_are_drawn_as_they_are() -> None:
    """Names come from data: neither a formula nor markup."""
    from flipped_kd.experiments.report.figures import Drawing

    figure, panel = new_panel("<b>$x_1$ & co</b>", "x", "y")
    panel.plot([0, 1], [0, 1], label=plain("a$b$c_d"))
    panel.legend()
    shown = picture(Drawing("a<b", figure, 'says "<i>"'))
    assert "&lt;b&gt;$x_1$ &amp; co&lt;/b&gt;" in shown.svg and "a$b$c_d" in shown.svg
    assert 'aria-label="says &#34;&lt;i&gt;&#34;"' in shown.svg


def test_pictures_of_a_page_share_no_ids() -> None:
    from flipped_kd.experiments.report.figures import Drawing

    def ids(name: str) -> set[str]:
        figure, panel = new_panel("t", "x", "y")
        panel.hist([1, 2], hatch="//")
        return {part.split('"')[0] for part in picture(Drawing(name, figure, "w")).svg.split(' id="')[1:]}

    assert ids("first") and not ids("first") & ids("second")
