"""The short way: a request that arrived whole is judged and sent on within ``data_received``, without task or future.

It builds on names that aiohttp keeps to itself (``_waiter``, ``_messages``, ``_parser.message_consumed``,
``_process_keepalive``, ``_next_keepalive_close_time``, the reader's ``_buffer``):
``tests/wire/test_aiohttp_contract.py`` fails when they change. The trick is small: while aiohttp parses, the future
that its own loop waits on is put aside, so that it does not wake; what is not for the short way is then left in its
queue, and it is woken after all.

One connection has one exchange at a time; a pipelined request waits in aiohttp's queue.
"""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportAttributeAccessIssue=false
# This one file rests on aiohttp's internals; its tests are what checks them.

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from aiohttp import EMPTY_PAYLOAD, web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from toolpolicy.sidecar.downstream import Service, peer_of
from toolpolicy.sidecar.exchange import Exchange
from toolpolicy.sidecar.head import Head
from toolpolicy.sidecar.requests import Request, Verdict
from toolpolicy.sidecar.wiring import Answer, answer_bytes

if TYPE_CHECKING:
    from toolpolicy.sidecar.interfaces import Peer

_HTTP11 = (1, 1)


class Conversation(RequestHandler):
    """One client connection; ``exchange.Client`` for the requests that take the short way."""

    __slots__ = (
        "_exchange", "_head", "_head_timer", "_judging", "_peer", "_service", "_short", "_stall_timer",
        "closing", "http10",
    )  # fmt: skip

    short_way = True
    """False: everything takes aiohttp's own way (to compare the two)."""

    def __init__(self, manager: web.Server, service: Service, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._service = service
        self._exchange: Exchange | None = None
        self._judging: asyncio.Task[None] | None = None
        self._short = False
        self._peer: Peer | None = None
        self._head: Head | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self.closing = False
        self.http10 = False

    # -- exchange.Client

    def send(self, data: bytes) -> None:
        transport = self.transport
        if transport is not None:
            transport.write(data)

    def done(self, *, clean: bool) -> None:
        self._exchange = None
        self._short = False
        transport = self.transport
        if transport is None:
            return
        if not clean:
            transport.abort()
        elif self.closing or self._service.draining:
            transport.close()
        else:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            if self._messages:
                self._loop.call_soon(self._next)

    def drain(self) -> None:
        """End the connection if nothing is under way on it; else it ends with the answer."""
        waiter = self._waiter
        if self.transport is not None and not self._short and waiter is not None and not waiter.done():
            self.transport.close()

    def follow(self, exchange: Exchange | None) -> None:
        """An exchange on the ordinary way: it is told when the client reads again."""
        self._exchange = exchange

    # -- asyncio

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(0)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._exchange is not None:
            self._exchange.writable()
        elif self._messages and not self._short:
            self._loop.call_soon(self._next)

    def _watch_reader(self, waiting: int) -> None:
        """``waiting`` bytes were unread when this was asked last: a client that takes none in time is let go."""
        transport = self.transport
        if transport is None:
            return
        left = transport.get_write_buffer_size()
        if waiting and left >= waiting:
            transport.abort()
        else:
            self._stall_timer = self._loop.call_later(self._service.settings.write_timeout, self._watch_reader, left)

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            super().data_received(data)  # aiohttp is at work on a request, or about to be
            return
        self._waiter = None
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        if self._messages:
            if not self._short:
                self._next()
        elif not self._short and self._head_timer is None and not self._upgraded:
            self._head_timer = self._loop.call_later(self._service.settings.head_timeout, self._too_slow)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        if self._judging is not None:
            self._judging.cancel()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()

    # -- the short way

    def _next(self) -> None:
        """Take the first waiting request: on the short way if it is whole, else wake aiohttp's loop for it."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._short or not self._messages or self._force_close or self.transport is None or self.writing_paused:
            return  # what can't be told yet is not asked either: resume_writing comes back here
        message, payload = self._messages[0]
        if (
            not self.short_way
            or type(message) is not RawRequestMessage
            or message.upgrade
            or not payload.is_eof()
            or message.version != _HTTP11
            or payload.exception() is not None
        ):
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            return
        self._short = True
        self._messages.popleft()
        self._parser.message_consumed()
        if self._buffer_paused:
            self._resume_reading_if_drained()
        body: bytes | None
        if payload is EMPTY_PAYLOAD:
            body = b"" if message.method == "POST" else None
        else:
            pieces = payload._buffer
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.closing = message.should_close or self._service.draining
        peer = self._peer
        if peer is None:
            peer = self._peer = peer_of(self.transport)
        if body is not None and len(body) > self._service.settings.max_body:
            text = f"the body is longer than {self._service.settings.max_body} bytes"
            verdict: Verdict | Awaitable[Verdict] = self._service.refuse("body-size", 413, text, close=True)
        else:
            head = self._head
            method, target, headers = message.method, message.path, message.raw_headers
            if head is None or not head.same(method, target, headers):
                head = Head(method, target, headers)
                self._head = head if method == "POST" else None
            verdict = self._service.take(Request(head, body, peer))
        if isinstance(verdict, Awaitable):
            self._judging = self._loop.create_task(self._later(verdict, message.method))
        else:
            self._act(verdict, message.method)

    async def _later(self, verdict: Awaitable[Verdict], method: str) -> None:
        found = await verdict
        self._judging = None
        if self.transport is not None:
            self._act(found, method)

    def _act(self, verdict: Verdict, method: str) -> None:
        if isinstance(verdict, Answer):
            self.closing = self.closing or verdict.close
            self._service.answered(verdict.status)
            self.send(answer_bytes(verdict, close=self.closing, head_only=method == "HEAD"))
            self.done(clean=True)
        else:
            exchange = self._service.send(self, verdict)
            if not exchange.over:
                self._exchange = exchange

    # -- time

    def _too_slow(self) -> None:
        """The head of a request began and did not end."""
        self._head_timer = None
        if not self._short and self._waiter is not None and not self._waiter.done():
            self.force_close()

    def _process_keepalive(self) -> None:
        if self._short:  # at work, though aiohttp's own loop is idle
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()


class Conversations(web.Server):
    """aiohttp's low-level server with our handler for each connection."""

    def __init__(self, service: Service, handler: Any, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self._service = service
        self._options = kwargs

    def __call__(self) -> RequestHandler:
        return Conversation(self, self._service, loop=self._loop, **self._kwargs)
