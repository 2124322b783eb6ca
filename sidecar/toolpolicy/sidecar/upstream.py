"""The upstream leg: one HTTP/1.1 connection to the MCP server, on httptools. The pool of them is in ``pool.py``.

A connection keeps one parser for its life and has one receiver at a time; everything is a callback, so that a call
costs no task.

Exactly once: a request that may have been executed is never sent again. :class:`Died` says whether it was fully
written.

Traps, all met:
- httptools answers ``should_keep_alive()`` truly only within ``on_headers_complete``.
- asyncio forgets the unsent bytes before it calls ``connection_lost``. With ``high=0`` as write limit
  ``pause_writing`` and ``resume_writing`` say exactly when the last byte went to the kernel; a ``send`` that raises
  leaves the transport closing.
- bytes behind the end of an answer would be taken by the client for the answer to its next request: they end both
  connections.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

RawHeader = tuple[bytes, bytes]


class Died(Exception):
    """The upstream leg ended without a whole answer.

    ``status`` is the HTTP status to answer with if nothing was answered yet; ``written`` whether the request was fully
    written: if so, the call may have been executed.
    """

    def __init__(self, status: int, reason: str, *, written: bool) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.written = written


class Receiver(Protocol):
    """Takes one answer. After ``ended`` or ``died`` nothing more comes."""

    def begin(self, connection: Connection) -> bool:
        """The request is about to be written on ``connection``. False: it is not wanted any more."""
        ...

    def head(self, status: int, reason: bytes, headers: list[RawHeader], length: int | None, as_came: bool) -> bool:
        """The final head; ``length`` is the body's where the head gives it.

        True asks for the bytes as they came, head included (:meth:`raw`), and may be answered only if ``as_came``.
        False asks for the pieces of the body (:meth:`body`).
        """
        ...

    def raw(self, data: bytes) -> None: ...

    def body(self, data: bytes) -> None: ...

    def ended(self) -> None: ...

    def died(self, why: Died) -> None: ...


class Owner(Protocol):
    """What a connection tells its pool."""

    max_head: int

    def released(self, connection: Connection, reusable: bool) -> None: ...

    def unanswered(self, connection: Connection, receiver: Receiver, how: str) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """One connection to the upstream. ``receiver`` is None while it is idle."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self.transport = cast(asyncio.Transport, None)
        self.receiver: Receiver | None = None
        self.request = b""
        self.idempotent = False
        self.reused = False
        self.written = True
        self.paused = False
        self.idle_since = 0.0
        self.due = 0.0
        self._reset(head_only=False)

    def _reset(self, head_only: bool) -> None:
        self.head_only = head_only
        self._headers: list[RawHeader] = []
        self._reason = b""
        self._pieces: list[bytes] = []
        self._early = b""
        self._begun = False
        self._interim = False
        self._final = False
        self._delivered = False
        self._complete = False
        self._excess = False
        self._raw = False
        self._keep = True
        self._status = 0
        self._length: int | None = None
        self._raw_left = 0

    # -- one exchange

    def start(self, receiver: Receiver, request: bytes, *, idempotent: bool, head_only: bool, due: float) -> None:
        """Take ``request``, whose :meth:`write` follows, and give the answer to ``receiver``. ``due``: loop time by
        which the head must have come, 0 for never.
        """
        self._reset(head_only)
        self.receiver = receiver
        self.request = request if self.reused else b""
        self.idempotent = idempotent
        self.due = due
        self.written = False

    def write(self, receiver: Receiver, request: bytes) -> None:
        """Write what was started, unless it was given up on since."""
        if self.receiver is not receiver:
            return
        self.written = True
        self.transport.write(request)
        if self.transport.is_closing():
            self.written = False

    def abandon(self) -> None:
        """The client is gone: close at once, which is how the upstream learns of it."""
        self.receiver = None
        self._owner.lost(self)
        self.transport.abort()

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.transport.resume_reading()

    def fail(self, status: int, reason: str) -> None:
        """End the exchange without a whole answer."""
        receiver, self.receiver = self.receiver, None
        self._owner.lost(self)
        self.transport.abort()
        if receiver is not None:
            receiver.died(Died(status, reason, written=self.written))

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        self.written = False

    def resume_writing(self) -> None:
        self.written = True

    def data_received(self, data: bytes) -> None:
        receiver = self.receiver
        if receiver is None:
            self._owner.lost(self)
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(502, "the MCP server switched protocols")
            return
        except httptools.HttpParserError as error:
            self.fail(502, f"the MCP server did not answer in HTTP ({error.__context__ or error})")
            return
        if self._excess:
            self.fail(502, "the MCP server sent more than its answer")
            return
        if self._delivered:
            self._hand_on(receiver, data)
        elif self._final:
            self._deliver(receiver, data)
        else:
            self._early += data
            if len(self._early) > self._owner.max_head:
                self.fail(502, f"the head of the MCP server's answer is longer than {self._owner.max_head} bytes")
            return
        if self._complete and self.receiver is receiver:
            self._finish(receiver)

    def _deliver(self, receiver: Receiver, data: bytes) -> None:
        self._delivered = True
        self.due = 0.0
        if self._early:
            data, self._early = self._early + data, b""
        as_came = self._length is not None and not self._interim
        self._raw = receiver.head(self._status, self._reason, self._headers, self._length, as_came)
        if self._raw:
            assert self._length is not None
            self._raw_left = data.find(b"\r\n\r\n") + 4 + (0 if self.head_only else self._length)
        self._hand_on(receiver, data)

    def _hand_on(self, receiver: Receiver, data: bytes) -> None:
        if self.receiver is not receiver:
            return
        if self._raw:
            self._pieces.clear()
            self._raw_left -= len(data)
            if self._raw_left < 0:  # line breaks, which parsers pass over: anything else is the beginning of a message
                data = data[: self._raw_left]
                self._raw_left = 0
                self._keep = False
            receiver.raw(data)
        elif self._pieces:
            pieces, self._pieces = self._pieces, []
            receiver.body(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _finish(self, receiver: Receiver) -> None:
        self.receiver = None
        self.request = b""
        self.resume()
        self._owner.released(self, self._keep and self.written)
        receiver.ended()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost(self)
        receiver = self.receiver
        if receiver is None:
            return
        if self._delivered and self._length is None and exc is None and not self._chunked():
            self._keep = False
            self._finish(receiver)
            return
        self.receiver = None
        how = f" ({exc})" if exc else ""
        if self._begun:
            receiver.died(
                Died(502, f"the MCP server closed the connection within its answer{how}", written=self.written)
            )
        else:
            self._owner.unanswered(self, receiver, how)

    def _chunked(self) -> bool:
        return any(name.lower() == b"transfer-encoding" for name, _ in self._headers)

    # -- httptools: only notes what came; the receiver is called when the parser is done with the bytes at hand

    def on_message_begin(self) -> None:
        if self._complete:
            self._excess = True
        self._begun = True

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._complete:
            return
        self._status = status
        self._keep = self._parser.should_keep_alive() and not self.head_only
        self._length = _content_length(self._headers, status)
        self._final = True
        self._complete = self.head_only

    def on_body(self, data: bytes) -> None:
        if self.head_only:
            self._excess = True
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._final:
            self._complete = True
        else:  # an interim answer (1xx): dropped, for nothing was asked that needs one
            self._interim = True
            self._headers = []
            self._reason = b""


def _content_length(headers: list[RawHeader], status: int) -> int | None:
    if status in (204, 304):
        return 0
    for name, value in headers:
        if len(name) == 14 and name.lower() == b"content-length":
            return int(value)
    return None
