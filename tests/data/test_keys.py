"""Text and pair keys, known matches and shared texts, each against a slow way of saying the same."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from flipped_kd.data.keys import KnownMatches, dataset_keys, pair_keys, shared_texts, text_keys

ANY_TEXT = st.text(st.characters(), max_size=8)  # lone surrogates included


def pairs_of(rows: list[tuple[str, str, int]]) -> Dataset:
    return Dataset.from_list([{"text_a": a, "text_b": b, "label": label} for a, b, label in rows])


@settings(deadline=None, max_examples=50)
@given(st.lists(ANY_TEXT, max_size=8))
def test_text_keys_are_the_digests_of_the_texts(texts):
    expected = [
        int.from_bytes(
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True
        )
        for text in texts
    ]
    keys = text_keys(texts)
    assert keys.dtype == np.int64
    assert keys.tolist() == expected


def test_text_keys_never_change():
    """Caches on disk are looked up by these numbers, so another version must find the same."""
    assert text_keys(["", "Where is my card?", "卡在哪里"]).tolist() == [
        -5426141060434712860,
        -1541334684437992826,
        -419955516970861143,
    ]


def test_texts_that_look_alike_have_different_keys():
    texts = ["a", "A", "a ", " a", "á", "a\u0301", "", "\u200b", "\ud800"]
    assert len(set(text_keys(texts).tolist())) == len(texts)


@pytest.mark.parametrize("texts, message", [("one text", "pass \\[text\\]"), (["a", None], "texts\\[1\\] is None")])
def test_text_keys_refuse_what_is_no_list_of_strings(texts, message):
    with pytest.raises(TypeError, match=message):
        text_keys(texts)


def slow_pair_key(a: int, b: int) -> int:
    """`pair_keys` in Python integers."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    low, high = sorted((a, b))
    key = mix((mix(((low & mask) + 0x9E3779B97F4A7C15) & mask) + (high & mask)) & mask)
    return key - 2**64 if key >= 2**63 else key


INT64 = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(INT64, INT64), min_size=1, max_size=8))
def test_pair_keys_equal_the_slow_reference_in_either_order(pairs):
    a, b = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
    keys = pair_keys(a, b)
    assert keys.tolist() == [slow_pair_key(x, y) for x, y in pairs]
    assert np.array_equal(keys, pair_keys(b, a))


def test_pair_keys_of_all_pairs_are_distinct():
    keys = text_keys([str(number) for number in range(700)])
    table = pair_keys(keys[:, None], keys[None, :])
    assert table.shape == (700, 700)
    assert len(np.unique(table)) == 700 * 701 // 2


def test_pair_keys_refuse_other_types():
    with pytest.raises(TypeError, match="keys_b has dtype float64"):
        pair_keys(np.zeros(1, np.int64), np.zeros(1))


def tensor_keys(texts):
    return torch.from_numpy(text_keys(texts))


SMALL_PAIRS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef"), st.integers(0, 1)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=40)
@given(SMALL_PAIRS, st.lists(st.sampled_from("abcdefg"), max_size=6), st.lists(st.sampled_from("abcdefg"), max_size=6))
def test_known_matches_equal_a_set_of_pairs(rows, left, right):
    known = KnownMatches.from_pairs(pairs_of(rows))
    positives = {frozenset((a, b)) for a, b, label in rows if label == 1}
    expected = np.array([[a == b or frozenset((a, b)) in positives for b in right] for a in left], dtype=bool)
    table = known(tensor_keys(left), tensor_keys(right))
    assert table.dtype == torch.bool and table.shape == (len(left), len(right))
    assert np.array_equal(table.numpy(), expected.reshape(table.shape))


@settings(deadline=None, max_examples=40)
@given(SMALL_PAIRS)
def test_known_matches_of_a_batch_are_those_of_its_pairs(rows):
    keys_a, keys_b = (tensor_keys([row[side] for row in rows]) for side in (0, 1))
    batch = KnownMatches.of_batch(keys_a, keys_b, torch.tensor([row[2] for row in rows]))
    assert torch.equal(batch(keys_a, keys_b), KnownMatches.from_pairs(pairs_of(rows))(keys_a, keys_b))


def test_known_matches_by_parts_equal_the_whole(monkeypatch):
    keys = tensor_keys([str(number) for number in range(50)])
    known = KnownMatches(pair_keys(keys[:40].numpy(), keys[10:].numpy()))
    whole = known(keys, keys)
    monkeypatch.setattr("flipped_kd.data.keys._CELLS", 120)
    assert torch.equal(known(keys, keys), whole)
    assert whole.sum() == 50 + 2 * 40


def test_known_matches_pickle_small():
    rows = [("a", "b", 1), ("b", "c", 0), ("c", "d", 1)]
    known, keys = KnownMatches.from_pairs(pairs_of(rows)), tensor_keys(list("abcd"))
    assert len(known) == 2
    pickled = pickle.dumps(known)
    assert len(pickled) < 800
    assert torch.equal(pickle.loads(pickled)(keys, keys), known(keys, keys))


def test_dataset_keys_follow_the_rows_of_a_selection():
    dataset = pairs_of([(f"a{i}", f"b{i}", i % 2) for i in range(9)]).select([7, 2, 5])
    keys_a, keys_b = dataset_keys(dataset)
    assert np.array_equal(keys_a, text_keys(["a7", "a2", "a5"]))
    assert np.array_equal(keys_b, text_keys(["b7", "b2", "b5"]))


def test_shared_texts_are_counted_across_columns():
    train = pairs_of([("a", "b", 1), ("c", "d", 0), ("a", "d", 0)])
    test = pairs_of([("x", "a", 1), ("d", "y", 0)])
    validation = pairs_of([("u", "v", 1)])
    (found,) = shared_texts(train=train, validation=validation, test=test)
    assert (found.first, found.second, found.count) == ("train", "test", 2)
    assert found.example in {"a", "d"}
    assert found.pairs == 0 and str(found).endswith("and 0 pairs")
    assert shared_texts(train=train, validation=validation) == []


def test_shared_pairs_are_counted_in_either_order():
    train = pairs_of([("a", "b", 1), ("c", "d", 0), ("a", "b", 1)])
    test = pairs_of([("b", "a", 1), ("c", "d", 1), ("a", "d", 0)])
    (found,) = shared_texts(train=train, test=test)
    assert (found.count, found.pairs) == (4, 2)
