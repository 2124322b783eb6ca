"""The downstream side: aiohttp's server, whose parser refuses smuggling, and the ordinary way of a request through it.

What aiohttp refuses, and must go on refusing: CL with TE, two lengths, bad chunking, obs-fold, NUL, bare LF, two
Hosts. Answers are written to the transport by the exchange; aiohttp is told only whether the connection lives on. A
request that arrived whole takes the short way in ``conversation.py``; everything else comes through
:meth:`Front.handle`: a body still on its way, a protocol error, an upgrade, HTTP/1.0.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Protocol, cast

from aiohttp import EMPTY_PAYLOAD, web
from aiohttp.web_protocol import RequestHandler

from toolpolicy.sidecar.exchange import Client, Exchange
from toolpolicy.sidecar.head import Head
from toolpolicy.sidecar.interfaces import Peer
from toolpolicy.sidecar.requests import Dispatch, Request, Verdict
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.wiring import Answer, answer_bytes

quiet = logging.getLogger("toolpolicy.http")
quiet.propagate = False
quiet.addHandler(logging.NullHandler())
"""aiohttp logs every malformed request with a traceback: a caller could fill the log."""

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Service(Protocol):
    """What the front asks of the sidecar."""

    settings: Settings
    draining: bool

    def take(self, request: Request) -> Verdict | Awaitable[Verdict]: ...

    def send(self, client: Client, dispatch: Dispatch) -> Exchange: ...

    def refuse(
        self, word: str, status: int, text: str, *, close: bool = False, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Answer: ...

    def answered(self, status: int) -> None: ...


class Written(web.StreamResponse):
    """Tells aiohttp that the answer is on its way already, and whether the connection lives on."""

    def __init__(self, keep_alive: bool) -> None:
        super().__init__()
        self._lives = keep_alive

    @property
    def keep_alive(self) -> bool | None:
        return self._lives

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: Any = b"") -> None:
        return None


class PlainRequest(web.BaseRequest):
    """A request whose answers from aiohttp itself (protocol errors) don't name the software."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.popall("Server", None)


class OrdinaryClient:
    """``exchange.Client`` for a request on aiohttp's ordinary way. ``over`` is set when the answer is."""

    def __init__(self, handler: RequestHandler, closing: bool, http10: bool) -> None:
        assert handler.transport is not None
        self._handler = handler
        self._transport = handler.transport
        self.closing = closing
        self.http10 = http10
        self.clean = False
        self.over = asyncio.Event()

    @property
    def writing_paused(self) -> bool:
        return self._handler.writing_paused

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    def done(self, *, clean: bool) -> None:
        self.clean = clean
        if not clean:
            self._transport.abort()
        self.over.set()


class Front:
    """Makes the handlers of connections, and takes the requests that aiohttp brings in the ordinary way."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, its body read here. Cancelled when the client goes away (``handler_cancellation``)."""
        handler = request.protocol
        transport = request.transport
        if transport is None:
            return Written(False)
        if handler.writing_paused:  # earlier answers were not read yet: this request waits with its own
            await handler._drain_helper()  # pyright: ignore[reportPrivateUsage]
        upgrade = request._message.upgrade  # pyright: ignore[reportPrivateUsage]
        # Behind an Upgrade aiohttp loses what was pipelined, and takes the middle of a body for a request:
        # nothing may follow one.
        closing = not request.keep_alive or self._service.draining or request.version < (1, 1) or upgrade
        client = OrdinaryClient(handler, closing, request.version < (1, 1))
        verdict = await self._verdict(request)
        if isinstance(verdict, Answer):
            client.closing = closing or verdict.close
            transport.write(answer_bytes(verdict, close=client.closing, head_only=request.method == "HEAD"))
            self._service.answered(verdict.status)
            return Written(not client.closing)
        exchange = self._service.send(client, verdict)
        hook = getattr(handler, "follow", None)
        if hook is not None:
            hook(exchange)
        try:
            await client.over.wait()
        finally:
            exchange.cancel()
            if hook is not None:
                hook(None)
        if not client.clean:
            raise ConnectionResetError("the upstream leg broke within its answer")
        return Written(not client.closing and not self._service.draining)

    async def _verdict(self, request: web.BaseRequest) -> Verdict:
        service = self._service
        message = request._message  # pyright: ignore[reportPrivateUsage]  # the target as it came is nowhere else
        if message.upgrade and "websocket" in request.headers.get("Upgrade", "").lower():
            return service.refuse("upgrade", 400, "MCP is not spoken over WebSocket", close=True)
        if request.method == "CONNECT":
            return service.refuse("method", 405, "this is no proxy for CONNECT", close=True)
        body = await self._body(request)
        if isinstance(body, Answer):
            return body
        peer = peer_of(request.transport)
        verdict = service.take(Request(Head(request.method, message.path, message.raw_headers), body, peer))
        return await verdict if isinstance(verdict, Awaitable) else verdict

    async def _body(self, request: web.BaseRequest) -> bytes | Answer | None:
        """The whole body; None where the request has none. An answer where it is too large or too slow."""
        content = request.content
        if content is EMPTY_PAYLOAD:
            return None if request.method != "POST" else b""
        most = self._settings.max_body
        too_large = f"the body is longer than {most} bytes"
        length = request.content_length
        if length is not None and length > most:
            return self._service.refuse("body-size", 413, too_large, close=True)
        if "100-continue" in request.headers.get("Expect", "").lower() and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        pieces: list[bytes] = []
        size = 0
        try:
            while not content.at_eof():
                async with asyncio.timeout(self._settings.body_timeout):
                    piece = await content.readany()
                size += len(piece)
                if size > most:
                    return self._service.refuse("body-size", 413, too_large, close=True)
                pieces.append(piece)
        except TimeoutError:
            return self._service.refuse("body-timeout", 408, "the rest of the body did not come", close=True)
        return b"".join(pieces)


def peer_of(transport: asyncio.BaseTransport | None) -> Peer:
    """The other end: its address (``unix`` on a socket file) and, over TLS, the certificate it showed."""
    if transport is None:
        return Peer("")
    name = transport.get_extra_info("peername")
    address = str(cast("tuple[Any, ...]", name)[0]) if isinstance(name, tuple) and name else "unix"
    tls = transport.get_extra_info("ssl_object")
    return Peer(address, tls.getpeercert(binary_form=True) if tls is not None else None)
