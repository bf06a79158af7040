"""A training step of the three objectives, against what users would pick instead, on the same pairs.

Peers: sentence-transformers' CrossEncoderTrainer with binary cross-entropy, and a straightforward loop. Every system
trains the same student with the same LoRA over the same pairs, in bf16 autocast where the CPU multiplies bfloat16 and
in float32 elsewhere; the clock runs from the first batch to the last update, and each peak of memory is that of the
same stretch in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from torch.utils.data import BatchSampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from flipped_kd import FlippedDistillationConfig, FlippedDistillationTrainer, PairPrompt, load_pairs
from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.students.lora import add_adapter, default_lora
from flipped_kd.training.config import PLAIN
from flipped_kd.utils.devices import cpu_has_bfloat16
from recipes.trainable_cross_encoder import PairTrainer, trainable_cross_encoder

from .harness import (
    BANKING,
    STAND_IN,
    STUDENT,
    TEACHER,
    Row,
    check_memory,
    elsewhere,
    growth,
    missing,
    ratios,
    take_turns,
)

BATCH = 16  # the default of FlippedDistillationConfig
MAX_LENGTH = 128
VOCABULARY = 150_000
OURS = ("independent", "joint", "both")
LOOPS = ("loop", "loop, one by one")
LEARNING_RATE = 1e-4


class Clock(TrainerCallback):
    """Seconds from the beginning of the latest training to its end."""

    seconds = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter()


class Memory(TrainerCallback):
    """Growth of memory from the beginning of training to its end: fitting the match score afterwards is no step."""

    def __init__(self) -> None:
        self.stretch = contextlib.ExitStack()
        self.grown: dict[str, int] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.grown = self.stretch.enter_context(growth())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.stretch.close()


def common(folder: str) -> dict[str, Any]:
    """Settings that ours and the peers share."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "num_train_epochs": 1,
        "bf16": cpu_has_bfloat16(),
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def student(vocabulary: int | None) -> Any:
    """The stand-in, with more words if asked: speed does not depend on what it knows."""
    torch.manual_seed(0)
    model = load_student(str(STUDENT), dtype="float32")
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model


def ours(
    folder: str, rows: int, representation: str, grouped: bool = True, vocabulary: int | None = None
) -> Callable[[], float]:
    """One epoch of FlippedDistillationTrainer; "plain" is fine-tuning by the answer alone."""
    plain = representation == "plain"
    settings: dict[str, Any] = dict(PLAIN) if plain else {"representation": representation}
    args = FlippedDistillationConfig(
        teacher_cache_dir=f"{folder}/cache",
        max_length=MAX_LENGTH,
        train_sampling_strategy="group_by_length" if grouped else "random",
        **common(folder),
        **settings,
    )
    clock = Clock()
    trainer = FlippedDistillationTrainer(
        student(vocabulary),
        None if plain else str(TEACHER),
        args,
        pairs(rows),
        load_pairs(BANKING / "validation.jsonl", max_rows=64),
        load_tokenizer(str(STUDENT)),
        callbacks=[clock],
    )
    return partial(_trained, trainer, clock)


def cross_encoder(folder: str, rows: int, grouped: bool = True, vocabulary: int | None = None) -> Callable[[], float]:
    """One epoch of CrossEncoderTrainer over the same prompt, student and LoRA, labels as they are."""
    tokenizer = load_tokenizer(str(STUDENT))
    prompt = PairPrompt.from_preset(tokenizer, max_length=MAX_LENGTH)
    model = trainable_cross_encoder(student(vocabulary), tokenizer, prompt, default_lora(), device="cpu")
    labelled = pairs(rows)
    table = labelled.cast_column("label", datasets.Value("float32"))
    sampler: dict[str, Any] = {"batch_sampler": _length_grouped} if grouped else {}
    args = CrossEncoderTrainingArguments(**common(folder), **sampler, dataloader_drop_last=True)
    clock = Clock()
    trainer = PairTrainer(model, args, train_dataset=table, loss=BinaryCrossEntropyLoss(model), callbacks=[clock])
    return partial(_trained, trainer, clock)


def _length_grouped(dataset: datasets.Dataset, batch_size: int, drop_last: bool, **options: Any) -> BatchSampler:
    """For the peer's `batch_sampler`: transformers' own grouping, by the lengths that ours goes by."""
    lengths = [len(a) + len(b) for a, b in zip(dataset["text_a"], dataset["text_b"], strict=True)]
    sampler = LengthGroupedSampler(batch_size, lengths=lengths, generator=options.get("generator"))
    return BatchSampler(sampler, batch_size, drop_last)


