"""A step over a large contrast in the memory of a small one: gradient caching (Gao et al. 2021, arXiv 2101.06983).

Representations of all mini-batches are computed first, without a graph. The loss of the whole batch and its gradient
for every representation follow. Then each mini-batch is read once more, with its graph and the same dropout, and its
representations are given their part of that gradient. What is held at a time is one mini-batch's graph; the price is
a second forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .pair_forward import PairVectors

Part: TypeAlias = dict[str, Any]
Read: TypeAlias = Callable[[Part], tuple[Tensor, PairVectors | None]]


class RandomState:
    """The state of the random numbers of the CPU and of `devices` as it is now."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._devices = {device: torch.get_device_module(device).get_rng_state(device) for device in devices}

    def restore(self) -> None:
        """Go back to this state."""
        torch.set_rng_state(self._cpu)
        for device, state in self._devices.items():
            torch.get_device_module(device).set_rng_state(state, device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw the same numbers once more inside, and go on outside as if nothing had been drawn."""
        outside = RandomState(list(self._devices))
        self.restore()
        try:
            yield
        finally:
            outside.restore()


def cached_backward(
    parts: Sequence[Part],
    *,
    read: Read,
    compared: Callable[[Tensor], Tensor] | None,
    answered: Callable[[Tensor, Part], Tensor],
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager[Any]],
    devices: Sequence[torch.device] = (),
) -> None:
    """Accumulate the gradient of `compared(representations) + sum over parts of answered(logits, part)`.

    Args:
        parts: the mini-batches, in the order of the batch's rows.
        read: gives a mini-batch's logits (b, V) and representations.
        compared: the part of the loss that depends on all representations (N, k, D) of the batch; None without one.
        answered: a mini-batch's share of the rest.
        backward: runs backward from a scalar and adds to the parameters' gradients.
        no_sync: keeps a data-parallel wrapper from averaging gradients; only the last mini-batch's backward is
            outside it.
        devices: accelerators that the student draws random numbers on.
    """
    states: list[RandomState] = []
    gradients: Sequence[Tensor | None] = [None] * len(parts)
    if compared is not None:
        vectors = []
        with torch.no_grad():
            for part in parts:
                states.append(RandomState(devices))
                vectors.append(_vectors(read(part)))
        joined = torch.cat(vectors).requires_grad_()
        gradients = torch.autograd.grad(compared(joined), joined)[0].split([len(part) for part in vectors])
        del vectors, joined
    for place, (part, gradient_of_part) in enumerate(zip(parts, gradients, strict=True)):
        last = place == len(parts) - 1
        with nullcontext() if last else no_sync(), states[place].replayed() if states else nullcontext():
            reading = read(part)
            loss = answered(reading[0], part)
            if gradient_of_part is not None:
                loss = loss + (_vectors(reading) * gradient_of_part).sum()
            backward(loss)


def _vectors(reading: tuple[Tensor, PairVectors | None]) -> Tensor:
    assert reading[1] is not None, "the student was asked for representations"
    return reading[1].stacked()
