"""One request on its way to the server and its answer on the way back: a state machine of callbacks, no task of its
own.

How an answer is handed on, from cheapest to dearest:
- RAW: the upstream's bytes as they came, where its head has nothing to change;
- COPY: a head of our own, the body as it came (Content-Length known) or chunked anew;
- WHOLE: held until complete, looked at, perhaps rewritten (tools/list);
- EVENTS: an event stream, looked at event by event.
An upstream that dies within its answer ends in an aborted client connection, never in a clean end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from time import perf_counter
from typing import Protocol

from toolpolicy.sidecar.interfaces import Grant
from toolpolicy.sidecar.lens import Lens, Unreadable
from toolpolicy.sidecar.streams import EventRelay
from toolpolicy.sidecar.upstream import Connection, Died, RawHeader
from toolpolicy.sidecar.wiring import ANSWER, LAST_CHUNK, Answer, Kind, answer_bytes, chunk, relative, status_line

MAX_UNREAD = 256 * 1024
"""Bytes of our own events that may wait on a stream whose client does not read: what it posts must not fill memory."""


class Mode(Enum):
    RAW = 1
    COPY = 2
    WHOLE = 3
    EVENTS = 4


class Client(Protocol):
    """The downstream end of an exchange: one connection, with this exchange as its only one."""

    http10: bool
    """No chunks; the end of the connection ends a body."""
    closing: bool
    """The connection ends after this answer, and the answer says so."""

    @property
    def writing_paused(self) -> bool: ...

    def send(self, data: bytes) -> None: ...

    def done(self, *, clean: bool) -> None:
        """The answer is over. Not ``clean``: break the connection, for the client must not take this for an end."""
        ...


class Watcher(Protocol):
    """What the rest of the sidecar learns of an exchange."""

    def opened(self, exchange: Exchange) -> None:
        """An event stream began."""
        ...

    def closed(self, exchange: Exchange) -> None:
        """It is over, one way or the other."""
        ...

    def answered(self, status: int) -> None:
        """The head of an answer came."""
        ...

    def waited(self, seconds: float) -> None:
        """A call's answer began so long after it was forwarded."""
        ...

    def failed(self, exchange: Exchange, why: Died) -> Answer:
        """The upstream leg died before any answer: what the client is told."""
        ...


class Order:
    """What the judge allows: how to see the answer, and what to do with what it says. Few calls set more than two of
    these.
    """

    def __init__(
        self, lens: Callable[[], Lens], grant: Grant | None = None, request_id: int | str | None = None
    ) -> None:
        self.lens = lens
        self.grant = grant
        self.request_id = request_id

    whole: bool = False
    """A JSON answer has to be looked at before it may pass."""
    taken: Callable[[str | None], None] | None = None
    """Called when the server took the request (status < 400), with the Mcp-Session-Id of its answer."""
    endpoint: Callable[[Exchange, bytes], bytes | None] | None = None
    """For a GET: a legacy endpoint was announced."""
    heard: Callable[[Exchange, bytes], None] | None = None
    """For a GET: told of every message on the stream, in passing."""
    stream: bool = False
    """A GET stream: not a call, and ended when the sidecar drains."""
    news: bytes | None = None
    """The event that tells this stream of a changed tool list; None where the client did not ask to be told."""


@dataclass(frozen=True, slots=True)
class Manner:
    """What is the same for all exchanges."""

    origins: tuple[bytes, ...]
    max_whole: int
    watcher: Watcher


