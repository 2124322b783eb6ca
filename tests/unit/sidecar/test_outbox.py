"""Requests of one turn of the loop are written together, in order, and never one that was given up on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from toolpolicy.sidecar.outbox import MOST, Outbox
from toolpolicy.sidecar.upstream import Connection, Receiver


class Owner:
    """The pool, as a connection sees it."""

    max_head = 1000

    def released(self, connection: Connection, reusable: bool) -> None: ...

    def unanswered(self, connection: Connection, receiver: Receiver, how: str) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class Wire:
    def __init__(self, log: list[bytes]) -> None:
        self.log = log

    def write(self, data: bytes) -> None:
        self.log.append(data)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...

    def set_write_buffer_limits(self, high: int) -> None: ...


class Told:
    """A receiver that notes how its exchange ended."""

    def __init__(self) -> None:
        self.ends: list[bool] = []

    def died(self, why: Any) -> None:
        self.ends.append(why.written)


def started(log: list[bytes], receiver: Told) -> Connection:
    connection = Connection(Owner())
    connection.connection_made(cast(asyncio.Transport, Wire(log)))
    connection.start(cast(Receiver, receiver), b"", idempotent=False, head_only=False, due=0.0)
    return connection


def test_requests_are_written_together_in_order() -> None:
    soon: list[Callable[[], None]] = []
    log: list[bytes] = []
    outbox = Outbox(soon.append)
    for number in range(MOST - 1):
        receiver = Told()
        outbox.put(started(log, receiver), cast(Receiver, receiver), b"%d" % number)
    assert log == []
    assert len(soon) == 1
    soon[0]()
    assert log == [b"%d" % number for number in range(MOST - 1)]


def test_a_full_box_is_written_at_once() -> None:
    soon: list[Callable[[], None]] = []
    log: list[bytes] = []
    outbox = Outbox(soon.append)
    for number in range(MOST):
        receiver = Told()
        outbox.put(started(log, receiver), cast(Receiver, receiver), b"%d" % number)
    assert log == [b"%d" % number for number in range(MOST)]
    soon[0]()
    assert len(log) == MOST


def test_what_was_given_up_on_is_not_written() -> None:
    soon: list[Callable[[], None]] = []
    log: list[bytes] = []
    outbox = Outbox(soon.append)
    receiver = Told()
    connection = started(log, receiver)
    outbox.put(connection, cast(Receiver, receiver), b"gone")
    connection.abandon()
    soon[0]()
    assert log == []


def test_a_request_that_died_in_the_box_counts_as_never_written() -> None:
    soon: list[Callable[[], None]] = []
    log: list[bytes] = []
    outbox = Outbox(soon.append)
    receiver = Told()
    connection = started(log, receiver)
    outbox.put(connection, cast(Receiver, receiver), b"dead")
    connection.fail(503, "the sidecar is stopping")
    soon[0]()
    assert receiver.ends == [False]
    assert log == []
