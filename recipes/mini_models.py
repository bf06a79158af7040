"""Mini models of the embedded setting: a BERT teacher and a Qwen2 student of about a million weights or less.

- `build_mini_teacher`: the words of the training texts, a random BERT, trained on the labelled pairs by
  sentence-transformers' own trainer.
- `build_mini_student`: byte-level BPE learned on the training texts, random Qwen2, warmed up as a language model on
  the same texts without labels.

Both need no network, no GPU and no account; the same inputs, settings, seed and thread count give the same weights. A
finished folder is marked by `mini_model.json`, written last; a call with the same inputs, settings and seed reuses it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

MARKER = "mini_model.json"
INSTRUCTION = "Do these two texts mean the same? Answer yes or no."
ANSWERS = ("yes", "no")
PROMPT_HEAD = f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n"
# Set by launchers for their ranks; the teacher's training is one plain process whatever launched the caller.
LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "DEEPSPEED_", "TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_")
LAUNCHER_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class MiniTeacherSettings:
    """Size and training of the mini teacher; the defaults were chosen by validation AUC on the embedded set."""

    vocab_size: int = 2000
    hidden_size: int = 128
    layers: int = 1
    heads: int = 4
    dropout: float = 0.1
    max_length: int = 64
    epochs: float = 7.0
    batch_size: int = 32
    learning_rate: float = 4e-3
    scale: float = 5.0  # inverse temperature of the ranking loss
    max_steps: int = -1  # positive: stop there


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


def build_mini_teacher(
    train_pairs: datasets.Dataset,
    output_dir: str | Path,
    *,
    seed: int = 0,
    settings: MiniTeacherSettings = MiniTeacherSettings(),
) -> Path:
    """Train a small BERT on labelled pairs and save it as a sentence-transformers folder.

    The training runs in a child process: a second Trainer in the caller's process would reset its accelerate state,
    and under a launcher of several processes wait for ranks that never join.

    Args:
        train_pairs: columns `text_a`, `text_b` (str) and `label` (0/1), at least one row of label 1.
        output_dir: folder to make.
        seed: of initial weights, order and dropout.
        settings: size and training.

    Returns:
        The folder: safetensors weights, tokenizer, mean pooling.

    Raises:
        ValueError: columns are missing, no pair is positive, or `output_dir` holds something else.
        RuntimeError: the training process failed.
    """
    missing = {"text_a", "text_b", "label"} - set(train_pairs.column_names)
    if missing:
        raise ValueError(
            f"train_pairs lacks {sorted(missing)}, it has {train_pairs.column_names}; rename its columns."
        )
    rows = [{name: row[name] for name in ("text_a", "text_b", "label")} for row in train_pairs]
    if not any(row["label"] == 1 for row in rows):
        raise ValueError(f"None of the {len(rows)} training pairs has label 1; add matching pairs to learn from.")

    def write(folder: Path) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as scratch:
            request_file = Path(scratch) / "request.json"
            request = {"rows": rows, "folder": str(folder.resolve()), "seed": seed, "settings": asdict(settings)}
            request_file.write_text(json.dumps(request), encoding="utf-8")
            command = [sys.executable, __file__, str(request_file)]
            kept = {
                k: v for k, v in os.environ.items() if k not in LAUNCHER_NAMES and not k.startswith(LAUNCHER_PREFIXES)
            }
            environment = {**kept, "CUDA_VISIBLE_DEVICES": ""}
            status = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
        if status != 0:
            raise RuntimeError(f"Training the mini teacher ended with status {status}; its messages stand above.")
        return {}

    return _build(Path(output_dir), {"kind": "teacher", "seed": seed, **asdict(settings)}, rows, write)


def train_teacher(
    rows: Sequence[dict[str, str | int]], folder: Path, seed: int, settings: MiniTeacherSettings
) -> None:
    """Train the teacher in this process and save it in `folder`.

    The loss is MultipleNegativesRankingLoss over the positive pairs. AUC on the embedded validation set, mean of seeds
    0 to 2: both directions .950, one direction .946; over all pairs, CoSENT .810 and online contrastive .799 (each at
    the better of two learning rates on seed 0). At learning rate 2e-3, 10 epochs: scale 5 .945, 8 .900, the usual 20
    .837. A low scale is milder on in-batch negatives that in truth match.
    """
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(seed)
    texts = [str(row[name]) for row in rows for name in ("text_a", "text_b")]
    tokenizer = _word_pieces(texts, settings)
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=2 * settings.hidden_size,
            max_position_embeddings=settings.max_length,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
        )
    )
    positives = [{"text_a": row["text_a"], "text_b": row["text_b"]} for row in rows if row["label"] == 1]
    with tempfile.TemporaryDirectory() as scratch:
        bert.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        transformer = Transformer(scratch, max_seq_length=settings.max_length)
        pooling = Pooling(settings.hidden_size, pooling_mode="mean")
        model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_steps=0.1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            seed=seed,
        )
        SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(positives),
            loss=MultipleNegativesRankingLoss(
                model,
                scale=settings.scale,
                directions=("query_to_doc", "doc_to_query"),
                partition_mode="per_direction",
            ),
        ).train()
        model.save_pretrained(str(folder), create_model_card=False)


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

    return _build(Path(output_dir), {"kind": "student", "seed": seed, **asdict(settings)}, distinct, write)


def text_perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the perplexity per token (> 1) of single texts, each as the first turn after the instruction."""
    total, count = 0.0, 0
    head = len(tokenizer(PROMPT_HEAD + "<|im_start|>")["input_ids"])
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            batch = _tensors(tokenizer, [f"{PROMPT_HEAD}<|im_start|>{t}<|im_end|>" for t in texts[start : start + 64]])
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


