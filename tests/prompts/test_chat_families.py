"""Presets of the prompt: every chat family, its answers, its markers, and its form as a chat template."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from flipped_kd.prompts.chat_families import CHAT_FAMILIES, EMPTY_THOUGHT, ChatFamily
from flipped_kd.prompts.pair_prompt import PairPrompt
from flipped_kd.prompts.pair_tokens import pad_batch
from tests.prompt_kinds import (
    BPE_TOKENS,
    THINK,
    any_kind,
    family_tokenizer,
    make_prompt,
    make_tokenizer,
    property_test,
    untouched,
    whole_ids,
)

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
    assert bare.prefix == "<s>" + family.head + (family.role_a or family.open_a)
    assert PairPrompt.from_preset(tokenizer, preset, instruction="{{Same}} {x}?").prefix.count("{{Same}} {x}?") == 1


def test_a_chat_model_is_asked_in_the_form_it_was_tuned_on() -> None:
    tokenizer = family_tokenizer(("<|im_start|>", "<|im_end|>"))
    prompt = PairPrompt.from_preset(tokenizer)
    assert prompt.render("Pay?", "by card") == (
        "<|im_start|>system\nDo these two texts mean the same? Answer yes or no.<|im_end|>\n"
        "<|im_start|>user\nPay?<|im_end|>\n<|im_start|>user\nby card<|im_end|>\n<|im_start|>assistant\n"
    )
    for text in ("  spaces ", "\n\nlines\n", "?!", "\t.", "\u3000x\u3000"):  # what would merge with the line break
        (pair,) = prompt.encode_pairs([text], [text])
        assert pair.input_ids == tokenizer(prompt.render(text, text), add_special_tokens=False)["input_ids"]
        (alone,) = prompt.encode_texts([text])
        assert alone.input_ids == pair.input_ids[: len(alone.input_ids)]


def test_without_a_line_break_of_its_own_texts_stand_between_markers() -> None:
    """A tokenizer that merges what follows a line break with it."""
    backend = untouched("bytes")
    config = json.loads(backend.to_str())
    config["pre_tokenizer"]["use_regex"] = False
    new_line, letter = (backend.encode(part).tokens[0] for part in ("\n", "C"))
    config["model"]["vocab"][new_line + letter] = len(config["model"]["vocab"])
    config["model"]["merges"].insert(0, [new_line, letter])
    backend = Tokenizer.from_str(json.dumps(config))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    prompt = PairPrompt.from_preset(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert prompt.prefix.endswith("<|im_start|>") and prompt.middle == "<|im_end|>\n<|im_start|>"


def test_a_base_model_with_the_markers_of_its_chat_model_gets_plain_words() -> None:
    """Gemma's base models carry the chat markers, untrained."""
    tokenizer = family_tokenizer(("<start_of_turn>", "<end_of_turn>", "<bos>"), bos_token="<bos>")
    prompt = PairPrompt.from_preset(tokenizer)
    words = "Do these two texts mean the same? Answer yes or no."
    assert prompt.render("Pay?", "by card") == f"<bos>{words}\nText 1: Pay?\nText 2: by card\nAnswer:"
    assert prompt.answers == (" no", " yes")
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert "<start_of_turn>user\n" in PairPrompt.from_preset(tokenizer).prefix


def test_plain_words_keep_their_parts_apart(tmp_path: Path) -> None:
    tokenizer = family_tokenizer(("<|endoftext|>",), bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    prompt = PairPrompt.from_preset(tokenizer)
    for text in ("Pay?", " (brackets) ", "?!\n", "a\n\nb", "1 2", "'s"):
        (pair,) = prompt.encode_pairs([text], [text])
        assert pair.input_ids == tokenizer(prompt.render(text, text), add_special_tokens=False)["input_ids"]
    prompt.save_pretrained(tmp_path)
    assert PairPrompt.from_pretrained(tmp_path, tokenizer).to_dict() == prompt.to_dict()
    assert prompt.to_dict()["format_version"] == 2 and prompt.to_dict()["wrap_a"] == [" ", "\n"]


def test_cut_texts_stay_apart_from_what_follows() -> None:
    """The line break is tokenised with the text, so the end of a long text must not take it away."""
    words = family_tokenizer(("<|endoftext|>",), bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    qwen = family_tokenizer((*BPE_TOKENS, *THINK))
    for tokenizer, preset in ((words, "en"), (qwen, "qwen3_reranker")):
        full = PairPrompt.from_preset(tokenizer, preset, max_length=4096)
        prompt = PairPrompt.from_preset(tokenizer, preset, max_length=full.max_length - full.room + 24)
        long = "pay by card or by bill " * 9
        (pair,), (alone,) = prompt.encode_pairs([long], [long]), prompt.encode_texts([long])
        assert pair.truncated and len(pair.input_ids) == prompt.max_length
        assert tokenizer.decode(pair.input_ids[slice(*pair.text_a)]).endswith(prompt.wrap_a[1])
        assert tokenizer.decode(pair.input_ids[slice(*pair.text_b)]).endswith(prompt.wrap_b[1])
        assert alone.input_ids == pair.input_ids[: pair.text_a[1]]
        cut = tokenizer.decode(pair.input_ids[slice(*pair.text_a)]).strip()
        assert long.startswith(cut) and prompt.encode_texts([cut])[0].input_ids == alone.input_ids


def test_forms_of_published_rerankers() -> None:
    tokenizer = family_tokenizer((*BPE_TOKENS, *THINK))
    qwen = PairPrompt.from_preset(tokenizer, "qwen3_reranker", instruction="Find it")
    assert qwen.render("how to pay?", "By card.") == (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Find it\n<Query>: how to pay?\n<Document>: By card.<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n"
    )
    bos = family_tokenizer(("<bos>",), bos_token="<bos>")
    gemma = PairPrompt.from_preset(bos, "bge_reranker_gemma")
    assert gemma.render("q?", "p") == (
        "<bos>A: q?\nB: p\nGiven a query A and a passage B, determine whether the passage contains an answer to the "
        "query by providing a prediction of either 'Yes' or 'No'."
    )
    assert [answer.strip() for answer in gemma.answers] == ["No", "Yes"]
    for prompt, whole in ((qwen, tokenizer), (gemma, bos)):
        (pair,) = prompt.encode_pairs(["Is it? "], ["(no)"])
        assert pair.input_ids == whole(prompt.render("Is it? ", "(no)"), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("wrap", [("x", ""), (" ",), "ab"])
def test_only_white_space_is_tokenised_with_a_text(wrap: Any) -> None:
    with pytest.raises(ValueError, match="wrap_a.* must be two strings of spaces and line breaks"):
        PairPrompt(make_tokenizer("bytes"), prefix="Text:", middle="B:", suffix="C:", wrap_a=wrap)


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
        ("<|im_start|>", "<|im_end|> ", "<|im_end|>", "middle .* must end with"),
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
