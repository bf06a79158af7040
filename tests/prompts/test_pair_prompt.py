"""Prompt: spans, budget, forged control tokens, equality with the whole string, saving, padding."""

from __future__ import annotations

import json
import os
import pickle
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flipped_kd.prompts.pair_prompt import MIN_ROOM, PROMPT_FILE, PairPrompt
from flipped_kd.prompts.pair_tokens import pad_batch
from tests.prompt_kinds import (
    BPE_TOKENS,
    SHARED,
    any_kind,
    control_contents,
    family_tokenizer,
    make_prompt,
    make_tokenizer,
    property_test,
    texts_for,
    untouched,
    whole_ids,
)

# ---------------------------------------------------------------------------------------------- texts and their spans


@any_kind
@property_test
@given(data=st.data())
def test_spans_hold_the_texts_own_tokens_and_no_control_token(kind: str, data: st.DataObject) -> None:
    prompt, text_a, text_b = make_prompt(kind), data.draw(texts_for(kind)), data.draw(texts_for(kind))
    model_unk = {"bytes": None, "wordpiece": "[UNK]"}.get(kind, "<unk>")
    assume(kind != "bytes" or (text_a and text_b))
    (pair,) = prompt.encode_pairs([text_a], [text_b])
    assert pair.text_b is not None and not pair.truncated
    control = {
        i for i, t in make_tokenizer(kind).added_tokens_decoder.items() if str(t).strip() and str(t) != model_unk
    }
    for start, end in (pair.text_a, pair.text_b):
        assert start < end and control.isdisjoint(pair.input_ids[start:end])
    joined = pair.input_ids[: pair.text_a[0]] + pair.input_ids[pair.text_a[1] : pair.text_b[0]]
    assert joined == prompt.prefix_ids + prompt.middle_ids
    assert pair.input_ids[pair.text_b[1] :] == prompt.suffix_ids


@property_test
@given(text=texts_for("bytes").filter(bool))
def test_byte_level_span_decodes_to_the_text_itself(text: str) -> None:
    pair = make_prompt("bytes").encode_pairs([text], ["x"])[0]
    ids = pair.input_ids[slice(*pair.text_a)]
    assert make_tokenizer("bytes").backend_tokenizer.decode(ids, skip_special_tokens=False) == (text.strip() or text)


@pytest.mark.parametrize("kind", ["bytes", "wordpiece", "prepend"])
@property_test
@given(data=st.data())
def test_span_equals_a_tokenizer_that_never_had_added_tokens(kind: str, data: st.DataObject) -> None:
    text = data.draw(texts_for(kind).filter(lambda text: "    " not in text))
    stripped = (text.strip() or text) if kind == "bytes" else text  # of a chat form, where a line break precedes it
    expected = untouched(kind).encode(stripped, add_special_tokens=False).ids
    assume(expected)
    (alone,) = make_prompt(kind).encode_texts([text])
    assert alone.input_ids[slice(*alone.text_a)] == expected


@any_kind
@property_test
@given(data=st.data())
def test_ids_equal_those_of_the_whole_string(kind: str, data: st.DataObject) -> None:
    text_a, text_b = data.draw(texts_for(kind)), data.draw(texts_for(kind))
    assume(not any(token in text for token in control_contents(kind) for text in (text_a, text_b)))
    assume(whole_ids(kind, text_a) and whole_ids(kind, text_b))
    (pair,) = make_prompt(kind).encode_pairs([text_a], [text_b])
    assert pair.input_ids == whole_ids(kind, make_prompt(kind).render(text_a, text_b))


def test_unigram_cannot_find_a_control_token_in_its_own_vocabulary() -> None:
    emptied = untouched("unigram").encode("a</s>b", add_special_tokens=False).ids
    end = make_tokenizer("unigram").eos_token_id
    assert end in emptied  # An empty table of added tokens is not enough.
    (alone,) = make_prompt("unigram").encode_texts(["a</s>b"])
    span = alone.input_ids[slice(*alone.text_a)]
    assert end not in span
    assert (
        "".join(make_tokenizer("unigram").convert_ids_to_tokens(span)) == "▁a<unk>s<unk>b\n"
    )  # The corpus has no < / >.


@any_kind
def test_the_spelling_that_replaces_control_tokens_forges_none(kind: str) -> None:
    tokenizer, prompt = make_tokenizer(kind), make_prompt(kind)
    for token_id in tokenizer.added_tokens_decoder:
        (alone,) = prompt.encode_texts([f"a \U0010ffff removed control token {token_id} b"])
        span = set(alone.input_ids[slice(*alone.text_a)])
        assert span and span.isdisjoint(set(tokenizer.added_tokens_decoder) - {prompt._text_tokenizer.unk_id})


def test_added_tokens_of_white_space_stay() -> None:
    tokenizer = make_tokenizer("bytes")
    (alone,) = make_prompt("bytes").encode_texts(["pay    card"])
    assert tokenizer.convert_tokens_to_ids("    ") in alone.input_ids


