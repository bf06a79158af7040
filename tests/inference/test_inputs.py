"""What FlippedMatcher takes and refuses, and what it tells: forms of pairs, empty lists, wrong values, cut texts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy.special import expit

from flipped_kd import FlippedMatcher, SearchIndex
from tests.adapters import MIXED_PAIRS, close, tied_adapter

TABLE = pd.DataFrame({"text_a": ["a"], "text_b": ["b"]})
DOCUMENTS = [text for pair in MIXED_PAIRS for text in pair]


@pytest.fixture(scope="module")
def matcher(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> FlippedMatcher:
    """One of a Qwen2, with match scores."""
    adapter = tied_adapter(tmp_path_factory.mktemp("matcher"), tokenizer)
    return FlippedMatcher.from_pretrained(adapter, device="cpu")


def test_forms_of_pairs(matcher: FlippedMatcher) -> None:
    expected = matcher.predict(MIXED_PAIRS)
    texts_a, texts_b = zip(*MIXED_PAIRS, strict=True)
    dataset = datasets.Dataset.from_dict({"text_a": texts_a, "text_b": texts_b, "label": [0] * len(texts_a)})
    forms: list[Any] = [dataset, [list(pair) for pair in MIXED_PAIRS], np.array(MIXED_PAIRS), iter(MIXED_PAIRS)]
    forms += [dataset.with_format(kind) for kind in ("arrow", "numpy", "pandas", "torch")]
    forms += [dataset.with_format("torch", columns=["label"]), [np.array(pair) for pair in MIXED_PAIRS]]
    forms += [[pd.Series(pair) for pair in MIXED_PAIRS], np.array(MIXED_PAIRS, dtype=object)]
    for form in forms:
        np.testing.assert_array_equal(matcher.predict(form), expected)
    for pair in (MIXED_PAIRS[1], list(MIXED_PAIRS[1]), np.array(MIXED_PAIRS[1])):
        close(matcher.predict(pair), expected[1])
    assert np.ndim(matcher.predict(MIXED_PAIRS[1])) == 0


def test_a_transform_of_a_data_set_is_applied(matcher: FlippedMatcher) -> None:
    dataset = datasets.Dataset.from_dict({"text_a": ["CASH"], "text_b": ["REFUND"]})
    lower = dataset.with_transform(lambda rows: {name: [text.lower() for text in rows[name]] for name in rows})
    expected = matcher.predict([("cash", "refund")])
    np.testing.assert_allclose(matcher.predict(lower), expected, atol=1e-6)
    assert not np.allclose(matcher.predict(dataset), expected, atol=1e-6)  # untransformed it is another pair


def test_forms_of_texts(matcher: FlippedMatcher) -> None:
    texts = ["cash", "refund"]
    expected = matcher.encode(texts)
    dataset = datasets.Dataset.from_dict({"text": texts})
    columns: list[Any] = [dataset.with_format(kind)["text"] for kind in (None, "arrow", "numpy", "torch")]
    for form in (*columns, np.array(texts), pd.Series(texts), pa.array(texts), (text for text in texts)):
        np.testing.assert_array_equal(matcher.encode(form), expected)
    assert matcher.rank("cash", np.array(texts), top_k=1)[0]["corpus_id"] in (0, 1)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(matcher: FlippedMatcher, tmp_path: Path) -> None:
    one, two = np.int64(1), np.uint8(2)
    pairs: Any = MIXED_PAIRS[:2]
    close(matcher.predict(pairs, batch_size=one), matcher.predict(pairs, batch_size=1))
    assert matcher.encode(["a"], batch_size=two).shape == matcher.encode(["a"]).shape
    assert matcher.rank("a", DOCUMENTS, top_k=one) == matcher.rank("a", DOCUMENTS, top_k=1)
    found = matcher.search("a", DOCUMENTS, top_k=one, rerank=two)  # type: ignore[arg-type]
    assert found == matcher.search("a", DOCUMENTS, top_k=1, rerank=2)
    half: Any = np.float32(0.5)
    np.testing.assert_array_equal(matcher.matches(pairs, threshold=half), matcher.matches(pairs, threshold=0.5))
    made = matcher.index(DOCUMENTS[:2])
    SearchIndex(made.texts, made.embeddings, made.encoder, np.array([3, 4])).save(tmp_path / "index")
    assert SearchIndex.load(tmp_path / "index").ids == [3, 4]


def test_nothing_in_nothing_out(matcher: FlippedMatcher) -> None:
    assert matcher.predict([]).shape == (0,)
    assert [part.shape for part in matcher.scores([])] == [(0,), (0,)]
    assert matcher.encode([]).shape == (0, matcher.encoder.dimension)
    assert matcher.similarity([], ["cash"]).shape == (0, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.predict([("a", None)]), TypeError, r"pairs\[0\] must hold two str, got None"),
        (lambda m: m.predict([("a", "b"), ("a", "b", "c")]), ValueError, r"pairs\[1\] is no pair"),
        (lambda m: m.predict(["a", "b", "c"]), ValueError, r"pairs\[0\] is no pair of texts: 'a'"),
        (lambda m: m.predict("你好"), TypeError, "pairs must be pairs of texts, got one str: '你好'"),
        (lambda m: m.scores("ab"), TypeError, "got one str"),
        (lambda m: m.matches("ab"), TypeError, "got one str"),
        (lambda m: m.predict(np.array("ab")), ValueError, r"pairs\[0\] is no pair of texts"),
        (lambda m: m.predict(None), TypeError, "pairs is None: give a list"),
        (lambda m: m.encode(None), TypeError, "texts is None: give a list"),
        (
            lambda m: m.predict(datasets.DatasetDict(test=datasets.Dataset.from_dict({}))),
            TypeError,
            "its splits.*test",
        ),
        (lambda m: m.matches([("a", "b")], threshold=[0.5]), ValueError, r"threshold=\[0.5\]: give 'tuned' or a prob"),
        (lambda m: m.matches([("a", "b")], threshold=np.array([0.5])), ValueError, "give 'tuned' or a prob"),
        (lambda m: m.matches([("a", "b")], threshold=None), ValueError, "threshold=None: give 'tuned'"),
        (lambda m: m.matches([("a", "b")], threshold=True), ValueError, "threshold=True: give 'tuned'"),
        (lambda m: m.encode(["a"], batch_size=True), ValueError, "batch_size=True"),
        (lambda m: m.search("a", m.index(["b", "c"]), 1, rerank=2, batch_size=0), ValueError, "batch_size=0"),
        (lambda m: m.encode(["a"], batch_size="2"), ValueError, "batch_size='2'"),
        (lambda m: m.rank("a", ["b"], top_k=np.float64(1)), ValueError, "top_k=.*whole number"),
        (lambda m: m.search("a", ["b"], rerank=-1), ValueError, "rerank=-1 must be a whole number from 0"),
        (lambda m: SearchIndex("ab", torch.zeros(2, 3), {}), TypeError, "got one str"),
        (lambda m: m.predict(datasets.Dataset.from_dict({"question": ["a"]})), ValueError, "rename_column"),
        (
            lambda m: m.predict({"text_a": ["a"], "text_b": ["b"]}),
            TypeError,
            "pairs is a dict, a table: give its rows",
        ),
        (lambda m: m.predict(TABLE), TypeError, r"pairs is a DataFrame, a table: .*\.values"),
        (lambda m: m.encode(TABLE), TypeError, r"texts is a DataFrame, a table"),
        (lambda m: m.index(TABLE), TypeError, r"is a DataFrame, a table"),
        (lambda m: m.predict([("a", "b")], score="cosine"), ValueError, "cosine.*is not one of"),
        (lambda m: m.scores([("a", "b")], kind="cosine"), ValueError, "cosine.*is not one of"),
        (lambda m: m.encode(["a", 3]), TypeError, r"texts\[1\] must be a str, got 3"),
        (lambda m: m.encode(["a"], batch_size=0), ValueError, "batch_size=0"),
        (lambda m: m.rank(["a"], ["b"]), TypeError, "query must be one str"),
        (lambda m: m.rank("a", "b"), TypeError, "documents must be a list"),
        (lambda m: m.rank("a", ["b"], top_k=0), ValueError, "top_k=0"),
        (lambda m: m.search("a", "b"), TypeError, "corpus must be a list"),
        (lambda m: m.search("a", ["b"], top_k=5, rerank=2), ValueError, "rerank=2.*at least top_k=5"),
        (lambda m: m.search("a", ["b"], score="both"), ValueError, "give rerank=10"),
        (lambda m: m.encode(["\ud800"]), ValueError, "lone surrogate"),
    ],
)
def test_wrong_input(matcher: FlippedMatcher, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(matcher)


def test_without_a_match_score_there_is_the_answer(tokenizer: Any, tmp_path: Path) -> None:
    adapter = tied_adapter(tmp_path, tokenizer, score=False)
    matcher = FlippedMatcher.from_pretrained(adapter, device="cpu")
    close(matcher.predict(MIXED_PAIRS), expit(matcher.scores(MIXED_PAIRS)[0]))
    with pytest.raises(ValueError, match=r"score='both' needs a match score.*eval_dataset"):
        matcher.predict(MIXED_PAIRS, score="both")


def test_cut_texts_are_told_of_once(matcher: FlippedMatcher, caplog: pytest.LogCaptureFixture) -> None:
    fresh = FlippedMatcher(matcher.model, matcher.tokenizer, matcher.prompt, matcher.encoder)
    with caplog.at_level(logging.WARNING):
        fresh.predict(MIXED_PAIRS[:2])
        assert not caplog.records
        fresh.predict([*MIXED_PAIRS[:3], ("cash", "where is the loan " * 60)])
        fresh.encode("where is the loan " * 60)
    (record,) = caplog.records
    assert "1 of 4 rows (25.0 %)" in record.getMessage() and "max_length=128" in record.getMessage()


def test_the_bar_is_shown_where_the_log_is_read(
    matcher: FlippedMatcher, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    matcher.predict(MIXED_PAIRS)
    assert not capsys.readouterr().err
    with caplog.at_level(logging.INFO, logger="flipped_kd.inference.scorer"):
        matcher.predict(MIXED_PAIRS)
        assert f"{len(MIXED_PAIRS)}/{len(MIXED_PAIRS)}" in capsys.readouterr().err
        matcher.predict(MIXED_PAIRS, show_progress_bar=False)
        assert not capsys.readouterr().err
    matcher.rank("cash", [*DOCUMENTS, "cash"], show_progress_bar=True)
    assert f"{len(DOCUMENTS) + 1}/{len(DOCUMENTS) + 1}" in capsys.readouterr().err
