"""Wording of the pair prompt for the known families of tokenizers, and its form as a Jinja chat template.

A chat model is asked as it was tuned: each text in a turn of its role, after the line break that the format has there,
which is a token of its own as long as the text is stripped. Where a tokenizer does not keep it so, each text stands
directly between two markers. What FOLLOWS a text must be a marker: a byte-level BPE merges "?" and a line break.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from .prompt_form import PromptForm
from .reranker_forms import RERANKERS
from .text_tokenizer import token_ids

logger = logging.getLogger(__name__)

INSTRUCTIONS: dict[str, str] = {
    "en": "Do these two texts mean the same? Answer yes or no.",
    "zh": "这两段文本的意思相同吗？请回答是或否。",
}
# Forms of the answers (no, yes) in the order they are tried: the first that is one token each in context is taken.
ANSWER_FORMS: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (("no", "yes"), (" no", " yes"), ("No", "Yes"), (" No", " Yes")),
    "zh": (("否", "是"), (" 否", " 是")),
}

# Plain words before text_a, before text_b and before the answer, for base models.
PLAIN_WORDS: dict[str, tuple[str, str, str]] = {
    "en": ("Text 1:", "Text 2:", "Answer:"),
    "zh": ("文本1：", "文本2：", "答案："),
}


@dataclass(frozen=True)
class ChatFamily:
    """Markers of one chat format and the segments written with them.

    Attributes:
        name: Name for messages.
        markers: Tokens a tokenizer must all have as added tokens to belong to the family.
        instruction_turn: Turn that carries the instruction; holds `{instruction}`. Left out for an empty instruction.
        open_a: What stands between the instruction and text_a; ends with a marker.
        middle: What stands between the texts; begins and ends with a marker.
        suffix: What follows text_b; begins with a marker and opens the assistant's turn.
        head: Fixed beginning of every conversation, besides bos.
        role_a: What stands in the place of open_a where the text may follow a line break; "" where there is no such.
        role_middle: The same in the place of middle.
        tuned_only: Base models of the family bear the markers too, untrained: without a chat template there is none.
    """

    name: str
    markers: tuple[str, ...]
    instruction_turn: str
    open_a: str
    middle: str
    suffix: str
    head: str = ""
    role_a: str = ""
    role_middle: str = ""
    tuned_only: bool = False


# Order matters: a family whose markers include another's comes first.
CHAT_FAMILIES: tuple[ChatFamily, ...] = (
    ChatFamily(
        name="Phi-4",
        markers=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        instruction_turn="<|im_start|>system<|im_sep|>{instruction}<|im_end|>",
        open_a="<|im_start|>user<|im_sep|>",
        middle="<|im_end|><|im_start|>user<|im_sep|>",
        suffix="<|im_end|><|im_start|>assistant<|im_sep|>",
    ),
    ChatFamily(
        name="ChatML (Qwen, SmolLM)",
        markers=("<|im_start|>", "<|im_end|>"),
        instruction_turn="<|im_start|>system\n{instruction}<|im_end|>\n",
        open_a="<|im_start|>",
        middle="<|im_end|>\n<|im_start|>",
        suffix="<|im_end|>\n<|im_start|>assistant\n",
        role_a="<|im_start|>user\n",
        role_middle="<|im_end|>\n<|im_start|>user\n",
    ),
    ChatFamily(
        name="Gemma",
        markers=("<start_of_turn>", "<end_of_turn>"),
        instruction_turn="<start_of_turn>user\n{instruction}<end_of_turn>\n",
        open_a="<start_of_turn>",
        middle="<end_of_turn>\n<start_of_turn>",
        suffix="<end_of_turn>\n<start_of_turn>model\n",
        role_a="<start_of_turn>user\n",
        role_middle="<end_of_turn>\n<start_of_turn>user\n",
        tuned_only=True,
    ),
    ChatFamily(
        name="Llama 3",
        markers=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        instruction_turn="<|start_header_id|>system<|end_header_id|>\n\n{instruction}<|eot_id|>",
        open_a="<|start_header_id|>user<|end_header_id|>",
        middle="<|eot_id|><|start_header_id|>user<|end_header_id|>",
        suffix="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        role_a="<|start_header_id|>user<|end_header_id|>\n\n",
        role_middle="<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        tuned_only=True,
    ),
    ChatFamily(
        name="GLM",
        markers=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        head="[gMASK]<sop>",
        instruction_turn="<|system|>\n{instruction}",
        open_a="<|user|>",
        middle="<|user|>",
        suffix="<|assistant|>\n",
        role_a="<|user|>\n",
        role_middle="<|user|>\n",
        tuned_only=True,
    ),
    ChatFamily(
        name="Phi-3",
        markers=("<|user|>", "<|assistant|>", "<|end|>"),
        instruction_turn="<|user|>\n{instruction}<|end|>\n",
        open_a="<|user|>",
        middle="<|end|>\n<|user|>",
        suffix="<|end|>\n<|assistant|>\n",
    ),
    ChatFamily(
        name="Mistral",
        markers=("[INST]", "[/INST]"),
        instruction_turn="[INST]{instruction}[/INST]",
        open_a="[INST]",
        middle="[/INST][INST]",
        suffix="[/INST]",
        tuned_only=True,
    ),
)
# What a template with an `enable_thinking` switch writes to leave the thinking out (Qwen3); without it such a model's
# next token is `<think>`, not the answer.
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def preset_forms(
    tokenizer: PreTrainedTokenizerBase, added_tokens: Collection[str], preset: str, instruction: str, adds_bos: bool
) -> list[PromptForm]:
    """Wordings for a tokenizer, the best one first; the next is for a tokenizer that does not keep its parts apart.

    - Of `RERANKERS`: the form of that model.
    - With the markers of a family of `CHAT_FAMILIES`: the instruction in a turn of its own, then each text in a turn.
    - With a sep token (BERT's kind): cls, the texts parted by sep, and the instruction after them.
    - Else, for base models: plain words, where possible.

    Args:
        tokenizer: Tokenizer whose named special tokens and chat template are read.
        added_tokens: Its added tokens, as strings.
        preset: "en" or "zh", or a name of `RERANKERS`.
        instruction: What is asked; may be empty.
        adds_bos: Whether the tokenizer puts bos before a plain text by itself.

    Raises:
        ValueError: The tokenizer has no marker at all.
    """
    templates = tokenizer.chat_template
    template = (templates.get("default", "") if isinstance(templates, dict) else templates) or ""
    own_bos = tokenizer.bos_token if tokenizer.bos_token in added_tokens else None
    if preset in RERANKERS:
        return [RERANKERS[preset][1](instruction, own_bos or "")]
    answers = ANSWER_FORMS[preset]
    for family in CHAT_FAMILIES:
        tuned = bool(template) or not family.tuned_only
        if not (tuned and all(marker in added_tokens for marker in family.markers)):
            continue
        bos = tokenizer.bos_token if adds_bos or "bos_token" in template else None
        turn = family.instruction_turn.replace("{instruction}", instruction) if instruction else ""
        suffix = family.suffix
        if "enable_thinking" in template and {"<think>", "</think>"} <= set(added_tokens):
            suffix += EMPTY_THOUGHT
        opening = (bos or "") + family.head + turn
        bare = PromptForm(opening + family.open_a, family.middle, suffix, answers=answers)
        if not family.role_a:
            return [bare]
        return [PromptForm(opening + family.role_a, family.role_middle, suffix, answers=answers), bare]

    if template:
        logger.warning(
            "the tokenizer has a chat template of a family that is not known here: the student is asked as a base "
            "model is. Give a PairPrompt with prefix, middle and suffix of its own to ask it in turns."
        )
    named = (tokenizer.cls_token, tokenizer.bos_token, tokenizer.sep_token, tokenizer.eos_token)
    cls, bos, sep, eos = (token if token in added_tokens else None for token in named)
    opening, separator = cls or bos or sep or eos, sep or eos or cls or bos
    if opening is None or separator is None:
        raise ValueError(
            f"The tokenizer has none of the markers a preset prompt needs: no chat markers, and cls={named[0]!r}, "
            f"bos={named[1]!r}, sep={named[2]!r}, eos={named[3]!r} are not among its added tokens. Set one "
            "(tokenizer.add_special_tokens({'eos_token': '</s>'}), then resize the model's embeddings), or give "
            "PairPrompt a prefix, middle and suffix written with added tokens this tokenizer has."
        )
    # A model without chat markers continues a text: the question right before the answer is what it continues. It also
    # keeps what stands before a text encoded alone to one token.
    enclosed = PromptForm(opening, separator, separator + instruction, answers=answers)
    if sep is not None:
        return [enclosed]
    first, second, last = PLAIN_WORDS[preset]
    spaced = tuple(sorted(answers, key=lambda form: not form[0].startswith(" ")))
    asked = f"{instruction}\n" if instruction else ""
    wrap = (" ", "\n")
    return [PromptForm(f"{opening}{asked}{first}", second, last, wrap, wrap, spaced), enclosed]


def resolve_answers(
    whole: Tokenizer, context: str, answers: tuple[str, str], unk_ids: Collection[int]
) -> tuple[int, int]:
    """The token ids of (no, yes) as they come after `context`, a whole prompt without texts.

    `whole` is the tokenizer's backend, control tokens included. ValueError: an answer is not exactly one more token,
    is one of `unk_ids`, or both are the same token.
    """
    context_ids = token_ids(whole, context)
    found = []
    for answer in answers:
        ids = token_ids(whole, context + answer)
        if ids[:-1] != context_ids or ids[-1] in unk_ids:
            tail = [whole.id_to_token(i) for i in ids[-(len(answer) + 2) :]]
            raise ValueError(
                f"The answer {answer!r} must be exactly one known token after the prompt, but the tokens there end "
                f"with {tail}. Give other answers, such as ' yes' with a leading space, or single letters."
            )
        found.append(ids[-1])
    if found[0] == found[1]:
        raise ValueError(
            f"The answers {answers!r} are one and the same token {whole.id_to_token(found[0])!r}. Give two others."
        )
    return found[0], found[1]


def first_answers(
    whole: Tokenizer, context: str, forms: Sequence[tuple[str, str]], unk_ids: Collection[int]
) -> tuple[str, str]:
    """Return the first of the answer forms (no, yes) that `resolve_answers` accepts.

    Raises:
        ValueError: None is; the message is that for the first form.
    """
    first_error: ValueError | None = None
    for form in forms:
        try:
            resolve_answers(whole, context, form, unk_ids)
        except ValueError as error:
            first_error = first_error or error
        else:
            return form
    raise ValueError(f"None of {tuple(forms)} can be the answers (no, yes) here. {first_error}")


def render_chat_template(prefix: str, middle: str, suffix: str, trims: tuple[bool, bool] = (False, False)) -> str:
    """Write the segments as a Jinja chat template for one message of role query and one of role document.

    sentence-transformers' CrossEncoder turns a pair into just these two messages. Their content may be a string or
    (for model types that it treats as structured) a list of parts with a `text`. `trims`: whether text_a, text_b lose
    white space at both ends.

    The literal parts are Jinja string expressions, never template text: transformers renders with trim_blocks and
    lstrip_blocks, which eat line breaks after a block, and braces in an instruction would be taken for Jinja.
    """
    lines = []
    for role in ("query", "document"):
        lines.append(f'{{%- set {role} = messages | selectattr("role", "equalto", "{role}") | list -%}}')
    lines.append("{%- if messages | length != 2 or query | length != 1 or document | length != 1 -%}")
    lines.append('{{- raise_exception("This template takes one message of role query and one of role document.") -}}')
    lines.append("{%- endif -%}")
    for name, role, trim in zip(("text_a", "text_b"), ("query", "document"), trims, strict=True):
        lines.append(f"{{%- set content = {role}[0].content -%}}")
        joined = 'content | map(attribute="text") | join'
        lines.append(f"{{%- set {name} = content if content is string else {joined} -%}}")
        if trim:
            lines.append(f"{{%- set {name} = {name} | trim or {name} -%}}")
    before, between, after = (json.dumps(part, ensure_ascii=False) for part in (prefix, middle, suffix))
    lines.append(f"{{{{- {before} + text_a + {between} + text_b + {after} -}}}}")
    return "\n".join(lines)
