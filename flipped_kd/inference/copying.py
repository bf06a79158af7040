"""Matchers that are copied and pickled, whoever scores with them at the time."""

from __future__ import annotations

import copy
import threading
from typing import Any, Self


class FreshLock:
    """A reentrant lock whose copy or pickle is a new one, which nobody holds."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[FreshLock], tuple[()]]:
        return FreshLock, ()


class Copied:
    """Copies of an object with a `model`, of which readings leave parts out while they hold the `_lock`.

    They are taken between two readings, so that nothing stays left out in the copy.
    """

    model: Any
    tokenizer: Any
    prompt: Any
    _lock: FreshLock

    def __copy__(self) -> Self:
        """All is shared, the lock too: the model is one."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Nothing is shared; hooks and whatever else belongs to the model are the copy's own."""
        memo[id(self)] = other = object.__new__(type(self))
        with self._lock:
            vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled, later and without the lock: a copy, which shares the weights and what never changes."""
        shared = (self.tokenizer, self.prompt, *self.model.parameters(), *self.model.buffers())
        with self._lock:
            return copy.deepcopy(vars(self), {id(part): part for part in shared})
