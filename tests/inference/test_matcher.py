"""FlippedMatcher: scores of the trainer, one result whatever the batches, caches and copies; search by brute force."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import nn

from flipped_kd import FlippedMatcher
from flipped_kd.evaluation.match_score import MatchScore
from flipped_kd.inference.search_index import best_hits
from flipped_kd.publishing.merge import merge_adapter
from flipped_kd.students.loading import load_tokenizer
from flipped_kd.utils.choices import SCORE_KINDS, ScoreKind
from tests.adapters import LINEAR, MIXED_PAIRS, close, make_adapter, make_base, tied_adapter
from tests.invariants.training import new_trainer, settings

# Those of tests.adapters, with equal texts and pairs, spaces, and texts that are cut.
PAIRS = [
    *MIXED_PAIRS,
    MIXED_PAIRS[0],
    ("refund", "cash"),
    ("  cash ", "refund\n"),
    ("cash", "where is the loan " * 40),
    ("where is the loan " * 40, "cash"),
]
QUERIES = ["cash", "where is my card", "why was the transfer refused " * 30]
DOCUMENTS = [text for pair in PAIRS for text in pair]
TARGETS = {"qwen2": LINEAR, "gemma3": LINEAR, "gpt2": ["c_attn", "c_fc"], "bert": ["query", "dense"]}


@pytest.fixture(scope="module", params=TARGETS)
def adapter(request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of decoders that number positions, cache and end differently."""
    folder = tmp_path_factory.mktemp(request.param)
    base = make_base(folder / "base", request.param, tokenizer, tied=True)
    return make_adapter(folder / "adapter", base, tokenizer, target_modules=TARGETS[request.param], max_length=96)


@pytest.fixture(scope="module")
def any_matcher(adapter: Path) -> FlippedMatcher:
    """One of each family."""
    return FlippedMatcher.from_pretrained(adapter, device="cpu")


