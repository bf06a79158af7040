"""FlippedMatcher against sentence_transformers.CrossEncoder, both on one and the same merged model.

`rank` reads the prompt up to the document once, so its speed is held against the tokens that saves: (prefix + rest) /
rest. Both take turns in one process, so that a drifting machine speed cancels out; medians of the ratios are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from flipped_kd import FlippedMatcher, LoraEncoder, PairPrompt, load_pairs
from flipped_kd.publish import merge_adapter
from flipped_kd.student import add_adapter, default_lora, load_student, load_tokenizer

SHARED = Path(os.environ.get("FLIPPED_KD_SHARED", Path(__file__).parents[2] / "shared"))
QUERY_TOKENS = (13, 100)
CANDIDATES = 100
PAIRS = 256
SHARE_OF_TOKENS_SAVED = 0.7
TOLERANCE = 1e-5


def main(quick: bool = False) -> dict[str, float]:
    """Print and return the ratios of speed, CrossEncoder's seconds / ours, and of the tokens saved by `rank`."""
    if not SHARED.is_dir():
        print(f"skipped: no data and models at {SHARED}; set FLIPPED_KD_SHARED to their folder")
        return {}
    rounds = 5 if quick else 15
    with tempfile.TemporaryDirectory() as folder:
        merged = _merged_model(Path(folder))
        matcher = FlippedMatcher.from_pretrained(merged, device="cpu")
        peer = CrossEncoder(str(merged), device="cpu")
    print(f"{torch.get_num_threads()} threads, {rounds} rounds in turn; median ratio of seconds, CrossEncoder / ours")
    ratios: dict[str, float] = {}
    documents = _documents()
    for length in QUERY_TOKENS:
        query = _query(matcher.prompt, length)
        ours = _in_order(matcher.rank(query, documents, score="answer"))
        _check_same(ours, _in_order(peer.rank(query, documents)))
        tokens = matcher.prompt.encode_pairs([query] * CANDIDATES, documents)
        shared = tokens[0].text_a[1] + len(matcher.prompt.middle_ids)
        rest = statistics.mean(len(pair.input_ids) for pair in tokens) - shared
        saved = (shared + rest) / rest
        speed, seconds = _race(
            partial(matcher.rank, query, documents, score="answer"),
            partial(peer.rank, query, documents),
            rounds,
        )
        ratios |= {f"rank_{length}_tokens_saved": saved, f"rank_{length}_speed": speed}
        print(
            f"rank, query of {length:3d} tokens, {CANDIDATES} candidates: {seconds:.3f} s, speed {speed:.2f}, tokens "
            f"saved {saved:.2f}, share {speed / saved:.2f} (at least {SHARE_OF_TOKENS_SAVED})"
        )
    test = load_pairs(SHARED / "data" / "banking77" / "test.jsonl", max_rows=PAIRS)
    pairs = list(zip(test["text_a"], test["text_b"], strict=True))
    _check_same(matcher.predict(pairs, score="answer"), peer.predict(pairs))
    speed, seconds = _race(lambda: matcher.predict(pairs, score="answer"), lambda: peer.predict(pairs), rounds)
    ratios["predict_speed"] = speed
    print(f"predict, {PAIRS} pairs: {seconds:.3f} s, speed {speed:.2f} (at least 1)")
    return ratios


def _merged_model(folder: Path) -> Path:
    """The student with a LoRA adapter of random weights, merged: speed does not depend on what was learned."""
    name = str(SHARED / "models" / "student-minilm-causal")
    torch.manual_seed(0)
    tokenizer = load_tokenizer(name)
    model = add_adapter(load_student(name, dtype=torch.float32), default_lora())
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(str(folder / "adapter"))
    tokenizer.save_pretrained(folder / "adapter")
    PairPrompt.from_preset(tokenizer).save_pretrained(folder / "adapter")
    LoraEncoder.from_model(model).save_pretrained(folder / "adapter")
    return merge_adapter(folder / "adapter", folder / "merged").folder


def _documents() -> list[str]:
    """The bank's 77 questions and some customers' queries."""
    folder = SHARED / "data" / "banking77_faq"
    texts = [json.loads(line)["question"] for line in (folder / "questions.jsonl").read_text("utf-8").splitlines()]
    texts += [json.loads(line)["query"] for line in (folder / "test.jsonl").read_text("utf-8").splitlines()]
    return list(dict.fromkeys(texts))[:CANDIDATES]


def _query(prompt: PairPrompt, length: int) -> str:
    """A customer's words, exactly `length` tokens of them."""
    lines = (SHARED / "data" / "banking77_faq" / "validation.jsonl").read_text("utf-8").splitlines()
    text = ""
    for word in " ".join(json.loads(line)["query"] for line in lines).split():
        longer = f"{text} {word}".lstrip()
        start, stop = prompt.encode_texts([longer])[0].text_a
        if stop - start <= length:  # else the word has too many pieces: the next may fit
            text = longer
        if stop - start == length:
            return text
    raise RuntimeError(f"the validation queries make no text of {length} tokens")


def _race(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """(median of their seconds / ours, our median seconds), the first round warming up."""
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        seconds.append((middle - start, time.perf_counter() - middle))
    return statistics.median(b / a for a, b in seconds[1:]), statistics.median(a for a, _ in seconds[1:])


def _in_order(ranked: list[dict]) -> np.ndarray:
    return np.array([hit["score"] for hit in sorted(ranked, key=lambda hit: hit["corpus_id"])])


def _check_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = float(np.abs(ours - theirs).max())
    if difference > TOLERANCE:
        raise RuntimeError(f"probabilities differ by {difference:.2g}: the two do not do the same work")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    main(parser.parse_args().quick)
