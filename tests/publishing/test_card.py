"""The card says what files and report say, its metadata are the Hub's, its snippets run, no path gets into it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from transformers import AutoModelForCausalLM

from flipped_kd.evaluation.comparison import markdown_table
from flipped_kd.evaluation.match_score import MatchScore
from flipped_kd.evaluation.plots import LOSSES_PLOT, SYSTEMS_PLOT
from flipped_kd.losses.build import OBJECTIVES, build_loss, build_objective
from flipped_kd.publishing.card import render_card, write_card
from flipped_kd.publishing.card_data import card_data
from flipped_kd.publishing.push import check_card
from flipped_kd.training.config import FlippedDistillationConfig
from tests.json_files import change, report_of

ROOT = Path(__file__).parents[2]
TEXTS = ("a text", "another text")


def python_blocks(card: str) -> list[str]:
    """The code of a card, in order."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def run_block(code: str) -> Mapping[str, Any]:
    """The names that a block of code leaves."""
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    return names


def test_metadata_are_what_the_hub_reads(comparison_dir: Path) -> None:
    """A finished comparison has left a whole card."""
    check_card(comparison_dir)
    raw = metadata_load(comparison_dir / "README.md")
    assert raw is not None
    assert raw["library_name"] == "peft" and raw["pipeline_tag"] == "text-ranking"
    assert {"flipped-kd", "text-matching", "lora"} <= set(raw["tags"])
    assert "base_model" not in raw and "base_model_relation" not in raw and "datasets" not in raw
    results = ModelCard((comparison_dir / "README.md").read_text(encoding="utf-8")).data.eval_results
    report = report_of(comparison_dir)
    names = {"f1": "f1", "accuracy": "accuracy", "roc_auc": "auc", "average_precision": "average_precision"}
    systems = {"answer": "llm_flipped", "similarity": "llm_flipped_similarity", "both": "llm_flipped_both"}
    assert results is not None and len(results) == 12 and set(raw["metrics"]) == set(names)
    for result in results:
        system = report["systems"][systems[result.metric_args["score"]]]  # type: ignore[index]
        assert result.metric_value == pytest.approx(system["by_seed"][names[result.metric_type]][0], abs=5e-5)
        assert result.dataset_split == "test" and result.dataset_args["n"] == 24  # type: ignore[index]
        assert result.dataset_name == "test.jsonl"


def test_no_path_of_the_machine_is_in_card_or_report(
    comparison_dir: Path, student_dir: Path, teacher_dir: Path
) -> None:
    named = [comparison_dir.parent, student_dir, teacher_dir, student_dir.parent, Path.home(), ROOT, Path.cwd()]
    for name in ("README.md", "report.json"):
        text = (comparison_dir / name).read_text(encoding="utf-8")
        assert not [path for path in named if str(path) in text], name
        assert not re.findall(r"(?<![\w.:/<])/(?:tmp|home|root|work|var|Users)\b", text), name


def test_the_text_holds_the_data(comparison_dir: Path, student_dir: Path) -> None:
    card, report = (comparison_dir / "README.md").read_text(encoding="utf-8"), report_of(comparison_dir)
    prompt = json.loads((comparison_dir / "pair_prompt.json").read_text(encoding="utf-8"))
    assert markdown_table(report) in card
    assert prompt["prefix"] + "{text_a}" + prompt["middle"] + "{text_b}" + prompt["suffix"].rstrip("\n") in card
    assert "| train | `train.jsonl` | 64 | 50.0% |" in card and "| test | `test.jsonl` | 24 | 50.0% |" in card
    encoder = json.loads((comparison_dir / "lora_encoder.json").read_text(encoding="utf-8"))
    assert f"{encoder['dimension']} numbers" in card
    assert "seeds 42, 43" in card and "adapter is that of seed 42" in card
    assert f"torch {torch.__version__.split('+')[0]}" in card and "(CPU, 1 process)" in card
    assert f"![F1 and AUC of every system on the test pairs, with the spread over seeds]({SYSTEMS_PLOT})" in card
    assert f"]({LOSSES_PLOT})" in card and (comparison_dir / LOSSES_PLOT).is_file()
    base = AutoModelForCausalLM.from_pretrained(student_dir)
    assert f"(a local folder, not on the Hub), {base.num_parameters():,} weights" in card


