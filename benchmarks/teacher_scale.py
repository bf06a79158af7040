"""What a million distinct texts cost: scored by a teacher from a data set on disk, then found again in the cache.

The teacher is a table of token vectors (sentence-transformers' StaticEmbedding), so that the time is that of
everything around the model. Memory is RssAnon: what cannot be dropped and read again from a file, as the strings and
the vectors can. Scoring and finding again each run in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from flipped_kd.teachers.bi_encoder import BiEncoderTeacher
from flipped_kd.teachers.cache import TeacherCache
from flipped_kd.teachers.items import DatasetTexts
from flipped_kd.teachers.score_table import TeacherEmbeddings

from .harness import growth

DIM = 32
BATCH = 256
WORDS = [first + second for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u", "an", "er", "ist")]
WRITTEN_ROWS = 10_000


def main(quick: bool = False) -> dict[str, Any]:
    """Print and return texts a second, bytes a text and the cost of the finished cache."""
    texts = 100_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        scoring = measure("score", Path(folder), [texts // 10, texts])[-1]
        finding = measure("find", Path(folder), [texts])[-1]
    print(f"{texts:,} distinct texts of {scoring['characters']:.0f} characters, {DIM} dimensions, batches of {BATCH}")
    print(f"scored  {texts / scoring['seconds']:,.0f} texts/s; the cache has {scoring['disk'] / 2**20:.0f} MiB")
    print(f"        RssAnon grew by {_shown(scoring['peak'], texts)} at most, {_shown(scoring['kept'], texts)} stay")
    print(f"found   {finding['seconds']:.2f} s for all texts by the data set, {finding['load_seconds']:.2f} s to load")
    print(f"        RssAnon grew by {_shown(finding['peak'], texts)} at most, {_shown(finding['kept'], texts)} stay")
    return {"texts": texts, "scoring": scoring, "finding": finding}


def measure(action: str, folder: Path, counts: list[int]) -> list[dict[str, Any]]:
    """Score ("score") sets of so many texts one after the other, or find them again ("find"), in one new process.

    Args:
        action: "score" or "find".
        folder: of data sets and caches; "find" needs what "score" has left there.
        counts: sizes of the sets, even numbers.

    Returns:
        For each size: seconds; peak and kept, the growth of RssAnon in bytes at most and in the end, counted from
        before the keys of the texts are made; characters, the mean length of a text; disk, bytes of the cache; for
        "find" also load_seconds, to verify and map the shards once more.
    """
    command = [sys.executable, "-m", "benchmarks.teacher_scale", action, str(folder), *map(str, counts)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _shown(growth: int, texts: int) -> str:
    return f"{growth / 2**20:.1f} MiB ({growth / texts:.0f} bytes a text)"


def act(action: str, folder: Path, texts: int) -> dict[str, Any]:
    teacher, rows, cache_dir = (
        static_teacher(),
        stored_rows(folder, texts, make=action == "score"),
        folder / f"cache-{texts}",
    )
    teacher.embed(["warm up"], cache_dir=None, show_progress=False)
    start = time.perf_counter()
    with growth() as grown:
        items = DatasetTexts([rows])
        table = teacher.embed(items, cache_dir=cache_dir, batch_size=BATCH, show_progress=False)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, **grown}
    if len(table) != texts or not table.contains(items.keys).all():
        raise RuntimeError(f"{len(table)} vectors of {texts} texts: the cache lacks some")
    found["characters"] = float(items.lengths.mean())
    found["disk"] = sum(path.stat().st_size for path in table.paths)
    if action == "find":
        start = time.perf_counter()
        TeacherEmbeddings(TeacherCache(cache_dir, teacher.identity).shard_paths(), DIM)
        found["load_seconds"] = time.perf_counter() - start
    return found


def static_teacher() -> BiEncoderTeacher:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*WORDS, "?"])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    return BiEncoderTeacher(
        SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=DIM)], device="cpu"), id="static"
    )


def stored_rows(folder: Path, texts: int, make: bool, first: int = 0) -> datasets.Dataset:
    """Pairs of distinct texts on disk: `texts` numbers from `first` on, written in WORDS as digits."""
    path = folder / f"rows-{texts}.arrow"
    if make:
        schema = pa.schema({"text_a": pa.string(), "text_b": pa.string()})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for start in range(0, texts, WRITTEN_ROWS):
                numbers = range(start, min(texts, start + WRITTEN_ROWS))
                columns = [[_text(first + number) for number in numbers[side::2]] for side in (0, 1)]
                writer.write_batch(pa.record_batch(columns, schema=schema))
    return datasets.Dataset.from_file(str(path))


def _text(number: int) -> str:
    words: list[str] = []
    while number or not words:
        number, word = divmod(number, len(WORDS))
        words.append(WORDS[word])
    # Some longer than others, as texts are.
    return " ".join(words * (1 + len(words[0])))


if __name__ == "__main__":
    datasets.disable_progress_bars()
    for _count in map(int, sys.argv[3:]):
        print(json.dumps(act(sys.argv[1], Path(sys.argv[2]), _count)), flush=True)