@pytest.fixture(scope="module")
def matcher(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> FlippedMatcher:
    """One of a Qwen2, with match scores, that has tried its model already."""
    adapter = tied_adapter(tmp_path_factory.mktemp("matcher"), tokenizer, max_length=96)
    matcher = FlippedMatcher.from_pretrained(adapter, device="cpu")
    matcher.rank("cash", DOCUMENTS)
    return matcher


@contextmanager
def embedded(matcher: FlippedMatcher) -> Iterator[list[torch.Size]]:
    """Shapes (B, T) of the batches that the model reads, which are padded meanwhile: else B is 1."""
    shapes: list[torch.Size] = []
    found = vars(matcher._reader.shortcuts)
    before = found.get("_tried_unpadded")
    found["_tried_unpadded"] = False
    embedding: Any = matcher.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    try:
        yield shapes
    finally:
        handle.remove()
        del found["_tried_unpadded"]
        if before is not None:
            found["_tried_unpadded"] = before


# ---- Scores ----


@pytest.mark.parametrize("representation", ["independent", "joint", "both"])
def test_scores_are_those_of_the_trainer(
    representation: str, student_dir: Path, tmp_path: Path, teacher_dir: Path, pairs: Any, held_out: Any
) -> None:
    """And so are those of the merged model: of both kinds, to 1e-5."""
    arguments = settings(tmp_path / "run", representation=representation, max_length=48)
    trainer = new_trainer(arguments, str(student_dir), str(teacher_dir), pairs, held_out, None)
    trainer.train()
    expected, match_score = trainer.score_pairs(held_out), trainer.match_score
    assert match_score is not None
    trainer.save_model(str(tmp_path / "adapter"))
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged", sentence_transformers=False).folder
    for folder in (tmp_path / "adapter", merged):
        matcher = FlippedMatcher.from_pretrained(folder, device="cpu")
        for found, wanted in zip(matcher.scores(held_out), expected, strict=True):
            close(found, wanted)
            assert np.ptp(wanted) > 1e-3
        for kind in SCORE_KINDS:
            close(matcher.predict(held_out, score=kind), match_score.probability(*expected, kind))
        close(matcher.predict(held_out), matcher.predict(held_out, score=match_score.default))


def test_batches_change_nothing(any_matcher: FlippedMatcher) -> None:
    answer, similarity = any_matcher.scores(PAIRS)
    assert np.ptp(answer) > 0.1 and np.ptp(similarity) > 0.05
    for size in (1, 3):
        for found, wanted in zip(any_matcher.scores(PAIRS, batch_size=size), (answer, similarity), strict=True):
            close(found, wanted)
    for row, pair in enumerate(PAIRS):
        single = any_matcher.scores(pair)
        assert np.ndim(single[0]) == np.ndim(single[1]) == 0
        close(single, (answer[row], similarity[row]))


def test_similarity_is_the_cosine_of_texts_alone(any_matcher: FlippedMatcher) -> None:
    texts_a, texts_b = zip(*PAIRS, strict=True)
    first, second = any_matcher.encode(texts_a), any_matcher.encode(list(texts_b), batch_size=2)
    assert first.dtype == np.float32 and first.shape == (len(PAIRS), any_matcher.encoder.dimension)
    close(np.linalg.norm(first, axis=1), 1)
    close((first * second).sum(1), any_matcher.scores(PAIRS, kind="similarity")[1])
    close(any_matcher.similarity(texts_a, second), first @ second.T)
    close(any_matcher.similarity("cash", torch.from_numpy(second)), any_matcher.encode("cash")[None] @ second.T)
    # Read from JSON they are float64.
    close(any_matcher.similarity(first.astype(np.float64), second), first @ second.T)
    one = any_matcher.encode("cash", convert_to_tensor=True)
    assert isinstance(one, torch.Tensor) and one.shape == (any_matcher.encoder.dimension,)


def test_matches_are_the_pairs_from_the_threshold_on(any_matcher: FlippedMatcher) -> None:
    score = any_matcher.match_score
    assert score is not None
    for kind in SCORE_KINDS:
        probability = any_matcher.predict(PAIRS, score=kind)
        said = any_matcher.matches(PAIRS, score=kind)
        assert said.dtype == bool and said.tolist() == (probability >= score.threshold(kind)).tolist()
        middle = float(np.median(probability))
        np.testing.assert_array_equal(any_matcher.matches(PAIRS, score=kind, threshold=middle), probability >= middle)
    assert any_matcher.matches(PAIRS[0]) == any_matcher.matches(PAIRS)[0]
    for wrong in (1.1, -0.1, float("nan"), "best"):
        with pytest.raises(ValueError, match=r"threshold=.*'tuned' or a probability in \[0, 1\]"):
            any_matcher.matches(PAIRS, threshold=wrong)


def test_only_what_a_score_needs_is_computed(matcher: FlippedMatcher) -> None:
    unneeded_by: dict[ScoreKind, int] = {"answer": 1, "similarity": 0}
    for kind, unneeded in unneeded_by.items():
        with embedded(matcher) as shapes:
            scores = matcher.scores(MIXED_PAIRS, kind=kind)
        assert np.isnan(scores[unneeded]).all() and not np.isnan(scores[1 - unneeded]).any()
        distinct = MIXED_PAIRS if kind == "answer" else {text for pair in MIXED_PAIRS for text in pair}
        assert sum(rows for rows, _ in shapes) <= len(distinct) + 1  # one row is the shared beginning


def test_equal_pairs_are_read_once_and_in_rows_of_like_length(matcher: FlippedMatcher) -> None:
    twice = MIXED_PAIRS * 3
    with embedded(matcher) as shapes:
        answer = matcher.scores(twice, kind="answer", batch_size=2)[0]
    np.testing.assert_array_equal(answer, np.tile(answer[: len(MIXED_PAIRS)], 3))
    lengths = sorted(len(row.input_ids) for row in matcher.prompt.encode_pairs(*zip(*MIXED_PAIRS, strict=True)))
    shared = len(matcher.prompt.prefix_ids)
    assert shapes[0] == (1, shared)
    assert [length for _, length in shapes[1:]] == [length - shared for length in lengths[::-2]]


def test_of_the_output_layer_two_rows_are_computed(any_matcher: FlippedMatcher) -> None:
    """The scores are those of the whole layer, and the model is left as it was, also after an error."""
    expected = any_matcher.scores(PAIRS, kind="answer")[0]
    assert any_matcher._reader.shortcuts.head is not None
    model: Any = any_matcher.model
    ids = torch.tensor([[5, 6, 7]])
    assert model(input_ids=ids).logits.shape[-1] == model.get_base_model().config.vocab_size
    with pytest.raises(ValueError, match="batch_size"):
        any_matcher.scores(PAIRS, batch_size=0)
    assert "forward" not in vars(model.get_output_embeddings())
    other = FlippedMatcher(model, any_matcher.tokenizer, any_matcher.prompt, any_matcher.encoder)
    other._reader.shortcuts.__dict__["head"] = None
    close(other.scores(PAIRS, kind="answer")[0], expected)
    answer_ids = list(any_matcher.prompt.answer_ids)
    tokens = any_matcher.prompt.encode_pairs(*zip(*PAIRS, strict=True))
    for row, wanted in zip(tokens, expected, strict=True):
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, -1, answer_ids]
        close(float((logits[1] - logits[0]).detach()), wanted)


