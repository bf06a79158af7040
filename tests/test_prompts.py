"""Prompt: spans, budget, answers, forged control tokens, equality with the whole string and with the chat template."""

from __future__ import annotations

import json
import os
import pickle
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flipped_kd.chat_template import CHAT_FAMILIES, EMPTY_THOUGHT, ChatFamily
from flipped_kd.prompts import MIN_ROOM, PROMPT_FILE, PairPrompt, pad_batch

SHARED = Path(os.environ.get("FLIPPED_KD_SHARED", Path(__file__).resolve().parents[1].parent / "shared"))
CORPUS = [
    "Do these two texts mean the same? Answer yes or no. yes no yes no Yes No",
    "user system assistant model\n can I pay by card, is card payment possible, the bill, my account",
    "这两段文本的意思相同吗？请回答是或否。 是 否 \n是 \n否",
] * 20
BPE_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
KINDS = ("bytes", "wordpiece", "metaspace", "prepend", "unigram")


def untouched(kind: str) -> Tokenizer:
    """A backend without one added token: the reference for how a text alone is tokenised."""
    return Tokenizer.from_str(trained(kind))


@cache
def trained(kind: str) -> str:
    """JSON of a backend trained without added tokens, once a session: training breaks ties by chance."""
    trainer: trainers.Trainer
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    elif kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
        )
    elif kind == "unigram":
        letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")})
        words = [form for word in " ".join(CORPUS[:3]).split() for form in (word, f"▁{word}") if len(form) > 1]
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        pieces += [(word, -4.0) for word in dict.fromkeys(words)] + [(letter, -9.0) for letter in letters]
        backend = Tokenizer(models.Unigram(pieces, unk_id=2))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        return backend.to_str()
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], limit_alphabet=150, show_progress=False
        )
    backend.train_from_iterator(CORPUS, trainer)
    if kind == "prepend":  # As Llama 2 is converted: the spaces are the normalizer's business.
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    config = json.loads(backend.to_str())
    config["added_tokens"] = []
    return json.dumps(config)


@cache
def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    backend = untouched(kind)
    if kind == "bytes":
        backend.add_special_tokens(list(BPE_TOKENS))
        backend.add_tokens([AddedToken(token, normalized=False) for token in (*THINK, "    ")])
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>"
        )
    if kind == "wordpiece":
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    elif kind == "unigram":
        names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    backend.add_special_tokens(list(names.values()))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@cache
def make_prompt(kind: str) -> PairPrompt:
    return PairPrompt.from_preset(make_tokenizer(kind), max_length=4096)


def family_tokenizer(tokens: tuple[str, ...], **names: str) -> PreTrainedTokenizerFast:
    backend = untouched("bytes")
    backend.add_special_tokens(list(tokens))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def control_contents(kind: str) -> list[str]:
    return [str(token) for token in make_tokenizer(kind).added_tokens_decoder.values() if str(token).strip()]


def whole_ids(kind: str, text: str) -> list[int]:
    return make_tokenizer(kind)(text, add_special_tokens=False)["input_ids"]


def texts_for(kind: str) -> st.SearchStrategy[str]:
    """Any Unicode text with the tokenizer's control tokens, their fragments and ordinary words strewn in."""
    tokens = control_contents(kind)
    pieces = st.sampled_from([*tokens, *(token[:-1] for token in tokens), "pay", " ", "\n", "    ", "是", "<", "["])
    return st.lists(pieces | st.text(max_size=6), max_size=6).map("".join)


any_kind = pytest.mark.parametrize("kind", KINDS)
property_test = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


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
    assert make_tokenizer("bytes").backend_tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", ["bytes", "wordpiece", "prepend"])
@property_test
@given(data=st.data())
def test_span_equals_a_tokenizer_that_never_had_added_tokens(kind: str, data: st.DataObject) -> None:
    text = data.draw(texts_for(kind).filter(lambda text: "    " not in text))
    expected = untouched(kind).encode(text, add_special_tokens=False).ids
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
        "".join(make_tokenizer("unigram").convert_ids_to_tokens(span)) == "▁a<unk>s<unk>b"
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


def test_max_length_too_small_names_both_numbers() -> None:
    prompt = make_prompt("bytes")
    fixed = prompt.max_length - prompt.room
    assert cached_prompt("bytes", fixed + MIN_ROOM).room == MIN_ROOM
    with pytest.raises(ValueError, match=rf"max_length={fixed + 7} leaves 7 tokens .* take {fixed}\."):
        PairPrompt.from_preset(make_tokenizer("bytes"), max_length=fixed + 7)


