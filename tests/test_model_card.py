"""The card says what files and report say, its metadata are the Hub's, its snippets run, no path gets into it."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from peft import PeftModel
from transformers import AutoModelForCausalLM

from flipped_kd.config import DIST_LOSSES, DataArguments, FlippedDistillationConfig, StudentArguments
from flipped_kd.experiment import run_comparison
from flipped_kd.model_card import card_data, render_card, write_card
from flipped_kd.plots import LOSSES_PLOT, SYSTEMS_PLOT
from flipped_kd.push import check_card
from flipped_kd.report import markdown_table
from flipped_kd.rivals import build_objective
from flipped_kd.trainer_setup import build_loss

ROOT = Path(__file__).parents[1]
CONTRACTS = ("pair_prompt.json", "lora_encoder.json", "adapter_config.json")
TEXTS = ("a text", "another text")


@pytest.fixture(scope="module")
def trained(
    student_dir: Path,
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Output folder of a comparison of two seeds and two steps."""
    folder = tmp_path_factory.mktemp("machine path") / "tiny"
    folder.mkdir()
    files = {}
    for split, part in (("train", pairs), ("validation", held_out), ("test", held_out)):
        files[f"{split}_file"] = str(folder.parent / f"{split}.jsonl")
        part.to_json(files[f"{split}_file"])
    config = FlippedDistillationConfig(
        output_dir=str(folder),
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=8,
        max_length=64,
        save_strategy="no",
        learning_rate=1e-3,
        precision="fp32",
        disable_tqdm=True,
    )
    student = StudentArguments(student=str(student_dir), lora_r=4)
    run_comparison(student, DataArguments(**files, teacher=str(teacher_dir), seeds=2), config)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, without card and plots."""
    copy = tmp_path / "tiny"
    copy.mkdir()
    for path in trained.iterdir():
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            shutil.copy(path, copy)
    return copy


def report_of(folder: Path) -> dict[str, Any]:
    """report.json of a folder."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def change(path: Path, **values: Any) -> None:
    """Set top-level keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def python_blocks(card: str) -> list[str]:
    """The code of a card, in order."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def run_block(code: str) -> Mapping[str, Any]:
    """The names that a block of code leaves."""
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    return names


def test_metadata_are_what_the_hub_reads(trained: Path) -> None:
    """A finished comparison has left a whole card."""
    check_card(trained)
    raw = metadata_load(trained / "README.md")
    assert raw is not None
    assert raw["library_name"] == "peft" and raw["pipeline_tag"] == "text-ranking"
    assert {"flipped-kd", "text-matching", "lora"} <= set(raw["tags"])
    assert "base_model" not in raw and "base_model_relation" not in raw and "datasets" not in raw
    results = ModelCard((trained / "README.md").read_text(encoding="utf-8")).data.eval_results
    report = report_of(trained)
    names = {"f1": "f1", "accuracy": "accuracy", "roc_auc": "auc", "average_precision": "average_precision"}
    systems = {"answer": "llm_flipped", "similarity": "llm_flipped_similarity", "both": "llm_flipped_both"}
    assert results is not None and len(results) == 12 and set(raw["metrics"]) == set(names)
    for result in results:
        system = report["systems"][systems[result.metric_args["score"]]]  # type: ignore[index]
        assert result.metric_value == pytest.approx(system["by_seed"][names[result.metric_type]][0], abs=5e-5)
        assert result.dataset_split == "test" and result.dataset_args["n"] == 24  # type: ignore[index]
        assert result.dataset_name == "test.jsonl"


def test_no_path_of_the_machine_is_in_card_or_report(trained: Path, student_dir: Path, teacher_dir: Path) -> None:
    named = [trained.parent, student_dir, teacher_dir, student_dir.parent, Path.home(), ROOT, Path.cwd()]
    for name in ("README.md", "report.json"):
        text = (trained / name).read_text(encoding="utf-8")
        assert not [path for path in named if str(path) in text], name
        assert not re.findall(r"(?<![\w.:/<])/(?:tmp|home|root|work|var|Users)\b", text), name


