"""Where MCP is served: a TCP port or a unix socket, with or without TLS, never through a moment without a listener.

The listening socket is ours, so that a server with a new certificate or client CA can take over from the old one while
both listen: no connection is refused.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.target import Target

BACKLOG = 1024
EVERYWHERE = ("", "::")
"""Hosts of a HOST:PORT that mean every address, of IPv4 as well."""


class AddressFault(ValueError):
    """An address that can't be listened on, with what to do."""


def open_socket(address: str) -> tuple[socket.socket, int, str]:
    """Bind and listen on ``HOST:PORT`` or ``unix:PATH``. The socket, its port (0 for a unix socket), and how to name
    it.
    """
    if address.startswith("unix:"):
        path = address[5:]
        return _unix(path), 0, f"unix:{path}"
    host, separator, port = address.rpartition(":")
    host = host.strip("[]")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise AddressFault(f"can't listen on {address!r}: expected HOST:PORT or unix:PATH")
    try:
        listener = bind_everywhere(int(port)) if host in EVERYWHERE else _bind(host, int(port))
    except OSError as error:
        raise AddressFault(f"can't listen on {address}: {error.strerror or error}") from None
    actual = listener.getsockname()[1]
    shown = listener.getsockname()[0] if host in EVERYWHERE else host
    return listener, actual, f"[{shown}]:{actual}" if ":" in shown else f"{shown}:{actual}"


def bind_everywhere(port: int, backlog: int = BACKLOG) -> socket.socket:
    """Listen on all addresses of both families by one socket; of IPv4 alone where the kernel has IPv6 off. Raises
    OSError.
    """
    try:
        return _listen(socket.AF_INET6, ("::", port), backlog)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
    return _listen(socket.AF_INET, ("0.0.0.0", port), backlog)  # noqa: S104 -- what was asked for


def _bind(host: str, port: int) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return _listen(family, where, BACKLOG)


def _listen(family: int, where: tuple[object, ...], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if where[0] == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(where)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).exists() and stat.S_ISSOCK(Path(path).stat().st_mode):
            Path(path).unlink()
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise AddressFault(f"can't listen on unix:{path}: {error.strerror or error}") from None
    return listener


class Listener:
    """Accepts connections on one socket for ``factory``."""

    def __init__(self, address: str, factory: Callable[[], asyncio.Protocol]) -> None:
        self._socket, self.port, self.name = open_socket(address)
        self._path = address[5:] if address.startswith("unix:") else None
        self._factory = factory
        self._server: asyncio.Server | None = None

    async def serve(self, tls: ssl.SSLContext | None) -> None:
        """Begin, or go on with another TLS context for the connections to come."""
        loop = asyncio.get_running_loop()
        before = self._server
        timeout = None if tls is None else 10.0
        self._server = await loop.create_server(
            self._factory, sock=self._socket.dup(), ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=timeout
        )
        if before is not None:
            before.close()

    def close(self) -> None:
        """Accept nothing more; what was accepted goes on."""
        if self._server is not None:
            self._server.close()
        self._socket.close()
        if self._path is not None:
            Path(self._path).unlink(missing_ok=True)


def listener_tls(settings: Settings, client_ca: str | None) -> ssl.SSLContext | None:
    """The context that MCP is served with; ``client_ca`` (PEM) asks clients for a certificate. Raises
    :class:`AddressFault`.
    """
    if not settings.tls_certificate_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file or None)
        if client_ca:
            context.load_verify_locations(cadata=client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:
        raise AddressFault(f"the TLS certificate, key or client CA can't be used: {error}") from None
    return context


def upstream_tls(settings: Settings, target: Target) -> ssl.SSLContext | None:
    """The context for an https upstream: verified against ``upstream_ca_file``, else the system's authorities."""
    if not target.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.upstream_ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise AddressFault(f"{settings.upstream_ca_file}: can't be used as upstream CA: {error}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context