def test_an_adapted_output_layer_is_computed_whole(tokenizer: Any, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen2", tokenizer, tied=False)
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, target_modules=[*LINEAR, "lm_head"])
    matcher = FlippedMatcher.from_pretrained(adapter, device="cpu")
    found = matcher.scores(MIXED_PAIRS, kind="answer")[0]
    assert matcher._reader.shortcuts.head is None
    for row, wanted in zip(matcher.prompt.encode_pairs(*zip(*MIXED_PAIRS, strict=True)), found, strict=True):
        no, yes = matcher.model(input_ids=torch.tensor([row.input_ids])).logits[0, -1, list(matcher.prompt.answer_ids)]
        close(float(yes - no), wanted)


def test_dropout_is_off_though_the_model_was_trained_meanwhile(matcher: FlippedMatcher) -> None:
    expected = matcher.scores(MIXED_PAIRS)
    matcher.model.train()
    for found, wanted in zip(matcher.scores(MIXED_PAIRS), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_threads_share_a_matcher(matcher: FlippedMatcher) -> None:
    expected = matcher.predict(PAIRS), matcher.encode(DOCUMENTS)
    results: list[Any] = [None] * 6

    def work(number: int) -> None:
        results[number] = matcher.predict(PAIRS) if number % 2 == 0 else matcher.encode(DOCUMENTS)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[number % 2])


def test_scores_that_are_no_numbers_are_an_error(tokenizer: Any, tmp_path: Path) -> None:
    matcher = FlippedMatcher.from_pretrained(tied_adapter(tmp_path, tokenizer), device="cpu")
    with torch.no_grad():
        matcher.model.get_input_embeddings().weight[:] = torch.nan
    for call in (lambda: matcher.predict(PAIRS, score="answer"), lambda: matcher.encode("cash")):
        with pytest.raises(FloatingPointError, match="dtype='float32'"):
            call()


# ---- Ranking ----


@pytest.mark.parametrize("query", QUERIES, ids=["word", "sentence", "cut"])
def test_rank_scores_as_predict_does(any_matcher: FlippedMatcher, query: str) -> None:
    """With the cache of the query, whatever its length, in whatever batches; and so without it."""
    mixed = [*PAIRS, *((query, text) for text in DOCUMENTS)]  # nothing but the instruction is shared
    for kind in SCORE_KINDS:
        expected = any_matcher.predict(mixed, score=kind)[len(PAIRS) :]
        for size in (32, 3):
            ranked = any_matcher.rank(query, DOCUMENTS, score=kind, batch_size=size)
            assert [hit["score"] for hit in ranked] == sorted((hit["score"] for hit in ranked), reverse=True)
            close([hit["score"] for hit in ranked], expected[[hit["corpus_id"] for hit in ranked]])
            assert sorted(hit["corpus_id"] for hit in ranked) == list(range(len(DOCUMENTS)))
    assert any_matcher._reader.shortcuts.caches


def test_rank_reads_the_query_once(matcher: FlippedMatcher) -> None:
    query, documents = "where is my card", [f"{text} {number}" for number, text in enumerate(DOCUMENTS)]
    with embedded(matcher) as shapes:
        matcher.rank(query, documents, score="answer")
    rows = matcher.prompt.encode_pairs([query] * len(documents), documents)
    shared = rows[0].text_a[1] + len(matcher.prompt.middle_ids)
    assert shapes[0] == (1, shared)
    assert sum(count for count, _ in shapes[1:]) == len(documents)
    assert max(length for _, length in shapes[1:]) == max(len(row.input_ids) for row in rows) - shared