# ------------------------------------------------------------------------------------- presets, answers, construction


@pytest.mark.parametrize("family", CHAT_FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("preset", ["en", "zh"])
def test_every_chat_family(family: ChatFamily, preset: str) -> None:
    tokenizer = family_tokenizer((*family.markers, "<s>"), bos_token="<s>")
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    prompt = PairPrompt.from_preset(tokenizer, preset)
    assert prompt.prefix.startswith("<s>" + family.head) and prompt.suffix == family.suffix
    rendered = prompt.render("pay by card?", "card payment")
    (pair,) = prompt.encode_pairs(["pay by card?"], ["card payment"])
    assert pair.input_ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    bare = PairPrompt.from_preset(tokenizer, preset, instruction="")
    assert bare.prefix == "<s>" + family.head + family.open_a
    assert PairPrompt.from_preset(tokenizer, preset, instruction="{{Same}} {x}?").prefix.count("{{Same}} {x}?") == 1


def test_bos_comes_first_only_where_the_model_expects_it() -> None:
    assert not make_prompt("bytes").prefix.startswith("<|endoftext|>")
    tokenizer = family_tokenizer(("<|im_start|>", "<|im_end|>", "<s>"), bos_token="<s>")
    assert PairPrompt.from_preset(tokenizer).prefix.startswith("<|im_start|>")


def test_thinking_template_gets_an_empty_thought() -> None:
    tokenizer = family_tokenizer((*BPE_TOKENS, *THINK))
    tokenizer.chat_template = "{% if enable_thinking %}{% endif %}"
    assert PairPrompt.from_preset(tokenizer).suffix.endswith(EMPTY_THOUGHT)
    assert make_prompt("bytes").suffix.endswith("assistant\n")


@pytest.mark.parametrize("kind, opening, separator", [("wordpiece", "[CLS]", "[SEP]"), ("prepend", "<s>", "</s>")])
def test_fallback_markers(kind: str, opening: str, separator: str) -> None:
    prompt = PairPrompt.from_preset(make_tokenizer(kind), instruction="Same?")
    assert prompt.render("A", "B") == f"{opening}A{separator}B{separator}Same?"
    assert PairPrompt.from_preset(make_tokenizer(kind), instruction="").prefix == opening


@any_kind
def test_answers_are_the_next_token_after_the_whole_prompt(kind: str) -> None:
    prompt = make_prompt(kind)
    rendered = prompt.render("pay by card", "card payment")
    for answer, answer_id in zip(prompt.answers, prompt.answer_ids, strict=True):
        assert whole_ids(kind, rendered + answer) == [*whole_ids(kind, rendered), answer_id]
    assert [answer.strip().lower() for answer in prompt.answers] == ["no", "yes"]


@pytest.mark.parametrize(
    "answers, message",
    [
        (("no", "certainly not"), "'certainly not' must be exactly one known token"),
        (("no", ""), "'' must be exactly one known token"),
        (("yes", "yes"), "one and the same token"),
    ],
)
def test_wrong_answers_are_refused(answers: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairPrompt.from_preset(make_tokenizer("bytes"), answers=answers)


def test_unknown_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="'ø' must be exactly one known token"):
        PairPrompt.from_preset(make_tokenizer("wordpiece"), answers=("no", "ø"))


def test_preset_without_usable_answers_lists_its_forms() -> None:
    backend = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "x": 2}, unk_token="<unk>"))
    backend.add_special_tokens(["<s>", "<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    with pytest.raises(ValueError, match=r"None of .*' Yes'.* can be the answers"):
        PairPrompt.from_preset(tokenizer)


def test_tokenizer_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the markers"):
        PairPrompt.from_preset(PreTrainedTokenizerFast(tokenizer_object=untouched("bytes")))


def test_unknown_preset_and_slow_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match="Unknown preset 'fr'"):
        PairPrompt.from_preset(make_tokenizer("bytes"), "fr")
    with pytest.raises(TypeError, match="fast tokenizer .* got int"):
        PairPrompt.from_preset(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "prefix, middle, suffix, message",
    [
        ("Text: ", "<|im_end|>", "<|im_end|>", "prefix 'Text: ' must end with an added token"),
        ("<|im_start|>    ", "<|im_end|>", "<|im_end|>", "prefix '<|im_start|>    ' must end with"),
        ("<|im_start|>", "\n<|im_end|>", "<|im_end|>", "middle .* must begin with"),
        ("<|im_start|>", "<|im_end|>\n", "<|im_end|>", "middle .* must end with"),
        ("<|im_start|>", "", "<|im_end|>", "middle '' must begin with"),
        ("<|im_start|>", "<|im_end|>", "\nAnswer:", "suffix .* must begin with"),
    ],
)
def test_texts_must_stand_between_added_tokens(prefix: str, middle: str, suffix: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        PairPrompt(make_tokenizer("bytes"), prefix=prefix, middle=middle, suffix=suffix)


def test_probe_refuses_a_marker_that_depends_on_its_neighbours() -> None:
    backend = untouched("bytes")
    backend.add_special_tokens([AddedToken("<s>", single_word=True), "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    with pytest.raises(ValueError, match="Tokenised apart, the .* gives .* but in the whole"):
        PairPrompt(tokenizer, prefix="<s>", middle="</s>", suffix="</s>")


@property_test
@given(
    text_a=st.text(min_size=1), text_b=st.text(min_size=1), space=st.sampled_from(["", " ", "\n\t", "\u3000", "\x1f"])
)
def test_markers_that_swallow_white_space(text_a: str, text_b: str, space: str) -> None:
    tokenizer, prompt = phi_prompt()
    text_a, text_b = space + text_a + space, space + text_b + space
    assume(all(text.strip() for text in (text_a, text_b)))
    assume(not any(token in text for token in tokenizer.get_added_vocab() for text in (text_a, text_b)))
    (pair,) = prompt.encode_pairs([text_a], [text_b])
    assert pair.input_ids == tokenizer(prompt.render(text_a, text_b), add_special_tokens=False)["input_ids"]


@cache
def phi_prompt() -> tuple[PreTrainedTokenizerFast, PairPrompt]:
    tokens = ("<|user|>", "<|assistant|>")
    backend = untouched("bytes")
    backend.add_special_tokens([AddedToken(token, rstrip=True, normalized=False) for token in tokens])
    backend.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return tokenizer, PairPrompt.from_preset(tokenizer, max_length=4096)


# ------------------------------------------------------------------------------------------------------ chat template


@pytest.mark.parametrize("structured", [False, True])
@property_test
@given(text_a=st.text(), text_b=st.text(), instruction=st.text(max_size=20))
def test_chat_template_renders_the_prompt(structured: bool, text_a: str, text_b: str, instruction: str) -> None:
    tokenizer = family_tokenizer_once()
    instruction += "\n {{ x }} {% y %} {# z #} \\ \" ' \r\n"
    prompt = PairPrompt(
        tokenizer, prefix=f"{instruction}<|im_start|>", middle="<|im_end|>\n<|im_start|>", suffix="<|im_end|>a\n"
    )
    content: list[Any] = [[{"type": "text", "text": t}] if structured else t for t in (text_a, text_b)]
    messages: list[dict[str, Any]] = [
        {"role": r, "content": c} for r, c in zip(("query", "document"), content, strict=True)
    ]
    rendered = tokenizer.apply_chat_template(messages, chat_template=prompt.chat_template(), tokenize=False)
    assert rendered == prompt.render(text_a, text_b)


@cache
def family_tokenizer_once() -> PreTrainedTokenizerFast:
    return family_tokenizer(BPE_TOKENS)


@pytest.mark.parametrize("roles", [("query",), ("user", "assistant"), ("query", "document", "system")])
def test_chat_template_refuses_other_roles(roles: tuple[str, ...]) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    template = make_prompt("bytes").chat_template()
    with pytest.raises(Exception, match="one message of role query and one of role document"):
        make_tokenizer("bytes").apply_chat_template(messages, chat_template=template, tokenize=False)


def test_cross_encoder_reads_the_same_ids(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer, prompt = make_tokenizer("bytes"), make_prompt("bytes")
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    config.num_key_value_heads = 1
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(prompt.chat_template(), encoding="utf-8")
    pairs = [("Can I pay by card?", "是否 card payment"), ("  pay\n", "a much longer text about the bill\n\n{{ x }}")]
    features = CrossEncoder(str(tmp_path), device="cpu")[0].preprocess(pairs)
    sequences = [pair.input_ids for pair in prompt.encode_pairs(*zip(*pairs, strict=True))]
    input_ids, attention_mask = pad_batch(sequences, tokenizer.pad_token_id, "left")
    assert torch.equal(features["attention_mask"], attention_mask)
    assert torch.equal(features["input_ids"], input_ids)


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
        ({"format_version": 2}, "format version 2; this flipped_kd reads up to version 1"),
        ({"format_version": None}, "format version None"),
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
        ("{", "not a saved PairPrompt"),
        ("[]", "not a saved"),
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
