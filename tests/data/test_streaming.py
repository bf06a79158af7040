"""Streams of training pairs: the same checks row by row, the same training as from a data set, the same resume."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from flipped_kd.data.keys import dataset_keys, text_keys
from flipped_kd.data.streaming import validate_stream
from flipped_kd.data.validation import validate_pairs
from flipped_kd.teachers.loading import load_teacher
from flipped_kd.teachers.score_table import ordered_pair_keys
from flipped_kd.teachers.streaming import StreamedScores
from tests.invariants.training import PLAIN, assert_equal, logged, lora, trainable, uneven_stream


def stream_of(rows: list[dict[str, Any]]) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


# ---- Rows -----------------------------------------------------------------------------------------------------------


def test_rows_of_a_stream_are_those_of_the_checked_set(pairs: datasets.Dataset) -> None:
    found = list(validate_stream(pairs.to_iterable_dataset(num_shards=4)))
    assert [{name: row[name] for name in ("text_a", "text_b", "label")} for row in found] == list(
        validate_pairs(pairs)
    )
    assert [row["row"] for row in found] == list(range(len(pairs)))


def test_a_checked_stream_goes_to_workers_that_are_not_forked(pairs: datasets.Dataset) -> None:
    """As those of macOS and Windows, and of Python 3.14."""
    stream = validate_stream(pairs.to_iterable_dataset())
    assert list(pickle.loads(pickle.dumps(stream))) == list(stream)


@pytest.mark.parametrize("kind", ["arrow", "numpy", "torch"])
def test_the_format_of_a_stream_does_not_matter(kind: str, pairs: datasets.Dataset) -> None:
    stream = pairs.to_iterable_dataset()
    assert list(validate_stream(stream.with_format(kind))) == list(validate_stream(stream))


def test_columns_are_mapped_and_others_dropped() -> None:
    rows = [{"q1": "a", "q2": "b", "same": "1", "id": 7}, {"q1": "c", "q2": "d", "same": False, "id": 8}]
    names = {"text_a": "q1", "text_b": "q2", "label": "same"}
    found = list(validate_stream(stream_of(rows[:1]), names)) + list(validate_stream(stream_of(rows[1:]), names))
    assert found == [
        {"text_a": "a", "text_b": "b", "label": 1, "row": 0},
        {"text_a": "c", "text_b": "d", "label": 0, "row": 0},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text_a": " ", "text_b": "b", "label": 1}, "row 1.*text_a.*white space"),
        ({"text_a": "a", "text_b": "b", "label": 2}, "row 1.*label.*2.*0 or 1"),
        ({"text_a": "a", "text_b": None, "label": 1}, "row 1.*text_b.*null.*filter"),
    ],
)
def test_a_bad_row_is_an_error_when_it_comes(row: dict[str, Any], message: str) -> None:
    stream = validate_stream(stream_of([{"text_a": "a", "text_b": "b", "label": 0}, row]))
    rows = iter(stream)
    with pytest.raises(ValueError, match=message):
        list(rows)


def test_a_missing_column_is_an_error_at_once(pairs: datasets.Dataset) -> None:
    with pytest.raises(ValueError, match="text_b.*columns"):
        validate_stream(pairs.remove_columns("text_b").to_iterable_dataset())


# ---- Scores ---------------------------------------------------------------------------------------------------------


def test_each_text_is_scored_once_and_found_again_on_disk(
    teacher_dir: Path, pairs: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(str(teacher_dir))
    seen: list[str] = []
    compute = type(teacher).compute
    monkeypatch.setattr(
        type(teacher), "compute", lambda self, texts, size: seen.extend(texts) or compute(self, texts, size)
    )
    stream = StreamedScores(teacher, tmp_path, 8)
    texts = [*pairs["text_a"], *pairs["text_b"]]
    expected = teacher.embed(texts, cache_dir=None)
    seen.clear()
    for start in range(0, len(texts), 8):
        batch = texts[start : start + 8]
        keys = text_keys(batch)
        np.testing.assert_allclose(stream.look_up(keys, batch), expected.vectors(keys), atol=1e-6)
        if start == 64:
            stream.flush()
            assert stream.waiting == 0 and len(stream.table) == len(set(seen))
    assert sorted(seen) == sorted(set(texts))
    kept = stream.look_up(text_keys(texts), texts)
    stream.flush()
    again = StreamedScores(teacher, tmp_path, 8)
    assert np.array_equal(again.look_up(text_keys(texts), texts), kept) and len(seen) == len(set(texts))


def test_a_full_buffer_is_written(teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flipped_kd.teachers.shards.MAX_SHARD_ROWS", 5)
    stream = StreamedScores(load_teacher(str(teacher_dir)), tmp_path, 8)
    for start in range(0, 20, 2):
        texts = [f"text {number}" for number in range(start, start + 2)]
        stream.look_up(text_keys(texts), texts)
        assert stream.waiting < 5  # whole batches: 6 at most at a time
    assert len(stream.cache.shard_paths()) == 3 and len(stream.table) == 18


def test_pairs_of_a_cross_encoder(build: Any, cross_encoder_dir: Path, pairs: datasets.Dataset) -> None:
    trainer = build(teacher=str(cross_encoder_dir), train_dataset=pairs.to_iterable_dataset())
    stream = trainer.signal.stream
    keys = ordered_pair_keys(*dataset_keys(pairs))
    found = stream.look_up(keys, list(zip(pairs["text_a"], pairs["text_b"], strict=True)))
    np.testing.assert_allclose(2 * found[:, 0] - 1, trainer.teacher_similarity(pairs), atol=1e-6)
    trainer.train()
    assert max(logged(trainer, "loss_dist")) > 0


# ---- Training -------------------------------------------------------------------------------------------------------

CONSTANT: dict[str, Any] = {"lr_scheduler_type": "constant"}
IN_ORDER = {"train_sampling_strategy": "sequential"}


@pytest.mark.parametrize("changes", [{}, {"mini_batch_size": 3}, {"representation": "joint"}, PLAIN])
def test_a_stream_trains_as_the_data_set_does(changes: dict[str, Any], build: Any, pairs: datasets.Dataset) -> None:
    teacher = {"teacher": None} if changes is PLAIN else {}
    whole = build(**IN_ORDER, **changes, **teacher)
    texts = [*pairs["text_b"], *pairs["text_a"]]  # so that A starts alike
    streamed = build(train_dataset=pairs.to_iterable_dataset(), unlabelled_texts=texts, **changes, **teacher)
    if whole.signal is not None:  # a stream knows of a batch's own matches only
        whole.signal.known_matches = None
    for trainer in (whole, streamed):
        trainer.train()
    assert logged(streamed) == pytest.approx(logged(whole), rel=1e-3)
    for name, weight in trainable(whole.model).items():
        torch.testing.assert_close(trainable(streamed.model)[name], weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("workers", "saved", "changes"),
    [
        (0, 3, {}),
        (1, 3, {}),
        (0, 11, {}),  # in the second pass of 8 batches
        (1, 19, {}),  # in the third
        (0, 8, {}),  # between two
        (0, 5, {"gradient_accumulation_steps": 2}),
    ],
)
def test_a_resumed_stream_is_the_uninterrupted_one(
    workers: int, saved: int, changes: dict[str, Any], build: Any, pairs: datasets.Dataset, tmp_path: Path
) -> None:
    def trainer(folder: str, steps: int) -> Any:
        return build(
            train_dataset=pairs.to_iterable_dataset().shuffle(seed=1, buffer_size=16),
            output_dir=str(tmp_path / folder),
            teacher_cache_dir=str(tmp_path / f"{folder}_cache"),
            max_steps=steps,
            lr_scheduler_type="constant",
            save_strategy="steps",
            save_steps=saved,
            peft_config=lora(dropout=0.1),
            dataloader_num_workers=workers,
            **changes,
        )

    uninterrupted = trainer("whole", saved + 3)
    uninterrupted.train()
    trainer("killed", saved + 1).train()  # one step after its last checkpoint
    resumed = trainer("killed", saved + 3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / f"checkpoint-{saved}"))
    assert logged(resumed) == logged(uninterrupted)
    assert_equal(trainable(resumed.model), trainable(uninterrupted.model))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_what_fills_no_step_at_the_end_of_a_pass_is_not_read(
    accumulation: int, build: Any, pairs: datasets.Dataset
) -> None:
    """A short batch would have another contrast; the gradient of a group without a step would enter the next one."""
    few = pairs.select(range(30))  # three batches of 8 and one of 6
    steps = 3 // accumulation
    weights: list[Any] = []
    for rows in (few, few.select(range(24))):
        trainer = build(
            train_dataset=rows.to_iterable_dataset(),
            unlabelled_texts=[*few["text_a"], *few["text_b"]],
            gradient_accumulation_steps=accumulation,
            max_steps=2 * steps + 1,  # into the third pass
            **CONSTANT,
        )
        trainer.train()
        weights.append(trainable(trainer.model))
    assert_equal(*weights)


def test_workers_with_shards_of_unlike_length_give_whole_batches(
    build: Any, pairs: datasets.Dataset, tmp_path: Path
) -> None:
    """A worker's own rest came in the middle of a pass, and a resumed run read batches twice."""

    def trainer(folder: str, steps: int) -> Any:
        made = build(
            train_dataset=uneven_stream(pairs),
            output_dir=str(tmp_path / folder),
            teacher_cache_dir=str(tmp_path / f"{folder}_cache"),
            unlabelled_texts=list(pairs["text_a"]),
            per_device_train_batch_size=4,
            max_steps=steps,
            save_strategy="steps",
            save_steps=7,
            dataloader_num_workers=2,
            **CONSTANT,
        )
        made.sizes = []
        step = made.training_step
        made.training_step = lambda model, inputs, *rest: (
            made.sizes.append(len(inputs["labels"])) or step(model, inputs, *rest)
        )
        return made

    whole = trainer("whole", 10)  # a pass is 3 + 5 batches
    whole.train()
    assert whole.sizes == [4] * 10
    trainer("killed", 8).train()
    resumed = trainer("killed", 10)
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-7"))
    assert logged(resumed) == logged(whole)
    assert_equal(trainable(resumed.model), trainable(whole.model))


