"""What waits for a server process: bounded queues towards HTTP answers, exchanges and sessions."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from toolpolicy.sidecar.stdio_frames import Frame, RequestId

if TYPE_CHECKING:
    from toolpolicy.sidecar.stdio_link import Link

PARKED_MESSAGES: Final = 256
"""Messages of the server that are kept until its client opens a stream."""
_STREAMS_PER_SESSION: Final = 4


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one client may make us hold."""

    queued_bytes: int = 8 << 20
    """Unsent bytes per stream (one message may be larger); then the server process waits, or the stream is cut."""
    stall_seconds: float = 30.0
    """How long a process waits for a client that does not read; with a shared process it never does."""
    in_flight: int = 1024
    """Unanswered requests per process."""
    cancel_grace: float = 5.0
    """How long a cancelled request may still be answered, in seconds, before its stream is closed."""


class Outbox:
    """Messages on their way to one HTTP answer. Bounded in bytes: ``put`` waits, and cuts a reader that stalls for too
    long."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: deque[tuple[str, int]] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self.closed = False
        self.cut = False

    async def put(self, text: str, patience: float) -> bool:
        """Queue ``text``; False if it cannot be delivered here."""
        while not self.closed and self._queue and self._bytes + len(text) > self._limit:
            self._room.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._room.wait()
            except TimeoutError:
                self.abort()
        if self.closed:
            return False
        self.force(text)
        return True

    @property
    def drained(self) -> bool:
        """Closed, and everything taken."""
        return self.closed and not self._queue

    def force(self, text: str) -> None:
        """Queue ``text`` whatever the limit says (a last, small message)."""
        if not self.closed:
            self._queue.append((text, len(text)))
            self._bytes += len(text)
            self._changed.set()

    async def get(self) -> str | None:
        """The next message; None at the end."""
        while not self._queue:
            if self.closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        text, size = self._queue.popleft()
        self._bytes -= size
        self._room.set()
        return text

    def close(self) -> None:
        """No more messages; those queued are still delivered."""
        self.closed = True
        self._changed.set()
        self._room.set()

    def abort(self) -> None:
        """Drop everything: the HTTP answer is torn off rather than ended."""
        self.cut = True
        self._queue.clear()
        self.close()


@dataclass(slots=True, eq=False)
class Exchange:
    """One POST: the requests it asked that are still open, and its way back."""

    outbox: Outbox
    streams: bool
    """The client takes an event stream."""
    session: Session | None = None
    open: set[int] = field(default_factory=set[int])
    answered: bool = False


@dataclass(slots=True, eq=False)
class Session:
    """A client that initialised. ``used`` is the loop's time of its last sign of life."""

    id: str
    link: Link
    used: float
    revision: str = ""
    streams: list[Outbox] = field(default_factory=list[Outbox])
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    parked: deque[Frame] = field(default_factory=lambda: deque[Frame](maxlen=PARKED_MESSAGES))
    asked_by_server: set[RequestId] = field(default_factory=set[RequestId])
    resources: set[str] = field(default_factory=set[str])

    @property
    def busy(self) -> bool:
        return bool(self.streams or self.exchanges)

    def open_stream(self, limit: int) -> Outbox:
        """A GET stream; it first gets what was kept. The oldest is closed when there are too many."""
        outbox = Outbox(limit)
        while self.parked:
            outbox.force(self.parked.popleft().text)
        self.streams.append(outbox)
        while len(self.streams) > _STREAMS_PER_SESSION:
            self.streams.pop(0).close()
        return outbox
