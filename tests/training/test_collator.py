"""The collator: masks against slow constructions, padding on either side, teacher scores, data-loader workers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from flipped_kd.data.keys import text_keys
from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.teachers.cache import TeacherCache, fill_cache
from flipped_kd.teachers.score_table import TeacherEmbeddings, TeacherPairScores, ordered_pair_keys
from flipped_kd.teachers.shards import CacheIdentity
from flipped_kd.training.collator import TeacherScoringCollator
from flipped_kd.training.packing import RowLayout

PAD = 0
ROWS = [
    {"text_a": "where is my card", "text_b": "my card has not arrived", "label": 1, "row": 7},
    {"text_a": "cash", "text_b": "why was the loan refused, and how long does it take?", "label": 0, "row": 3},
    {"text_a": "my card has not arrived", "text_b": "cash", "label": 0, "row": 4},
    {"text_a": "where is my card", "text_b": "an invoice", "label": 1, "row": 0},
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def prompt(tokenizer: PreTrainedTokenizerFast) -> PairPrompt:
    return PairPrompt.from_preset(tokenizer, max_length=80)


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    """A random unit vector for each text of ROWS."""
    texts = sorted({row[column] for row in ROWS for column in ("text_a", "text_b")})  # type: ignore[type-var]
    drawn = np.random.default_rng(0).normal(size=(len(texts), 5)).astype(np.float32)
    return dict(zip(texts, drawn / np.linalg.norm(drawn, axis=1, keepdims=True), strict=True))  # type: ignore[arg-type]


def stored(folder: Path, kind: str, keys: np.ndarray, values: np.ndarray) -> list[Path]:
    cache = TeacherCache(folder, CacheIdentity(kind, "some/teacher", "f" * 64, values.shape[1]))
    lengths = np.ones(len(keys), np.int64)
    return fill_cache(cache, keys, lengths, lambda rows: values[rows], block=8, description="", show_progress=False)


@pytest.fixture(scope="module")
def embeddings(vectors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> TeacherEmbeddings:
    folder = tmp_path_factory.mktemp("embeddings")
    paths = stored(folder, "embeddings", text_keys(list(vectors)), np.stack(list(vectors.values())))
    return TeacherEmbeddings(paths, 5)


@pytest.fixture(scope="module")
def pair_scores(tmp_path_factory: pytest.TempPathFactory) -> TeacherPairScores:
    keys = ordered_pair_keys(*(text_keys([str(row[column]) for row in ROWS]) for column in ("text_a", "text_b")))
    values = np.array([[0.9], [0.2], [0.4], [0.7]], np.float32)
    return TeacherPairScores(stored(tmp_path_factory.mktemp("pairs"), "pair_scores", keys, values), 1)


# ---- Tokens and masks ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), side=st.sampled_from(["right", "left"]))
def test_masks_equal_a_construction_token_by_token(
    prompt: PairPrompt, pairs: list[tuple[str, str]], side: Any
) -> None:
    rows = [{"text_a": a, "text_b": b} for a, b in pairs]
    batch = TeacherScoringCollator(prompt, PAD, padding_side=side)(rows)
    tokens = prompt.encode_pairs([a for a, _ in pairs], [b for _, b in pairs])
    alone = prompt.encode_texts([b for _, b in pairs])
    places: dict[str, list[Any]] = {
        "span_a": [t.text_a for t in tokens],
        "span_b": [t.text_b for t in tokens],
        "alone_span": [t.text_a for t in alone],
    }
    for prefix, entries, spans in (("", tokens, ("span_a", "span_b")), ("alone_", alone, ("alone_span",))):
        ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
        length = max(len(entry.input_ids) for entry in entries)
        assert ids.shape == mask.shape == (len(pairs), length)
        for row, entry in enumerate(entries):
            shift = length - len(entry.input_ids) if side == "left" else 0
            for column in range(length):
                real = 0 <= column - shift < len(entry.input_ids)
                assert mask[row, column].item() == real
                assert ids[row, column].item() == (entry.input_ids[column - shift] if real else PAD)
                for name in spans:
                    start, end = places[name][row]
                    assert batch[name][row, column].item() == (start <= column - shift < end)
    for row, position in enumerate(batch["answer_position"].tolist()):
        assert position == batch["attention_mask"][row].nonzero().flatten().tolist()[-1]


def test_padding_sides_hold_the_same_tokens(prompt: PairPrompt) -> None:
    right, left = (TeacherScoringCollator(prompt, PAD, padding_side=side)(ROWS) for side in ("right", "left"))
    assert right.keys() == left.keys()
    assert not right["input_ids"].equal(left["input_ids"])
    for row in range(len(ROWS)):
        for mask, ids in (("attention_mask", "input_ids"), ("span_a", "input_ids"), ("span_b", "input_ids")):
            kept = [batch[ids][row][batch[mask][row].bool()].tolist() for batch in (right, left)]
            assert kept[0] == kept[1]
        for batch in (right, left):
            assert batch["input_ids"][row, batch["answer_position"][row]] == prompt.suffix_ids[-1]


def test_shared_rows_hold_each_pair_and_each_text_alone(prompt: PairPrompt) -> None:
    batch = TeacherScoringCollator(prompt, PAD, layout=RowLayout(2, attention_width=200))(ROWS)
    pairs = prompt.encode_pairs([str(row["text_a"]) for row in ROWS], [str(row["text_b"]) for row in ROWS])
    alone = prompt.encode_texts([str(row["text_b"]) for row in ROWS])
    assert "alone_input_ids" not in batch and 1 < len(batch["input_ids"]) < 2 * len(ROWS)
    start = len(prompt.prefix_ids)
    for number, (pair, text) in enumerate(zip(pairs, alone, strict=True)):
        row, end = int(batch["pair_row"][number]), int(batch["answer_position"][number])
        assert batch["read_positions"][row, batch["pair_slot"][number]] == end
        shift = end + 1 - len(pair.input_ids)
        for tokens, at, spans in (
            (pair, (row, shift), {"span_a": pair.text_a, "span_b": pair.text_b}),
            (text, None, {"alone_span": text.text_a}),
        ):
            if at is None:
                row = int(batch["alone_row"][number])
                at = row, int(batch["alone_span"][number].nonzero()[0, 0]) - start
            row, moved = at
            places = [*range(start), *range(start + moved, len(tokens.input_ids) + moved)]
            assert batch["input_ids"][row, places].tolist() == tokens.input_ids
            assert (batch["position_ids"][row, places] - 2).tolist() == list(range(len(tokens.input_ids)))
            for index, query in enumerate(places):
                seen = batch["attention_mask"][row, 0, query].nonzero().flatten().tolist()
                assert seen == places[: index + 1]
            for name, span in spans.items():
                assert span is not None
                wanted = [place + moved for place in range(*span)]
                assert batch[name][number].nonzero().flatten().tolist() == wanted


def test_packing_needs_padding_on_the_right(prompt: PairPrompt) -> None:
    with pytest.raises(ValueError, match="padding_side='right' or layout=None"):
        TeacherScoringCollator(prompt, PAD, padding_side="left", layout=RowLayout())


def test_optional_columns_and_parts_come_only_where_given(prompt: PairPrompt) -> None:
    full = TeacherScoringCollator(prompt, PAD)(ROWS)
    assert full["labels"].tolist() == [1, 0, 0, 1] and full["labels"].dtype == torch.int64
    assert full["rows"].tolist() == [7, 3, 4, 0]
    bare_rows = [{name: row[name] for name in ("text_a", "text_b")} for row in ROWS]
    bare = TeacherScoringCollator(prompt, PAD, encode_alone=False)(bare_rows)
    assert set(full) - set(bare) == {"labels", "rows", "alone_input_ids", "alone_attention_mask", "alone_span"}
    assert set(bare) == {"input_ids", "attention_mask", "span_a", "span_b", "answer_position"}


# ---- The teacher -----------------------------------------------------------------------------------------


def test_the_teacher_gives_vectors_for_a_matrix_and_their_cosines_for_pairs_alone(
    prompt: PairPrompt, embeddings: TeacherEmbeddings, vectors: dict[str, np.ndarray]
) -> None:
    batch = TeacherScoringCollator(prompt, PAD, embeddings)(ROWS)
    paired = TeacherScoringCollator(prompt, PAD, embeddings, matrix=False)(ROWS)
    for side in ("a", "b"):
        texts = [str(row[f"text_{side}"]) for row in ROWS]
        assert np.array_equal(batch[f"teacher_{side}"].numpy(), np.stack([vectors[text] for text in texts]))
        assert np.array_equal(batch[f"keys_{side}"].numpy(), text_keys(texts))
    assert "teacher_a" not in paired
    cosines = (batch["teacher_a"] * batch["teacher_b"]).sum(1)
    assert paired["teacher_similarity"].dtype == torch.float32
    torch.testing.assert_close(paired["teacher_similarity"], cosines, rtol=0, atol=1e-6)


def test_texts_handed_on_are_those_of_the_rows_with_their_keys(prompt: PairPrompt) -> None:
    batch = TeacherScoringCollator(prompt, PAD, hand_on_texts=True, mini_batch_size=2)(ROWS)
    for side in ("a", "b"):
        texts = batch[f"texts_{side}"]
        assert sorted(texts) == sorted(str(row[f"text_{side}"]) for row in ROWS)
        assert np.array_equal(batch[f"keys_{side}"].numpy(), text_keys(texts))
    by_text = {(row["text_a"], row["text_b"]): row["row"] for row in ROWS}
    assert [by_text[pair] for pair in zip(batch["texts_a"], batch["texts_b"], strict=True)] == batch["rows"].tolist()


# ---- Mini-batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [None, RowLayout()])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_mini_batches_are_batches_of_their_rows_longest_first(
    size: int, layout: RowLayout | None, prompt: PairPrompt, embeddings: TeacherEmbeddings
) -> None:
    whole = TeacherScoringCollator(prompt, PAD, embeddings, layout=layout)
    batch = TeacherScoringCollator(prompt, PAD, embeddings, layout=layout, mini_batch_size=size)(ROWS)
    rows = [next(row for row in ROWS if row["row"] == number) for number in batch["rows"].tolist()]
    parts = batch.pop("mini_batches")
    assert [len(part["labels"]) for part in parts] == {1: [1, 1, 1, 1], 2: [2, 2], 3: [3, 1]}[size]
    of_teacher = ("keys_a", "keys_b", "teacher_a", "teacher_b")
    for start, part in zip(range(0, len(ROWS), size), parts, strict=True):
        alone = whole(rows[start : start + size])
        assert_same(part, {name: value for name, value in alone.items() if name not in of_teacher})
    expected = whole(rows)
    assert_same(batch, {name: expected[name] for name in (*of_teacher, "labels", "rows")})
    lengths = [len(tokens.input_ids) for tokens in prompt.encode_pairs(*zip(*texts_of(rows), strict=True))]  # type: ignore[arg-type]
    assert lengths == sorted(lengths, reverse=True)


def test_a_short_batch_is_one_mini_batch(prompt: PairPrompt, embeddings: TeacherEmbeddings) -> None:
    """Its rank has to step as the others do."""
    batch = TeacherScoringCollator(prompt, PAD, embeddings, mini_batch_size=9)(ROWS)
    assert [len(part["labels"]) for part in batch["mini_batches"]] == [4]
    with pytest.raises(ValueError, match="mini_batch_size=0.*at least one pair"):
        TeacherScoringCollator(prompt, PAD, mini_batch_size=0)


def texts_of(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(str(row["text_a"]), str(row["text_b"])) for row in rows]


def test_a_cross_encoder_gives_pairs_and_no_matrix(
    prompt: PairPrompt, pair_scores: TeacherPairScores, embeddings: TeacherEmbeddings
) -> None:
    batch = TeacherScoringCollator(prompt, PAD, pair_scores, matrix=False)(ROWS)
    torch.testing.assert_close(batch["teacher_similarity"], torch.tensor([0.8, -0.6, -0.2, 0.4]))
    with pytest.raises(ValueError, match="matrix=True needs the vectors of a bi-encoder.*matrix=False"):
        TeacherScoringCollator(prompt, PAD, pair_scores, matrix=True)
    late = TeacherScoringCollator(prompt, PAD, embeddings)
    late.teacher_scores = pair_scores
    with pytest.raises(ValueError, match="matrix=True needs the vectors"):
        late(ROWS)


def test_a_text_the_teacher_has_not_scored_is_an_error(prompt: PairPrompt, embeddings: TeacherEmbeddings) -> None:
    with pytest.raises(ValueError, match="not scored by the teacher"):
        TeacherScoringCollator(prompt, PAD, embeddings)([{"text_a": "unseen", "text_b": "cash"}])


# ---- Workers ---------------------------------------------------------------------------------------------


def test_a_pickled_copy_gives_the_same_batch(prompt: PairPrompt, embeddings: TeacherEmbeddings) -> None:
    collator = TeacherScoringCollator(prompt, PAD, embeddings)
    copied = pickle.loads(pickle.dumps(collator))
    assert_same(copied(ROWS), collator(ROWS))


def test_two_spawned_workers_give_the_batches_of_the_main_process(
    prompt: PairPrompt, embeddings: TeacherEmbeddings
) -> None:
    collator = TeacherScoringCollator(prompt, PAD, embeddings)
    batches = [
        list(DataLoader(ROWS, 2, collate_fn=collator, num_workers=workers, multiprocessing_context=context))  # type: ignore[arg-type]
        for workers, context in ((0, None), (2, "spawn"))
    ]
    assert len(batches[0]) == len(batches[1]) == 2
    for main, worker in zip(*batches, strict=True):
        assert_same(worker, main)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
