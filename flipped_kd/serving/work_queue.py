"""What waits to be computed: the items of all requests, equal ones once, dealt out in rounds.

A large request does not keep small ones waiting: each request has its share of a round. Nothing here is locked; see
`batching`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One thing to compute.

    Attributes:
        key: equal keys are computed once.
        content: what is computed from.
        tokens: what it costs.
    """

    key: Hashable
    content: Any
    tokens: int


@dataclass(eq=False)
class Entry:
    """An item, and the jobs that wait for it."""

    item: Item
    jobs: dict[Job, None] = field(default_factory=dict)
    started: bool = False
    done: bool = False
    value: Any = None


@dataclass(eq=False)
class Job:
    """What one request waits for.

    Attributes:
        entries: one for each of its items.
        to_start: those of them that nobody has begun, and maybe some that were begun for others.
        left: how many are not done.
    """

    entries: list[Entry] = field(default_factory=list)
    to_start: deque[Entry] = field(default_factory=deque)
    left: int = 0

    @property
    def values(self) -> list[Any]:
        """Of its items, once all are done."""
        return [entry.value for entry in self.entries]


class WorkQueue:
    """Jobs and their entries.

    Attributes:
        jobs: those with something to start, by arrival.
        tokens: of all entries that nobody has begun.
    """

    def __init__(self) -> None:
        self.jobs: dict[Job, None] = {}
        self.tokens = 0
        self._entries: dict[Hashable, Entry] = {}

    def new_tokens(self, items: Sequence[Item]) -> int:
        """What `add` would add to `tokens`."""
        return sum({item.key: item.tokens for item in items if item.key not in self._entries}.values())

    def add(self, items: Sequence[Item]) -> tuple[Job, int]:
        """A job for items, and how many of them others wait for already."""
        job = Job()
        joined = 0
        for item in items:
            entry = self._entries.get(item.key)
            if entry is None:
                entry = self._entries[item.key] = Entry(item)
                self.tokens += item.tokens
            elif job not in entry.jobs:
                joined += 1
            job.entries.append(entry)
            if job in entry.jobs:
                continue
            entry.jobs[job] = None
            job.left += 1
            if not entry.started:
                job.to_start.append(entry)
        if job.to_start:
            self.jobs[job] = None
        return job, joined

    def take(self, budget: int) -> list[Entry]:
        """Begin entries of about `budget` tokens, of each job its share; at least one where there is any."""
        chosen: list[Entry] = []
        tokens = 0
        # The oldest first, so that it goes on whoever comes; then the small, which leave of their share to the large.
        turns = deque(list(self.jobs)[:1] + sorted(list(self.jobs)[1:], key=lambda job: len(job.to_start)))
        while turns and tokens < budget:
            job = turns.popleft()
            share = tokens + (budget - tokens) / (len(turns) + 1)
            while job.to_start:
                entry = job.to_start[0]
                if not entry.started:
                    if chosen and tokens + entry.item.tokens > share:
                        break
                    entry.started = True
                    chosen.append(entry)
                    tokens += entry.item.tokens
                job.to_start.popleft()
            if not job.to_start:
                del self.jobs[job]
        self.tokens -= tokens
        return chosen

    def settle(self, entries: Sequence[Entry], values: Sequence[Any]) -> list[Job]:
        """Enter values; the jobs that are done now."""
        finished = []
        for entry, value in zip(entries, values, strict=True):
            entry.value, entry.done = value, True
            # At once: who asks for it before the round has ended would join what nobody computes again.
            del self._entries[entry.item.key]
            for job in entry.jobs:
                job.left -= 1
                if not job.left:
                    finished.append(job)
        return finished

    def leave(self, entries: Sequence[Entry]) -> None:
        """End a round; what was not done goes back for those who joined while it was computed."""
        for entry in entries:
            if entry.done:
                continue
            if not entry.jobs:
                del self._entries[entry.item.key]
                continue
            entry.started = False
            self.tokens += entry.item.tokens
            for job in entry.jobs:
                job.to_start.append(entry)
                self.jobs[job] = None

    def forget(self, job: Job) -> bool:
        """Leave a job out; what only it waited for is not begun. Whether it was not done yet."""
        if not job.left:
            return False
        job.left = 0
        self.jobs.pop(job, None)
        for entry in job.entries:
            entry.jobs.pop(job, None)
            if not entry.jobs and not entry.started and self._entries.get(entry.item.key) is entry:
                del self._entries[entry.item.key]
                self.tokens -= entry.item.tokens
        return True

    def unfinished(self) -> list[Job]:
        """The jobs that wait for anything."""
        return list(dict.fromkeys(job for entry in self._entries.values() for job in entry.jobs))
