"""Where A starts: from the teacher, by one pass of the bare LLM over texts and a regression (`students.ridge`).

PEFT starts A at random, so the representations begin as noise, and on a real language model a hundred steps bring
little. What is computed here needs no step. B stays 0, so the answer is the bare LLM's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..data.keys import dataset_keys, text_keys
from ..inference.model_runner import ModelRunner
from ..prompts.pair_prompt import PairPrompt
from ..students.encoder_inputs import EncoderInputs
from ..students.encoder_modules import lora_layers
from ..students.lora_encoder import LoraEncoder
from ..students.probing import input_device, is_sharded
from ..students.ridge import PENALTIES, RidgeFit, fit_start, scaled_to
from ..teachers.base import Teacher
from ..teachers.pair_scores import text_vectors
from ..utils.atomic import replacing
from ..utils.devices import use_cpu_threads
from ..utils.digests import hash_tensors

logger = logging.getLogger(__name__)
# Texts that are read at most, and the memory that their means may take: more texts pay less and less.
MAX_TEXTS = 4096
MAX_BYTES = 1_200_000_000
BATCH_SIZE = 64
# Bytes of the inputs of one batch, of which every token is kept until the batch is read.
BATCH_BYTES = 400_000_000
# Another regression gives another start: raised whenever what is computed changes.
START_VERSION = 1
# Texts between two copies of their means into place.
CHUNK = 512


@dataclass(frozen=True)
class EncoderStart:
    """What a start was made of.

    Attributes:
        texts: distinct texts that were read.
        of_texts: distinct texts there were; `texts` of them are a random sample.
        penalty: lambda of the regression.
        held_out_error: its squared error on held-out texts, as a share of their variance.
        seconds: what it took; of a start that was read from disk, what it took then.
    """

    texts: int
    of_texts: int
    penalty: float
    held_out_error: float
    seconds: float


def start_encoder(
    model: PeftModel,
    encoder: LoraEncoder,
    prompt: PairPrompt,
    teacher: Teacher,
    texts: Sequence[str],
    pairs: datasets.Dataset | None = None,
    *,
    pad_id: int,
    cache_dir: str,
    teacher_batch_size: int = 64,
    show_progress: bool = True,
) -> EncoderStart:
    """Set the encoder's A so that representations resemble the teacher's vectors; nothing else is changed.

    The same texts in another order, and with repetitions, give the same start. It is kept in `cache_dir`.

    Args:
        model: the student with a new adapter, whose B is 0.
        encoder: attached to `model`.
        prompt: how a text is read.
        teacher: gives the vectors.
        texts: non-empty.
        pairs: whose texts are added.
        pad_id: id to pad with.
        cache_dir: where the teacher's vectors and starts are kept.
        teacher_batch_size: texts a forward of the teacher.
        show_progress: whether to show progress bars.

    Raises:
        ValueError: fewer texts than the encoder's rank, texts or vectors that do not differ, or vectors that are not
            finite. Ask `why_not_started` before.
    """
    layers: dict[str, Any] = dict(lora_layers(model))
    matrices = {module.name: layers[module.name].lora_A[encoder.adapter_name].weight for module in encoder.modules}
    inputs = EncoderInputs(model, encoder.modules)
    chosen, of_texts = sample_texts(texts, inputs.dimension, pairs)
    rank = encoder.modules[0].rank
    if len(chosen) < rank:
        raise ValueError(
            f"encoder_start needs at least as many distinct texts as the rank {rank}, there are {len(chosen)}: give "
            "more pairs, an unlabelled_file, or a smaller rank."
        )
    path = Path(cache_dir) / "encoder_start" / f"{_key(model, encoder, prompt, teacher, chosen)}.safetensors"
    found = _read(path, matrices)
    if found is None:
        began = time.time()
        fit = _fit(
            *(model, encoder, inputs, prompt, teacher, chosen, rank, pad_id),
            *(cache_dir, teacher_batch_size, show_progress),
        )
        seconds = round(time.time() - began, 1)
        start = EncoderStart(len(chosen), of_texts, fit.penalty, fit.held_out_error, seconds)
        _write(path, fit.matrices, start)
        found = fit.matrices, start
    fitted, start = found
    norm = float(sum(matrix.detach().cpu().double().square().sum() for matrix in matrices.values())) ** 0.5
    with torch.no_grad():
        for name, matrix in scaled_to(fitted, norm).items():
            matrices[name].copy_(matrix)
    logger.info(
        "A starts from the teacher: %d of %d texts, lambda %.1e, squared error on held-out texts %.2f of their "
        "variance, %.0f s",
        *(start.texts, start.of_texts, start.penalty, start.held_out_error, start.seconds),
    )
    return start


@contextmanager
def run_on(model: PeftModel, device: torch.device) -> Iterator[None]:
    """Inside, a model that waits in main memory for its shards (FSDP, DeepSpeed) is on `device`, if it fits there."""
    home = input_device(model)
    moved = home != device and home.type == "cpu" and not is_sharded(model)
    try:
        if moved:
            model.to(device)
    except torch.OutOfMemoryError:
        logger.info("the student does not fit on %s as a whole: A starts on the CPU, which takes longer", device)
        model.to(home)
        use_cpu_threads()
        moved = False
    try:
        yield
    finally:
        if moved:
            model.to(home)


def distinct_keys(texts: Sequence[str], pairs: datasets.Dataset | None = None) -> np.ndarray:
    """The keys of all distinct texts, in ascending order, (n,) int64."""
    return np.unique(np.concatenate([text_keys(texts), *(() if pairs is None else dataset_keys(pairs))]))


def sample_texts(texts: Sequence[str], width: int, pairs: datasets.Dataset | None = None) -> tuple[list[str], int]:
    """Distinct texts in an order of their own, at most as many as may be read, and how many there were.

    They stand in the order of their keys, which has nothing to do with where they came from or what they say; the
    first so many are therefore a random sample. No other text of `pairs` is held in memory.

    Args:
        texts: with repetitions, in any order.
        width: numbers kept of each.
        pairs: whose texts are added.
    """
    sources: list[tuple[np.ndarray, Callable[[list[int]], Sequence[str]]]]
    sources = [(text_keys(texts), lambda rows: [texts[row] for row in rows])]
    if pairs is not None:
        for column, keys in zip(("text_a", "text_b"), dataset_keys(pairs), strict=True):
            sources.append((keys, lambda rows, column=column: pairs.select(rows)[column]))  # type: ignore[misc]
    distinct = np.unique(np.concatenate([keys for keys, _ in sources]))
    chosen = distinct[: min(MAX_TEXTS, max(1, MAX_BYTES // (4 * width)))]
    found: dict[int, str] = {}
    for keys, take in sources:
        own, first = np.unique(keys, return_index=True)
        wanted = np.isin(own, chosen)
        found |= zip(own[wanted].tolist(), take(first[wanted].tolist()), strict=True)
    return [found[key] for key in chosen.tolist()], len(distinct)


def _fit(
    model: PeftModel,
    encoder: LoraEncoder,
    inputs: EncoderInputs,
    prompt: PairPrompt,
    teacher: Teacher,
    texts: list[str],
    rank: int,
    pad_id: int,
    cache_dir: str,
    teacher_batch_size: int,
    show_progress: bool,
) -> RidgeFit:
    cache: dict[str, Any] = {"cache_dir": cache_dir, "batch_size": teacher_batch_size, "show_progress": show_progress}
    targets = torch.from_numpy(text_vectors(teacher, texts, **cache))
    runner = ModelRunner(model, prompt, inputs, pad_id)
    was_training = model.training
    try:
        rows = torch.empty(len(texts), inputs.dimension, dtype=torch.float32, device="cpu")
        longest = len(prompt.prefix_ids) + prompt.room // 2
        batch = max(1, min(BATCH_SIZE, BATCH_BYTES // (4 * inputs.dimension * longest)))
        with tqdm(total=len(texts), desc="start of A", unit=" texts", disable=not show_progress) as bar:
            for first in range(0, len(texts), CHUNK):
                rows[first : first + CHUNK] = runner.vectors(texts[first : first + CHUNK], batch, bar)
    finally:
        model.train(was_training)
    means = inputs.split(rows)
    if encoder.pooling == "sum":
        return fit_start(means, inputs.read_by, targets, rank)
    # Each module's vector stands for itself: one regression for each input, of which the report shows the best.
    fits = [fit_start({name: means[name]}, {name: names}, targets, rank) for name, names in inputs.read_by.items()]
    best = min(fits, key=lambda fit: fit.held_out_error)
    return replace(best, matrices={name: matrix for fit in fits for name, matrix in fit.matrices.items()})


def why_not_started(model: PeftModel, encoder: LoraEncoder, teacher: Teacher) -> str | None:
    """Why this encoder cannot start from this teacher, whatever the texts; None if it can."""
    ranks = sorted({module.rank for module in encoder.modules})
    if len(ranks) > 1:
        return f"the encoder's modules have ranks {ranks}, and a start gives all of them one: leave rank_pattern out"
    if teacher.dim < ranks[0]:
        return f"vectors of {teacher.dim} numbers cannot start an A of rank {ranks[0]}: give a smaller rank"
    layers: dict[str, Any] = dict(lora_layers(model))
    for module in encoder.modules:
        layer = layers[module.name]
        weight = getattr(layer.lora_A[encoder.adapter_name], "weight", None)
        if weight is None or tuple(weight.shape) != (module.rank, layer.in_features):
            return f"A of {module.name!r} is no plain matrix of {module.rank} rows"
    width = sum(layers[module.name].in_features for module in encoder.modules)
    if MAX_BYTES // (4 * width) < ranks[0]:
        return (
            f"its {len(encoder.modules)} modules are too wide to keep {ranks[0]} texts of: choose fewer encoder_layers"
        )
    return None


def _key(model: PeftModel, encoder: LoraEncoder, prompt: PairPrompt, teacher: Teacher, texts: list[str]) -> str:
    """Names all that decides a start: base weights and their dtype, prompt, encoder, teacher and texts."""
    parts = [START_VERSION, encoder.to_dict(), prompt.to_dict(), teacher.fingerprint, PENALTIES]
    digest = hashlib.sha256(json.dumps(parts).encode())
    base = model.get_base_model().named_parameters()
    hash_tensors(digest, ((name, weight) for name, weight in base if "lora_" not in name))
    digest.update(text_keys(texts).tobytes())
    return digest.hexdigest()[:32]


def _write(path: Path, matrices: dict[str, Tensor], start: EncoderStart) -> None:
    with replacing(path) as partial:
        save_file(matrices, partial, {"start": json.dumps(asdict(start))})


def _read(path: Path, wanted: dict[str, Tensor]) -> tuple[dict[str, Tensor], EncoderStart] | None:
    """A kept start; None where there is none that is whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            matrices = {name: file.get_tensor(name) for name in wanted}
            start = EncoderStart(**json.loads(file.metadata()["start"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is broken (%s) and is made anew", path, error)
        return None
    logger.info("the start of A is read from %s", path)
    return matrices, start