class Exchange:
    """Implements ``upstream.Receiver``."""

    __slots__ = (
        "_body",
        "_cancelled",
        "_chunked",
        "_client",
        "_connection",
        "_forwarded",
        "_headers",
        "_manner",
        "_mode",
        "_reason",
        "_relay",
        "_size",
        "_status",
        "_unread",
        "head_only",
        "order",
        "over",
        "started",
        "streaming",
    )  # fmt: skip

    def __init__(self, client: Client, order: Order, manner: Manner, *, head_only: bool = False) -> None:
        self._client = client
        self._manner = manner
        self.order = order
        self.head_only = head_only
        self.started = False
        """Bytes of an answer were written."""
        self.streaming = False
        self.over = False
        self._forwarded = perf_counter()
        self._connection: Connection | None = None
        self._mode = Mode.RAW
        self._chunked = False
        self._relay: EventRelay | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._status = 0
        self._unread = 0
        self._reason = b""
        self._headers: list[RawHeader] = []

    # -- the client's side

    def cancel(self) -> None:
        """The client is gone. A request that was not written yet never will be."""
        if not self.over:
            self.over = True
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.abandon()
            self._closed()

    def writable(self) -> None:
        """The client reads again."""
        self._unread = 0
        if self._connection is not None:
            self._connection.resume()

    def inject(self, event: bytes) -> bool:
        """Send an event of ours on this stream, between two of the server's. False: it is no open stream."""
        if self.over or not self.streaming:
            return False
        if self._client.writing_paused:
            self._unread += len(event)
            if self._unread > MAX_UNREAD:
                self.break_off()
                return False
        self._send(chunk(event) if self._chunked else event)
        return True

    def finish(self) -> None:
        """End an open stream cleanly now (drain)."""
        if self.over or not self.streaming:
            return
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()
        self._end_body()

    def break_off(self) -> None:
        """End whatever this is now; the client sees that it is no end (drain, after the grace period)."""
        if not self.over:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.abandon()
            self._over(clean=False)

    # -- the upstream's side

    def begin(self, connection: Connection) -> bool:
        if self.over:
            self._give_back()
            return False
        self._connection = connection
        return True

    def head(self, status: int, reason: bytes, headers: list[RawHeader], length: int | None, as_came: bool) -> bool:
        order = self.order
        client = self._client
        events = encoded = changes = False
        session: str | None = None
        seen, kind = ANSWER.seen, ANSWER.kind
        for name, value in headers:
            k = seen.get(name) or kind(name)
            if k is Kind.PLAIN or k is Kind.LENGTH:
                continue
            if k is Kind.CONTENT_TYPE:
                events = events or value[:17].lower() == b"text/event-stream"
            elif k is Kind.SESSION:
                session = value.decode("latin-1")
            elif k is Kind.CONTENT_ENCODING:
                encoded = value.lower() != b"identity"
            else:
                changes = True
        watcher = self._manner.watcher
        watcher.answered(status)
        if not order.stream:
            watcher.waited(perf_counter() - self._forwarded)
        if order.taken is not None and status < 400:
            order.taken(session)
        if encoded and (events or order.whole):
            self._refuse(
                "the MCP server compressed an answer that must be looked at, though nothing was accepted but identity"
            )
            return False
        self._status, self._reason, self._headers = status, reason, headers
        if events and not self.head_only:
            self._start_events()
        elif order.whole and not self.head_only:
            self._mode = Mode.WHOLE
        elif as_came and not changes and not client.closing:
            self.started = True
            return True
        else:
            self._mode = Mode.COPY
            self._chunked = length is None and not client.http10 and not self.head_only
            self._send(self._head(None if self.head_only else length))
        return False

    def raw(self, data: bytes) -> None:
        self._send(data)

    def body(self, data: bytes) -> None:
        if self._mode is Mode.WHOLE:
            self._size += len(data)
            if self._size > self._manner.max_whole:
                self._refuse(
                    f"the MCP server's answer is longer than the {self._manner.max_whole} bytes that can be looked at"
                )
            else:
                self._body.append(data)
            return
        if self._relay is not None:
            try:
                data = self._relay.feed(data)
            except (Unreadable, ValueError) as why:
                self._refuse(str(why))
                return
            if not data:
                return
        self._send(chunk(data) if self._chunked else data)

    def ended(self) -> None:
        self._connection = None
        if self.over:
            return
        if self._mode is Mode.WHOLE:
            self._send_whole()
        else:
            self._end_body()

    def died(self, why: Died) -> None:
        self._connection = None
        if not why.written:
            self._give_back()
        if self.over:
            return
        if self.started:
            self._over(clean=False)
        else:
            self._answer(self._manner.watcher.failed(self, why))

    # -- writing

    def _send(self, data: bytes) -> None:
        self.started = True
        client = self._client
        client.send(data)
        if client.writing_paused and self._connection is not None:
            self._connection.pause()

    def _start_events(self) -> None:
        self._mode = Mode.EVENTS
        self._chunked = not self._client.http10
        order = self.order
        endpoint = None if order.endpoint is None else partial(order.endpoint, self)
        heard = None if order.heard is None else partial(order.heard, self)
        self._relay = EventRelay(order.lens(), self._manner.max_whole, endpoint, heard)
        self._send(self._head(None))
        self.streaming = True
        self._manner.watcher.opened(self)

    def _head(self, length: int | None) -> bytes:
        """The head of the answer anew. ``length`` None: chunked, or until the connection ends."""
        out = [status_line(self._status, self._reason)]
        kind = ANSWER.kind
        for name, value in self._headers:
            k = kind(name)
            if k is Kind.DROP or (k is Kind.LENGTH and not self.head_only):
                continue
            shown = relative(value, self._manner.origins) if k is Kind.LOCATION else value
            out.append(b"%b: %b\r\n" % (name, shown))
        if self._chunked:
            out.append(b"Transfer-Encoding: chunked\r\n")
        elif length is not None and self._status not in (204, 304):
            out.append(b"Content-Length: %d\r\n" % length)
        elif not self.head_only and self._status not in (204, 304):
            self._client.closing = True
        out.append(b"Connection: close\r\n\r\n" if self._client.closing else b"\r\n")
        self._headers = []
        return b"".join(out)

    def _send_whole(self) -> None:
        body = b"".join(self._body)
        self._body = []
        try:
            changed = self.order.lens().look(body) if body else None
        except Unreadable as why:
            if self._status == 200:
                self._refuse(str(why))
                return
            changed = None
        body = body if changed is None else changed
        self._send(self._head(len(body)) + body)
        self._over(clean=True)

    def _end_body(self) -> None:
        if self._chunked:
            self._send(LAST_CHUNK)
        self._over(clean=True)

    def _refuse(self, reason: str) -> None:
        """The answer must not be handed on: 502 if nothing was written yet, else a broken connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()
        if self.started:
            self._over(clean=False)
        else:
            self._answer(self._manner.watcher.failed(self, Died(502, reason, written=True)))

    def _answer(self, answer: Answer) -> None:
        self._send(answer_bytes(answer, close=self._client.closing, head_only=self.head_only))
        self._over(clean=True)

    def _over(self, *, clean: bool) -> None:
        self.over = True
        self._closed()
        self._client.done(clean=clean)

    def _closed(self) -> None:
        self._manner.watcher.closed(self)
        self.streaming = False

    def _give_back(self) -> None:
        grant, self.order.grant = self.order.grant, None
        if grant is not None:
            grant.release()
