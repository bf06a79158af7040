"""The pairs that adapter and merged model must score alike, and how much alike: to what float32 can give."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..inference.matcher import FlippedMatcher
from ..prompts.pair_prompt import PROBE_PAIRS, PairPrompt
from .crossencoder_layout import largest_difference
from .errors import PublishError

logger = logging.getLogger(__name__)
# Of the longest probe, unless the prompt allows less: longer ones cost minutes with a large model on a CPU.
PROBE_TOKENS = 256
TOLERANCE = 1e-5
# A merge moved log-odds .3 to 4 times as far as one unit in the last place of every weight did (random Qwen2 and
# Gemma 3 of two layers, 18 of them); merging into the wrong matrix moves them by whole units.
ROUNDINGS = 8
MAX_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ProbeDifferences:
    """Largest absolute differences between two models, and what was allowed, by name.

    "answer" (log-odds), "similarity" (cosines) and "encode" (coordinates of unit vectors).
    """

    differences: dict[str, float]
    allowed: dict[str, float]


def probe_pairs(prompt: PairPrompt) -> list[tuple[str, str]]:
    """Pairs of several lengths, none of which is cut: the prompt's own probes, short ones, and one near the limit."""
    question = " ".join(PROBE_PAIRS[0])
    lengths = [2**power for power in range(12)]
    long = [(" ".join([question] * n), " ".join([question] * n)) for n in lengths]
    short = [("a", "b"), ("a b c", "d e"), ("a", "b c d e"), *PROBE_PAIRS]
    fit = []
    for pairs, limit in ((short, prompt.max_length), (long, min(prompt.max_length, PROBE_TOKENS))):
        tokens = prompt.encode_pairs([a for a, _ in pairs], [b for _, b in pairs])
        fit.append([p for p, t in zip(pairs, tokens, strict=True) if not t.truncated and len(t.input_ids) <= limit])
    return fit[0] + fit[1][-1:]


def scored(matcher: FlippedMatcher, pairs: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    """What a matcher says of the probes, all in one batch: "answer" (n,), "similarity" (n,), "encode" (2n, D)."""
    answer, similarity = matcher.scores(pairs, batch_size=len(pairs), show_progress_bar=False)
    texts = [text for pair in pairs for text in pair]
    encode = matcher.encode(texts, batch_size=len(texts), show_progress_bar=False)
    return {"answer": answer, "similarity": similarity, "encode": np.asarray(encode)}


def measure_differences(before: dict[str, np.ndarray], folder: Path, pairs: list[tuple[str, str]]) -> ProbeDifferences:
    """Compare what the adapter said (`scored`) with the merged model as it is read from disk.

    Allowed is 1e-5, times the largest value if that is above 1. Where rounding alone moves the model further (tried:
    every weight by one unit in its last place), 8 times that, up to 1e-3 times the largest value. More is a
    PublishError.
    """
    matcher = FlippedMatcher.from_pretrained(folder, device="cpu", dtype=torch.float32)
    after = scored(matcher, pairs)
    round_otherwise(matcher.model)
    rounded = scored(matcher, pairs)
    differences, allowed = {}, {}
    for name, value in before.items():
        scale = max(1.0, float(np.abs(value).max(initial=0.0)))
        moved = largest_difference(rounded[name], after[name])
        differences[name] = largest_difference(after[name], value)
        allowed[name] = max(TOLERANCE * scale, min(ROUNDINGS * moved, MAX_TOLERANCE * scale))
        if not differences[name] <= allowed[name]:
            raise PublishError(
                f"the merged model's {name} differs from the adapter's by up to {differences[name]:.2g} (allowed: "
                f"{allowed[name]:.2g}): nothing was written. Publish the adapter itself, and report its "
                "adapter_config.json as a defect of flipped_kd."
            )
        if differences[name] > TOLERANCE * scale:
            logger.warning(
                "the merged model's %s differs from the adapter's by up to %.2g; rounding its weights otherwise moves "
                "it by %.2g",
                name,
                differences[name],
                moved,
            )
    return ProbeDifferences(differences, allowed)


@torch.no_grad()
def round_otherwise(model: nn.Module) -> None:
    """Move every weight by one unit in its last place, up or down by chance, in place."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        upwards = torch.rand(weight.shape, generator=generator) < 0.5
        weight.copy_(torch.nextafter(weight, torch.where(upwards, torch.inf, -torch.inf).to(weight)))
