"""What the short way takes for granted of aiohttp. A change there must fail here, not in production."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.web_protocol import RequestHandler

from toolpolicy.sidecar.conversation import Conversation
from wire.rig import INITIALIZE, Peer, Reply, Seen, call, echo, post, request, sidecar, upstream

pytestmark = pytest.mark.asyncio


async def test_the_parser_is_the_compiled_one() -> None:
    """The Python fallback is slower, and is not what was measured against smuggling."""
    assert HttpRequestParser is not HttpRequestParserPy
    assert type(RawRequestMessage.__init__).__name__ == "wrapper_descriptor"


async def test_the_handler_has_the_names_that_the_short_way_uses() -> None:
    async def nothing(request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError

    handler = web.Server(nothing)()
    assert handler._waiter is None
    assert len(handler._messages) == 0
    assert callable(handler._parser.message_consumed)  # type: ignore[union-attr]
    assert handler._next_keepalive_close_time == 0.0
    assert handler._keepalive_timeout > 0
    assert not handler._force_close
    assert not handler._upgraded
    assert not handler._buffer_paused
    for method in ("_process_keepalive", "_resume_reading_if_drained", "force_close", "data_received"):
        assert callable(getattr(RequestHandler, method))
    assert isinstance(BaseProtocol.writing_paused, property)
    reader = StreamReader(handler, 64)
    reader.feed_data(b"x")
    assert list(reader._buffer) == [b"x"]
    assert EMPTY_PAYLOAD.is_eof()
    assert EMPTY_PAYLOAD.exception() is None


async def test_aiohttps_loop_waits_on_a_future_of_its_own() -> None:
    """The future that is put aside while aiohttp parses must be the one that its loop awaits."""
    seen: list[str] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.path)
        return web.Response()

    server = web.Server(handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while not (server.connections and server.connections[0]._waiter):
        await asyncio.sleep(0)
    handler = server.connections[0]
    waiter, handler._waiter = handler._waiter, None
    handler.data_received(b"GET /one HTTP/1.1\r\nHost: h\r\n\r\n")
    handler._waiter = waiter
    assert waiter is not None
    assert not waiter.done()
    assert len(handler._messages) == 1
    waiter.set_result(None)
    async with asyncio.timeout(5):
        await reader.readuntil(b"\r\n\r\n")
    assert seen == ["/one"]
    writer.close()
    listening.close()
    await server.shutdown(0)


# -- both ways give the same answers


@pytest.fixture(params=[True, False], ids=["short", "ordinary"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    monkeypatch.setattr(Conversation, "short_way", request.param)
    yield request.param


REQUESTS: list[tuple[Any, ...]] = [
    (INITIALIZE,),
    (call("get_thing", {"a": [1, 2.5, None]}),),
    (call("delete_thing"),),
    (request("tools/list"),),
    ([call("get_a", id=1), call("get_b", id=2)],),
    ({"jsonrpc": "2.0", "method": "notifications/initialized"},),
    (b"{not json",),
    (call("get_thing"), "Content-Encoding: gzip"),
    (call("get_thing"), "Mcp-Name: delete_thing"),
    (call("get_thing"), "Connection: close"),
]
EXPECTED = [200, 200, 200, 200, 200, 202, 400, 415, 400, 200]


@pytest.mark.parametrize(("sent", "status"), list(zip(REQUESTS, EXPECTED, strict=True)))
async def test_both_ways_answer_alike(way: bool, sent: tuple[Any, ...], status: int) -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.post(*sent)
        assert reply.status == status
        assert "server" not in reply.headers
        closes = "Connection: close" in sent
        assert (reply.headers.get("connection") == "close") is closes
        if closes:
            assert await client.closed()
        else:
            again = await client.call("get_thing")
            assert again.text == "executed get_thing"


async def test_both_ways_stream_cancel_and_hold_back(way: bool) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer, seen: Seen) -> None:
        await peer.open_stream()
        await peer.event("data: {}\n\n")
        for _ in range(200):
            await peer.event("data: " + "x" * 50_000 + "\n\n")
        await peer.gone()
        gone.set()

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        assert (await client.head()).status == 200
        read = 0
        while read < 10 + 200 * 50_008:
            read += len(await client.chunk() or b"")
        client.abort()
        async with asyncio.timeout(5):
            await gone.wait()


async def test_both_ways_break_off_when_the_server_dies(way: bool) -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.open_stream()
        await peer.event("data: {}\n\n")
        peer.abort()

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.head()
            while await client.chunk() is not None:
                pass
            pytest.fail("a clean end")


async def test_pipelined_requests_change_ways_and_keep_their_order() -> None:
    """A whole request, one in pieces and one of HTTP/1.0 on one connection: short, ordinary, ordinary."""
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        second = post(call("get_b", id=2))
        third = post(call("get_c", id=3)).replace(b"HTTP/1.1", b"HTTP/1.0")
        await client.send(post(call("get_a", id=1)) + second[:-5])
        first = await client.reply()
        await client.send(second[-5:] + third)
        replies: list[Reply] = [first, await client.reply(), await client.reply()]
        assert [reply.json()["id"] for reply in replies] == [1, 2, 3]
        assert await client.closed()


async def test_a_pipeline_longer_than_aiohttps_queue_is_served_whole() -> None:
    async with upstream(echo) as server, sidecar(server.url) as running, running.client() as client:
        burst = b"".join(post(call("get_thing", id=number)) for number in range(200))
        sending = asyncio.create_task(client.send(burst))
        for number in range(200):
            assert (await client.reply()).json()["id"] == number
        await sending
        assert len(server.executed) == 200
