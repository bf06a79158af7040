"""Every family of docs/decoders.md trains, encodes, merges and reloads, and scores alike however it is read."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from flipped_kd.inference.matcher import FlippedMatcher
from tests.invariants.decoder_runs import HEADER, Run, moved
from tests.invariants.decoders import DECODERS, WINDOW
from tests.invariants.training import assert_close, frozen, logged

DOCUMENT = Path(__file__).parents[2] / "docs" / "decoders.md"
FAMILIES = {decoder.family: decoder for decoder in DECODERS}
# Their embeddings, tied by default or not, the other way round.
OTHERWISE_TIED = {"Qwen2": True, "GPT-2": False, "Gemma 2": False, "GPT-NeoX": True}


@pytest.fixture(scope="module")
def run_of(
    teacher_dir: Path,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tokenizer: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Run]]:
    """Runs by family, each made once; further settings make another one."""
    runs: dict[str, Run] = {}
    scored = held_out.select(range(12))

    def run(family: str, **changes: Any) -> Run:
        key = f"{family} {changes}"
        if key not in runs:
            folder = tmp_path_factory.mktemp("decoder")
            runs[key] = Run(FAMILIES[family], folder, teacher_dir, pairs, scored, tokenizer, **changes)
            # A merge collects garbage several times, which takes .3 s each while so much is alive.
            gc.freeze()
        return runs[key]

    yield run
    runs.clear()
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # what conftest.py has frozen, again


def close(found: Any, expected: Any, atol: float) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol, rtol=1e-5)


# ---- Training ----


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_weight_moves_and_no_base_weight_does(family: str, run_of: Callable[..., Run]) -> None:
    run = run_of(family)
    for term in ("loss_sup", "loss_dist", "loss_mcl"):
        assert all(np.isfinite(value) and value > 0 for value in logged(run.trainer, term))
    weights = moved(run)
    assert [name for name, value in weights.items() if not value] == []
    assert [name for name in weights if not any(step[name].any() for step in run.gradients.steps)] == []
    for name, value in frozen(run.trainer.model).items():
        assert torch.equal(value, run.start[name]), name
    # Both halves of what the encoder reads, in both layers.
    for module in run.trainer.encoder.modules:
        assert all(weights[f"base_model.model.{module.name}.lora_{half}.default.weight"] for half in "AB")
    assert {module.layer for module in run.trainer.encoder.modules} >= {0, 1} or family == "RecurrentGemma"


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_how_pairs_are_read(family: str, run_of: Callable[..., Run]) -> None:
    """Alone or in a batch of many lengths, text_b packed or in a row of its own; left padding where it is said so."""
    run = run_of(family)
    lengths = {len(tokens.input_ids) for tokens in run.trainer.prompt.encode_pairs(*zip(*run.texts, strict=True))}
    assert len(lengths) > 3 and min(lengths) > WINDOW
    answer, similarity = run.expected
    assert np.std(answer) > 0.01 and np.std(similarity) > 0.005
    close(run.scores(batch_size=1), run.expected, atol=1e-5)
    close(run.scores(layout=None), run.expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_no_loss_and_no_gradient(family: str, run_of: Callable[..., Run]) -> None:
    run = run_of(family)
    (plain, expected), (checkpointed, found) = (run.loss(checkpointing) for checkpointing in (False, True))
    assert checkpointed == pytest.approx(plain, abs=1e-5)
    assert all(value.any() for value in expected.values())
    scale = max(float(value.abs().max()) for value in expected.values())
    assert_close(found, expected, atol=1e-5 * max(1.0, scale), rtol=1e-4)


# ---- Use ----


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_merged_model_and_trainer_agree(family: str, run_of: Callable[..., Run]) -> None:
    """The merge's own probe has compared CrossEncoder as well."""
    run = run_of(family)
    merge = run.merge
    assert merge.sentence_transformers is (merge.reason is None)
    if merge.sentence_transformers:
        assert merge.cross_encoder_difference is not None and merge.cross_encoder_difference <= merge.answer_tolerance
    merged = FlippedMatcher.from_pretrained(run.folder / "merged", device="cpu")
    texts = [text for pair in run.texts[:8] for text in pair]
    vectors = run.matcher.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for matcher in (run.matcher, merged):
        close(matcher.scores(run.texts), run.expected, atol=max(2e-5, merge.answer_tolerance))
        np.testing.assert_allclose(matcher.encode(texts), vectors, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rank_gives_what_predict_gives(family: str, run_of: Callable[..., Run]) -> None:
    run = run_of(family)
    query, documents = run.texts[0][0], sorted({text for _, text in run.texts})
    for score in ("answer", "both"):
        expected = run.matcher.predict([(query, document) for document in documents], score=score)
        found = {hit["corpus_id"]: hit["score"] for hit in run.matcher.rank(query, documents, score=score)}
        np.testing.assert_allclose([found[place] for place in range(len(documents))], expected, atol=1e-5)


@pytest.mark.parametrize("family", OTHERWISE_TIED)
def test_embeddings_may_be_tied_or_not(family: str, run_of: Callable[..., Run]) -> None:
    run = run_of(family, tie_word_embeddings=OTHERWISE_TIED[family])
    model = run.trainer.model.get_base_model()
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied is OTHERWISE_TIED[family]
    assert run.merge.untied is False
    close(FlippedMatcher.from_pretrained(run.merge.folder, device="cpu").scores(run.texts), run.expected, atol=2e-5)


# ---- The table ----


def test_the_table_of_the_documentation_is_what_the_runs_show(run_of: Callable[..., Run]) -> None:
    """FLIPPED_KD_WRITE_DOCS=1 writes it anew."""
    table = "\n".join([HEADER, *(run_of(family).row() for family in FAMILIES)])
    text = DOCUMENT.read_text(encoding="utf-8")
    block = re.compile(r"(?<=<!-- table -->\n).*(?=\n<!-- end of table -->)", re.DOTALL)
    if os.environ.get("FLIPPED_KD_WRITE_DOCS"):
        DOCUMENT.write_text(block.sub(lambda _: table, text), encoding="utf-8")
        text = DOCUMENT.read_text(encoding="utf-8")
    found = block.search(text)
    assert found is not None and found.group() == table
