"""Cards that are written again: what an owner changed stays, what is missing or broken is named."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from flipped_kd.evaluation.plots import SYSTEMS_PLOT
from flipped_kd.publishing.card import write_card
from flipped_kd.publishing.card_data import card_data
from tests.json_files import change

CONTRACTS = ("pair_prompt.json", "lora_encoder.json", "adapter_config.json")


def test_the_empty_card_of_peft_is_replaced_and_so_is_ours_after_peft(
    card_folder: Path, student_dir: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(student_dir)
    model = PeftModel.from_pretrained(base, card_folder)
    model.save_pretrained(str(tmp_path / "peft"))
    shutil.copy(tmp_path / "peft" / "README.md", card_folder)
    assert str(student_dir) in (card_folder / "README.md").read_text(encoding="utf-8")
    write_card(card_folder)
    ours = (card_folder / "README.md").read_bytes()
    assert str(student_dir).encode() not in ours
    model.save_pretrained(str(card_folder))  # PEFT writes the base's path into our metadata, and a line below our text
    assert str(student_dir) in (card_folder / "README.md").read_text(encoding="utf-8")
    write_card(card_folder)
    assert (card_folder / "README.md").read_bytes() == ours


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.replace("## Limits", "## Limits\n\nNot for medical use."),
        lambda card: card.replace("pipeline_tag: text-ranking", "pipeline_tag: sentence-similarity"),
        lambda card: card + "\nAsk me for more.\n",
        lambda card: "# My model\n\nWritten by hand.\n",
        lambda card: "---\nlicense: mit\n---\n",
        lambda card: card.replace("tags:\n", "license: mit: mine\ntags:\n"),  # no YAML
        lambda card: "---\n- a list\n---\n# My model\n",
    ],
)
def test_an_edited_card_is_kept_unless_told_otherwise(edit: Any, card_folder: Path, caplog: Any) -> None:
    card = write_card(card_folder, plots=False)
    ours = card.read_text(encoding="utf-8")
    card.write_text(edit(ours), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert write_card(card_folder, plots=False) == card
    assert card.read_text(encoding="utf-8") == edit(ours) and "overwrite=True" in caplog.text
    write_card(card_folder, plots=False, overwrite=True)
    assert card.read_text(encoding="utf-8") == ours


def test_a_card_that_is_not_utf_8_is_kept(card_folder: Path) -> None:
    card = card_folder / "README.md"
    card.write_bytes("# Größe".encode("latin-1"))
    write_card(card_folder, plots=False)
    assert card.read_bytes() == "# Größe".encode("latin-1")


def test_metadata_that_were_added_stay(card_folder: Path) -> None:
    card = write_card(card_folder, plots=False)
    text = card.read_text(encoding="utf-8")
    added = text.replace("---\n", "---\nlicense: mit\nbase_model: org/x\n", 1)
    added = added.replace("tags:\n", "tags:\n- bank\n- 2026\n")  # the year is a number in YAML
    card.write_text(added, encoding="utf-8")
    for _ in range(2):
        write_card(card_folder, plots=False)
        data = ModelCard(card.read_text(encoding="utf-8")).data
        assert data.license == "mit" and data.base_model == "org/x"
        assert data.tags is not None and [data.tags.count(tag) for tag in ("bank", "2026", "lora")] == [1, 1, 1]
    write_card(card_folder, plots=False, overwrite=True)
    assert card.read_text(encoding="utf-8") == text


def test_plots_are_shown_where_they_lie(card_folder: Path) -> None:
    assert "](" + SYSTEMS_PLOT not in write_card(card_folder, plots=False).read_text(encoding="utf-8")
    write_card(card_folder)
    assert "](" + SYSTEMS_PLOT in write_card(card_folder, plots=False).read_text(encoding="utf-8")
    (card_folder / SYSTEMS_PLOT).unlink()
    assert "](" + SYSTEMS_PLOT not in write_card(card_folder, plots=False).read_text(encoding="utf-8")
    assert not list(card_folder.glob(".tmp-*"))


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_missing_contract_is_named(name: str, card_folder: Path) -> None:
    (card_folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        write_card(card_folder)
    assert not (card_folder / "README.md").exists()


@pytest.mark.parametrize("name", [*CONTRACTS, "match_score.json", "report.json"])
def test_a_broken_file_is_named(name: str, card_folder: Path) -> None:
    (card_folder / name).write_text("{")
    with pytest.raises(ValueError, match=name):
        write_card(card_folder)


@pytest.mark.parametrize("name", ["pair_prompt.json", "lora_encoder.json", "match_score.json", "report.json"])
def test_a_file_of_a_newer_release_is_refused(name: str, card_folder: Path) -> None:
    change(card_folder / name, format_version=99)
    with pytest.raises(ValueError, match="(?i)upgrade flipped_kd"):
        write_card(card_folder)


def test_what_is_no_report_is_refused(card_folder: Path) -> None:
    with pytest.raises(ValueError, match="lacks .*'systems'"):
        card_data(card_folder, report={"format_version": 1})
    with pytest.raises(ValueError, match="absent.json cannot be read"):
        card_data(card_folder, report=card_folder / "absent.json")
