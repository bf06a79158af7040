"""Checks of settings and shapes: each names the value, the rule and the remedy."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

from torch import Tensor


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number, Python's or NumPy's; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is one real number, Python's or NumPy's; True and False are none, nor is an array of one."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {list(allowed)}: choose one of these.")


def check_range(name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise ValueError unless `value` is finite and lies in [low, high], or (low, high] with `open_low`."""
    if not is_number(value):
        raise ValueError(f"{name}={value!r} is no number: give one.")
    above = low < value if open_low else low <= value
    if not (math.isfinite(value) and above and value <= high):
        left = "(" if open_low else "["
        right = ")" if high == math.inf else "]"
        raise ValueError(f"{name}={value} is out of range: give a finite number in {left}{low:g}, {high:g}{right}.")


def check_same_shape(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all given tensors have one shape: broadcasting would give a wrong loss in silence."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"these must have one shape, (N, M) or (N,): {shapes}. Give either matrices or pairs only.")


def require(condition: bool, name: str, value: Any, rule: str) -> None:
    """Raise ValueError, with value and rule, unless `condition` holds of a setting."""
    if not condition:
        raise ValueError(f"{name}={value!r}: {rule}")


def require_integer(name: str, value: Any, least: int, why: str) -> None:
    """Raise ValueError, with the reason, unless a setting is an integer of at least `least`."""
    require(is_whole(value) and value >= least, name, value, f"give an integer of at least {least}; {why}")