def _documents(texts: Sequence[str], settings: MiniStudentSettings, rng: random.Random) -> list[str]:
    """One conversation for each text: it and the same text said again ("yes"), or it and another one ("no")."""
    shuffled = rng.sample(list(texts), len(texts))
    documents = []
    for text, other in zip(shuffled, [*shuffled[1:], shuffled[0]], strict=True):
        again = rng.random() < 0.5
        turns = [text, _said_again(text, settings.dropped_words, rng) if again else other]
        rng.shuffle(turns)
        head = PROMPT_HEAD if rng.random() < settings.instructed else ""
        body = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)
        documents.append(f"{head}{body}<|im_start|>assistant\n{ANSWERS[0 if again else 1]}<|im_end|>")
    return documents


def _said_again(text: str, dropped: float, rng: random.Random) -> str:
    """The text with words left out at random and, half the time, in another order; never empty."""
    words = [word for word in text.split() if rng.random() >= dropped] or text.split()
    if rng.random() < 0.5:
        rng.shuffle(words)
    return " ".join(words)


def _tensors(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Tokenise into right-padded input_ids, attention_mask and labels (-100 on padding), each (texts, longest)."""
    encoded = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def _train_byte_level_bpe(texts: Sequence[str], settings: MiniStudentSettings) -> Qwen2Tokenizer:
    """Learn a byte-level BPE with Qwen2's own pre-tokenisation, so that the saved tokenizer reloads as Qwen2's."""
    qwen = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer = qwen.normalizer, qwen.pre_tokenizer
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - len(markers),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # As often as there are texts, so that every word of the prompt's fixed parts becomes one token.
    fixed = "\n".join(["system", INSTRUCTION, "assistant", *ANSWERS, *(f"{answer} {answer}" for answer in ANSWERS)])
    bpe.train_from_iterator([*texts, *[fixed] * len(texts)], trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,  # type: ignore[arg-type]  # handed to BPE, which takes pairs
        extra_special_tokens=markers[1:],
        model_max_length=settings.max_length,
    )


def _word_pieces(texts: Sequence[str], settings: MiniTeacherSettings) -> BertTokenizer:
    """Make a lower-case WordPiece vocabulary: every character, and the most frequent words as far as there is room.

    Counted here because the WordPiece trainer of `tokenizers` learns another vocabulary at every call (measured): the
    same seed would give another teacher.
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    )
    characters = sorted({character for word in counts for character in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    pieces += words[: max(0, settings.vocab_size - len(pieces))]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=settings.max_length)


def _build(
    folder: Path, description: dict[str, object], data: Sequence[object], write: Callable[[Path], dict[str, float]]
) -> Path:
    """Reuse `folder` if its marker names the same description and data, else build beside it and rename."""
    digest = hashlib.sha256(json.dumps(data, ensure_ascii=False).encode("utf-8")).hexdigest()
    wanted = {**description, "data_sha256": digest}
    marker = folder / MARKER
    if marker.is_file():
        found = json.loads(marker.read_text(encoding="utf-8"))
        if found["built_from"] == wanted:
            return folder
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} exists and is no mini model (no {MARKER} in it); name another folder or remove it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        measured = write(partial)
        content = json.dumps({"built_from": wanted, **measured}, indent=2)
        (partial / MARKER).write_text(content + "\n", encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp makes it readable to the owner alone
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


if __name__ == "__main__":  # the child process of build_mini_teacher
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    train_teacher(
        request["rows"], Path(request["folder"]), request["seed"], MiniTeacherSettings(**request["settings"])
    )
