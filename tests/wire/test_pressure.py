"""Clients that ask for more than they take."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import pytest

from toolpolicy.policy.types import Principal
from toolpolicy.sidecar.conversation import Conversation
from toolpolicy.sidecar.interfaces import Identity, RawHeaders
from toolpolicy.sidecar.interfaces import Peer as Other
from wire.rig import Peer, Running, Seen, call, echo, post, request, sidecar, upstream
from wire.test_streams import LegacyServer

pytestmark = pytest.mark.asyncio
ENOUGH = 8 << 20


def held(running: Running) -> int:
    """Bytes of answers that wait in the sidecar for clients to read them."""
    server: Any = running.sidecar._server  # pyright: ignore[reportPrivateUsage]
    found = [c for c in server.connections if isinstance(c, Conversation) and c.transport is not None]
    return sum(c.transport.get_write_buffer_size() for c in found if c.transport)


async def pour(running: Running, request: bytes, *, seconds: float = 3.0) -> int:
    """Send ``request`` over and over on one connection without ever reading; the most that was held for it."""
    _, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
    cast(asyncio.Transport, writer.transport).pause_reading()
    most = 0
    burst = request * 64
    try:
        async with asyncio.timeout(seconds):
            while most < ENOUGH:
                writer.write(burst)
                await writer.drain()
                most = max(most, held(running))
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()
    return most


@pytest.mark.parametrize("tool", ["delete_thing", "get_thing"])
async def test_a_client_that_never_reads_its_answers_is_not_read_from(tool: str) -> None:
    async with upstream() as server, sidecar(server.url) as running:
        assert await pour(running, post(call(tool, id="x" * 200))) < ENOUGH // 8


async def test_nor_on_the_ordinary_way() -> None:
    whole = post(call("delete_thing", id="x" * 200))
    async with upstream() as server, sidecar(server.url) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
        cast(asyncio.Transport, writer.transport).pause_reading()
        writer.write(whole[:-1])  # what follows waits in aiohttp's queue, and is taken from there
        await asyncio.sleep(0.05)
        writer.write(whole[-1:])
        most = 0
        try:
            async with asyncio.timeout(3.0):
                while most < ENOUGH:
                    writer.write(whole * 64 + whole[:-1])
                    await writer.drain()
                    writer.write(whole[-1:])
                    most = max(most, held(running))
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()
        assert most < ENOUGH // 8


async def test_a_client_that_takes_nothing_of_its_answer_is_let_go() -> None:
    async def large(peer: Peer, seen: Seen) -> None:
        await peer.answer(b" " * (16 << 20))

    async with upstream(large) as server, sidecar(server.url, write_timeout=0.3) as running:
        async with running.client() as client:
            cast(asyncio.Transport, client.writer.transport).pause_reading()
            await client.post_only(call("get_thing"))
            await server.until(lambda: bool(server.peers) and server.peers[0].over)
        assert b"toolpolicy_requests_in_flight 0.0" in running.metrics.render()[0]


async def test_what_follows_an_upgrade_is_no_request() -> None:
    """Behind an Upgrade aiohttp loses pipelined bytes, and would read the middle of a body as a request."""
    first = post(call("get_first"), "Upgrade: x", "Connection: Upgrade")
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        await client.send(first + b"POST /mcp HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n")
        await asyncio.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            await client.send(post(call("get_smuggled")))
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.closed()
        assert server.executed == ["get_first"]


async def test_a_legacy_stream_that_is_not_read_holds_a_bounded_number_of_denials() -> None:
    target = "/messages/?session_id=abc"
    legacy = LegacyServer(target)
    denied = post(call("delete_thing", id="x" * 200), target=target) * 50
    async with upstream(legacy.script) as server, sidecar(server.url) as running:
        async with running.client() as stream, running.client() as client:
            await stream.get(target="/sse")
            await stream.head()
            await stream.chunk()
            cast(asyncio.Transport, stream.writer.transport).pause_reading()
            most = 0
            async with asyncio.timeout(60):
                while b"toolpolicy_streams 1.0" in running.metrics.render()[0] and most < ENOUGH // 2:
                    await client.send(denied)
                    while (await client.reply()).status != 202:
                        pass
                    await client.reader.read(1 << 20)
                    most = max(most, held(running))
            assert most < ENOUGH // 8
        legacy.over.set()


# -- what belongs to another


class Named:
    """Whoever Authorization names, verified."""

    def identify(self, peer: Other, headers: RawHeaders) -> Identity:
        name = next(value.decode() for key, value in headers if key == b"Authorization")
        return Identity(Principal(name, "JWT", True), (name,))


async def test_a_legacy_session_can_not_be_entered_by_another_spelling_of_its_query() -> None:
    legacy = LegacyServer("/messages/?session_id=abc")
    async with upstream(legacy.script) as server, sidecar(server.url, identifier=Named()) as running:
        async with running.client() as alice, running.client() as bob:
            await alice.get("Authorization: alice", target="/sse")
            await alice.head()
            await alice.chunk()
            for query in ("session_id=abc&x=1", "x=1&session_id=abc", "session%5fid=abc"):
                reply = await bob.post(call("get_thing"), "Authorization: bob", target=f"/messages/?{query}")
                assert reply.status == 404
            assert server.executed == []
        legacy.over.set()


async def test_nobody_listens_to_the_tasks_of_another() -> None:
    async def tasks(peer: Peer, seen: Seen) -> None:
        await peer.answer(
            {"jsonrpc": "2.0", "id": seen.json()["id"], "result": {"task": {"taskId": "t1", "status": "working"}}}
        )

    started = call("get_thing")
    started["params"]["task"] = {"ttl": 1000}
    listen = request("subscriptions/listen", {"notifications": {"taskIds": ["t0", "t1"]}})
    async with (
        upstream(tasks) as server,
        sidecar(server.url, identifier=Named()) as running,
        running.client() as alice,
        running.client() as bob,
    ):
        await alice.post(started, "Authorization: alice")
        assert (await bob.post(listen, "Authorization: bob")).denied
        assert len(server.seen) == 1
        assert not (await alice.post(listen, "Authorization: alice")).denied


# -- streams, and bodies that wait to be asked for


async def _endless(peer: Peer, seen: Seen) -> None:
    if seen.method == "GET":
        await peer.gone()
    else:
        await echo(peer, seen)


async def test_streams_leave_connections_for_calls() -> None:
    async with (
        upstream(_endless) as server,
        sidecar(server.url, upstream_connections=8) as running,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(running.client()) for _ in range(8)]
        for client in clients:
            await client.get()
        await server.until(lambda: len(server.seen) == 6)
        assert (await clients[6].reply()).status == 503
        assert (await clients[7].reply()).status == 503
        assert (await clients[7].call("get_thing")).text == "executed get_thing"


async def test_a_stream_counts_from_its_request_on() -> None:
    async with (
        upstream(_endless) as server,
        sidecar(server.url, max_streams=1) as running,
        running.client() as one,
        running.client() as two,
    ):
        await one.get()
        await server.until(lambda: len(server.seen) == 1)
        await two.get()
        assert (await two.reply()).status == 503


async def test_a_client_that_waits_to_be_told_so_may_send_its_body() -> None:
    head, _, body = post(call("get_thing"), "Expect: 100-continue").partition(b"\r\n\r\n")
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        await client.send(head + b"\r\n\r\n")
        assert (await client.head()).status == 100
        await client.send(body)
        assert (await client.reply()).text == "executed get_thing"
        assert server.seen[0].header("Expect") is None
