"""A copy of a tokenizer that tokenises a user's text without control tokens, and what is read from the original.

`split_special_tokens` does not do this job: it lets added tokens that are not marked special (`<think>`)
through. Nor does an empty table of added tokens: a Unigram model then finds `</s>` in its own vocabulary.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase

# Put in the place of a control token's spelling. A noncharacter, which no text for interchange holds, and a space,
# which almost every tokenizer cuts at; should a text hold it after all, `TextTokenizer` drops the ids it gives.
UNREACHABLE = "\U0010ffff removed control token "
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# What the tokenizers library strips beside an added token with lstrip or rstrip: Unicode White_Space, which is
# less than str.strip() takes.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
    "\u202f\u205f\u3000"
)


class SeamError(ValueError):
    """A fixed part of a prompt and a text beside it would not keep their tokens apart."""


def whole_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer's backend, to be read only, without truncation, padding or split special tokens.

    It is copied if one of these is set (a tokenizer's last call may leave them behind); with a vocabulary of 150,000
    a copy takes seconds.

    Raises:
        TypeError: The tokenizer is not backed by the tokenizers library.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise TypeError(
            f"The prompt needs a fast tokenizer (backed by the tokenizers library), got {type(tokenizer).__name__}. "
            "Load it with AutoTokenizer.from_pretrained(...); a slow one can be converted by "
            "transformers.convert_slow_tokenizer."
        )
    backend: Tokenizer = tokenizer.backend_tokenizer
    if backend.truncation is None and backend.padding is None and not backend.encode_special_tokens:
        return backend
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def control_tokens(backend: Tokenizer) -> dict[int, AddedToken]:
    """Return the added tokens that are more than white space, by id.

    Runs of white space are added tokens in many vocabularies (GPT-NeoX, Gemma); they control nothing.
    """
    return {i: token for i, token in backend.get_added_tokens_decoder().items() if not _is_blank(token.content)}


def model_unk_id(backend: Tokenizer) -> int | None:
    """Id of the model's own unk token (which `tokenizer.unk_token` need not be: Qwen names an end marker there)."""
    if isinstance(backend.model, Unigram):
        unk_id: int | None = json.loads(backend.to_str())["model"]["unk_id"]
        return unk_id
    unk_token: str | None = backend.model.unk_token
    return None if unk_token is None else backend.token_to_id(unk_token)


def unk_ids(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> frozenset[int]:
    """Ids that stand for something unknown: the model's own and the one the tokenizer names."""
    return frozenset(i for i in (model_unk_id(backend), tokenizer.unk_token_id) if i is not None)


def token_ids(backend: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a string, without those a post-processor would put around it."""
    return backend.encode(text, add_special_tokens=False).ids


def end_marker(part: str, text: str, ids: list[int], index: int, control: dict[int, AddedToken]) -> AddedToken:
    """The control token at one end of a fixed part (index 0 its beginning, -1 its end), where it meets a text.

    `part` is its name for the message. ValueError: there is no control token at that end.
    """
    if ids and ids[index] in control:
        return control[ids[index]]
    known = ", ".join(repr(token.content) for token in list(control.values())[:12])
    raise SeamError(
        f"The {part} {text!r} must {'begin' if index == 0 else 'end'} with an added token of the tokenizer, so that "
        f"it cannot merge with the text beside it. Its added tokens: {known or 'none'}. Put one there, or use "
        "PairPrompt.from_preset."
    )


class TextTokenizer:
    """Tokenises texts that stand between two added tokens, such that no text can yield a control token.

    Args:
        backend: The whole tokenizer's backend (`whole_backend`); not changed.
    """

    def __init__(self, backend: Tokenizer) -> None:
        config = json.loads(backend.to_str())
        self.unk_id = model_unk_id(backend)
        self._control_ids = frozenset(control_tokens(backend)) - {self.unk_id}
        _take_out_control_tokens(config, self.unk_id)
        config.update(truncation=None, padding=None, post_processor=None)
        # A text never stands at the start of the whole string, where alone this scheme puts a space.
        if config["pre_tokenizer"] is not None:
            _replace_scheme(config["pre_tokenizer"], "first", "never")
        self._backend = Tokenizer.from_str(json.dumps(config))

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokenise texts, without truncation or special tokens.

        A text that comes to nothing stands as one unk token.

        Raises:
            ValueError: A text is not valid Unicode, or comes to nothing and the model has no unk token.
        """
        try:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            raise ValueError(
                f"The text {_short(_first_invalid(texts))} holds a lone surrogate and is not valid Unicode. Clean it "
                "first, for example with text.encode('utf-8', 'replace').decode('utf-8')."
            ) from None
        return [self._usable(encoding.ids, text) for encoding, text in zip(encodings, texts, strict=True)]

    def _usable(self, ids: list[int], text: str) -> list[int]:
        if not self._control_ids.isdisjoint(ids):
            ids = [i for i in ids if i not in self._control_ids]
        if ids:
            return ids
        if self.unk_id is None:
            raise ValueError(
                f"The text {_short(text)} tokenises to nothing and the tokenizer's model has no unk token to stand "
                "for it. Leave the text out, or replace it by one with visible characters."
            )
        return [self.unk_id]


def _take_out_control_tokens(config: dict[str, Any], unk_id: int | None) -> None:
    """Respell every control token in the table of added tokens and in the model's vocabulary, in place.

    Respelling keeps all ids where they are; removing entries would shift the ids of added tokens that stay.
    """
    model = config["model"]
    in_model = _model_vocabulary(model)
    kept, respelled = [], {}
    for token in config["added_tokens"]:
        content = token["content"]
        if content in in_model and (token["id"] == unk_id or BYTE_TOKEN.fullmatch(content)):
            continue  # The model itself yields these for what it does not know: only the table must forget them.
        if not _is_blank(content):
            respelled[content] = f"{UNREACHABLE}{token['id']}"
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            token = {**token, **flags, "content": respelled[content]}
        kept.append(token)
    config["added_tokens"] = kept

    if model["type"] == "Unigram":
        model["vocab"] = [[respelled.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {respelled.get(piece, piece): i for piece, i in model["vocab"].items()}
    if model["type"] == "BPE":
        model["merges"] = [
            pair for pair in model["merges"] if not {pair[0], pair[1], pair[0] + pair[1]} & respelled.keys()
        ]


def _model_vocabulary(model: dict[str, Any]) -> set[str]:
    if model["type"] == "Unigram":
        return {piece for piece, _ in model["vocab"]}
    return set(model["vocab"])


def _replace_scheme(pre_tokenizer: dict[str, Any], old: str, new: str) -> None:
    """Set the prepend scheme of every Metaspace in a (possibly nested) pre-tokenizer, in place."""
    if pre_tokenizer["type"] == "Sequence":
        for part in pre_tokenizer["pretokenizers"]:
            _replace_scheme(part, old, new)
    elif pre_tokenizer["type"] == "Metaspace" and pre_tokenizer["prepend_scheme"] == old:
        pre_tokenizer["prepend_scheme"] = new


def _is_blank(content: str) -> bool:
    return not content.strip(WHITE_SPACE + "\u2581")


def _first_invalid(texts: list[str]) -> str:
    return next(text for text in texts if text.encode("utf-8", "ignore").decode("utf-8") != text)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."