def test_the_text_holds_the_data(trained: Path, student_dir: Path) -> None:
    card, report = (trained / "README.md").read_text(encoding="utf-8"), report_of(trained)
    prompt = json.loads((trained / "pair_prompt.json").read_text(encoding="utf-8"))
    assert markdown_table(report) in card
    assert prompt["prefix"] + "{text_a}" + prompt["middle"] + "{text_b}" + prompt["suffix"].rstrip("\n") in card
    assert "| train | `train.jsonl` | 64 | 50.0% |" in card and "| test | `test.jsonl` | 24 | 50.0% |" in card
    encoder = json.loads((trained / "lora_encoder.json").read_text(encoding="utf-8"))
    assert f"{encoder['dimension']} numbers" in card
    assert "seeds 42, 43" in card and "adapter is that of seed 42" in card
    assert f"torch {torch.__version__.split('+')[0]}" in card and "(CPU, 1 process)" in card
    assert f"![F1 and AUC of every system on the test pairs, with the spread over seeds]({SYSTEMS_PLOT})" in card
    assert f"]({LOSSES_PLOT})" in card and (trained / LOSSES_PLOT).is_file()
    base = AutoModelForCausalLM.from_pretrained(student_dir)
    assert f"(a local folder, not on the Hub), {base.num_parameters():,} weights" in card


def test_losses_are_those_of_the_settings(folder: Path) -> None:
    report = report_of(folder)
    training = report["settings"]["training"]
    training |= {"mcl_weight": 0.0, "dist_weight": 0.25, "dist_loss": "kl", "temperature": 0.125}
    change(folder / "report.json", settings=report["settings"])
    data = card_data(folder)
    loss = build_loss(
        FlippedDistillationConfig(
            output_dir="-",
            representation="independent",
            **{name: training[name] for name in ("mcl_weight", "dist_weight", "dist_loss", "temperature")},
        )
    )
    assert [(term.term, term.weight) for term in data.losses] == [("sup", 1.0), ("dist", 0.25)]
    assert data.losses[1].settings == loss.dist.get_config_dict()
    assert [citation.bibtex for citation in data.citations] == [loss.dist.citation]
    card = render_card(data)
    assert all(f"`{name}={value}`" in card for name, value in loss.dist.get_config_dict().items())
    assert "**L_MCL**" not in card and loss.dist.citation in card


@pytest.mark.parametrize("name", DIST_LOSSES)
def test_every_objective_is_named_and_cited(name: str, folder: Path) -> None:
    """A card that fails would end a run after its training."""
    report = report_of(folder)
    report["settings"]["training"] |= {"dist_loss": name, "mcl_weight": 0.0}
    change(folder / "report.json", settings=report["settings"])
    card = render_card(card_data(folder))
    objective = build_objective(name, 0.05)
    assert objective.citation and objective.citation in card
    assert (f"by the objective `{name}`" in card) == (name not in ("mse", "kl"))


def test_dropped_share_is_the_mean_over_seeds(folder: Path) -> None:
    report = report_of(folder)
    for run, share in zip(report["runs"], (0.1, 0.3), strict=True):
        run["llm_flipped"]["dropped_share"] = {"positive": share, "negative": 0.5}
    change(folder / "report.json", runs=report["runs"])
    assert "dropped 20.0% of the matching and 50.0% of the other pairs" in render_card(card_data(folder))


