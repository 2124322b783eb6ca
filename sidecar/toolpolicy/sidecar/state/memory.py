"""Limits counted in this process: exact for one pod. Several pods need a shared store, else each counts for itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from toolpolicy.policy.limits import MAX_BUCKETS, MemoryCounters
from toolpolicy.policy.types import Demand
from toolpolicy.sidecar.interfaces import Grant, Refused


class MemoryState:
    """Implements ``interfaces.StateStore``. It answers at once: no call yields between asking and reserving.

    The clock is monotonic: a step of the wall clock neither frees nor extends a limit. Buckets expire as calls draw
    from others and with every look at :meth:`size`: memory follows the callers of the last window.
    """

    def __init__(self, max_buckets: int = MAX_BUCKETS, clock: Callable[[], float] = time.monotonic) -> None:
        self._counters = MemoryCounters(max_buckets)
        self._clock = clock

    def reserve(self, demands: Sequence[Demand]) -> Grant | Refused:
        """Draw from every enforced bucket or from none; audited ones are drawn each by itself."""
        result = self._counters.reserve(demands, self._clock())
        return Refused(result) if isinstance(result, list) else result

    def size(self) -> int:
        """Live buckets, those that count nothing any more forgotten first."""
        self._counters.expire(self._clock())
        return self._counters.size()

    async def close(self) -> None:
        """Nothing outlives the process."""
