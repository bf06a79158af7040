"""What must not matter does not: activation checkpointing, packing, padding side, batch size of scoring, workers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tests.invariants.training import (
    UNCLIPPED,
    Gradients,
    assert_close,
    assert_equal,
    gradients_of,
    logged,
    lora,
    new_trainer,
    settings,
    trainable,
)


@pytest.mark.parametrize("representation", ["independent", "joint", "both"])
def test_activation_checkpointing_changes_no_loss_and_no_gradient(
    representation: str,
    _student: Any,
    teacher_dir: Path,
    tokenizer: Any,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path: Path,
) -> None:
    runs = []
    for checkpointing in (False, True):
        gradients = Gradients()
        args = settings(
            tmp_path,
            activation_checkpointing=checkpointing,
            representation=representation,
            max_steps=2,
            # Every pair kept, so that no term is ever empty.
            positive_threshold=0.0,
            negative_threshold=1.0,
            **UNCLIPPED,
        )
        # Dropout stays on: checkpointing must recompute with the same masks.
        trainer = new_trainer(
            args,
            copy.deepcopy(_student),
            str(teacher_dir),
            pairs,
            held_out,
            tokenizer,
            peft_config=lora(dropout=0.05),
            callbacks=[gradients],
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


def test_scores_do_not_depend_on_padding_side_or_batch_size(
    student: Any,
    teacher_dir: Path,
    tokenizer: Any,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path: Path,
) -> None:
    trainer = new_trainer(settings(tmp_path), student, str(teacher_dir), pairs, held_out, tokenizer)
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


def test_packing_and_padding_side_change_no_loss_and_no_gradient(
    student: Any,
    teacher_dir: Path,
    tokenizer: Any,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path: Path,
) -> None:
    args = settings(tmp_path, positive_threshold=0.0, negative_threshold=1.0)
    trainer = new_trainer(args, student, str(teacher_dir), pairs, held_out, tokenizer)
    trainer.train()
    rows = [trainer.train_dataset[row] for row in range(8)]  # type: ignore[index]
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


def test_loader_workers_change_nothing(
    _student: Any,
    teacher_dir: Path,
    tokenizer: Any,
    pairs: datasets.Dataset,
    held_out: datasets.Dataset,
    tmp_path: Path,
) -> None:
    runs = []
    for workers in (0, 2):
        args = settings(tmp_path, dataloader_num_workers=workers, max_steps=3)
        trainer = new_trainer(
            args,
            copy.deepcopy(_student),
            str(teacher_dir),
            pairs,
            held_out,
            tokenizer,
            peft_config=lora(dropout=0.05),
        )
        trainer.train()
        runs.append(trainer)
    here, workers_ = runs
    assert logged(workers_) == logged(here)
    assert_equal(trainable(workers_.model), trainable(here.model))
