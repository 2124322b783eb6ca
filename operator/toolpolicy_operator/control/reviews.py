"""TokenReviews that can't flood the API server, however many sidecars come back at once.

- A token that was accepted is remembered by its digest, for at most five minutes, never past its own end, and only
  while its pod is known to exist: a deleted pod's token ends with it.
- A refusal is remembered shortly; one token is never reviewed twice at the same time.
- Reviews have a rate and a concurrency. What would wait longer than :data:`PATIENCE` is answered 429 with a
  ``Retry-After`` that books the next free slot, so that a thousand sidecars come back spread out, not all together.
- An address whose tokens keep being refused gets no further review for a while.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from toolpolicy_operator.control.tokens import Caller, Refused, peek, read_review, review_request, unauthenticated
from toolpolicy_operator.kube import ApiError

log = logging.getLogger(__name__)

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
REMEMBERED = 300.0
"""Seconds that an accepted token is believed without a further review."""
REFUSED = 10.0
"""Seconds that a refused token is refused without one."""
RATE = 50.0
"""Reviews a second."""
CONCURRENCY = 8
PATIENCE = 2.0
"""Seconds that a report may wait for its review."""
LONGEST_WAIT = 60.0
ANSWERED = 5.0
"""Seconds that the API server may take for one."""
STRIKES = 20
STRIKE_SECONDS = 60.0
_TOKENS = 20_000
_KEYS = 20_000


class Creates(Protocol):
    """What is needed of :class:`toolpolicy_operator.kube.Api`."""

    async def create(self, path: str, obj: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller | None
    message: str
    until: float


class Pace:
    """Slots in time, ``rate`` a second. :meth:`book` says how long to wait, or raises with when to come back."""

    def __init__(self, rate: float, patience: float, clock: Callable[[], float]) -> None:
        self._step = 1.0 / rate
        self._patience = patience
        self._clock = clock
        self._next = 0.0
        self._return = 0.0
        self.refused = 0

    def book(self) -> float:
        """Seconds until the slot. Raises :class:`Refused` (429) if it is too far off."""
        now = self._clock()
        wait = max(0.0, self._next - now)
        if wait <= self._patience:
            self._next = now + wait + self._step
            return wait
        self.refused += 1
        # Who is sent away takes up a place in the time after those who wait.
        self._return = max(self._return, self._next) + self._step
        if self._return > now + LONGEST_WAIT:
            self._return = self._next
        raise Refused(429, "TooManyRequests", "too many sidecars report for the first time at once", self._return - now)


class Quota:
    """At most ``most`` of something in a fixed window of ``seconds``, by key; bounded."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._used: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def left(self, key: str) -> float:
        """Seconds until there is room again; 0 if there is."""
        since, count = self._used.get(key, (0.0, 0))
        return max(0.0, since + self._seconds - self._clock()) if count >= self._most else 0.0

    def count(self, key: str) -> None:
        now = self._clock()
        since, count = self._used.pop(key, (now, 0))
        self._used[key] = (since, count + 1) if now < since + self._seconds else (now, 1)
        if len(self._used) > _KEYS:
            self._used.popitem(last=False)


class TokenReviews:
    """Reviews tokens for one audience. ``exists`` says whether the pod of this UID is known to exist.

    ``clock`` is monotonic, ``wall`` unix time (only for a token's own end). For one event loop.
    """

    def __init__(
        self,
        api: Creates,
        audience: str,
        exists: Callable[[str], bool],
        *,
        rate: float = RATE,
        concurrency: int = CONCURRENCY,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._audience = audience
        self._exists = exists
        self._clock = clock
        self._wall = wall
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._running: dict[bytes, asyncio.Task[_Known]] = {}
        self._pace = Pace(rate, PATIENCE, clock)
        self._slots = asyncio.Semaphore(concurrency)
        self._strikes = Quota(STRIKES, STRIKE_SECONDS, clock)
        self._fault = ""
        self.asked = 0
        """Reviews that the API server was asked for."""
        self.failed = 0
        """Of these, those it could not answer."""

    @property
    def sent_away(self) -> int:
        """Requests answered 429 because reviews were booked out."""
        return self._pace.refused

    async def caller(self, token: str, address: str) -> Caller:
        """Who holds ``token``; ``address`` is where the request came from.

        Raises :class:`Refused`: 401 for a token that does not hold, 429 to come back later, 503 if the API server can't
        be asked.
        """
        claims = peek(token)
        if self._audience not in claims.audiences:
            raise unauthenticated(f"the token is not for the audience {self._audience}")
        digest = hashlib.sha256(token.encode()).digest()
        known = self._recall(digest)
        if known is None:
            if left := self._strikes.left(address):
                raise Refused(429, "TooManyRequests", f"{STRIKES} tokens from this address were refused", left)
            known = await self._review(digest, token, claims.expires)
            if known.caller is None:
                self._strikes.count(address)
        if known.caller is None:
            raise unauthenticated(known.message)
        return known.caller

    def _recall(self, digest: bytes) -> _Known | None:
        known = self._known.get(digest)
        if known is None:
            return None
        gone = known.caller is not None and known.caller.pod_uid and not self._exists(known.caller.pod_uid)
        if gone or known.until <= self._clock():
            del self._known[digest]
            return None
        return known

    async def _review(self, digest: bytes, token: str, expires: float | None) -> _Known:
        task = self._running.get(digest)
        if task is None:
            wait = self._pace.book()
            task = asyncio.create_task(self._ask(token, expires, wait))
            self._running[digest] = task
            task.add_done_callback(lambda done: self._finish(digest, done))
        # A client that hangs up does not end a review that others may wait for.
        return await asyncio.shield(task)

    def _finish(self, digest: bytes, task: asyncio.Task[_Known]) -> None:
        self._running.pop(digest, None)
        if task.cancelled() or task.exception() is not None:
            return
        known = task.result()
        if known.until > self._clock():
            self._known[digest] = known
            while len(self._known) > _TOKENS:
                self._known.popitem(last=False)

    async def _ask(self, token: str, expires: float | None, wait: float) -> _Known:
        await asyncio.sleep(wait)
        async with self._slots:
            self.asked += 1
            try:
                async with asyncio.timeout(ANSWERED):
                    answer = await self._api.create(PATH, review_request(token, self._audience))
            except TimeoutError:
                fault = f"the API server did not review the token within {ANSWERED:.0f} s"
                raise self._failed(fault, ANSWERED) from None
            except ApiError as error:
                fault = f"the API server can't review the token: {error.reason or error.status}"
                raise self._failed(fault, error.retry_after or ANSWERED, error.message) from None
            self._fault = ""
        outcome = read_review(answer, self._audience)
        now = self._clock()
        if isinstance(outcome, str):
            return _Known(None, outcome, now + REFUSED)
        left = REMEMBERED if expires is None else min(REMEMBERED, expires - self._wall())
        return _Known(outcome, "", now + left)

    def _failed(self, fault: str, retry_after: float, detail: str = "") -> Refused:
        self.failed += 1
        if fault != self._fault:  # once, not for each of a thousand sidecars
            log.warning("%s%s: no sidecar that is new is heard until it does", fault, f" ({detail})" if detail else "")
        self._fault = fault
        return Refused(503, "ServiceUnavailable", fault, retry_after)

    async def close(self) -> None:
        """End the reviews under way."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