def test_losses_are_those_of_the_settings(card_folder: Path) -> None:
    report = report_of(card_folder)
    training = report["settings"]["training"]
    training |= {"mcl_weight": 0.0, "dist_weight": 0.25, "dist_loss": "kl", "temperature": 0.125}
    change(card_folder / "report.json", settings=report["settings"])
    data = card_data(card_folder)
    config = FlippedDistillationConfig(
        output_dir="-",
        representation="independent",
        **{name: training[name] for name in ("mcl_weight", "dist_weight", "dist_loss", "temperature")},
    )
    loss = build_loss(vars(config))
    assert [(term.term, term.weight) for term in data.losses] == [("sup", 1.0), ("dist", 0.25)]
    assert data.losses[1].settings == loss.dist.get_config_dict()
    assert [citation.bibtex for citation in data.citations] == [loss.dist.citation]
    card = render_card(data)
    assert all(f"`{name}={value}`" in card for name, value in loss.dist.get_config_dict().items())
    assert "**L_MCL**" not in card and loss.dist.citation in card


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "cross-entropy of the answer, yes against no."),
        (0.25, "cross-entropy of the answer, yes against no, and 0.25 of what the rest of the vocabulary adds."),
        (1.0, "cross-entropy of the answer, over the whole vocabulary."),
        (None, "cross-entropy of the answer, over the whole vocabulary."),  # of a report older than the choice
    ],
)
def test_over_what_the_answer_is_taught_is_said(share: float | None, said: str, card_folder: Path) -> None:
    report = report_of(card_folder)
    training = report["settings"]["training"]
    training["answer_vocabulary_weight"] = share
    if share is None:
        del training["answer_vocabulary_weight"]
    assert said in render_card(card_data(card_folder, report=report))


def test_an_answer_taught_by_the_teacher_too_is_said(card_folder: Path) -> None:
    said = "whose target is 40.0% the teacher's calibrated probability and else the gold label"
    report = report_of(card_folder)
    assert said not in render_card(card_data(card_folder))
    report["settings"]["training"]["answer_teacher_weight"] = 0.4
    assert said in render_card(card_data(card_folder, report=report))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_named_and_cited(name: str, card_folder: Path) -> None:
    """A card that fails would end a run after its training."""
    report = report_of(card_folder)
    report["settings"]["training"] |= {"dist_loss": name, "mcl_weight": 0.0}
    change(card_folder / "report.json", settings=report["settings"])
    card = render_card(card_data(card_folder))
    objective = build_objective(name, 0.05)
    assert objective.citation and objective.citation in card
    assert (f"by the objective `{name}`" in card) == (name not in ("mse", "kl"))


def test_dropped_share_is_the_mean_over_seeds(card_folder: Path) -> None:
    report = report_of(card_folder)
    for run, share in zip(report["runs"], (0.1, 0.3), strict=True):
        run["llm_flipped"]["dropped_share"] = {"positive": share, "negative": 0.5}
    change(card_folder / "report.json", runs=report["runs"])
    assert "dropped 20.0% of the matching and 50.0% of the other pairs" in render_card(card_data(card_folder))


def test_a_folder_without_report_and_score_has_a_card(card_folder: Path) -> None:
    for name in ("report.json", "match_score.json"):
        (card_folder / name).unlink()
    write_card(card_folder)
    check_card(card_folder)
    card = (card_folder / "README.md").read_text(encoding="utf-8")
    assert "model-index" not in card and "## Results" not in card and "No score was fitted" in card
    assert not list(card_folder.glob("*.png"))


