"""Rate and spend limits, exact: in any window of its length no more than ``max`` passes a bucket, ever.

Each bucket is a log of what passed and when; a fixed or sliding *counter* would let up to twice ``max`` through around
its edges. Costs are summed in whole billionths, rounded up, so that sums neither drift nor depend on their order. A
window is half-open: what passed at ``t`` counts until just before ``t + window``.

Time comes in as an argument, in seconds of a monotonic clock.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Final

from toolpolicy.policy.types import Demand, Shortage

UNIT: Final = 10**9
"""A cost of 1, in billionths."""
MAX_ENTRIES: Final = 10_000
"""Of one log. A count never needs more (``max`` ≤ 10,000); a log of many small costs is made coarser beyond it."""
MAX_BUCKETS: Final = 50_000
_GRAINS: Final = 4096
_SWEEP: Final = 32


def units(cost: float) -> int:
    """A finite cost in billionths, rounded up from the shortest decimal that means this float (0.07 is 7/100)."""
    if cost == 1.0:
        return UNIT
    return int((Decimal(repr(cost)) * UNIT).to_integral_value(ROUND_CEILING))


def _ceiling(maximum: float) -> int:
    """``max`` in billionths, rounded down."""
    if maximum == int(maximum):
        return int(maximum) * UNIT
    return int(Decimal(repr(float(maximum))) * UNIT)


class Window:
    """What passed one bucket, oldest first. ``costs`` is None while every entry is exactly 1."""

    __slots__ = ("_costs", "_head", "_times", "_total", "window")

    def __init__(self, window: float) -> None:
        self.window = window
        self._times: array[float] = array("d")
        self._costs: list[int] | None = None
        self._head = 0
        self._total = 0

    def __len__(self) -> int:
        return len(self._times) - self._head

    @property
    def total(self) -> int:
        """Of the entries not yet forgotten, in billionths."""
        return len(self) * UNIT if self._costs is None else self._total

    def forget(self, now: float) -> None:
        """Drop what no longer counts at ``now``."""
        times, head, end = self._times, self._head, len(self._times)
        if head < end and times[head] + self.window > now:
            return
        while head < end and times[head] + self.window <= now:
            if self._costs is not None:
                self._total -= self._costs[head]
            head += 1
        self._head = head
        if head == end:
            self._times, self._costs, self._head, self._total = array("d"), None, 0, 0
        elif head > 64 and head * 2 > end:
            del times[:head]
            if self._costs is not None:
                del self._costs[:head]
            self._head = 0

    def room_at(self, cost: int, maximum: int, now: float) -> float | None:
        """Seconds from ``now`` until ``cost`` fits (0.0: it fits); None if it never will."""
        excess = self.total + cost - maximum
        if excess <= 0 or cost == 0:
            return 0.0
        if cost > maximum:
            return None
        index = self._head
        if self._costs is None:
            index += -(-excess // UNIT) - 1
        else:
            freed = self._costs[index]
            while freed < excess:
                index += 1
                freed += self._costs[index]
        return _wait(self._times[index] + self.window, now)

    def count(self, maximum: float, now: float) -> bool:
        """Enter one cost of 1 at ``now`` if that is plain: among only such costs, in order of time, with room."""
        times = self._times
        if times and times[self._head] + self.window <= now:
            self.forget(now)
            times = self._times
        entries = len(times) - self._head
        if self._costs is not None or entries + 1 > maximum or entries >= MAX_ENTRIES:
            return False
        if entries and times[-1] > now:
            return False
        times.append(now)
        return True

    def add(self, cost: int, now: float) -> float:
        """Enter a cost; returns the time under which it is kept, for :meth:`remove`."""
        if self._times:
            now = max(now, self._times[-1])  # keeps the log in order if the clock ever steps back
        if cost == 0:
            return now
        if len(self) >= MAX_ENTRIES:
            self._coarsen()
        if self._costs is None and cost != UNIT:
            self._itemise()
        self._times.append(now)
        if self._costs is not None:
            self._costs.append(cost)
            self._total += cost
        return now

    def remove(self, cost: int, when: float) -> None:
        """Take an entry back: that of ``when``, or what it was joined with. One that no longer counts is gone
        already.

        """
        times, costs = self._times, self._costs
        index = bisect_left(times, when, self._head)
        if cost == 0 or index == len(times):
            return
        if times[index] != when and self._grain(times[index]) != self._grain(when):
            return
        if costs is None:
            del times[index]
            return
        same = times[index]
        while index < len(times) and times[index] == same:
            if costs[index] >= cost:
                self._total -= cost
                costs[index] -= cost
                if costs[index] == 0:
                    del costs[index], times[index]
                return
            index += 1

    def _grain(self, time: float) -> int:
        return math.floor(time * _GRAINS / self.window)

    def _itemise(self) -> None:
        self._costs = [UNIT] * len(self._times)
        self._total = UNIT * len(self)

    def _coarsen(self) -> None:
        """Join entries of one grain (1/4096 of the window) under the time of the latest: they count a little longer,
        never less.


        """
        if self._costs is None:
            self._itemise()
        assert self._costs is not None
        times, costs = array("d"), list[int]()
        current: int | None = None
        for time, cost in zip(self._times[self._head :], self._costs[self._head :], strict=True):
            slot = self._grain(time)
            if slot == current:
                times[-1] = time
                costs[-1] += cost
            else:
                times.append(time)
                costs.append(cost)
                current = slot
        self._times, self._costs, self._head = times, costs, 0


def _wait(until: float, now: float) -> float:
    """The least number of seconds with ``now + seconds >= until`` in floating point."""
    wait = max(until - now, 0.0)
    while now + wait < until:
        wait = math.nextafter(wait, math.inf)
    return wait


class _Table:
    """Buckets by key, forgotten when nothing in them counts, and never more than ``limit``."""

    __slots__ = ("buckets", "due", "limit", "next")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.next = math.inf
        """Before this no bucket can be empty, and there is nothing to sweep."""
        self.buckets: dict[tuple[str, ...], Window] = {}
        self.due: dict[float, deque[tuple[float, tuple[str, ...]]]] = {}
        """Per length of window, when to look whether a bucket is empty: one entry a bucket, in order of time."""

    def find(self, demand: Demand, now: float) -> Window | None:
        bucket = self.buckets.get(demand.bucket)
        if bucket is not None:
            if bucket.window != demand.window:  # the policy was edited: what is remembered counts in the new window
                bucket.window = demand.window
            bucket.forget(now)
        return bucket

    def create(self, demand: Demand, now: float) -> Window | float:
        """A new bucket, or, where there are too many, the seconds until one may be free."""
        if len(self.buckets) >= self.limit:
            self.sweep(now, len(self.buckets))
            if len(self.buckets) >= self.limit:
                return max(min(queue[0][0] for queue in self.due.values() if queue) - now, 0.001)
        bucket = self.buckets[demand.bucket] = Window(demand.window)
        until = now + demand.window
        self.due.setdefault(demand.window, deque()).append((until, demand.bucket))
        self.next = min(self.next, until)
        return bucket

    def sweep(self, now: float, steps: int = _SWEEP) -> None:
        if now < self.next:
            return
        for window, queue in tuple(self.due.items()):
            if queue[0][0] > now:
                continue
            for _ in range(steps):
                if not queue or queue[0][0] > now:
                    break
                _, key = queue.popleft()
                bucket = self.buckets[key]
                bucket.forget(now)
                if not len(bucket):
                    del self.buckets[key]
                else:
                    self.due.setdefault(bucket.window, deque()).append((now + bucket.window, key))
            if not queue:
                del self.due[window]
        self.next = min((queue[0][0] for queue in self.due.values()), default=math.inf)

    def count(self, demand: Demand, now: float) -> Window | None:
        """Count a demand where that is plain: a cost of 1, in a live bucket of such costs, with room; else None.

        The same as ``find``, ``room_at`` and ``add`` one after the other, for the one case of nearly every call.
        """
        bucket = self.buckets.get(demand.bucket)
        if bucket is None or demand.cost != 1.0 or bucket.window != demand.window:
            return None
        return bucket if bucket.count(demand.max, now) else None


class Reservation:
    """What one call drew. ``audit_shortages``: audited demands that had no room, which never refuse a call."""

    __slots__ = ("_entries", "audit_shortages")

    def __init__(self, entries: list[tuple[Window, int, float]], audit_shortages: Sequence[Shortage]) -> None:
        self._entries = entries
        self.audit_shortages = audit_shortages

    def release(self) -> None:
        """Give it all back: only for a request that was never fully written upstream. A second time does nothing."""
        for window, cost, when in self._entries:
            window.remove(cost, when)
        self._entries = []


class MemoryCounters:
    """The limits of one process. Enforced and audited buckets are apart, so that auditing can't crowd out enforcing.

    When ``max_buckets`` are live, a demand that needs a new one has no room until one expires; those that exist go on.
    To forget a live one instead would let more than ``max`` through.

    """

    __slots__ = ("_audited", "_enforced")

    def __init__(self, max_buckets: int = MAX_BUCKETS) -> None:
        self._enforced = _Table(max_buckets)
        self._audited = _Table(max_buckets)

    def size(self) -> int:
        return len(self._enforced.buckets) + len(self._audited.buckets)

    def expire(self, now: float) -> None:
        """Forget every bucket in which nothing counts at ``now``. Drawing does so bit by bit; without calls nobody
        does.

        """
        for table in (self._enforced, self._audited):
            table.sweep(now, len(table.buckets))

    def shortages(self, demands: Sequence[Demand], now: float) -> list[Shortage]:
        """Which demands have no room at ``now``, each by itself. Reserves nothing."""
        found: list[Shortage] = []
        for demand in demands:
            table = self._audited if demand.audit else self._enforced
            bucket = table.find(demand, now)
            wait = (bucket or Window(demand.window)).room_at(units(demand.cost), _ceiling(demand.max), now)
            if wait != 0.0:
                found.append(Shortage(demand, wait))
        return found

    def reserve(self, demands: Sequence[Demand], now: float) -> Reservation | list[Shortage]:
        """Draw from all enforced buckets, or from none: then what was short. Audited ones are drawn each by itself."""
        taken: list[tuple[Window, int, float]] = []
        enforced, audited = self._enforced, self._audited
        if now >= enforced.next:
            enforced.sweep(now)
        if now >= audited.next:
            audited.sweep(now)
        for demand in demands:
            bucket = None if demand.audit else enforced.count(demand, now)
            if bucket is None:
                break
            taken.append((bucket, UNIT, now))
        else:
            return Reservation(taken, ())
        for window, cost, when in taken:  # not all are plain: from the start
            window.remove(cost, when)
        taken.clear()
        return self._reserve(demands, now, taken)

    def _reserve(
        self, demands: Sequence[Demand], now: float, taken: list[tuple[Window, int, float]]
    ) -> Reservation | list[Shortage]:
        short: list[Shortage] = []
        audit_short: list[Shortage] = []
        absent: list[Demand] = []
        for demand in demands:
            if not demand.audit:
                wait = self._draw(self._enforced, demand, now, taken, absent)
                if wait != 0.0:
                    short.append(Shortage(demand, wait))
        if not short:
            for demand in absent:
                wait = self._draw(self._enforced, demand, now, taken)
                if wait != 0.0:
                    short.append(Shortage(demand, wait))
        if short:
            for window, cost, when in taken:
                window.remove(cost, when)
            return short
        for demand in demands:
            if demand.audit:
                wait = self._draw(self._audited, demand, now, taken)
                if wait != 0.0:
                    audit_short.append(Shortage(demand, wait))
        return Reservation(taken, audit_short)

    def _draw(
        self,
        table: _Table,
        demand: Demand,
        now: float,
        taken: list[tuple[Window, int, float]],
        absent: list[Demand] | None = None,
    ) -> float | None:
        """Seconds until there is room (0.0: drawn, None: never). ``absent`` collects, undrawn, what needs a new bucket:
        a call that is refused makes none, or refused calls would fill the table for everybody.

        """
        cost = UNIT if demand.cost == 1.0 else units(demand.cost)
        maximum = _ceiling(demand.max)
        bucket = table.find(demand, now)
        if bucket is None:
            if cost > maximum:
                return None
            if absent is not None:
                absent.append(demand)
                return 0.0
            created = table.create(demand, now)
            if not isinstance(created, Window):
                return created
            bucket = created
        wait = bucket.room_at(cost, maximum, now)
        if wait == 0.0:
            taken.append((bucket, cost, bucket.add(cost, now)))
        return wait
