"""The requests of one turn of the event loop, written to the server one right after the other.

A write that finds the server asleep wakes it: an interrupt to another core, after which this one's caches are cold.
With a judgement between any two writes the server falls asleep each time; written together, it is woken once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from toolpolicy.sidecar.upstream import Connection, Receiver

MOST: Final = 8
"""Requests that wait for each other: the first of them no longer than that many judgements, under a millisecond."""


class Outbox:
    """``call_soon`` is the event loop's. What is put here is written in this turn of the loop or the next."""

    __slots__ = ("_call_soon", "_waiting")

    def __init__(self, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._call_soon = call_soon
        self._waiting: list[tuple[Connection, Receiver, bytes]] = []

    def put(self, connection: Connection, receiver: Receiver, request: bytes) -> None:
        """Write ``request`` soon, unless ``connection`` has another receiver, or none, by then."""
        waiting = self._waiting
        waiting.append((connection, receiver, request))
        if len(waiting) >= MOST:
            self.flush()
        elif len(waiting) == 1:
            self._call_soon(self.flush)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection, receiver, request in waiting:
            connection.write(receiver, request)
