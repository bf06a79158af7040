"""A process of its own that loads from the Hub what another one pushed.

`python -m tests.hub.reader REQUESTS ANSWERS`, two JSON files. REQUESTS: {"pairs": [[a, b], ...], "texts": [...],
"loads": [{"loader": "matcher" | "cross_encoder" | "causal_lm", "repo": id, "options": {...}}, ...]}. ANSWERS: for each
load what it gave, or {"error": type, "message": text}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Loader = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def by_matcher(load: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Scores and vectors through this project."""
    from flipped_kd.inference.matcher import FlippedMatcher

    matcher = FlippedMatcher.from_pretrained(load["repo"], **load.get("options", {}))
    answer, similarity = matcher.scores([tuple(pair) for pair in asked["pairs"]])
    vectors = matcher.encode(asked["texts"])
    return {"answer": answer.tolist(), "similarity": similarity.tolist(), "vectors": vectors.tolist()}


def by_cross_encoder(load: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Scores through sentence-transformers, which has never heard of this project."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(load["repo"], device="cpu", **load.get("options", {}))
    scores = model.predict([tuple(pair) for pair in asked["pairs"]], activation_fn=torch.nn.Identity())
    return {"answer": scores.tolist(), "alone": "flipped_kd" not in sys.modules}


def by_causal_lm(load: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Logits of the first text's last token through transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(load["repo"], **load.get("options", {}))
    tokenizer = AutoTokenizer.from_pretrained(load["repo"], **load.get("options", {}))
    with torch.inference_mode():
        logits = model(**tokenizer(asked["texts"][0], return_tensors="pt")).logits
    return {"logits": logits[0, -1].tolist()}


LOADERS: dict[str, Loader] = {"matcher": by_matcher, "cross_encoder": by_cross_encoder, "causal_lm": by_causal_lm}


def main(requests: Path, answers: Path) -> None:
    """Answer each request."""
    torch.set_num_threads(1)
    asked = json.loads(requests.read_text())
    found: list[dict[str, Any]] = []
    for load in asked["loads"]:
        try:
            found.append(LOADERS[load["loader"]](load, asked))
        except Exception as error:
            found.append({"error": type(error).__name__, "message": str(error)})
    answers.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
