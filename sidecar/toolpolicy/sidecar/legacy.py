"""HTTP+SSE of 2024-11-05: the stream announces a path, messages are posted there, and their answers arrive on the
stream.

The announced path is what makes a POST to it a judged message; it is forgotten with the stream that announced it. Its
whole target (path and query) is the session.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

from toolpolicy.mcp.paths import PathError, Routes
from toolpolicy.sidecar.case import bounded_session
from toolpolicy.sidecar.exchange import Exchange
from toolpolicy.sidecar.lens import Caller, Unreadable
from toolpolicy.sidecar.sessions import Owners


class LegacyStreams:
    """The open streams that have announced a path. Implements ``gate.Legacy``."""

    def __init__(self, routes: Callable[[], Routes], sessions: Owners, settled: Callable[[], None]) -> None:
        self._routes = routes
        self._sessions = sessions
        self._settled = settled
        self._streams: dict[str, Exchange] = {}
        self._targets: dict[Exchange, str] = {}
        self._owed: dict[Exchange, set[int | str]] = {}

    def owes(self, exchange: Exchange) -> bool:
        """Whether an answer to a posted request has yet to come on this stream."""
        return bool(self._owed.get(exchange))

    def asked(self, target: str, ids: Iterable[int | str | None]) -> None:
        """Requests of these ids were posted to ``target``."""
        stream = self._streams.get(target)
        if stream is not None:
            self._owed.setdefault(stream, set()).update(id for id in ids if id is not None)

    def heard(self, exchange: Exchange, data: bytes) -> None:
        """The server sent a message on ``exchange``: perhaps an answer that is owed."""
        owed = self._owed.get(exchange)
        if not owed:
            return
        try:
            message: Any = json.loads(data)
        except (ValueError, RecursionError):
            return
        for item in cast(list[Any], message) if isinstance(message, list) else [message]:
            if isinstance(item, dict) and "method" not in item:
                id = cast(dict[str, Any], item).get("id")
                if isinstance(id, int | str):
                    owed.discard(id)
        if not owed:
            del self._owed[exchange]
            self._settled()

    def announced(self, exchange: Exchange, caller: Caller, data: bytes) -> bytes | None:
        """An ``endpoint`` event on ``exchange``: its data as the client may see it, None if it may stay."""
        try:
            target = self._routes().announce(data.decode("utf-8"))
        except (PathError, UnicodeDecodeError) as error:
            raise Unreadable(f"the MCP server announced a message path that can't be used: {error}") from None
        before = self._targets.get(exchange)
        if before is not None:
            self._forget(before)
        self._targets[exchange] = target
        self._streams[target] = exchange
        key = bounded_session(target.encode("ascii"))
        self._sessions.bind(key, caller.identity.principal, time.monotonic(), caller.client)
        changed = target.encode("ascii")
        return None if changed == data else changed

    def deliver(self, target: str, event: bytes) -> bool:
        """Send an event on the stream of this session. False: it is gone."""
        stream = self._streams.get(target)
        return stream is not None and stream.inject(event)

    def closed(self, exchange: Exchange) -> None:
        self._owed.pop(exchange, None)
        target = self._targets.pop(exchange, None)
        if target is not None:
            self._forget(target)

    def _forget(self, target: str) -> None:
        self._streams.pop(target, None)
        self._routes().forget(target)
        self._sessions.end(bounded_session(target.encode("ascii")))

    def announce_again(self, routes: Routes) -> None:
        """Teach a new routing table what the old one had learned."""
        for target in self._streams:
            routes.announce(target)
