"""Running sums of the loss terms between two logs, kept on the device so that no step waits for the host."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from ..losses.flipped import LossOutput


class LossLog:
    """Collects terms and dropped pairs of micro-batches; one reduction over the ranks a log."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, output: LossOutput, labels: Tensor) -> None:
        """Add one micro-batch with `labels` (B,): its means count as so many pairs, as in Trainer's `eval_loss`."""
        pairs = labels.new_tensor(len(labels))
        terms = {name: value * pairs for name, value in output.terms.items()}
        counts = {"pairs": pairs, "positive": labels.sum(), "negative": (1 - labels).sum()}
        for name, value in {**terms, **output.dropped, **counts}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()

    def flush(self, accelerator: Accelerator, prefix: str = "") -> dict[str, float]:
        """Mean terms (`loss_sup`, ...) and dropped shares of each class since the last flush, over all ranks."""
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = accelerator.reduce(torch.stack([self._sums[name] for name in names]).float(), "sum").tolist()
        total = dict(zip(names, sums, strict=True))
        self._sums = {}
        logs = {f"{prefix}loss_{term}": total[term] / total["pairs"] for term in ("sup", "dist", "mcl")}
        for label in ("positive", "negative"):
            if total[label]:
                logs[f"{prefix}dropped_{label}"] = total[f"dropped_{label}"] / total[label]
        return logs