def test_a_report_of_an_earlier_release_is_enough(card_folder: Path) -> None:
    report = report_of(card_folder)
    for name in ("optimizer", "command", "versions", "device"):
        del report[name]
    for run in report["runs"]:
        for name in ("student_parameters", "student_revision"):
            del run["llm_flipped"][name]
        run["llm_flipped"]["dropped_share"] = {"positive": 0.1, "negative": 0.2}
    # All pairs were dropped alike then, and labels alone taught the answer.
    del report["settings"]["training"]["contrast_filter"], report["settings"]["training"]["answer_teacher_weight"]
    card = render_card(card_data(card_folder, report=report))
    assert "## How it was trained" in card and "The command" not in card
    assert "takes no part in L_dist and L_MCL (it stays in L_sup)" in card
    of_today = render_card(card_data(card_folder))
    assert "takes no part in L_dist (it stays in L_sup and L_MCL)" in of_today and "group_by_length" in of_today


def test_a_teacher_ahead_is_said_and_one_behind_is_not(card_folder: Path) -> None:
    report = report_of(card_folder)
    for difference, said in ((-0.2, True), (0.2, False)):
        report["differences"]["llm_flipped_both - teacher"]["auc"] = difference
        assert ("**Below its teacher.**" in render_card(card_data(card_folder, report=report))) is said


def test_names_of_the_hub_are_linked_with_their_revision(card_folder: Path) -> None:
    report = report_of(card_folder)
    report["student"], report["teacher"]["id"], report["teacher"]["revision"] = "org/base", "org/teacher", "feed5"
    report["settings"]["data"] |= {"dataset_name": "org/pairs", "train_file": None, "test_file": None}
    for run in report["runs"]:
        run["llm_flipped"]["student_revision"] = "c0ffee1"
    change(card_folder / "report.json", **report)
    change(card_folder / "adapter_config.json", base_model_name_or_path="org/base")
    for merged, relation in ((False, "adapter"), (True, "finetune")):
        card = render_card(card_data(card_folder, repo_id="me/matcher", merged=merged))
        data = ModelCard(card).data
        assert data.base_model == "org/base" and data.datasets == ["org/pairs"]
        assert data["base_model_relation"] == relation
        assert data.eval_results and {result.dataset_type for result in data.eval_results} == {"org/pairs"}
        assert "(https://huggingface.co/org/base) at revision `c0ffee1`" in card
        assert "(https://huggingface.co/org/teacher) at revision `feed5`" in card
        assert 'from_pretrained("me/matcher")' in card
    assert ModelCard(card).data.library_name == "sentence-transformers"


def test_a_score_that_was_fitted_again_says_so(card_folder: Path) -> None:
    report = report_of(card_folder)
    known = card_data(card_folder, report=report)
    assert known.score is not None and known.score["fitted_on"]["pairs"] == report["data"]["validation"]
    own = f"fitted on {report['data']['validation']} validation pairs of which"
    assert own in render_card(known) and not known.fitted_again
    MatchScore.fit(*np.random.default_rng(0).normal(size=(2, 40)), np.arange(40) % 4 == 0).save_pretrained(card_folder)
    card = render_card(card_data(card_folder, report=report))
    assert "fitted on 40 other pairs, after the results above, of which 25.0% match" in card and own not in card


def test_results_are_of_the_file_that_was_tested_on_and_not_of_the_data_set_beside_it(card_folder: Path) -> None:
    report = report_of(card_folder)
    report["settings"]["data"] |= {"dataset_name": "org/pairs", "train_file": None, "test_file": "mine.csv"}
    data = ModelCard(render_card(card_data(card_folder, report=report))).data
    assert data.datasets == ["org/pairs"]
    assert {(result.dataset_type, result.dataset_name) for result in data.eval_results} == {("local", "mine.csv")}


@pytest.mark.parametrize(
    ("named", "told", "shown"),
    [
        ("/data/models/org/base", "base", None),
        ("models/base", "base", None),  # a folder when the run was made
        ("~/base", "base", None),
        ("base", "base", None),
        ("org/base", "org/base", "org/base"),
        ("/c/models--org--some-base/snapshots/" + "a1" * 20, "a1" * 20, "org/some-base"),
    ],
)
def test_only_a_base_of_the_hub_is_in_the_metadata(
    card_folder: Path, named: str, told: str, shown: str | None
) -> None:
    change(card_folder / "adapter_config.json", base_model_name_or_path=named)
    change(card_folder / "report.json", student=told)
    card = render_card(card_data(card_folder))
    assert ModelCard(card).data.base_model == shown
    assert shown or (named == told or named not in card)


