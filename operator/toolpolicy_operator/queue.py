"""What is to be reconciled: each key once, however often it was asked for, and never by two workers at a time.

A key asked for while a worker has it is handed out again when that worker is done, since the worker may have looked
before the change. Failures wait longer each time, with jitter, or as long as the API server said (Retry-After).
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
FIRST_RETRY = 0.25
LAST_RETRY = 60.0


class WorkQueue(Generic[K]):
    """For one event loop. ``clock`` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] | None = None, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock if clock is not None else lambda: asyncio.get_running_loop().time()
        self._jitter = jitter
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._running: set[K] = set()
        self._again: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._count = 0
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due) + len(self._again)

    def busy(self, within: float = 1.0) -> int:
        """How many keys workers have, or are due in so many seconds."""
        soon = self._clock() + within
        return len(self._running) + sum(due <= soon for due in self._due.values())

    def add(self, key: K, delay: float = 0.0) -> None:
        """Ask for ``key`` in ``delay`` seconds at the latest; an earlier time asked for stands."""
        due = self._clock() + delay
        waiting = self._again if key in self._running else self._due
        if key in waiting and waiting[key] <= due:
            return
        waiting[key] = due
        if waiting is self._due:
            self._push(key, due)

    def retry(self, key: K, after: float | None = None) -> float:
        """Ask again after a failure, in ``after`` seconds at least, else longer each time. Returns the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(FIRST_RETRY * 2 ** min(failures, 16), LAST_RETRY) * (0.5 + self._jitter() / 2)
        if after is not None:
            delay = max(delay, after)
        self.add(key, delay)
        return delay

    def succeeded(self, key: K) -> None:
        """Its next failure is a first one."""
        self._failures.pop(key, None)

    def done(self, key: K) -> None:
        """The worker that got ``key`` is finished with it."""
        self._running.discard(key)
        due = self._again.pop(key, None)
        if due is not None:
            self._due[key] = due
            self._push(key, due)

    def clear(self) -> None:
        """Forget everything that waits; what workers have stays theirs."""
        self._due.clear()
        self._again.clear()
        self._heap.clear()
        self._failures.clear()

    async def get(self) -> K:
        """The next key that is due; :meth:`done` must follow."""
        while True:
            key = self._take()
            if key is not None:
                return key
            self._wake.clear()
            wait = self._heap[0][0] - self._clock() if self._heap else None
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _take(self) -> K | None:
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due:
                heapq.heappop(self._heap)  # asked for earlier, or forgotten
                continue
            if due > self._clock():
                return None
            heapq.heappop(self._heap)
            del self._due[key]
            self._running.add(key)
            return key
        return None

    def _push(self, key: K, due: float) -> None:
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))
        self._wake.set()


class Pace:
    """At most ``rate`` a second, ``burst`` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._free_at = 0.0

    async def turn(self) -> None:
        """Returns when it is this caller's turn."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - self._burst / self._rate) + 1 / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
