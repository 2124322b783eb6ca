"""From a replica that serves sidecars to the one that writes their status: the holder of the Lease.

The same API over the same TLS, at the address that the Lease publishes, with the operator's own projected token
(audience ``toolpolicy.dev/operator``). A report is relayed at most once: the holder's route never relays.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol

import aiohttp

from toolpolicy_operator.control.tokens import Refused

PATH = "/v1/relay/report"
MOST = 64
"""Reports on their way to the holder at a time."""
SECONDS = 5.0
RETRY = 2.0


class Leadership(Protocol):
    """Who writes. ``address`` is the control API of the Lease's holder, HOST:PORT; empty while unknown."""

    @property
    def leading(self) -> bool: ...
    @property
    def address(self) -> str: ...


class Relay:
    """``token`` gives the operator's own token, ``ca`` the PEM of the control API's authorities (both now), ``name`` is
    what the holder's certificate must be for.
    """

    def __init__(self, leadership: Leadership, token: Callable[[], str], ca: Callable[[], str], name: str) -> None:
        self._leadership = leadership
        self._token = token
        self._ca = ca
        self._name = name
        self._trusted: tuple[str, ssl.SSLContext] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._underway = 0
        self.passed = 0
        self.failed = 0

    async def pass_on(self, body: bytes) -> None:
        """Hand a report, whose pod is proved, to the holder. Raises :class:`Refused` (503) if that is not possible."""
        address = self._leadership.address
        if not address:
            raise self._fault("no replica of the operator holds the Lease yet")
        try:
            token = self._token()
        except (OSError, ValueError) as error:
            raise self._fault(f"this replica's own token can't be read: {type(error).__name__}") from None
        if not token:
            raise self._fault("this replica has no token for the one that holds the Lease (--token-file)")
        if self._underway >= MOST:
            raise self._fault("too many reports are on their way to the replica that holds the Lease")
        self._underway += 1
        try:
            await self._post(address, token, body)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._fault(f"the replica that holds the Lease can't be reached: {type(error).__name__}") from None
        finally:
            self._underway -= 1
        self.passed += 1

    async def _post(self, address: str, token: str, body: bytes) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MOST, keepalive_timeout=30.0),
                timeout=aiohttp.ClientTimeout(total=SECONDS),
            )
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        async with self._session.post(
            f"https://{address}{PATH}",
            data=body,
            headers=headers,
            ssl=self._context(),
            server_hostname=self._name,
            allow_redirects=False,
        ) as answer:
            await answer.read()
            if answer.status != 200:
                raise self._fault(f"the replica that should hold the Lease answered {answer.status}")

    def _context(self) -> ssl.SSLContext:
        pem = self._ca()
        if self._trusted is None or self._trusted[0] != pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_verify_locations(cadata=pem)
            self._trusted = (pem, context)
        return self._trusted[1]

    def _fault(self, message: str) -> Refused:
        self.failed += 1
        return Refused(503, "ServiceUnavailable", message, RETRY)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
            await asyncio.sleep(0)
