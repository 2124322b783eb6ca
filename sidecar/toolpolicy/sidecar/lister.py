"""The sidecar's own ``tools/list``: once, with the caller's own headers, when a decision needs what the server says
of a
tool.

Bounded in time and pages, shared by all calls of one caller that wait for it, and not repeated within a second: a
caller can't make the sidecar flood the server by naming tools that do not exist.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import Any, cast

from toolpolicy.mcp.catalogue import ToolCatalogue
from toolpolicy.mcp.envelope import Message
from toolpolicy.mcp.headers import header
from toolpolicy.mcp.paths import RouteKind
from toolpolicy.mcp.revisions import (
    META_CLIENT_CAPABILITIES,
    META_CLIENT_INFO,
    META_PROTOCOL_VERSION,
    requires_standard_headers,
)
from toolpolicy.mcp.sse import EventScanner
from toolpolicy.sidecar.case import Case
from toolpolicy.sidecar.head import forwarded_head, with_body
from toolpolicy.sidecar.lens import PRIVATE, Sight
from toolpolicy.sidecar.pool import Pool
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.upstream import Connection, Died, RawHeader

PAUSE = 1.0
"""Seconds before the same caller's catalogue is fetched again."""
MAX_PAGES = 100
_MIRRORED = (b"mcp-method", b"mcp-name", b"last-event-id")
_META = (META_PROTOCOL_VERSION, META_CLIENT_INFO, META_CLIENT_CAPABILITIES)
_Key = tuple[str | None, bytes | None]


class CatalogueLister:
    """Implements ``judge.Lister``."""

    def __init__(self, pool: Pool, sight: Sight, settings: Settings, host: bytes | None) -> None:
        self._pool = pool
        self._sight = sight
        self._catalogue: ToolCatalogue = sight.catalogue
        self._timeout = settings.list_timeout
        self._max = settings.max_list
        self._host = host
        self._running: dict[_Key, asyncio.Task[bool]] = {}
        self._last: dict[_Key, float] = {}

    async def fetch(self, case: Case, message: Message) -> bool:
        """List once for this caller. True if the catalogue was heard of, now or within the last second."""
        key = (case.session_id, header(case.request.headers, b"authorization"))
        task = self._running.get(key)
        if task is None:
            now = time.monotonic()
            if now - self._last.get(key, -PAUSE) < PAUSE:
                return True
            if len(self._last) > 1024:
                self._last = {k: at for k, at in self._last.items() if now - at < PAUSE}
            self._last[key] = now
            task = asyncio.create_task(self._list(case, message))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def _list(self, case: Case, message: Message) -> bool:
        cursor: str | None = None
        heard = False
        try:
            async with asyncio.timeout(self._timeout):
                for _ in range(MAX_PAGES):
                    answer = await self._page(case, message, cursor)
                    result = answer.get("result") if answer is not None else None
                    if not isinstance(result, dict):
                        break
                    result = cast(dict[str, Any], result)
                    heard = True
                    self._catalogue.observe(result, cursor)
                    following = result.get("nextCursor")
                    if not isinstance(following, str) or following == cursor:
                        break
                    cursor = following
        except TimeoutError:
            pass
        return heard

    async def _page(self, case: Case, message: Message, cursor: str | None) -> dict[str, Any] | None:
        key = PRIVATE + secrets.token_hex(8)
        params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
        meta = {name: message.meta[name] for name in _META if name in message.meta}
        if meta:
            params["_meta"] = meta
        body = json.dumps({"jsonrpc": "2.0", "id": key, "method": "tools/list", "params": params}).encode()
        request = with_body(self._head(case), body)
        if case.route.kind is RouteKind.LEGACY_MESSAGE:
            return await self._on_stream(key, request)
        return await _Collector(self._pool, key, self._max).ask(request)

    async def _on_stream(self, key: str, request: bytes) -> dict[str, Any] | None:
        """The answer to a posted legacy message comes on the caller's stream, where a lens takes it out."""
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._sight.private[key] = waiting
        try:
            await _Collector(self._pool, key, self._max).ask(request)
            return await waiting
        finally:
            del self._sight.private[key]

    def _head(self, case: Case) -> bytes:
        headers = [
            (name, value)
            for name, value in case.request.headers
            if not (lower := name.lower()).startswith(b"mcp-param-") and lower not in _MIRRORED
        ]
        if requires_standard_headers(case.revision):
            headers.append((b"Mcp-Method", b"tools/list"))
        return forwarded_head("POST", case.route.target, headers, host=self._host, encodings=False)


class _Collector:
    """Receives one answer and finds the message with our id in it, in JSON or among events."""

    def __init__(self, pool: Pool, key: str, most: int) -> None:
        self._pool = pool
        self._key = key
        self._most = most
        self._found: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._connection: Connection | None = None
        self._scanner: EventScanner | None = None
        self._body = bytearray()

    async def ask(self, request: bytes) -> dict[str, Any] | None:
        """The message, None if the server answered without one. Cancelling gives the connection up."""
        self._pool.send(self, request)
        try:
            return await self._found
        finally:
            if self._connection is not None:
                self._connection.abandon()

    def begin(self, connection: Connection) -> bool:
        if self._found.done():
            return False
        self._connection = connection
        return True

    def head(self, status: int, reason: bytes, headers: list[RawHeader], length: int | None, as_came: bool) -> bool:
        kind = (header(headers, b"content-type") or b"").lower()
        if status == 200 and kind.startswith(b"text/event-stream"):
            self._scanner = EventScanner(self._most)
        return False

    def raw(self, data: bytes) -> None:
        """Never asked for."""

    def body(self, data: bytes) -> None:
        if self._scanner is None:
            self._body += data
            if len(self._body) > self._most:
                self._settle(None)
            return
        try:
            events = self._scanner.feed(data)
        except ValueError:
            self._settle(None)
            return
        for event in events:
            if event.data is not None and self._key.encode() in event.data:
                self._settle(self._message(event.data))

    def ended(self) -> None:
        self._connection = None
        self._settle(self._message(bytes(self._body)) if self._scanner is None else None)

    def died(self, why: Died) -> None:
        self._connection = None
        self._settle(None)

    def _message(self, payload: bytes) -> dict[str, Any] | None:
        try:
            value: Any = json.loads(payload)
        except (ValueError, RecursionError):
            return None
        if isinstance(value, dict) and cast(dict[str, Any], value).get("id") == self._key:
            return cast(dict[str, Any], value)
        return None

    def _settle(self, message: dict[str, Any] | None) -> None:
        if not self._found.done():
            self._found.set_result(message)