def loop(folder: str, rows: int, one_by_one: bool = False, vocabulary: int | None = None) -> Callable[[], float]:
    """A straightforward loop: the teacher runs beside it, full logits, forwards over pairs, texts a and texts b.

    `one_by_one` makes a forward of every pair and every text, which needs no padding.
    """
    tokenizer = load_tokenizer(str(STUDENT))
    prompt = PairPrompt.from_preset(tokenizer, max_length=MAX_LENGTH)
    model: Any = add_adapter(student(vocabulary), default_lora())
    teacher = SentenceTransformer(str(TEACHER), device="cpu")
    table = pairs(rows)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    no_id, yes_id = prompt.answer_ids

    def read(texts: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits at the last token, and the mean of the last layer's states over the row."""
        longest = max(len(text.input_ids) for text in texts)
        ids = torch.tensor([text.input_ids + [0] * (longest - len(text.input_ids)) for text in texts])
        lengths = torch.tensor([len(text.input_ids) for text in texts])
        real = (torch.arange(longest) < lengths[:, None]).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()):
            out = model(input_ids=ids, attention_mask=real, output_hidden_states=True)
        states = out.hidden_states[-1].float() * real[:, :, None]
        last = out.logits[torch.arange(len(texts)), lengths - 1].float()
        return last, torch.nn.functional.normalize(states.sum(1) / lengths[:, None], dim=-1)

    def read_all(texts: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        if not one_by_one:
            return read(texts)
        logits, vectors = zip(*[read([text]) for text in texts], strict=True)
        return torch.cat(logits), torch.cat(vectors)

    def epoch() -> float:
        model.train()
        start = time.perf_counter()
        for first in range(0, rows, BATCH):
            batch = table[first : first + BATCH]
            labels = torch.tensor(batch["label"])
            logits, _ = read_all(prompt.encode_pairs(batch["text_a"], batch["text_b"]))
            a, b = (read_all(prompt.encode_texts(batch[side]))[1] for side in ("text_a", "text_b"))
            wanted_a, wanted_b = (
                teacher.encode(batch[side], convert_to_tensor=True, show_progress_bar=False).clone()
                for side in ("text_a", "text_b")
            )
            cosines = a @ b.T
            answer = torch.nn.functional.cross_entropy(logits, torch.where(labels.bool(), yes_id, no_id))
            alignment = torch.nn.functional.mse_loss(cosines, wanted_a @ wanted_b.T)
            contrast = torch.nn.functional.cross_entropy(cosines / 0.05, torch.arange(len(labels)))
            (answer + 10 * alignment + 0.05 * contrast).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    return epoch


def full_logits(folder: str, rows: int, vocabulary: int | None = None) -> Callable[[], float]:
    """transformers' Trainer as for any language model: labels at every position, all but the answer ignored."""
    from transformers import Trainer, TrainingArguments

    tokenizer = load_tokenizer(str(STUDENT))
    prompt = PairPrompt.from_preset(tokenizer, max_length=MAX_LENGTH)
    no_id, yes_id = prompt.answer_ids
    examples = []
    for row in pairs(rows):
        ids = prompt.encode_pairs([row["text_a"]], [row["text_b"]])[0].input_ids
        ids = [*ids, yes_id if row["label"] else no_id]
        examples.append({"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:], "length": len(ids)})

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        filled = {
            "input_ids": [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch],
            "labels": [row["labels"] + [-100] * (longest - len(row["labels"])) for row in batch],
            "attention_mask": [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch],
        }
        return {name: torch.tensor(values) for name, values in filled.items()}

    clock = Clock()
    args = TrainingArguments(
        **common(folder),
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    model = add_adapter(student(vocabulary), default_lora())
    trainer = Trainer(
        model, args, train_dataset=datasets.Dataset.from_list(examples), data_collator=collate, callbacks=[clock]
    )
    return partial(_trained, trainer, clock)


SYSTEMS: dict[str, Callable[..., Callable[[], float]]] = {
    **{name: partial(ours, representation=name) for name in (*OURS, "plain")},
    "both, ungrouped": partial(ours, representation="both", grouped=False),
    "CrossEncoderTrainer": cross_encoder,
    "CrossEncoderTrainer, ungrouped": partial(cross_encoder, grouped=False),
    "loop": loop,
    "loop, one by one": partial(loop, one_by_one=True),
    "Trainer, full logits": full_logits,
}


def pairs(rows: int) -> datasets.Dataset:
    """The first pairs of banking77."""
    return load_pairs(BANKING / "train.jsonl", max_rows=rows)


def _trained(trainer: Any, clock: Clock) -> float:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        trainer.train()
    return clock.seconds


def peak(name: str, rows: int, vocabulary: int | None = None, runs: int = 1) -> float:
    """MiB that one epoch adds to what is held before it, in a process of its own; the median of some runs.

    They differ by up to 10 %, by what the allocator keeps.
    """
    return statistics.median(elsewhere("training_step", name, rows, vocabulary or 0) for _ in range(runs))


def main(quick: bool = False) -> list[Row]:
    """Samples a second of each system, and their peaks of memory."""
    if missing(BANKING, STUDENT, TEACHER):
        return []
    if STUDENT != STAND_IN:
        return steps_alone(3 if quick else 8, 2 if quick else 3)
    check_memory()
    # Enough batches for the lengths to be those of the set; the slow peers read fewer in the quick form.
    rows, slow_rows, large_rows = (count * BATCH for count in ((12, 3, 2) if quick else (20, 20, 6)))
    rounds = 2 if quick else 7
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in SYSTEMS if name not in (*LOOPS, "Trainer, full logits")]
        seconds = take_turns({name: SYSTEMS[name](f"{folder}/{name}", rows) for name in names}, rounds)
        loops = take_turns(
            {name: SYSTEMS[name](f"{folder}/slow {name}", slow_rows) for name in ("both", *LOOPS)}, rounds
        )
        large_names = ("both", "Trainer, full logits")
        large = take_turns(
            {name: SYSTEMS[name](f"{folder}/large {name}", large_rows, vocabulary=VOCABULARY) for name in large_names},
            rounds,
        )
    peak_rows, measured = (6 * BATCH, 1) if quick else (rows, 3)
    peaks = {name: peak(name, peak_rows, runs=measured) for name in (*OURS, "CrossEncoderTrainer")}
    large_peaks = {name: peak(name, large_rows, VOCABULARY, measured) for name in large_names}

    def held(work: str, name: str, other: str, reach: str, peaks: dict[str, float]) -> Row:
        values = (f"{n} {peaks[n]:.0f} MiB" for n in (name, other))
        return Row(work, next(values), next(values), peaks[name] / peaks[other], reach)

    reaches = {"independent": ">= 1.0", "joint": ">= 1.2", "both": ""}
    peer = "CrossEncoderTrainer"
    table = [_compared(f"training step, {name}", name, peer, reaches[name], seconds, rows) for name in OURS]
    table.append(_compared("training step, answer alone", "plain", peer, "", seconds, rows))
    table.append(_compared("grouping by length, both", "both", "both, ungrouped", "", seconds, rows))
    table.append(_compared(f"grouping by length, {peer}", peer, f"{peer}, ungrouped", "", seconds, rows))
    table += [held(f"peak memory, {name}", name, peer, "<= 1.1", peaks) for name in OURS]
    table.append(_compared("against a loop, batches of pairs and of texts", "both", "loop", "", loops, slow_rows))
    work = "against a loop, a forward per text and pair"
    table.append(_compared(work, "both", "loop, one by one", ">= 4", loops, slow_rows))
    name, other = large_names
    table.append(_compared(f"vocabulary of {VOCABULARY:,}", name, other, ">= 3", large, large_rows))
    table.append(held("the same, peak memory", name, other, "<= 0.3", large_peaks))
    return table


def steps_alone(batches: int, rounds: int) -> list[Row]:
    """A training step of a large student, flipped and plain, against the peer's."""
    rows, peer = batches * BATCH, "CrossEncoderTrainer"
    with tempfile.TemporaryDirectory() as folder:
        systems = {name: SYSTEMS[name](f"{folder}/{name}", rows) for name in ("both", "plain", peer)}
        seconds = take_turns(systems, rounds)
    reaches = {"both": ">= 1.2", "plain": ""}
    return [_compared(f"training step, {name}", name, peer, reach, seconds, rows) for name, reach in reaches.items()]


def _compared(work: str, name: str, other: str, reach: str, times: dict[str, list[float]], pairs: int) -> Row:
    ratio, each = ratios(times[other], times[name])
    speeds = [f"{pairs / statistics.median_high(times[n]):.1f} pairs/s" for n in (name, other)]
    return Row(work, f"{name} {speeds[0]}", f"{other} {speeds[1]}", ratio, reach, each)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=peak.__doc__)
    parser.add_argument("name", choices=[name for name in SYSTEMS if not name.startswith("loop")])
    parser.add_argument("rows", type=int)
    parser.add_argument("vocabulary", type=int, help="0 for the student's own")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        run = SYSTEMS[options.name](scratch, options.rows, vocabulary=options.vocabulary or None)
        memory = Memory()
        run.args[0].add_callback(memory)  # type: ignore[attr-defined]
        run()
    print(json.dumps(memory.grown["peak"] / 2**20))
