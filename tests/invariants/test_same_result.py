"""What must not matter does not: activation checkpointing, packing, padding side, batch size of scoring, workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pytest

from tests.invariants.training import (
    EVERY_PAIR,
    UNCLIPPED,
    Gradients,
    assert_close,
    assert_equal,
    gradients_of,
    logged,
    lora,
    trainable,
)


@pytest.mark.parametrize("representation", ["independent", "joint", "both"])
def test_activation_checkpointing_changes_no_loss_and_no_gradient(representation: str, build: Any) -> None:
    runs = []
    for checkpointing in (False, True):
        gradients = Gradients()
        # Dropout stays on: checkpointing must recompute with the same masks.
        trainer = build(
            activation_checkpointing=checkpointing,
            representation=representation,
            max_steps=2,
            peft_config=lora(dropout=0.05),
            callbacks=[gradients],
            **EVERY_PAIR,
            **UNCLIPPED,
        )
        trainer.train()
        runs.append((trainer, gradients.steps))
    (plain, expected), (checkpointed, found) = runs
    assert checkpointed.model.is_activation_checkpointing and not plain.model.is_activation_checkpointing
    for term in ("loss", "loss_sup", "loss_dist", "loss_mcl"):
        assert logged(checkpointed, term) == pytest.approx(logged(plain, term), abs=1e-5)
        assert all(value > 0 for value in logged(plain, term))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_scores_do_not_depend_on_padding_side_or_batch_size(build: Any, held_out: datasets.Dataset) -> None:
    trainer = build()
    trainer.train()  # B is no longer 0, so the adapter takes part in the scores
    lengths = {len(tokens.input_ids) for tokens in trainer.prompt.encode_pairs(held_out["text_a"], held_out["text_b"])}
    assert len(lengths) > 1  # there is something to pad

    trainer.args.per_device_eval_batch_size = 16
    answer, similarity = trainer.score_pairs(held_out)
    assert np.std(answer) > 0.1 and np.std(similarity) > 0.01
    trainer.args.per_device_eval_batch_size = 1
    alone = trainer.score_pairs(held_out)
    trainer.args.per_device_eval_batch_size = 16
    assert trainer.data_collator.layout is not None
    found = [alone]
    for side in ("right", "left"):  # two forwards instead of one packed one, padded on either side
        trainer.data_collator = replace(trainer.data_collator, layout=None, padding_side=side)
        found.append(trainer.score_pairs(held_out))
    for other_answer, other_similarity in found:
        np.testing.assert_allclose(other_answer, answer, atol=1e-4)
        np.testing.assert_allclose(other_similarity, similarity, atol=1e-5)


def test_packing_and_padding_side_change_no_loss_and_no_gradient(build: Any) -> None:
    trainer = build(**EVERY_PAIR)
    trainer.train()
    rows = [trainer.train_dataset[row] for row in range(8)]
    results = []
    own = trainer.data_collator
    apart = replace(own, layout=None)
    for collator in (
        own,
        replace(own, layout=replace(own.layout, attention_width=10**9)),
        replace(apart, padding_side="left"),
        apart,
    ):
        batch = collator(rows)
        assert ("pair_row" in batch) is (collator.layout is not None)
        loss = trainer.compute_loss(trainer.model, batch)
        results.append((float(loss.detach()), gradients_of(loss, trainer.model)))
    separate, expected = results.pop()
    assert all(value.any() for value in expected.values())
    for value, found in results:
        assert value == pytest.approx(separate, abs=1e-5)
        assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_loader_workers_change_nothing(build: Any) -> None:
    runs = []
    for workers in (0, 2):
        trainer = build(dataloader_num_workers=workers, max_steps=3, peft_config=lora(dropout=0.05))
        trainer.train()
        runs.append(trainer)
    here, workers_ = runs
    assert logged(workers_) == logged(here)
    assert_equal(trainable(workers_.model), trainable(here.model))
