"""The mini student of the embedded setting: byte-level BPE learned on the training texts, a random Qwen2 of about a
million weights, warmed up as a language model on the same texts without labels.

No network, no GPU, no account; the same inputs, settings, seed and thread count give the same weights.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mini_folder import build_folder
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from flipped_kd.prompts.chat_families import ANSWER_FORMS, INSTRUCTIONS

# Those of the prompt presets, by language: (yes, no).
ANSWERS = {language: forms[0][::-1] for language, forms in ANSWER_FORMS.items()}
HEADS = {language: f"<|im_start|>system\n{words}<|im_end|>\n" for language, words in INSTRUCTIONS.items()}


@dataclass(frozen=True)
class MiniStudentSettings:
    """Size and warm-up of the mini student."""

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    max_length: int = 512
    epochs: int = 4  # every text opens one document an epoch
    batch_size: int = 16  # documents
    dropped_words: float = 0.25  # share left out of a text that is said again
    instructed: float = 0.1  # share of documents that begin with the instruction
    learning_rate: float = 2e-3
    max_steps: int = -1  # positive: stop there


def build_mini_student(
    texts: Sequence[str],
    output_dir: str | Path,
    *,
    seed: int = 0,
    settings: MiniStudentSettings = MiniStudentSettings(),
) -> Path:
    """Warm up a small random Qwen2 as a language model on texts and save it with its tokenizer.

    It sees conversations in the form of the pair prompt: a text, then the same text again with words left out or
    shuffled (answer yes) or another text dealt at random (answer no). So it knows the words, the turns, that yes or no
    follows and, as any pretrained model does, how to look back for something repeated; of which texts match, nothing.
    (With random answers it had learned to ignore the texts, and no fine-tuning of a few hundred steps got it out of
    that: docs/choices.md.)

    Args:
        texts: training texts, without labels; duplicates are dropped.
        output_dir: folder to make.
        seed: of initial weights and order.
        settings: size and warm-up.

    Returns:
        The folder: safetensors weights and a byte-level BPE tokenizer with the added tokens <|im_start|>, <|im_end|>
        and <|endoftext|> (end and padding).

    Raises:
        ValueError: there are fewer than two distinct texts, or `output_dir` holds something else.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2:
        raise ValueError(f"{len(distinct)} distinct texts are too few; give at least 2.")

    def write(folder: Path) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
            torch.manual_seed(seed)
            return _train_student(distinct, folder, seed, settings)

    return build_folder(Path(output_dir), {"kind": "student", "seed": seed, **asdict(settings)}, distinct, write)


def text_perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the perplexity per token (> 1) of single texts, each as the first turn after the instruction."""
    total, count = 0.0, 0
    opening = HEADS[language_of(texts)]
    head = len(tokenizer(opening + "<|im_start|>")["input_ids"])
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            batch = _tensors(tokenizer, [f"{opening}<|im_start|>{t}<|im_end|>" for t in texts[start : start + 64]])
            batch["labels"][:, :head] = -100
            predicted = int((batch["labels"][:, 1:] != -100).sum())
            total += float(model(**batch).loss) * predicted
            count += predicted
    model.train(was_training)
    return math.exp(total / count)


def _train_student(texts: Sequence[str], folder: Path, seed: int, settings: MiniStudentSettings) -> dict[str, float]:
    """Learn the tokenizer, warm the model up, save both; return the perplexity of up to 500 texts before and after."""
    tokenizer = _train_byte_level_bpe(texts, settings)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    probe = texts[:500]
    before = text_perplexity(model, tokenizer, probe)
    rng = random.Random(seed)
    documents: list[str] = []
    for _ in range(settings.epochs):
        documents += _documents(texts, settings, rng)
    batches = [documents[i : i + settings.batch_size] for i in range(0, len(documents), settings.batch_size)]
    if settings.max_steps > 0:
        batches = batches[: settings.max_steps]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.1, betas=(0.9, 0.95))
    warmup = max(1, len(batches) // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (len(batches) - step) / len(batches))
    )
    model.train()
    for batch in tqdm(batches, desc="student warm-up", unit="step"):
        loss = model(**_tensors(tokenizer, batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"perplexity_before": before, "perplexity_after": text_perplexity(model, tokenizer, probe)}


def language_of(texts: Sequence[str]) -> str:
    """ "zh" if most texts hold a Chinese character, else "en"."""
    chinese = sum(any("\u4e00" <= character <= "\u9fff" for character in text) for text in texts)
    return "zh" if 2 * chinese > len(texts) else "en"


def _documents(texts: Sequence[str], settings: MiniStudentSettings, rng: random.Random) -> list[str]:
    """One conversation for each text: it and the same text said again ("yes"), or it and another one ("no")."""
    shuffled = rng.sample(list(texts), len(texts))
    language = language_of(texts)
    yes, no = ANSWERS[language]
    documents = []
    for text, other in zip(shuffled, [*shuffled[1:], shuffled[0]], strict=True):
        again = rng.random() < 0.5
        turns = [text, _said_again(text, settings.dropped_words, rng) if again else other]
        rng.shuffle(turns)
        head = HEADS[language] if rng.random() < settings.instructed else ""
        body = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)
        documents.append(f"{head}{body}<|im_start|>assistant\n{yes if again else no}<|im_end|>")
    return documents


def _said_again(text: str, dropped: float, rng: random.Random) -> str:
    """The text with words left out at random and, half the time, in another order; never empty."""
    space = " " if language_of([text]) == "en" else ""  # Chinese has characters for words
    parts = text.split() if space else list(text)
    words = [word for word in parts if rng.random() >= dropped] or parts
    if rng.random() < 0.5:
        rng.shuffle(words)
    return space.join(words)


def _tensors(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Tokenise into right-padded input_ids, attention_mask and labels (-100 on padding), each (texts, longest)."""
    encoded = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def _train_byte_level_bpe(texts: Sequence[str], settings: MiniStudentSettings) -> Qwen2Tokenizer:
    """Learn a byte-level BPE with Qwen2's own pre-tokenisation, so that the saved tokenizer reloads as Qwen2's."""
    qwen = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    # Chinese has no spaces: whole sentences would become tokens, and new ones would be read as other tokens. Merges
    # are learned within characters; none can apply across two, as a first byte follows no other within one.
    apart = pre_tokenizers.Split(Regex("[\u4e00-\u9fff]"), "isolated")
    bpe.normalizer, bpe.pre_tokenizer = qwen.normalizer, pre_tokenizers.Sequence([apart, qwen.pre_tokenizer])
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - len(markers),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # As often as there are texts, so that every word of the prompt's fixed parts becomes one token.
    language = language_of(texts)
    answers = ANSWERS[language]
    fixed = "\n".join(
        ["system", INSTRUCTIONS[language], "assistant", *answers, *(f"{answer} {answer}" for answer in answers)]
    )
    bpe.train_from_iterator([*texts, *[fixed] * len(texts)], trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,  # type: ignore[arg-type]  # handed to BPE, which takes pairs
        extra_special_tokens=markers[1:],
        model_max_length=settings.max_length,
    )
