"""The wording of a pair prompt: what stands around the two texts, before any tokenizer has seen it."""

from __future__ import annotations

from dataclasses import dataclass

# White space (before, after) a text that is tokenised with it.
Wrap = tuple[str, str]
NO_WRAP: Wrap = ("", "")


@dataclass(frozen=True)
class PromptForm:
    """One wording; the arguments of `PairPrompt` of the same names.

    Attributes:
        prefix: what stands before text_a.
        middle: what stands between the texts.
        suffix: what follows text_b.
        wrap_a: white space that is tokenised with text_a.
        wrap_b: the same of text_b.
        answers: forms of the answers (no, yes) in the order they are tried; the first that is one token each is taken.
    """

    prefix: str
    middle: str
    suffix: str
    wrap_a: Wrap = NO_WRAP
    wrap_b: Wrap = NO_WRAP
    answers: tuple[tuple[str, str], ...] = ()
