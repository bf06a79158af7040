"""What a pair costs when there are a thousand and when there are a million: teacher cache, collator, predict.

The models are tiny, so that the time is that of everything around them. Each size runs in a process of its own;
memory is RssAnon, what cannot be dropped and read again from a file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flipped_kd import FlippedMatcher, LoraEncoder, PairPrompt
from flipped_kd.evaluation.match_score import MatchScore
from flipped_kd.students.lora import default_lora
from flipped_kd.teachers.items import DatasetTexts
from flipped_kd.teachers.score_table import TeacherEmbeddings
from flipped_kd.training.collator import TeacherScoringCollator

from .harness import Row, elsewhere, growth
from .teacher_scale import WORDS, static_teacher, stored_rows

SIZES = (1_000, 10_000, 100_000, 1_000_000)
BATCH = 32
WARM_UP = 512  # pairs
FLAT = "<= 1.1"


def embedded(folder: Path, rows: datasets.Dataset) -> TeacherEmbeddings:
    """The teacher's vectors of the set's texts, in a new cache."""
    return static_teacher().embed(
        DatasetTexts([rows]), cache_dir=folder / "cache", batch_size=256, show_progress=False
    )


def teacher_cache(folder: Path, rows: datasets.Dataset) -> Callable[[], Any]:
    """Score all texts and find them."""
    embedded(folder / "warm", rows.select(range(WARM_UP)))
    return lambda: embedded(folder, rows)


def collator(folder: Path, rows: datasets.Dataset) -> Callable[[], Any]:
    """Batch all pairs as training does."""
    labelled = rows.map(lambda row, number: {"label": number % 2, "row": number}, with_indices=True)
    collate = TeacherScoringCollator(_prompt(_tokenizer()), 0, embedded(folder, rows))

    def run() -> None:
        for start in range(0, len(labelled), BATCH):
            collate([labelled[row] for row in range(start, min(start + BATCH, len(labelled)))])

    collate([labelled[row] for row in range(WARM_UP)])
    return run


def predict(folder: Path, rows: datasets.Dataset) -> Callable[[], Any]:
    """Score all pairs, answer and similarity."""
    tokenizer = _tokenizer()
    prompt = _prompt(tokenizer)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, bos_token_id=None, eos_token_id=None)
    model = get_peft_model(LlamaForCausalLM(config), default_lora(4))
    answer, similarity = torch.randn(2, 64).double().numpy()
    score = MatchScore.fit(answer, similarity, torch.arange(64).numpy() % 2)
    matcher = FlippedMatcher(model, tokenizer, prompt, LoraEncoder.from_model(model), score)
    matcher.predict(rows.select(range(WARM_UP)))
    return lambda: matcher.predict(rows)


STAGES: dict[str, Callable[[Path, datasets.Dataset], Callable[[], Any]]] = {
    "teacher cache": teacher_cache,
    "collator": collator,
    "predict": predict,
}


def measure(stage: str, pairs: int) -> dict[str, float]:
    """Seconds and growth of RssAnon of one stage over so many distinct pairs, in this process."""
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # From here on all numbers have four digits: texts are no longer in large sets than in small ones.
        rows = stored_rows(folder, 2 * pairs, make=True, first=len(WORDS) ** 3)
        run = STAGES[stage](folder, rows)
        start = time.perf_counter()
        with growth() as grown:
            run()
        return {"seconds": time.perf_counter() - start, **grown}


def main(quick: bool = False) -> list[Row]:
    """Microseconds a pair at each size, against the smallest; and memory of the largest against the next."""
    sizes = SIZES[:2] if quick else SIZES
    repeats = 2 if quick else 3
    rows = []
    for stage in STAGES:
        # The smallest sizes are over in a moment, and noise with them: the best of some.
        found = {
            n: [elsewhere("cost_per_pair", stage, n) for _ in range(repeats if n < 100_000 else 1)] for n in sizes
        }
        cost = {n: min(run["seconds"] for run in runs) / n for n, runs in found.items()}
        first = SIZES[0]
        for n in sizes[1:]:
            values = [f"{1e6 * cost[m]:.0f} us a pair" for m in (n, first)]
            rows.append(
                Row(f"{stage}: a pair of {n:,}", values[0], f"of {first:,}: {values[1]}", cost[n] / cost[first], FLAT)
            )
        peaks = {n: min(run["peak"] for run in found[n]) for n in sizes[-2:]}
        (fewer, before), (n, grown) = peaks.items()
        rows.append(
            Row(
                f"{stage}: peak of memory at {n:,}",
                f"{grown / 2**20:.0f} MiB",
                f"at {fewer:,}: {before / 2**20:.0f} MiB",
                grown / max(1, before),
                "" if quick else FLAT,  # a thousand pairs hold less than what there is one of
            )
        )
    return rows


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token a word."""
    words = dict.fromkeys([*WORDS, "?", "yes", "no", "same", "[PAD]", "[SEP]"])
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="?", pad_token="[PAD]", sep_token="[SEP]", eos_token="[SEP]"
    )


def _prompt(tokenizer: PreTrainedTokenizerFast) -> PairPrompt:
    return PairPrompt.from_preset(tokenizer, instruction="same", max_length=64)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_per_pair", description=measure.__doc__)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("pairs", type=int)
    options = parser.parse_args()
    with redirect_stdout(sys.stderr):
        result = measure(options.stage, options.pairs)
    print(json.dumps(result))
