"""What the teacher says of a batch: every cosine, calibrated, with equal and known texts left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flipped_kd.data.keys import KnownMatches
from flipped_kd.training.teacher_targets import TeacherSignal

ROWS = range(0, 64, 3)  # of both classes


def signal_and_batch(build: Any, **changes: Any) -> tuple[TeacherSignal, dict[str, Any], list[dict[str, Any]]]:
    trainer = build(**changes)
    rows = [trainer.train_dataset[row] for row in ROWS]
    # Texts that come twice: a pair said the other way round, and a text beside itself.
    rows += [
        {**rows[0], "text_a": rows[0]["text_b"], "text_b": rows[0]["text_a"]},
        {**rows[1], "text_b": rows[1]["text_a"]},
    ]
    return trainer.signal, trainer.data_collator(rows), rows


def test_the_matrix_holds_every_cosine_and_the_pairs_on_its_diagonal(build: Any) -> None:
    signal, batch, rows = signal_and_batch(build)
    targets = signal.targets(batch)
    assert targets is not None and targets.similarity.shape == (len(rows), len(rows))
    encode = signal.teacher.model.encode
    first, second = (encode([row[name] for row in rows]).astype(np.float64) for name in ("text_a", "text_b"))
    np.testing.assert_allclose(targets.similarity, first @ second.T, atol=1e-5)
    assert targets.similarity.abs().max() <= 1
    assert torch.equal(targets.probability, signal.calibration.probability(targets.similarity))  # type: ignore[union-attr]
    paired, other_batch, _ = signal_and_batch(build, representation="joint")
    alone = paired.targets(other_batch)
    assert alone is not None and alone.excluded is None
    torch.testing.assert_close(alone.similarity, targets.similarity.diagonal(), atol=1e-6, rtol=0)


def test_equal_texts_and_known_pairs_are_excluded_off_the_diagonal_only(build: Any, pairs: Any) -> None:
    signal, batch, rows = signal_and_batch(build)
    positives = {frozenset((row["text_a"], row["text_b"])) for row in pairs if row["label"] == 1}
    in_batch = {frozenset((row["text_a"], row["text_b"])) for row in rows if row["label"] == 1}
    nothing = KnownMatches(np.empty(0, np.int64))
    # Of the set; of a stream's batch; of an evaluation set, whose positives are none of the training set's.
    for known, matches in ((signal.known_matches, positives), (None, in_batch), (nothing, in_batch)):
        signal.known_matches = known
        targets = signal.targets(batch)
        assert targets is not None and targets.excluded is not None
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                same = one["text_a"] == other["text_b"]
                match = frozenset((one["text_a"], other["text_b"])) in matches
                assert targets.excluded[i, j].item() == (i != j and (same or match))
        assert targets.excluded.any()


def test_rows_gathered_from_several_ranks_are_one_batch(build: Any) -> None:
    signal, batch, _ = signal_and_batch(build)
    once = signal.targets(batch)
    twice = signal.targets(batch, lambda rows: torch.cat([rows, rows]))
    assert once is not None and twice is not None
    size = len(once.labels)
    assert torch.equal(twice.labels, once.labels.repeat(2))
    torch.testing.assert_close(twice.similarity, once.similarity.repeat(2, 2))
    assert twice.excluded is not None and once.excluded is not None
    assert torch.equal(twice.excluded[:size, :size], once.excluded)
    # A positive pair of one rank is known to match on the other.
    positive = (once.labels == 1).nonzero().flatten()
    assert twice.excluded[positive, positive + size].all()


def test_nothing_is_said_before_calibration_or_of_a_batch_without_scores(build: Any) -> None:
    signal, batch, _ = signal_and_batch(build)
    assert signal.targets({"labels": batch["labels"]}) is None
    signal.calibration = None
    assert signal.targets(batch) is None
    signal.known_matches = KnownMatches(np.empty(0, np.int64))
    assert signal.targets(batch) is None