def test_a_decoder_that_cannot_go_on_from_a_cache_reads_whole_rows(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Same scores, one line in the log."""
    base = make_base(tmp_path / "base", "bert", tokenizer, tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, target_modules=TARGETS["bert"])
    expected = FlippedMatcher.from_pretrained(adapter, device="cpu").rank("cash", DOCUMENTS)
    matcher = FlippedMatcher.from_pretrained(adapter, device="cpu")
    forward = matcher.model.get_base_model().forward

    def forgets(*args: Any, **inputs: Any) -> Any:
        if inputs.get("past_key_values") is not None:
            inputs["attention_mask"][:, 0] = 0
        return forward(*args, **inputs)

    matcher.model.get_base_model().forward = forgets
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = matcher.rank("cash", DOCUMENTS)
    of_document, wanted = ({hit["corpus_id"]: hit["score"] for hit in hits} for hits in (found, expected))
    assert of_document.keys() == wanted.keys()
    close([of_document[number] for number in wanted], list(wanted.values()))  # in another order where scores are equal
    assert [record.getMessage() for record in caplog.records if "every row is read whole" in record.getMessage()]
    assert len([record for record in caplog.records if "cache" in record.getMessage()]) == 1


def test_rank_results_are_those_of_sentence_transformers(matcher: FlippedMatcher) -> None:
    ranked = matcher.rank("cash", DOCUMENTS, top_k=3, return_documents=True)
    assert len(ranked) == 3 and all(set(hit) == {"corpus_id", "score", "text"} for hit in ranked)
    assert all(hit["text"] == DOCUMENTS[hit["corpus_id"]] and type(hit["score"]) is float for hit in ranked)
    assert len(matcher.rank("cash", DOCUMENTS, top_k=10**6)) == len(DOCUMENTS)
    equal = matcher.rank("cash", ["refund"] * 4)
    assert [hit["corpus_id"] for hit in equal] == [0, 1, 2, 3] and len({hit["score"] for hit in equal}) == 1
    assert matcher.rank("cash", []) == []


@pytest.mark.shared
def test_rank_of_the_student_of_the_benchmarks(shared: Path, tmp_path: Path) -> None:
    """A RoBERTa, which counts its positions from the pad's id, with the shipped prompt."""
    base = shared / "models" / "student-minilm-causal"
    adapter = make_adapter(tmp_path, base, load_tokenizer(base), target_modules=["query", "value"])
    matcher = FlippedMatcher.from_pretrained(adapter, device="cpu")
    query, documents = "where is my card and why has it not arrived yet", DOCUMENTS[:12]
    expected = matcher.predict([("cash", "refund"), *((query, text) for text in documents)], score="answer")[1:]
    ranked = matcher.rank(query, documents, score="answer")
    close([hit["score"] for hit in ranked], expected[[hit["corpus_id"] for hit in ranked]])
    assert matcher._reader.shortcuts.caches and np.ptp(expected) > 1e-3


# ---- Searching ----


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    subjects = ["my card", "the transfer", "a refund", "the app", "cash", "my salary"]
    return [f"{verb} {subject}" for verb in ("where is", "cancel", "why was") for subject in subjects]


def test_search_is_a_sort_by_cosine(matcher: FlippedMatcher, corpus: list[str]) -> None:
    queries = ["my card", "cancel cash", "my card"]
    found = matcher.search(queries, corpus, top_k=4, return_documents=True)
    cosines = matcher.encode(queries) @ matcher.encode(corpus).T
    for hits, row in zip(found, cosines, strict=True):
        assert [hit["corpus_id"] for hit in hits] == np.argsort(-row)[:4].tolist()
        close([hit["score"] for hit in hits], np.sort(row)[::-1][:4])
        assert [hit["text"] for hit in hits] == [corpus[hit["corpus_id"]] for hit in hits]
    assert found[0] == found[2] and found[0] is not found[2]
    (alone,) = matcher.search(queries[0], corpus, top_k=4)
    assert [hit["corpus_id"] for hit in alone] == [hit["corpus_id"] for hit in found[0]]


@pytest.mark.parametrize("score", ["answer", "similarity", "both", None])
def test_rerank_is_a_sort_of_the_head_by_predict(matcher: FlippedMatcher, corpus: list[str], score: Any) -> None:
    queries = ["my card", "cancel cash"]
    found = matcher.search(queries, matcher.index(corpus), top_k=3, rerank=6, score=score)
    heads = matcher.search(queries, corpus, top_k=6)
    for query, hits, head in zip(queries, found, heads, strict=True):
        ids = [hit["corpus_id"] for hit in head]
        expected = matcher.predict([(query, corpus[i]) for i in ids], score=score)
        assert [hit["corpus_id"] for hit in hits] == [ids[i] for i in np.argsort(-expected, kind="stable")[:3]]
        close([hit["score"] for hit in hits], np.sort(expected)[::-1][:3])


@pytest.mark.parametrize("given", [lambda v: v, lambda v: v.astype(np.float64), torch.from_numpy, np.ndarray.tolist])
def test_an_index_of_known_vectors_is_the_same(given: Any, matcher: FlippedMatcher, corpus: list[str]) -> None:
    index = matcher.index(corpus, vectors=given(matcher.encode(corpus)))
    assert matcher.search("cash", index, 3) == matcher.search("cash", corpus, 3)


def test_vectors_may_be_turned_round(matcher: FlippedMatcher, corpus: list[str]) -> None:
    """Views that torch does not take; and what becomes of the user's array is nothing to the index."""
    vectors = matcher.encode(corpus)
    index = matcher.index(corpus[::-1], vectors=vectors[::-1])
    expected = matcher.search("cash", index, 3)
    torch.testing.assert_close(
        matcher.similarity(vectors[::-1], vectors.astype(">f4")),
        torch.from_numpy(vectors[::-1] @ vectors.T).clamp(-1, 1),
        atol=1e-5,
        rtol=0,
    )
    own = vectors.copy()
    index = matcher.index(corpus, vectors=own)
    own *= 0
    assert [hit["score"] for hit in matcher.search("cash", index, 3)[0]] == [hit["score"] for hit in expected[0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_of_torch_has_no_say(dtype: torch.dtype, matcher: FlippedMatcher, corpus: list[str]) -> None:
    pairs = [(text, corpus[0]) for text in corpus[:3]]
    expected = matcher.encode(corpus), matcher.predict(pairs), matcher.search("cash", corpus, 2, rerank=3)
    try:
        torch.set_default_dtype(dtype)
        found = matcher.encode(corpus), matcher.predict(pairs), matcher.search("cash", corpus, 2, rerank=3)
    finally:
        torch.set_default_dtype(torch.float32)
    close(found[0], expected[0])
    close(found[1], expected[1])
    assert [hit["corpus_id"] for hit in found[2][0]] == [hit["corpus_id"] for hit in expected[2][0]]


def test_the_surest_keep_their_order() -> None:
    """Their probabilities round to 1."""
    hits = best_hits(np.array([37.5, 40.0, 1.0, 45.0]), [7, 8, 9, 10], 3)
    assert [hit["corpus_id"] for hit in hits] == [10, 8, 7] and hits[0]["score"] == 1.0


def test_vectors_that_are_not_of_the_corpus_are_refused(matcher: FlippedMatcher, corpus: list[str]) -> None:
    vectors = matcher.encode(corpus)
    with pytest.raises(ValueError, match=rf"vectors of shape \(1, {vectors.shape[1]}\): \({len(corpus)}, "):
        matcher.index(corpus, vectors=vectors[:1])
    with pytest.raises(ValueError, match="made by another encoder"):
        matcher.index(corpus, vectors=np.roll(vectors, 1, axis=0))


def test_arrays_of_texts_are_texts(matcher: FlippedMatcher, corpus: list[str]) -> None:
    expected = matcher.similarity(corpus, corpus[:2])
    for dtype in (object, None):
        texts = np.array(corpus, dtype=dtype)
        torch.testing.assert_close(matcher.similarity(texts, texts[:2]), expected)


def test_whether_one_pair_matches_is_a_scalar(matcher: FlippedMatcher) -> None:
    pair = PAIRS[0]
    for threshold in ("tuned", 0.5):
        found = matcher.matches(pair, threshold=threshold)
        assert isinstance(found, np.bool_) and found == matcher.matches([pair], threshold=threshold)[0]


def test_rerank_uses_the_vectors_of_the_retrieval(matcher: FlippedMatcher, corpus: list[str]) -> None:
    index = matcher.index(corpus)
    with embedded(matcher) as shapes:
        matcher.search("my card", index, top_k=3, rerank=3, score="similarity")
    assert [rows for rows, _ in shapes] == [1]


def test_a_data_set_read_in_parts_has_the_scores_of_the_whole(
    matcher: FlippedMatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = datasets.Dataset.from_dict({"text_a": [a for a, _ in PAIRS], "text_b": [b for _, b in PAIRS]})
    whole = matcher.scores(table)
    monkeypatch.setattr("flipped_kd.inference.scorer.PART", 4)
    with embedded(matcher) as shapes:
        close(matcher.scores(table), whole)
    assert max(rows for rows, _ in shapes) <= 2 * 4  # the texts of a part, both sides
    close(matcher.predict(table), matcher.predict(PAIRS))


@pytest.mark.parametrize("score", ["answer", "both"])
def test_a_query_alone_is_read_once_for_its_vector_and_its_pairs(
    any_matcher: FlippedMatcher, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the results that it has among others, where it is cut too."""
    fitted = MatchScore.fit(np.arange(-4.0, 4), np.arange(-4.0, 4) / 4, np.array([0, 0, 1, 0, 1, 0, 1, 1]))
    monkeypatch.setattr(any_matcher, "match_score", fitted)
    index = any_matcher.index(sorted({text.strip() for text in DOCUMENTS if len(text) < 80}))  # no ties
    together = any_matcher.search(QUERIES, index, top_k=4, rerank=6, score=score)
    for query, wanted in zip(QUERIES, together, strict=True):
        with embedded(any_matcher) as shapes:
            (found,) = any_matcher.search(query, index, top_k=4, rerank=6, score=score)
        assert len(shapes) == 2 and shapes[0][0] == 1 < shapes[1][0]
        assert [hit["corpus_id"] for hit in found] == [hit["corpus_id"] for hit in wanted]
        close([hit["score"] for hit in found], [hit["score"] for hit in wanted])


def test_a_query_alone_where_the_model_cannot_go_on_from_a_cache(
    matcher: FlippedMatcher, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = matcher.search("my card", corpus, top_k=3, rerank=5, score="answer")
    monkeypatch.setitem(vars(matcher._reader.shortcuts), "caches", False)
    (found,) = matcher.search("my card", corpus, top_k=3, rerank=5, score="answer")
    assert [hit["corpus_id"] for hit in found] == [hit["corpus_id"] for hit in wanted[0]]
    close([hit["score"] for hit in found], [hit["score"] for hit in wanted[0]])


def test_small_and_empty_corpora(matcher: FlippedMatcher, corpus: list[str]) -> None:
    assert len(matcher.search("my card", corpus[:2], top_k=5, rerank=5)[0]) == 2
    assert matcher.search(["my card", "cash"], []) == [[], []]
    assert matcher.search([], corpus) == []


def test_the_head_is_no_submodule(matcher: FlippedMatcher) -> None:
    """What is tried at first use adds nothing to what would be saved."""
    before = set(matcher.model.state_dict())
    matcher.predict(MIXED_PAIRS)
    assert set(matcher.model.state_dict()) == before
    assert isinstance(matcher._reader.shortcuts.head, nn.Linear)


@pytest.mark.parametrize("options", [{"target_modules": [*LINEAR, "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_output_layer_of_its_own_answers_in_full_precision(
    options: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    """bfloat16's log-odds are multiples of 1/16 at this size, and ties in every ranking."""
    base = make_base(tmp_path / "base", "qwen2", tokenizer, tied=False)
    adapter = make_adapter(tmp_path / "adapter", base, tokenizer, **options)
    matcher = FlippedMatcher.from_pretrained(adapter, device="cpu", dtype=torch.bfloat16)
    found = matcher.scores(MIXED_PAIRS)[0]
    assert matcher.model.dtype == torch.bfloat16
    rounded = torch.from_numpy(found).bfloat16().double().numpy()
    assert len(set(found)) == len(set(MIXED_PAIRS)) and (found != rounded).mean() > 0.5
