"""The prompt that puts a pair of texts before a causal language model: prefix | text_a | middle | text_b | suffix.

One file, though long: one class, whose parts, budget, probe and saved form must agree.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from ..utils.checks import is_whole
from ..utils.json_files import read_versioned, write_json
from .chat_families import INSTRUCTIONS, first_answers, preset_forms, render_chat_template, resolve_answers
from .pair_tokens import PairTokens
from .prompt_form import PromptForm
from .reranker_forms import RERANKERS
from .text_tokenizer import (
    WHITE_SPACE,
    SeamError,
    TextTokenizer,
    control_tokens,
    end_marker,
    token_ids,
    unk_ids,
    whole_backend,
)

logger = logging.getLogger(__name__)
PROMPT_FILE = "pair_prompt.json"
# Of prompts with white space between a fixed part and a text, which earlier releases would leave out. Others are
# written as version 1.
FORMAT_VERSION = 2
SETTINGS = ("prefix", "middle", "suffix", "answers", "max_length")
WRAPS = ("wrap_a", "wrap_b")
RESOLVED_IDS = ("answer_ids", "prefix_ids", "middle_ids", "suffix_ids")
MIN_ROOM = 8
PROBE_PAIRS: tuple[tuple[str, str], ...] = (
    ("Can I pay by card?", "is card payment possible"),
    ("  two spaces before, two after  ", "\ta tab, then a line break\n"),
    ("我可以用卡支付吗？", "カードで払えますか"),
    ("👍🏽 ok 😀", "Größe naïve 1234567 8.90 €"),
    ("(brackets) [and] <angles>", "a  b\n\n  c"),
)


class PairPrompt:
    """Turns pairs of texts into token ids with known spans and a fixed answer position.

    Texts are tokenised with every added token of the tokenizer taken out (a text `<|im_end|>` becomes `<`, `|`, ...).
    Kept are added tokens of white space only, which control nothing and which many vocabularies need for indentation.
    For a text without added tokens the ids equal `tokenizer(prompt.render(a, b), add_special_tokens=False)` as long
    as nothing is cut.

    The budget: `room` = max_length less the fixed parts. text_a keeps its first min(len_a, room // 2) tokens, text_b
    the first room - (kept of text_a). White space that is tokenised with a text ends it also where it is cut.

    Where a fixed part meets a text, nothing may merge across the seam. Three ways are safe: an added token of the
    tokenizer; a line break that ends the part before a text; or white space that is tokenised with the text (`wrap_a`,
    `wrap_b`), as in "Query: " + text. By the last two a text loses white space of its own at both ends. The
    constructor tries all that with the tokenizer.

    The object holds no reference to the tokenizer, does not change it, and pickles.

    Args:
        tokenizer: a tokenizer backed by the tokenizers library.
        prefix: what stands before text_a. Ends with an added token, a line break, or what `wrap_a` follows.
        middle: what stands between the texts. Begins with an added token or after `wrap_a`; ends as the prefix.
        suffix: what follows text_b. Begins as the middle. The answer follows it.
        answers: (no, yes), each one token in context.
        max_length: longest sequence, in tokens.
        wrap_a: white space (before, after) text_a that is tokenised with it.
        wrap_b: the same of text_b.

    Attributes:
        answer_ids: token ids (no, yes).
        prefix_ids, middle_ids, suffix_ids: token ids of the fixed parts.
        room: tokens left for both texts together.

    Raises:
        TypeError: the tokenizer has no tokenizers backend, or an argument has the wrong type.
        ValueError: a text would not stand between added tokens; the parts' ids are not those of the whole; an answer
            is not one token, or both are the same or unk; max_length leaves fewer than 8 tokens for the texts.

    Examples:
        `tokenizer` is the student's own, here one with ChatML's markers.

        >>> prompt = PairPrompt.from_preset(tokenizer)
        >>> (pair,) = prompt.encode_pairs(["where is my card"], ["my card has not arrived"])
        >>> tokenizer.decode(pair.input_ids[slice(*pair.text_b)])
        'my card has not arrived'
        >>> prompt.answers, [tokenizer.decode([token]) for token in prompt.answer_ids]
        (('no', 'yes'), ['no', 'yes'])
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prefix: str,
        middle: str,
        suffix: str,
        answers: tuple[str, str] = ("no", "yes"),
        max_length: int = 256,
        wrap_a: Sequence[str] = ("", ""),
        wrap_b: Sequence[str] = ("", ""),
    ) -> None:
        for name, value in (("prefix", prefix), ("middle", middle), ("suffix", suffix)):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str, got {value!r}.")
        if not is_whole(max_length):
            raise TypeError(f"max_length must be an int (tokens), got {max_length!r}.")
        if isinstance(answers, str) or len(answers) != 2 or not all(isinstance(answer, str) for answer in answers):
            raise TypeError(f"answers must be two strings (no, yes), got {answers!r}.")
        for name, wrap in zip(WRAPS, (wrap_a, wrap_b), strict=True):
            if len(wrap) != 2 or any(set(part) - set(" \n") for part in wrap):
                raise ValueError(f"{name}={wrap!r} must be two strings of spaces and line breaks (before, after).")
        whole = whole_backend(tokenizer)
        control = control_tokens(whole)

        self.prefix, self.middle, self.suffix = prefix, middle, suffix
        self.answers = (answers[0], answers[1])
        self.max_length = int(max_length)
        self.wrap_a, self.wrap_b = (wrap_a[0], wrap_a[1]), (wrap_b[0], wrap_b[1])
        # Middle and suffix are read after the prefix, where they stand: a tokenizer may treat a string's start apart.
        self.prefix_ids = token_ids(whole, prefix)
        self.middle_ids = _ids_after(whole, prefix, self.wrap_a, middle)
        self.suffix_ids = _ids_after(whole, prefix, self.wrap_b, suffix)
        fixed_parts = (
            ("prefix", prefix, self.prefix_ids),
            ("middle", middle, self.middle_ids),
            ("suffix", suffix, self.suffix_ids),
        )
        self._place_a = _place(*fixed_parts[:2], self.wrap_a, control)
        self._place_b = _place(*fixed_parts[1:], self.wrap_b, control)
        context = _before_answer(PromptForm(prefix, middle, suffix, self.wrap_a, self.wrap_b))
        self.answer_ids = resolve_answers(whole, context, self.answers, unk_ids(tokenizer, whole))

        self._text_tokenizer = TextTokenizer(whole)
        self._end_of_a, self._end_of_b = (self._end_ids(wrap[1]) for wrap in (self.wrap_a, self.wrap_b))
        fixed = len(self.prefix_ids) + len(self.middle_ids) + len(self.suffix_ids)
        self.room = self.max_length - fixed
        if self.room < MIN_ROOM:
            raise ValueError(
                f"max_length={max_length} leaves {self.room} tokens for the two texts: the fixed parts of the prompt "
                f"take {fixed}. At least {MIN_ROOM} must be left: use max_length={fixed + MIN_ROOM} or more, or a "
                "shorter instruction."
            )
        self._check_parts_against_whole(whole)

    @classmethod
    def from_preset(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        preset: str = "en",
        *,
        max_length: int = 256,
        instruction: str | None = None,
        answers: tuple[str, str] | None = None,
    ) -> PairPrompt:
        """Build the prompt from the markers the tokenizer has.

        Args:
            tokenizer: a tokenizer backed by the tokenizers library.
            preset: "en" (answers yes/no) or "zh" (answers 是/否): the tokenizer's own chat format, plain words for a
                base model. Or the form of a published reranker: "qwen3_reranker", "bge_reranker_gemma".
            max_length: longest sequence, in tokens.
            instruction: what is asked, before the texts or, where a model expects it there, after them; None takes
                the preset's own, "" leaves it out.
            answers: (no, yes); None takes the first of the preset's forms ("yes", " yes", "Yes", " Yes"; for a base
                model those with a space first) that is one token each in context.

        Raises:
            ValueError: unknown preset, no marker in the tokenizer, no form of the answers that is one token each, or
                anything that the constructor refuses.
        """
        known = INSTRUCTIONS | {name: words for name, (words, _) in RERANKERS.items()}
        if preset not in known:
            raise ValueError(f"Unknown preset {preset!r}. Use one of {sorted(known)}.")
        if instruction is None:
            instruction = known[preset]
        whole = whole_backend(tokenizer)
        added = {token.content for token in control_tokens(whole).values()}
        adds_bos = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in whole.encode("x").ids[:1]
        forms = preset_forms(tokenizer, added, preset, instruction, adds_bos)
        for form in forms:
            last = form is forms[-1]
            try:
                chosen = answers or first_answers(whole, _before_answer(form), form.answers, unk_ids(tokenizer, whole))
            except ValueError:
                if last:
                    raise
                continue
            around = {name: getattr(form, name) for name in ("prefix", "middle", "suffix", *WRAPS)}
            try:
                return cls(tokenizer, answers=chosen, max_length=max_length, **around)
            except SeamError as error:
                if last:
                    raise
                logger.debug("%s does not keep %r apart from its texts: %s", type(tokenizer).__name__, form, error)
        raise AssertionError("there is always a last form")

    def encode_pairs(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> list[PairTokens]:
        """Tokenise pairs; each distinct text is tokenised once.

        A text that the tokenizer reduces to nothing (empty, or only characters it drops) stands as one unk token, so
        that no span is empty.

        Args:
            texts_a: first texts, N of them.
            texts_b: second texts, N of them.

        Returns:
            N `PairTokens`, each at most max_length long, ending with the suffix.

        Raises:
            TypeError: a text is no str, or one str is given in place of a list.
            ValueError: the lists differ in length; a text tokenises to nothing and the tokenizer has no unk token.
        """
        if len(texts_a) != len(texts_b):
            raise ValueError(f"texts_a and texts_b must have the same length, got {len(texts_a)} and {len(texts_b)}.")
        all_a = self._text_ids(texts_a, self._place_a)
        all_b = self._text_ids(texts_b, self._place_b)
        start_a = len(self.prefix_ids)
        pairs = []
        for full_a, full_b in zip(all_a, all_b, strict=True):
            ids_a = _cut(full_a, self.room // 2, self._end_of_a)
            ids_b = _cut(full_b, self.room - len(ids_a), self._end_of_b)
            end_a = start_a + len(ids_a)
            start_b = end_a + len(self.middle_ids)
            pairs.append(
                PairTokens(
                    input_ids=self.prefix_ids + ids_a + self.middle_ids + ids_b + self.suffix_ids,
                    text_a=(start_a, end_a),
                    text_b=(start_b, start_b + len(ids_b)),
                    truncated=len(ids_a) < len(full_a) or len(ids_b) < len(full_b),
                )
            )
        return pairs

    def encode_texts(self, texts: Sequence[str]) -> list[PairTokens]:
        """Tokenise texts alone, each as text_a: the prefix and at most room // 2 tokens of the text, nothing after.

        The ids are the beginning of those of any pair with the same text_a. Empty texts are treated, and errors
        raised, as in `encode_pairs`.

        Args:
            texts: N texts.

        Returns:
            N `PairTokens` whose text_b is None.
        """
        start = len(self.prefix_ids)
        alone = []
        for full in self._text_ids(texts, self._place_a):
            ids = _cut(full, self.room // 2, self._end_of_a)
            span = (start, start + len(ids))
            alone.append(PairTokens(self.prefix_ids + ids, span, None, truncated=len(ids) < len(full)))
        return alone

    def render(self, text_a: str, text_b: str) -> str:
        """The whole prompt as one string, uncut.

        Args:
            text_a: first text.
            text_b: second text.

        Returns:
            What the chat template gives for the pair.
        """
        text_a = _trimmed(text_a) if self._place_a.trim else text_a
        text_b = _trimmed(text_b) if self._place_b.trim else text_b
        return text_a.join(self._around_a) + text_b.join(self._around_b)

    @property
    def _around_a(self) -> tuple[str, str]:
        return self.prefix + self.wrap_a[0], self.wrap_a[1] + self.middle

    @property
    def _around_b(self) -> tuple[str, str]:
        return self.wrap_b[0], self.wrap_b[1] + self.suffix

    def chat_template(self) -> str:
        """Return a Jinja chat template that renders `render(a, b)` from a query message a and a document message b."""
        before, between = self._around_a
        again, after = self._around_b
        return render_chat_template(before, between + again, after, (self._place_a.trim, self._place_b.trim))

    def to_dict(self) -> dict[str, Any]:
        """Return the prompt as plain JSON values, as `save_pretrained` writes them."""
        wrapped = any((*self.wrap_a, *self.wrap_b))
        trimmed = self._place_a.trim or self._place_b.trim
        values = {name: getattr(self, name) for name in SETTINGS + RESOLVED_IDS}
        return {
            "format_version": FORMAT_VERSION if trimmed else 1,
            **({"wrap_a": list(self.wrap_a), "wrap_b": list(self.wrap_b)} if wrapped else {}),
            **{name: list(value) if isinstance(value, tuple | list) else value for name, value in values.items()},
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write pair_prompt.json, whole or not at all.

        Args:
            folder: where to, made if absent.

        Returns:
            Path of the file.
        """
        target = Path(folder) / PROMPT_FILE
        write_json(target, self.to_dict(), ensure_ascii=False)
        return target

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> PairPrompt:
        """Read pair_prompt.json and check that the tokenizer still gives the ids written there.

        Args:
            folder: local folder that holds the file.
            tokenizer: the tokenizer the prompt was saved with.

        Raises:
            FileNotFoundError: the folder has no pair_prompt.json.
            ValueError: the file is no prompt, was written by a newer version, or does not fit the tokenizer.
        """
        path = Path(folder) / PROMPT_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} not found. Give a folder written by PairPrompt.save_pretrained (a trained adapter has it), "
                "or make a new prompt with PairPrompt.from_preset."
            )
        stored = read_prompt_file(path)
        prompt = cls(tokenizer, **{name: stored[name] for name in (*SETTINGS, *WRAPS) if name in stored})
        for name in RESOLVED_IDS:
            value = prompt.to_dict()[name]
            if stored[name] != value:
                raise ValueError(
                    f"{path} was saved with {name}={stored[name]}, but this tokenizer gives {value}. Load the "
                    "tokenizer that was saved beside the prompt."
                )
        return prompt

    def difference(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Which of this prompt's ids a tokenizer would give otherwise.

        Args:
            tokenizer: a tokenizer backed by the tokenizers library.

        Returns:
            Their name, such as "prefix_ids"; None if it gives them all.

        Raises:
            ValueError: the prompt cannot be made with that tokenizer.
        """
        other = type(self)(tokenizer, **{name: getattr(self, name) for name in (*SETTINGS, *WRAPS)})
        return next((name for name in RESOLVED_IDS if getattr(self, name) != getattr(other, name)), None)

    def _text_ids(self, texts: Sequence[str], place: _Place) -> list[list[int]]:
        """Tokenise texts as they stand in a place."""
        if isinstance(texts, str):
            raise TypeError(f"Give a list of texts, not one str: {texts[:60]!r}.")
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"Text {position} must be a str, got {text!r}. Convert or drop it.")
        distinct = list(dict.fromkeys(texts))
        if place.trim:
            bare = [_trimmed(text).join(place.wrap) for text in distinct]
        else:
            bare = [text.lstrip(WHITE_SPACE) for text in distinct] if place.left else distinct
            bare = [text.rstrip(WHITE_SPACE) for text in bare] if place.right else bare
        ids = dict(zip(distinct, self._text_tokenizer.encode(bare), strict=True))
        return [ids[text] for text in texts]

    def _end_ids(self, white: str) -> list[int]:
        """Ids of white space that ends a text; none where it is not apart from the text's last word."""
        if not white:
            return []
        bare, ended = self._text_tokenizer.encode(["x", "x" + white])
        return ended[len(bare) :] if ended[: len(bare)] == bare else []

    def _check_parts_against_whole(self, whole: Tokenizer) -> None:
        """Raise unless the ids put together from the parts are those of the rendered string, on the probe pairs."""
        for text_a, text_b in PROBE_PAIRS:
            (ids_a,) = self._text_ids([text_a], self._place_a)
            (ids_b,) = self._text_ids([text_b], self._place_b)
            parts = (
                ("prefix", self.prefix, self.prefix_ids),
                ("text_a", text_a, ids_a),
                ("middle", self.middle, self.middle_ids),
                ("text_b", text_b, ids_b),
                ("suffix", self.suffix, self.suffix_ids),
            )
            expected = token_ids(whole, self.render(text_a, text_b))
            start = 0
            for name, text, ids in parts:
                found = expected[start : start + len(ids)]
                start += len(ids)
                if found != ids or (name == "suffix" and start != len(expected)):
                    raise SeamError(
                        f"Tokenised apart, the {name} {text!r} gives {[whole.id_to_token(i) for i in ids]}, but in "
                        f"the whole {[whole.id_to_token(i) for i in found]}. Enclose the texts by special tokens "
                        "that were added with normalized=False and single_word=False, or by other white space."
                    )


@dataclass(frozen=True)
class _Place:
    """What becomes of a text where it stands.

    Attributes:
        left: white space at its beginning is swallowed by the marker before it.
        right: the same at its end.
        trim: the text loses white space at both ends, as by `str.strip` and Jinja's `trim`.
        wrap: white space (before, after) that is tokenised with it.
    """

    left: bool
    right: bool
    trim: bool
    wrap: tuple[str, str]


def _place(
    before: tuple[str, str, list[int]],
    after: tuple[str, str, list[int]],
    wrap: tuple[str, str],
    control: dict[int, AddedToken],
) -> _Place:
    """The place between two fixed parts (name, text, ids); ValueError where something could merge with the text."""
    new_line = before[1].endswith("\n")
    left = None if wrap[0] or new_line else end_marker(*before, -1, control)
    right = None if wrap[1] else end_marker(*after, 0, control)
    return _Place(left is not None and left.rstrip, right is not None and right.lstrip, new_line or any(wrap), wrap)


def _cut(ids: list[int], room: int, end: list[int]) -> list[int]:
    """The first tokens of a text, and the white space that parts it from what follows."""
    if len(ids) <= room or len(end) >= room:
        return ids[:room]
    return ids[: room - len(end)] + end


def _trimmed(text: str) -> str:
    """A text without white space at its ends; one of nothing else stays, so that there is something to read."""
    return text.strip() or text


def _before_answer(form: PromptForm) -> str:
    """What an answer follows, texts left out (or in one letter, where white space is tokenised with them)."""
    return form.prefix + ("x".join(form.wrap_b) if any(form.wrap_b) else "") + form.suffix


def _ids_after(whole: Tokenizer, context: str, wrap: tuple[str, str], text: str) -> list[int]:
    """Token ids of a fixed part where it stands: after a context, and a text if white space is tokenised with it."""
    if any(wrap) or context.endswith("\n"):
        context += wrap[0] + "x" + wrap[1]
    return token_ids(whole, context + text)[len(token_ids(whole, context)) :]


def read_prompt_file(path: Path) -> dict[str, Any]:
    """Read and check the outer form of pair_prompt.json."""
    stored = read_versioned(path, FORMAT_VERSION, "save the prompt again")
    missing = [name for name in SETTINGS + RESOLVED_IDS if name not in stored]
    if missing:
        raise ValueError(f"{path} lacks {missing}. Save the prompt again with PairPrompt.save_pretrained.")
    return stored
