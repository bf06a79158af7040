"""What the tests of teachers share: texts, and a record of what a model was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

TEXTS = ["card lost", "my card is lost", "a b c", "top up limit", "limit of a top up, please", "zz", "how", "to pay"]


def spy(monkeypatch: pytest.MonkeyPatch, model: object, method: str) -> list:
    """Record every item that the model's method is given."""
    seen: list = []
    original: Callable = getattr(model, method)

    def recorded(items: list, **options: Any) -> np.ndarray:
        seen.extend(items)
        return original(items, **options)

    monkeypatch.setattr(model, method, recorded)
    return seen