def test_a_stream_without_a_step_is_refused(build: Any, pairs: datasets.Dataset) -> None:
    stream = pairs.select(range(15)).to_iterable_dataset()
    with pytest.raises(ValueError, match="fewer than the 16 pairs of a step: give more pairs or a smaller"):
        build(train_dataset=stream, gradient_accumulation_steps=2).train()


def test_the_end_of_a_streams_pass_is_not_made_twice(build: Any, pairs: datasets.Dataset) -> None:
    """The checkpoint was written at a pass's end, after its evaluation; or just before it, and then that is made."""

    def steps(strategy: str, evaluation: str) -> list[int]:
        def trainer(last: int) -> Any:
            return build(
                train_dataset=pairs.to_iterable_dataset(),
                max_steps=last,
                save_strategy=strategy,
                save_steps=8,
                eval_strategy=evaluation,
                **CONSTANT,
            )

        trainer(10).train()
        saved: list[int] = []
        resumed = trainer(18)
        save = resumed._save_checkpoint
        resumed._save_checkpoint = lambda *args: (saved.append(resumed.state.global_step), save(*args))
        resumed.train(resume_from_checkpoint=str(Path(resumed.args.output_dir) / "checkpoint-8"))
        assert saved == [16, 18]
        return [line["step"] for line in resumed.state.log_history if "eval_loss" in line]

    assert steps("epoch", "epoch") == [8, 16, 18]
    assert steps("steps", "epoch") == [8, 16, 18]


def test_what_a_stream_cannot_give_is_refused(build: Any, pairs: datasets.Dataset) -> None:
    stream = pairs.to_iterable_dataset()
    for steps in (-1, 0):
        with pytest.raises(ValueError, match=f"max_steps={steps}.*no length.*unlabelled_texts and no training set"):
            build(train_dataset=stream, unlabelled_texts=list(pairs["text_a"]), max_steps=steps)
    for none in (None, {}):
        with pytest.raises(ValueError, match="give an eval_dataset"):
            build(train_dataset=stream, eval_dataset=none)
    with pytest.raises(ValueError, match="row 0.*white space"):
        build(train_dataset=stream_of([{"text_a": "", "text_b": "b", "label": 1}] * 8)).train()