def test_paths_in_a_report_do_not_reach_the_card(card_folder: Path) -> None:
    report = report_of(card_folder)
    report["settings"]["training"]["deepspeed"] = "/secret/place/zero2.json"
    report["settings"]["data"] |= {"test_file": "/secret/place/test.csv", "train_file": "~/place/secret/train.csv"}
    report["command"] = "python train.py --config /secret/place/x.yaml"
    card = render_card(card_data(card_folder, report=report))
    assert "secret" not in card and "zero2.json" in card and "`test.csv`" in card


def test_a_prompt_of_backticks_stays_inside_its_block(card_folder: Path) -> None:
    prompt = json.loads((card_folder / "pair_prompt.json").read_text(encoding="utf-8"))
    odd = '<|im_start|>````python\n---\n| a | `b` ``` {{ x }} {% y %} <!-- " \\ '
    change(card_folder / "pair_prompt.json", prefix=odd)
    card = render_card(card_data(card_folder))
    block = re.search(r"^(`{4,})text\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    assert block and block[2] == (odd + "{text_a}" + prompt["middle"] + "{text_b}" + prompt["suffix"]).rstrip("\n")
    line = next(line for line in card.splitlines() if line.startswith("prompt = "))
    assert run_block(line)["prompt"] == odd + "a text" + prompt["middle"] + "another text" + prompt["suffix"]


def test_the_same_data_give_the_same_card(card_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = render_card(card_data(card_folder))
    config = json.loads((card_folder / "adapter_config.json").read_text(encoding="utf-8"))
    change(card_folder / "adapter_config.json", target_modules=config["target_modules"][::-1])
    monkeypatch.chdir(tmp_path)
    assert render_card(card_data(card_folder)) == first


def test_every_snippet_runs_and_all_agree(
    card_folder: Path, student_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in an empty directory: adapter, PEFT alone, merge, CrossEncoder; then those of the merged card."""
    shutil.copytree(student_dir, tmp_path / "base")
    for path in student_dir.glob("tokenizer*"):
        shutil.copy(path, card_folder)
    monkeypatch.chdir(tmp_path)

    def blocks(card: str, name: str) -> list[str]:
        base = card_data(card_folder).base.name
        card = card.replace(f"path/to/{base}", str(tmp_path / "base")).replace(f"path/to/{name}", str(tmp_path / name))
        return python_blocks(card)

    matcher_code, peft_code, merge_code, cross_code = blocks(render_card(card_data(card_folder)), "tiny")
    matcher = run_block(matcher_code)["matcher"]
    wanted = float(matcher.predict([TEXTS], score="answer")[0])
    assert float(run_block(peft_code)["probability"]) == pytest.approx(wanted, abs=1e-5)
    run_block(merge_code)
    assert float(run_block(cross_code)["model"].predict([TEXTS])[0]) == pytest.approx(wanted, abs=1e-5)

    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    check_card(tmp_path / "merged")
    matcher_code, plain_code, cross_code = blocks(card, "merged")
    merged = run_block(matcher_code)["matcher"]
    assert np.allclose(merged.encode(TEXTS), matcher.encode(TEXTS), atol=1e-5)
    assert float(run_block(plain_code)["probability"]) == pytest.approx(wanted, abs=1e-5)
    assert float(run_block(cross_code)["model"].predict([TEXTS])[0]) == pytest.approx(wanted, abs=1e-5)
    assert "Measured at the merge" in card and "vLLM (not tested)" in card


def test_merged_weights_without_the_layout_offer_no_crossencoder(card_folder: Path) -> None:
    (card_folder / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    data = card_data(card_folder, merged=True)
    card = render_card(data)
    assert not data.cross_encoder and "has no CrossEncoder layout" in card
    assert not any("CrossEncoder" in block for block in python_blocks(card))
    assert ModelCard(card).data.library_name == "transformers"
