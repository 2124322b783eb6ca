"""Mutations of every known bypass, seeded: whatever bytes arrive, a denied tool does not run and the sidecar stays up.

This looks for the vectors that the table has not: two of its entries spliced, a header twice, a byte more or less.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import time

import pytest

from bypass.conftest import Range
from bypass.test_vectors import BARRIER
from bypass.vectors import VECTORS
from bypass.vectors.build import DELETE, NOT_OK, call, post
from support.rawhttp import exchange
from support.servers import Server
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("bypass")]

SEED = 20260728
ROUNDS = 24
AT_ONCE = 32
PATIENCE = 0.15
"""Seconds that one round's connections are left to themselves; most mutations wait for bytes that never come."""
LONGEST = 20_000
"""Longer vectors are about size alone."""
INSERTS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b",",
    b":",
    b";",
    b'"',
    b"\\",
    b"\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\\u0000",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Content-Length\r\n",
    b"Connection: Transfer-Encoding\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Mcp-Name: echo\r\n",
    b"0\r\n\r\n",
    b'"name":"echo",',
    b'"method":"ping",',
    b'"Name":"echo",',
    post(call("echo", {"value": "ok"})),
)


def corpus() -> list[bytes]:
    whole = [vector.data if isinstance(vector.data, bytes) else b"".join(vector.data) for vector in VECTORS]
    return [data for data in whole if len(data) < LONGEST]


def mutate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One to four small changes."""
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(7):
            case 0:
                data = data[:place] + chance.choice(INSERTS) + data[place:]
            case 1:
                data = data[:place] + data[place + chance.randint(1, 8) :]
            case 2 if data:
                place %= len(data)
                data = data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
            case 3:
                lines = data.split(b"\r\n")
                line = chance.choice(lines)
                lines.insert(chance.randrange(len(lines) + 1), line)
                data = b"\r\n".join(lines)
            case 4:
                data = data[:place] + other[chance.randrange(len(other)) :]
            case 5:
                lines = data.split(b"\r\n")
                where = chance.randrange(len(lines))
                lines[where] = chance.choice(INSERTS).rstrip(b"\r\n") + lines[where]
                data = b"\r\n".join(lines)
            case _:
                data = data + other
    return data


def send(address: tuple[str, int], batch: list[bytes]) -> None:
    """Each on a connection of its own, all at once; what was answered is read, the rest is closed."""
    with contextlib.ExitStack() as stack:
        waiting: list[socket.socket] = []
        for data in batch:
            connection = stack.enter_context(socket.create_connection(address, timeout=5))
            with contextlib.suppress(OSError):
                connection.sendall(data)
            waiting.append(connection)
        end = time.monotonic() + PATIENCE
        while waiting and (left := end - time.monotonic()) > 0:
            for ready in select.select(waiting, [], [], left)[0]:
                with contextlib.suppress(OSError):
                    ready.recv(65536)
                waiting.remove(ready)


def ran(server: Server) -> tuple[int, int]:
    counts = server.lab()["executed"]
    return counts.get(DELETE, 0), counts.get(NOT_OK, 0)


def guilty(server: Server, sidecar: Sidecar, batch: list[bytes]) -> list[bytes]:
    """The mutations of ``batch`` that do it by themselves."""
    found: list[bytes] = []
    for data in batch:
        before = ran(server)
        send(sidecar.address, [data])
        if ran(server) != before:
            found.append(data)
    return found


@pytest.mark.parametrize("kind", ["plain", "golang", "node1", "python1"])
def test_no_mutation_runs_a_denied_tool(kind: str, shooting_range: Range) -> None:
    server, sidecar = shooting_range.server(kind), shooting_range.sidecar(kind, "allow-list")
    chance = random.Random(f"{SEED}-{kind}")
    bases = corpus()
    before = ran(server)
    for _ in range(ROUNDS):
        batch = [mutate(chance.choice(bases), chance.choice(bases), chance) for _ in range(AT_ONCE)]
        send(sidecar.address, batch)
        reply = exchange(sidecar.address, BARRIER).reply
        assert reply is not None, sidecar.log()
        assert reply.status == 200, sidecar.log()
        assert ran(server) == before, f"ran a denied tool: {guilty(server, sidecar, batch)!r}"


def test_the_mutations_are_dangerous(shooting_range: Range) -> None:
    """The control: sent to the server itself, a good part of the same mutations runs the tool."""
    server = shooting_range.server("plain")
    chance = random.Random(f"{SEED}-plain")
    bases = corpus()
    before = ran(server)
    for _ in range(2):
        send(server.address, [mutate(chance.choice(bases), chance.choice(bases), chance) for _ in range(AT_ONCE)])
    assert sum(ran(server)) - sum(before) > AT_ONCE // 4
