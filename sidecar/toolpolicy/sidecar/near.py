"""Reaching a server of the same pod: by loopback first, then wherever its port is listened at.

A server that binds the pod's own address, or IPv6 alone, was reached from outside before; the sidecar in front of it
must reach it as well.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from toolpolicy.sidecar.procnet import candidates, read_listeners

T = TypeVar("T")
PAUSE = 0.5
"""Seconds between two looks at who listens: a server that is down must not cost every call a look."""


class Near:
    """The way to ``port`` of this pod; it remembers where it found the server."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self.host = host
        self._looked = -PAUSE

    async def reach(self, attempt: Callable[[str], Awaitable[T]]) -> T:
        """What ``attempt`` gives for the first address that takes a connection. Raises its first OSError if none does,
        or if another than a refusal is met at the address that was good before.
        """
        try:
            return await attempt(self.host)
        except ConnectionRefusedError:
            now = time.monotonic()
            if now - self._looked < PAUSE:
                raise
            self._looked = now
            for host in candidates(read_listeners(), self.port):
                if host != self.host:
                    try:
                        found = await attempt(host)
                    except OSError:
                        continue
                    self.host = host
                    self._looked = -PAUSE
                    return found
            raise


async def connected(
    near: Near, *, tls: bool = False, limit: int = 2**16
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the server. ``tls`` without a look at the certificate, as the kubelet's probes do."""
    context = _unverified() if tls else None

    async def attempt(host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(host, near.port, limit=limit, ssl=context)

    return await near.reach(attempt)


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