def test_a_folder_without_report_and_score_has_a_card(folder: Path) -> None:
    for name in ("report.json", "match_score.json"):
        (folder / name).unlink()
    write_card(folder)
    check_card(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "model-index" not in card and "## Results" not in card and "No score was fitted" in card
    assert not list(folder.glob("*.png"))


def test_a_report_of_an_earlier_release_is_enough(folder: Path) -> None:
    report = report_of(folder)
    for name in ("optimizer", "command", "versions", "device"):
        del report[name]
    for run in report["runs"]:
        for name in ("student_parameters", "student_revision"):
            del run["llm_flipped"][name]
        run["llm_flipped"]["dropped_share"] = {"positive": 0.1, "negative": 0.2}
    del report["settings"]["training"]["contrast_filter"]  # all pairs were dropped alike then
    card = render_card(card_data(folder, report=report))
    assert "## How it was trained" in card and "The command" not in card
    assert "takes no part in L_dist and L_MCL (it stays in L_sup)" in card
    of_today = render_card(card_data(folder))
    assert "takes no part in L_dist (it stays in L_sup and L_MCL)" in of_today and "group_by_length" in of_today


def test_a_teacher_ahead_is_said_and_one_behind_is_not(folder: Path) -> None:
    report = report_of(folder)
    for difference, said in ((-0.2, True), (0.2, False)):
        report["differences"]["llm_flipped_both - teacher"]["auc"] = difference
        assert ("**Below its teacher.**" in render_card(card_data(folder, report=report))) is said


def test_names_of_the_hub_are_linked_with_their_revision(folder: Path) -> None:
    report = report_of(folder)
    report["student"], report["teacher"]["id"], report["teacher"]["revision"] = "org/base", "org/teacher", "feed5"
    report["settings"]["data"] |= {"dataset_name": "org/pairs", "train_file": None, "test_file": None}
    for run in report["runs"]:
        run["llm_flipped"]["student_revision"] = "c0ffee1"
    change(folder / "report.json", **report)
    change(folder / "adapter_config.json", base_model_name_or_path="org/base")
    for merged, relation in ((False, "adapter"), (True, "finetune")):
        card = render_card(card_data(folder, repo_id="me/matcher", merged=merged))
        data = ModelCard(card).data
        assert data.base_model == "org/base" and data.datasets == ["org/pairs"]
        assert data["base_model_relation"] == relation
        assert data.eval_results and {result.dataset_type for result in data.eval_results} == {"org/pairs"}
        assert "(https://huggingface.co/org/base) at revision `c0ffee1`" in card
        assert "(https://huggingface.co/org/teacher) at revision `feed5`" in card
        assert 'from_pretrained("me/matcher")' in card
    assert ModelCard(card).data.library_name == "sentence-transformers"


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
def test_only_a_base_of_the_hub_is_in_the_metadata(folder: Path, named: str, told: str, shown: str | None) -> None:
    change(folder / "adapter_config.json", base_model_name_or_path=named)
    change(folder / "report.json", student=told)
    card = render_card(card_data(folder))
    assert ModelCard(card).data.base_model == shown
    assert shown or (named == told or named not in card)


def test_paths_in_a_report_do_not_reach_the_card(folder: Path) -> None:
    report = report_of(folder)
    report["settings"]["training"]["deepspeed"] = "/secret/place/zero2.json"
    report["settings"]["data"] |= {"test_file": "/secret/place/test.csv", "train_file": "~/place/secret/train.csv"}
    report["command"] = "python train.py --config /secret/place/x.yaml"
    card = render_card(card_data(folder, report=report))
    assert "secret" not in card and "zero2.json" in card and "`test.csv`" in card


def test_a_prompt_of_backticks_stays_inside_its_block(folder: Path) -> None:
    prompt = json.loads((folder / "pair_prompt.json").read_text(encoding="utf-8"))
    odd = '<|im_start|>````python\n---\n| a | `b` ``` {{ x }} {% y %} <!-- " \\ '
    change(folder / "pair_prompt.json", prefix=odd)
    card = render_card(card_data(folder))
    block = re.search(r"^(`{4,})text\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    assert block and block[2] == (odd + "{text_a}" + prompt["middle"] + "{text_b}" + prompt["suffix"]).rstrip("\n")
    line = next(line for line in card.splitlines() if line.startswith("prompt = "))
    assert run_block(line)["prompt"] == odd + "a text" + prompt["middle"] + "another text" + prompt["suffix"]


def test_the_same_data_give_the_same_card(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = render_card(card_data(folder))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    change(folder / "adapter_config.json", target_modules=config["target_modules"][::-1])
    monkeypatch.chdir(tmp_path)
    assert render_card(card_data(folder)) == first


def test_every_snippet_runs_and_all_agree(
    folder: Path, student_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in an empty directory: adapter, PEFT alone, merge, CrossEncoder; then those of the merged card."""
    shutil.copytree(student_dir, tmp_path / "base")
    for path in student_dir.glob("tokenizer*"):
        shutil.copy(path, folder)
    monkeypatch.chdir(tmp_path)

    def blocks(card: str, name: str) -> list[str]:
        base = card_data(folder).base.name
        card = card.replace(f"path/to/{base}", str(tmp_path / "base")).replace(f"path/to/{name}", str(tmp_path / name))
        return python_blocks(card)

    matcher_code, peft_code, merge_code, cross_code = blocks(render_card(card_data(folder)), "tiny")
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


def test_merged_weights_without_the_layout_offer_no_crossencoder(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    data = card_data(folder, merged=True)
    card = render_card(data)
    assert not data.cross_encoder and "has no CrossEncoder layout" in card
    assert not any("CrossEncoder" in block for block in python_blocks(card))
    assert ModelCard(card).data.library_name == "transformers"


def test_the_empty_card_of_peft_is_replaced_and_so_is_ours_after_peft(
    folder: Path, student_dir: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(student_dir)
    model = PeftModel.from_pretrained(base, folder)
    model.save_pretrained(str(tmp_path / "peft"))
    shutil.copy(tmp_path / "peft" / "README.md", folder)
    assert str(student_dir) in (folder / "README.md").read_text(encoding="utf-8")
    write_card(folder)
    ours = (folder / "README.md").read_bytes()
    assert str(student_dir).encode() not in ours
    model.save_pretrained(str(folder))  # PEFT writes the base's path into our metadata, and a line below our text
    assert str(student_dir) in (folder / "README.md").read_text(encoding="utf-8")
    write_card(folder)
    assert (folder / "README.md").read_bytes() == ours


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.replace("## Limits", "## Limits\n\nNot for medical use."),
        lambda card: card.replace("pipeline_tag: text-ranking", "pipeline_tag: sentence-similarity"),
        lambda card: card + "\nAsk me for more.\n",
        lambda card: "# My model\n\nWritten by hand.\n",
        lambda card: "---\nlicense: mit\n---\n",
    ],
)
def test_an_edited_card_is_kept_unless_told_otherwise(edit: Any, folder: Path, caplog: Any) -> None:
    card = write_card(folder, plots=False)
    ours = card.read_text(encoding="utf-8")
    card.write_text(edit(ours), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert write_card(folder, plots=False) == card
    assert card.read_text(encoding="utf-8") == edit(ours) and "overwrite=True" in caplog.text
    write_card(folder, plots=False, overwrite=True)
    assert card.read_text(encoding="utf-8") == ours


def test_metadata_that_were_added_stay(folder: Path) -> None:
    card = write_card(folder, plots=False)
    text = card.read_text(encoding="utf-8")
    added = text.replace("tags:\n", "tags:\n- bank\n").replace("---\n", "---\nlicense: mit\nbase_model: org/x\n", 1)
    card.write_text(added, encoding="utf-8")
    for _ in range(2):
        write_card(folder, plots=False)
        data = ModelCard(card.read_text(encoding="utf-8")).data
        assert data.license == "mit" and data.base_model == "org/x"
        assert data.tags is not None and data.tags.count("bank") == 1 and data.tags.count("lora") == 1
    write_card(folder, plots=False, overwrite=True)
    assert card.read_text(encoding="utf-8") == text


def test_plots_are_shown_where_they_lie(folder: Path) -> None:
    assert "](" + SYSTEMS_PLOT not in write_card(folder, plots=False).read_text(encoding="utf-8")
    write_card(folder)
    assert "](" + SYSTEMS_PLOT in write_card(folder, plots=False).read_text(encoding="utf-8")
    (folder / SYSTEMS_PLOT).unlink()
    assert "](" + SYSTEMS_PLOT not in write_card(folder, plots=False).read_text(encoding="utf-8")
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_missing_contract_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        write_card(folder)
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("name", [*CONTRACTS, "match_score.json", "report.json"])
def test_a_broken_file_is_named(name: str, folder: Path) -> None:
    (folder / name).write_text("{")
    with pytest.raises(ValueError, match=name):
        write_card(folder)


@pytest.mark.parametrize("name", ["pair_prompt.json", "lora_encoder.json", "match_score.json", "report.json"])
def test_a_file_of_a_newer_release_is_refused(name: str, folder: Path) -> None:
    change(folder / name, format_version=99)
    with pytest.raises(ValueError, match="(?i)upgrade flipped_kd"):
        write_card(folder)


def test_what_is_no_report_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="lacks .*'systems'"):
        card_data(folder, report={"format_version": 1})
    with pytest.raises(ValueError, match="absent.json cannot be read"):
        card_data(folder, report=folder / "absent.json")
