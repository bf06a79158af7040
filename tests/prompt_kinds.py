"""Tokenizers of every kind and prompts of them, and strings for property-based tests of both."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from flipped_kd.prompts.pair_prompt import PairPrompt

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