def test_control_token_made_by_merges_is_taken_out() -> None:
    backend = untouched("bytes")
    config = json.loads(backend.to_str())
    size = len(config["model"]["vocab"])
    config["model"]["vocab"].update({"<s": size, "<s>": size + 1})
    config["model"]["merges"] += [["<", "s"], ["<s", ">"]]
    config["pre_tokenizer"]["use_regex"] = False
    backend = Tokenizer.from_str(json.dumps(config))
    assert backend.encode("<s>").ids == [size + 1]
    backend.add_special_tokens(["<s>"])
    prompt = PairPrompt.from_preset(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"))
    (alone,) = prompt.encode_texts(["a<s>b"])
    assert size + 1 not in alone.input_ids[slice(*alone.text_a)] and size in alone.input_ids


def test_text_that_tokenises_to_nothing_becomes_unk_or_is_refused() -> None:
    tokenizer = make_tokenizer("wordpiece")
    (pair,) = make_prompt("wordpiece").encode_pairs(["\u200b"], [""])
    assert pair.text_b is not None
    assert [pair.input_ids[slice(*span)] for span in (pair.text_a, pair.text_b)] == [[tokenizer.unk_token_id]] * 2
    with pytest.raises(ValueError, match="tokenises to nothing"):
        make_prompt("bytes").encode_texts([""])


def test_wrong_texts_are_refused() -> None:
    prompt = make_prompt("bytes")
    with pytest.raises(TypeError, match="Text 1 must be a str, got None"):
        prompt.encode_texts(["a", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="not one str"):
        prompt.encode_texts("abc")
    with pytest.raises(ValueError, match="same length, got 1 and 2"):
        prompt.encode_pairs(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="lone surrogate"):
        prompt.encode_texts(["fine", "a\ud800"])


def test_empty_batches_and_repeated_texts() -> None:
    prompt = make_prompt("bytes")
    assert prompt.encode_pairs([], []) == [] and prompt.encode_texts([]) == []
    texts = ["pay", "card", "pay"]
    assert prompt.encode_pairs(texts, texts[::-1]) == [
        prompt.encode_pairs([a], [b])[0] for a, b in zip(texts, texts[::-1], strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------- budget


@property_test
@given(words_a=st.integers(1, 40), words_b=st.integers(1, 40), room=st.integers(MIN_ROOM, 30))
def test_cut_rules(words_a: int, words_b: int, room: int) -> None:
    full = make_prompt("bytes")
    fixed = full.max_length - full.room
    prompt = cached_prompt("bytes", fixed + room)
    text_a, text_b = "pay card " * words_a, "bill account " * words_b
    (uncut,), (cut,) = full.encode_pairs([text_a], [text_b]), prompt.encode_pairs([text_a], [text_b])
    assert uncut.text_b is not None and cut.text_b is not None
    own_a, own_b = uncut.input_ids[slice(*uncut.text_a)], uncut.input_ids[slice(*uncut.text_b)]
    kept_a = own_a[: min(len(own_a), room // 2)]
    kept_b = own_b[: room - len(kept_a)]
    assert cut.input_ids[slice(*cut.text_a)] == kept_a
    assert cut.input_ids[slice(*cut.text_b)] == kept_b
    assert cut.input_ids[cut.text_b[1] :] == prompt.suffix_ids
    assert len(cut.input_ids) <= prompt.max_length
    assert cut.truncated == (cut.input_ids != uncut.input_ids)


@property_test
@given(text_a=texts_for("bytes").filter(bool), text_b=texts_for("bytes").filter(bool), room=st.integers(MIN_ROOM, 20))
def test_text_alone_is_the_beginning_of_every_pair(text_a: str, text_b: str, room: int) -> None:
    full = make_prompt("bytes")
    prompt = cached_prompt("bytes", full.max_length - full.room + room)
    (alone,), (pair,) = prompt.encode_texts([text_a]), prompt.encode_pairs([text_a], [text_b])
    assert alone.text_b is None and alone.text_a == pair.text_a
    assert alone.input_ids == pair.input_ids[: pair.text_a[1]]


@cache
def cached_prompt(kind: str, max_length: int) -> PairPrompt:
    return PairPrompt.from_preset(make_tokenizer(kind), max_length=max_length)


def test_max_length_may_be_numpy_s(tmp_path: Path) -> None:
    prompt = PairPrompt.from_preset(make_tokenizer("bytes"), max_length=np.int64(64))  # type: ignore[arg-type]
    prompt.save_pretrained(tmp_path)
    assert PairPrompt.from_pretrained(tmp_path, make_tokenizer("bytes")).max_length == 64
    for wrong in (64.0, True, "64"):
        with pytest.raises(TypeError, match="max_length must be an int"):
            PairPrompt.from_preset(make_tokenizer("bytes"), max_length=wrong)  # type: ignore[arg-type]


def test_max_length_too_small_names_both_numbers() -> None:
    prompt = make_prompt("bytes")
    fixed = prompt.max_length - prompt.room
    assert cached_prompt("bytes", fixed + MIN_ROOM).room == MIN_ROOM
    with pytest.raises(ValueError, match=rf"max_length={fixed + 7} leaves 7 tokens .* take {fixed}\."):
        PairPrompt.from_preset(make_tokenizer("bytes"), max_length=fixed + 7)


# ------------------------------------------------------------------------------------------------ saving and pickling


@any_kind
def test_saved_and_pickled_prompts_encode_alike(kind: str, tmp_path: Path) -> None:
    prompt = make_prompt(kind)
    path = prompt.save_pretrained(tmp_path / "new")
    assert [p.name for p in path.parent.iterdir()] == [PROMPT_FILE]
    expected = prompt.encode_pairs(["pay <think> [SEP] </s>"], ["card"])
    for copy in (PairPrompt.from_pretrained(path.parent, make_tokenizer(kind)), pickle.loads(pickle.dumps(prompt))):
        assert copy.to_dict() == prompt.to_dict()
        assert copy.encode_pairs(["pay <think> [SEP] </s>"], ["card"]) == expected


def test_construction_and_use_leave_the_tokenizer_alone() -> None:
    tokenizer = family_tokenizer(BPE_TOKENS)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    before = (tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, len(tokenizer))
    prompt = PairPrompt.from_preset(tokenizer)
    assert len(prompt.encode_texts(["pay by card, is card payment possible"])[0].input_ids) > 9
    assert (tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, len(tokenizer)) == before


def test_broken_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_prompt("bytes").save_pretrained(tmp_path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_prompt("wordpiece").save_pretrained(tmp_path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format_version": 3}, "format_version 3, this release reads up to 2: upgrade"),
        ({"format_version": None}, "format_version None"),
        ({"answer_ids": [1, 2]}, r"answer_ids=\[1, 2\], but this tokenizer gives"),
        ({"middle_ids": [1]}, r"middle_ids=\[1\], but this tokenizer gives"),
    ],
)
def test_unfitting_files_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = make_prompt("bytes").save_pretrained(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        PairPrompt.from_pretrained(tmp_path, make_tokenizer("bytes"))


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=PROMPT_FILE):
        PairPrompt.from_pretrained(tmp_path, make_tokenizer("bytes"))
    for content, message in (
        ("{", "no valid JSON.*save the prompt again"),
        ("[]", "not a JSON object"),
        ('{"format_version": 1}', "lacks"),
    ):
        (tmp_path / PROMPT_FILE).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            PairPrompt.from_pretrained(tmp_path, make_tokenizer("bytes"))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    make_prompt("bytes").save_pretrained(tmp_path)
    other = family_tokenizer(("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    with pytest.raises(ValueError, match="but this tokenizer gives"):
        PairPrompt.from_pretrained(tmp_path, other)


# ------------------------------------------------------------------------------------------------------------ padding


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    side=st.sampled_from(["left", "right"]),
)
def test_pad_batch_keeps_every_token_on_its_side(lengths: list[int], side: Literal["left", "right"]) -> None:
    sequences = [[10 * row + 1 + i for i in range(length)] for row, length in enumerate(lengths)]
    input_ids, mask = pad_batch(sequences, -7, side)
    assert input_ids.dtype == mask.dtype == torch.int64 and input_ids.shape == (len(lengths), max(lengths))
    for ids, kept, sequence in zip(input_ids, mask, sequences, strict=True):
        assert ids[kept.bool()].tolist() == sequence and set(ids[~kept.bool()].tolist()) <= {-7}
        assert kept[-1 if side == "left" else 0] == 1 and kept.diff().abs().sum() <= 1


def test_pad_batch_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="side must be"):
        pad_batch([[1]], 0, "middle")  # type: ignore[arg-type]
    for empty in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one sequence and none empty"):
            pad_batch(empty, 0)


# ---------------------------------------------------------------------------------------------------- real tokenizers


def real_tokenizer(name: str) -> PreTrainedTokenizerBase:
    folder = SHARED / "models" / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder} (set FLIPPED_KD_SHARED to the folder that holds models/)")
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "name, answers, answer_ids",
    [("student-minilm-causal", None, (2053, 2748)), ("stories260k", ("n", "y"), None)],
)
def test_real_student_tokenizers(
    name: str, answers: tuple[str, str] | None, answer_ids: tuple[int, int] | None
) -> None:
    tokenizer = real_tokenizer(name)
    prompt = PairPrompt.from_preset(tokenizer, answers=answers)
    assert answer_ids is None or prompt.answer_ids == answer_ids
    for text_a, text_b in (("How do I pay?", "  Größe 8.90 €"), ("我可以用卡支付吗？", "👍🏽 ok\n\n2 lines ")):
        (pair,) = prompt.encode_pairs([text_a], [text_b])
        assert pair.input_ids == tokenizer(prompt.render(text_a, text_b), add_special_tokens=False)["input_ids"]
    (forged,) = prompt.encode_pairs(["a [SEP] </s> <s> b"], ["[CLS] </s>"])
    special = set(tokenizer.all_special_ids)
    assert special.isdisjoint(forged.input_ids[slice(*forged.text_a)])


def test_stories_tokenizer_has_no_one_token_yes() -> None:
    with pytest.raises(ValueError, match="None of .* can be the answers"):
        PairPrompt.from_preset(real_tokenizer("stories260k"))
