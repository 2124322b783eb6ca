"""One port of the operator, and which connections it keeps.

The ports can be reached by every pod, and a connection that is merely held costs its holder nothing. So the operator
never refuses a new one because others idle: when all places are taken, the connection that has been idle longest makes
room. One address has fewer places than there are, which spares the API server's own connections; a request that was an
error ends its connection; and a connection on which nothing is asked does not stay.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web

MAX_CONNECTIONS = 2048
MAX_OF_ADDRESS = 512
"""An API server speaks HTTP/1.1 here, so that it needs a connection for each review under way: by default it has at
most 600 requests of all kinds in flight."""
HANDSHAKE_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 180.0
"""Longer than the 90 s of Go's client: the side that sends must be the one that closes, or a review meets a connection
that is just being closed."""
SILENT_SECONDS = 15.0
"""A connection on which no request came by then is closed; the library would wait for the first one forever."""
DRAIN_SECONDS = 10.0
FAREWELL_SECONDS = 1.0


class Listener:
    """One port of one application."""

    def __init__(self, app: web.Application) -> None:
        app.middlewares.insert(0, self._heard)
        self._silent: dict[web.RequestHandler, asyncio.TimerHandle] = {}
        self._idle: dict[web.RequestHandler, str] = {}
        """Connections on which nothing is being answered, with the peer's address; idle longest first."""
        self._busy: dict[web.RequestHandler, str] = {}
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            shutdown_timeout=DRAIN_SECONDS,
            lingering_time=2.0,
        )
        self._socket: asyncio.Server | None = None

    async def start(self, address: str, context: ssl.SSLContext | None) -> int:
        """Listen on HOST:PORT and return the port; raises OSError for one that is taken, ValueError for no address."""
        host, separator, port = address.rpartition(":")
        if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"address {address!r}: expected HOST:PORT")
        await self._runner.setup()
        self._socket = await asyncio.get_running_loop().create_server(
            lambda: _Gate(self._admit),
            host.strip("[]") or None,
            int(port),
            ssl=context,
            backlog=512,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if context else None,
            ssl_shutdown_timeout=FAREWELL_SECONDS if context else None,
        )
        return self._socket.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Take no more connections, let requests under way end, close."""
        if self._socket is not None:
            self._socket.close()
        for timer in self._silent.values():
            timer.cancel()
        self._silent.clear()
        connections = self._runner.server.connections if self._runner.server is not None else []
        transports = [handler.transport for handler in connections if handler.transport is not None]
        sockets = [(transport, transport.get_extra_info("socket")) for transport in transports]
        await self._runner.cleanup()
        await _gone([(transport, socket) for transport, socket in sockets if socket is not None])

    def _admit(self, transport: asyncio.Transport) -> None:
        """Give a connection its handler, or close it where there is no place for it."""
        handlers = self._runner.server
        peer: Any = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        if handlers is None or not self._room(address):
            transport.abort()
            return
        handler = handlers()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        self._idle[handler] = address
        self._silent[handler] = asyncio.get_running_loop().call_later(SILENT_SECONDS, self._hang_up, handler)

    def _room(self, address: str) -> bool:
        """Whether there is a place for a connection from the address, after making one where that can be done."""
        self._idle = {handler: peer for handler, peer in self._idle.items() if handler.transport is not None}
        same = [handler for handler, peer in self._idle.items() if peer == address]
        if len(same) + sum(peer == address for peer in self._busy.values()) >= MAX_OF_ADDRESS:
            return self._drop(same)
        if len(self._idle) + len(self._busy) >= MAX_CONNECTIONS:
            return self._drop(list(self._idle))
        return True

    def _drop(self, idle: list[web.RequestHandler]) -> bool:
        """Close the first of these, at once: a peer that does not take part in ending TLS holds no place by that."""
        if not idle:
            return False
        transport = idle[0].transport
        self._hang_up(idle[0])
        if isinstance(transport, asyncio.Transport):
            transport.abort()
        return True

    def _hang_up(self, handler: web.RequestHandler) -> None:
        self._idle.pop(handler, None)
        timer = self._silent.pop(handler, None)
        if timer is not None:
            timer.cancel()
        handler.force_close()

    @web.middleware
    async def _heard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        protocol = request.protocol
        timer = self._silent.pop(protocol, None)
        if timer is not None:
            timer.cancel()
        address = self._idle.pop(protocol, "")
        self._busy[protocol] = address
        try:
            answer = await handler(request)
        finally:
            del self._busy[protocol]
            self._idle[protocol] = address
        if 400 <= answer.status < 500:
            # Who asks for nothing that is served need not be waited for.
            answer.force_close()
        return answer


class _Gate(asyncio.Protocol):
    """Stands in until a connection, its TLS included, is there and its peer's address known."""

    def __init__(self, admit: Callable[[asyncio.Transport], None]) -> None:
        self._admit = admit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._admit(cast(asyncio.Transport, transport))


async def _gone(left: list[tuple[asyncio.BaseTransport, Any]]) -> None:
    """Wait until closing connections, each with its socket, are closed; one whose peer does not end TLS in time is cut
    off.
    """
    for _ in range(50):
        left = [(transport, socket) for transport, socket in left if socket.fileno() != -1]
        if not left:
            return
        await asyncio.sleep(FAREWELL_SECONDS / 50)
    for transport, _ in left:
        if isinstance(transport, asyncio.Transport):
            transport.abort()
    await asyncio.sleep(0)
