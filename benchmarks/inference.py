"""FlippedMatcher against sentence_transformers.CrossEncoder, both on one and the same merged model.

`rank` reads the prompt up to the document once, so its speed is held against the tokens that saves: (prefix + rest) /
rest. Both take turns in one process, so that a drifting machine speed cancels out; medians of the ratios are printed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from flipped_kd import FlippedDistillationConfig, FlippedMatcher, LoraEncoder, PairPrompt, load_pairs
from flipped_kd.publishing.merge import merge_adapter
from flipped_kd.students.loading import load_student, load_tokenizer
from flipped_kd.students.lora import add_adapter, default_lora

from .harness import BANKING, FAQ, STUDENT, Row, json_lines, missing, ratios, take_turns

QUERY_TOKENS = (13, 100)
CANDIDATES = (100, 1000)
PAIRS = 256
TOLERANCE = 1e-5


def main(quick: bool = False) -> list[Row]:
    """`rank` and `predict` in seconds, CrossEncoder's / ours."""
    if missing(STUDENT, FAQ, BANKING):
        return []
    rounds = 3 if quick else 9
    with tempfile.TemporaryDirectory() as folder:
        merged = merged_model(Path(folder))
        matcher = FlippedMatcher.from_pretrained(merged, device="cpu")
        peer = CrossEncoder(str(merged), device="cpu")
    rows = []
    for count in CANDIDATES[:1] if quick else CANDIDATES:
        for length in QUERY_TOKENS:
            rows += _ranking(matcher, peer, length, _documents(count), rounds if count == CANDIDATES[0] else 3)
    test = load_pairs(BANKING / "test.jsonl", max_rows=PAIRS)
    pairs = list(zip(test["text_a"], test["text_b"], strict=True))
    _check_same(matcher.predict(pairs, score="answer"), peer.predict(pairs))
    speed, each, seconds = _race(lambda: matcher.predict(pairs, score="answer"), lambda: peer.predict(pairs), rounds)
    speeds = [f"{PAIRS / value:.0f} pairs/s" for value in seconds]
    rows.append(
        Row(
            f"predict, {PAIRS} pairs of mixed lengths",
            f"matcher.predict {speeds[0]}",
            f"CrossEncoder.predict {speeds[1]}",
            speed,
            ">= 1.2",
            each,
        )
    )
    return rows


def _ranking(matcher: FlippedMatcher, peer: CrossEncoder, length: int, documents: list[str], rounds: int) -> list[Row]:
    query = _query(matcher.prompt, length)
    ours = _in_order(matcher.rank(query, documents, score="answer"))
    _check_same(ours, _in_order(peer.rank(query, documents)))
    tokens = matcher.prompt.encode_pairs([query] * len(documents), documents)
    shared = tokens[0].text_a[1] + len(matcher.prompt.middle_ids)
    rest = statistics.mean(len(pair.input_ids) for pair in tokens) - shared
    saved = (shared + rest) / rest
    speed, each, seconds = _race(
        partial(matcher.rank, query, documents, score="answer"), partial(peer.rank, query, documents), rounds
    )
    work = f"rank a query of {length} tokens over {len(documents):,}"
    values = [f"{1000 * value:.0f} ms" for value in seconds]
    return [
        Row(work, f"matcher.rank {values[0]}", f"CrossEncoder.rank {values[1]}", speed, "", each),
        Row(
            "    share of the tokens saved",
            f"speed {speed:.2f}",
            f"tokens saved {saved:.2f}",
            speed / saved,
            ">= 0.8",
            [value / saved for value in each],
        ),
    ]


def merged_model(folder: Path) -> Path:
    """The student with a LoRA adapter of random weights, merged: speed does not depend on what was learned."""
    name = str(STUDENT)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(name)
    model = add_adapter(load_student(name, dtype=torch.float32), default_lora())
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(str(folder / "adapter"))
    tokenizer.save_pretrained(folder / "adapter")
    PairPrompt.from_preset(tokenizer).save_pretrained(folder / "adapter")
    chosen = FlippedDistillationConfig(use_cpu=True)  # the encoder that training has by default
    LoraEncoder.from_model(
        model,
        layers=chosen.encoder_layers,
        modules=chosen.encoder_modules,
        pooling=chosen.encoder_pooling,  # type: ignore[arg-type]
    ).save_pretrained(folder / "adapter")
    return merge_adapter(folder / "adapter", folder / "merged").folder


def _documents(count: int) -> list[str]:
    """The bank's 77 questions and customers' queries, `count` distinct texts."""
    texts = [row["question"] for row in json_lines(FAQ / "questions.jsonl")]
    texts += [row["query"] for split in ("test", "train") for row in json_lines(FAQ / f"{split}.jsonl")]
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < count:
        raise RuntimeError(f"{FAQ} holds {len(distinct)} distinct texts, {count} are wanted")
    return distinct[:count]


def _query(prompt: PairPrompt, length: int) -> str:
    """A customer's words, exactly `length` tokens of them."""
    text = ""
    for word in " ".join(row["query"] for row in json_lines(FAQ / "validation.jsonl")).split():
        longer = f"{text} {word}".lstrip()
        start, stop = prompt.encode_texts([longer])[0].text_a
        if stop - start <= length:  # else the word has too many pieces: the next may fit
            text = longer
        if stop - start == length:
            return text
    raise RuntimeError(f"the validation queries make no text of {length} tokens")


def _race(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[float, list[float], tuple[float, float]]:
    """(median of their seconds / ours, each round's, median seconds of both)."""

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start

        return run

    seconds = take_turns({"ours": timed(ours), "theirs": timed(theirs)}, rounds)
    speed, each = ratios(seconds["theirs"], seconds["ours"])
    return speed, each, (statistics.median(seconds["ours"]), statistics.median(seconds["theirs"]))


def _in_order(ranked: list[dict]) -> np.ndarray:
    return np.array([hit["score"] for hit in sorted(ranked, key=lambda hit: hit["corpus_id"])])


def _check_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = float(np.abs(ours - theirs).max())
    if difference > TOLERANCE:
        raise RuntimeError(f"probabilities differ by {difference:.2g}: the two do not do the same work")
