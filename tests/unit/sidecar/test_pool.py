"""Which upstream connection takes a request: decided here without a turn of the loop in between."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from toolpolicy.sidecar.pool import FRESH, Pool
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.target import Target
from toolpolicy.sidecar.upstream import Connection, Died, RawHeader

pytestmark = pytest.mark.asyncio

REQUEST = b"POST /mcp HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Taker:
    """Notes the connection that it was given and how it ended."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.done: asyncio.Future[Died | None] = asyncio.get_running_loop().create_future()

    def begin(self, connection: Connection) -> bool:
        self.connection = connection
        return True

    def head(self, status: int, reason: bytes, headers: list[RawHeader], length: int | None, as_came: bool) -> bool:
        return False

    def raw(self, data: bytes) -> None: ...

    def body(self, data: bytes) -> None: ...

    def ended(self) -> None:
        self.done.set_result(None)

    def died(self, why: Died) -> None:
        self.done.set_result(why)


class Server:
    """Answers each connection once, in a thread; ``close`` closes what it accepted while the loop stands still."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted.append(connection)
            connection.recv(65536)
            connection.sendall(ANSWER)

    def close(self) -> None:
        for connection in self.accepted:
            connection.close()

    def stop(self) -> None:
        self.close()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


async def exchange(pool: Pool) -> Connection:
    taker = Taker()
    pool.send(taker, REQUEST)
    async with asyncio.timeout(5):
        assert await taker.done is None
    assert taker.connection is not None
    return taker.connection


@pytest.mark.parametrize(
    ("age", "closed", "reused"),
    [
        (0.0, False, True),
        (FRESH * 2, False, True),
        (FRESH * 2, True, False),
        (3.9, False, True),
        (4.1, False, False),
    ],
)
async def test_an_idle_connection_is_reused_only_while_it_can_be_used(age: float, closed: bool, reused: bool) -> None:
    server = Server()
    pool = Pool(Target("127.0.0.1", server.port), Settings())
    try:
        first = await exchange(pool)
        assert pool.idle == 1
        first.idle_since -= age
        if closed:
            server.close()
        taker = Taker()
        pool.send(taker, REQUEST)
        assert (taker.connection is first) is reused
        if not reused:
            async with asyncio.timeout(5):
                assert await taker.done is None
    finally:
        await pool.close()
        server.stop()


async def test_no_more_idle_connections_are_kept_than_set() -> None:
    server = Server()
    pool = Pool(Target("127.0.0.1", server.port), Settings(upstream_idle=1))
    try:
        takers = [Taker() for _ in range(3)]
        for taker in takers:
            pool.send(taker, REQUEST)
        async with asyncio.timeout(5):
            await asyncio.gather(*(taker.done for taker in takers))
        assert pool.idle == 1
    finally:
        await pool.close()
        server.stop()


async def test_a_closed_pool_takes_nothing() -> None:
    pool = Pool(Target("127.0.0.1", 9), Settings())
    await pool.close()
    taker = Taker()
    pool.send(taker, REQUEST)
    why = await taker.done
    assert why is not None
    assert (why.status, why.written) == (503, False)
