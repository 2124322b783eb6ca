"""What may go wrong on either leg: each fault has one documented outcome; nothing hangs, nothing is let through or
sent twice.
"""

# ruff: noqa: SIM117 -- the client lives within the sidecar that it talks to

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest

from wire.rig import Peer, Seen, call, echo, post, request, sidecar, upstream

pytestmark = pytest.mark.asyncio


def result(seen: Seen) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": seen.json()["id"], "result": {"content": []}}).encode()


async def test_a_refused_connection_is_502_and_names_the_server() -> None:
    async with upstream() as server:
        pass
    async with sidecar(server.url) as running, running.client() as client:
        reply = await client.call("get_thing", id=5)
        assert reply.status == 502
        assert reply.json()["id"] == 5
        assert f"127.0.0.1:{server.port}" in reply.text
        assert "refused" in reply.text.lower()
        assert (await client.call("get_thing")).status == 502


async def test_a_server_that_takes_no_connection_is_502_after_the_connect_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        async with sidecar(f"http://127.0.0.1:{port}/mcp", connect_timeout=0.2) as running, running.client() as client:
            reply = await client.call("get_thing")
            assert reply.status in (502, 504)
        for filler in fillers:
            filler.close()


async def test_a_server_that_never_answers_is_504_and_its_connection_is_closed() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.gone()

    async with upstream(script) as server, sidecar(server.url, first_byte_timeout=0.05) as running:
        async with running.client() as client:
            reply = await client.call("get_thing", id="x")
            assert reply.status == 504
            assert reply.json()["id"] == "x"
            assert "nothing was executed" not in reply.text
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"\x16\x03\x01\x02\x00",
        b"",
    ],
)
async def test_garbage_is_502_and_never_a_second_attempt(garbage: bytes) -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.write(garbage)
        peer.writer.close()

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.call("get_thing", id=3)
        assert reply.status == 502
        assert reply.json()["id"] == 3
        assert len(server.seen) == 1
        assert (await client.call("delete_thing")).json()["result"]["isError"]


async def test_a_server_that_dies_within_its_answer_breaks_the_clients_connection() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        peer.abort()

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        await client.post_only(call("get_thing"))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            reply = await client.reply()
            assert reply.status == 502 or not reply.whole
        assert await client.closed()
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 4\r\n\r\n{}  ", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
)
async def test_bytes_behind_an_answer_never_become_the_next_ones_answer(framing: bytes) -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        evil = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npoison!"
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framing + evil)

    async with upstream(script) as server, sidecar(server.url) as running:
        for _ in range(2):
            async with running.client() as client:
                await client.send(post(call("get_thing", id=1)) + post(call("get_thing", id=2)))
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    for _ in range(2):
                        assert b"poison" not in (await client.reply()).body


async def test_line_breaks_behind_an_answer_are_dropped() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}\r\n\r\n")

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        for _ in range(3):
            await client.post_only(call("get_thing"))
            async with asyncio.timeout(5):
                assert await client.reader.readexactly(40) == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


# -- exactly once


async def test_a_call_is_never_sent_twice_when_a_reused_connection_dies() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        if b"get_last" in seen.body:
            peer.abort()
        else:
            await echo(peer, seen)

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        assert (await client.call("get_first")).status == 200
        reply = await client.call("get_last")
        assert reply.status == 502
        assert server.executed == ["get_first", "get_last"]


async def test_a_request_without_effect_is_repeated_once_when_a_reused_connection_dies() -> None:
    deaths = 0

    async def script(peer: Peer, seen: Seen) -> None:
        nonlocal deaths
        if seen.method == "OPTIONS" and deaths == 0:
            deaths += 1
            peer.abort()
        else:
            await echo(peer, seen)

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        await client.call("get_first")
        await client.get(method="OPTIONS")
        assert (await client.reply()).status == 405
        assert [seen.method for seen in server.seen] == ["POST", "OPTIONS", "OPTIONS"]


async def test_a_connection_that_the_server_closed_while_idle_is_not_used() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await echo(peer, seen)
        peer.writer.close()

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        for number in range(5):
            assert (await client.call("get_thing", id=number)).status == 200
        assert len(server.executed) == 5


async def test_an_idle_connection_is_given_up_before_servers_close_theirs() -> None:
    async with (
        upstream() as server,
        sidecar(server.url, upstream_keepalive=0.01) as running,
        running.client() as client,
    ):
        await client.call("get_a")
        await server.until(lambda: server.peers[0].over)
        await client.call("get_b")
        assert len(server.peers) == 2


# -- framing, as servers do it


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n3\r\n \n \r\n0\r\n\r\n", 200, b"{} \n "),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n",
            200,
            b"{}",
        ),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", 200, b"{}"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", 200, b"{}"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", 304, b""),
        (b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", 202, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 404 Nope\r\nContent-Length: 2\r\n\r\nno", 404, b"no"),
        (b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer x=y\r\nContent-Length: 0\r\n\r\n", 401, b""),
        (
            b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
            200,
            b"{}",
        ),
    ],
)
@pytest.mark.parametrize("pieces", [1, 7])
async def test_every_framing_arrives_whole(answer: bytes, status: int, body: bytes, pieces: int) -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        if pieces == 1:
            await peer.write(answer)
        else:
            for start in range(0, len(answer), pieces):
                await peer.write(answer[start : start + pieces])
                await asyncio.sleep(0)
        if b"Connection: close" in answer or b"HTTP/1.0" in answer:
            peer.writer.close()

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        for _ in range(2):
            reply = await client.call("get_thing")
            assert (reply.status, reply.body) == (status, body)
            assert not {"connection", "keep-alive", "trailer", "link"} & set(reply.headers)
            if status == 401:
                assert reply.headers["www-authenticate"] == "Bearer x=y"


async def test_head_has_no_body_and_keeps_the_length() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: text/plain\r\n\r\n")

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        for _ in range(2):
            await client.get(method="HEAD")
            reply = await client.reply(bodiless=True)
            assert reply.headers["content-length"] == "1000"


async def test_an_empty_answer_gets_no_content_type() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        assert reply.status == 202
        assert set(reply.headers) == {"content-length"}


async def test_an_address_of_the_upstream_in_location_becomes_a_path() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.answer(b"", 307, f"Location: http://127.0.0.1:{server.port}/mcp/")

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.call("get_thing")
        assert (reply.status, reply.headers["location"]) == (307, "/mcp/")


async def test_http_1_0_clients_get_a_body_that_ends_with_the_connection() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        await client.send(post(call("get_thing")).replace(b"HTTP/1.1", b"HTTP/1.0"))
        reply = await client.reply()
        assert "transfer-encoding" not in reply.headers
        assert reply.body == b"{}"


async def test_a_large_answer_arrives_whole_and_a_slow_client_holds_it_back() -> None:
    big = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"content": [], "x": "y" * 20_000_000}}).encode()

    async def script(peer: Peer, seen: Seen) -> None:
        await peer.answer(big)

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        await client.post_only(call("get_thing"))
        reply = await client.head()
        assert (await client.reader.readexactly(int(reply.headers["content-length"]))) == big
        assert (await client.call("get_thing")).status == 200
        assert len(server.peers) == 1


async def test_a_large_request_arrives_whole() -> None:
    body = call("get_thing", {"x": "y" * 3_900_000})
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        assert (await client.post(body)).text == "executed get_thing"
        assert server.seen[0].json() == body
        assert (await client.call("get_thing")).status == 200


async def test_a_unix_socket_is_an_upstream_like_any(tmp_path: Path) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            seen = await reader.readexactly(length)
            body = json.dumps({"jsonrpc": "2.0", "id": json.loads(seen)["id"], "result": {}}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(connected, tmp_path / "s.sock")
    async with sidecar(f"unix:{tmp_path}/s.sock") as running, running.client() as client:
        assert (await client.call("get_thing", id=4)).json()["id"] == 4
    server.close()


# -- limits of the sidecar


async def test_a_body_above_the_limit_is_413() -> None:
    body = json.dumps(call("get_thing", {"x": "y" * 2000})).encode()
    async with upstream() as server, sidecar(server.url, max_body=1024) as running:
        async with running.client() as client:
            reply = await client.post(body)
            assert reply.status == 413
            assert await client.closed()
        async with running.client() as client:
            head = (
                b"POST /mcp HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await client.send(head + b"%x\r\n" % len(body) + body[:1500])
            assert (await client.reply()).status == 413
        assert server.seen == []


@pytest.mark.parametrize(
    "head",
    [
        b"POST /mcp HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 5000 + b"\r\n\r\n",
        b"POST /mcp?" + b"y" * 5000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /mcp HTTP/1.1\r\nHost: h\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(40)) + b"\r\n",
    ],
)
async def test_heads_above_the_limits_are_400(head: bytes) -> None:
    async with upstream() as server, sidecar(server.url, max_header=4096, max_headers=32) as running:
        async with running.client() as client:
            await client.send(head)
            reply = await client.reply()
            assert reply.status == 400
            assert "server" not in reply.headers
            assert await client.closed()


async def test_a_long_header_within_the_limit_passes() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        value = "v" * 20_000
        assert (await client.call("get_thing", {"a": value}, f"Mcp-Param-A: {value}")).status == 200
        assert server.seen[0].header("Mcp-Param-A") == value


async def test_a_head_that_does_not_end_is_cut_off() -> None:
    async with upstream() as server, sidecar(server.url, head_timeout=0.05) as running, running.client() as client:
        await client.send(b"POST /mcp HTTP/1.1\r\nHost: h\r\nX-")
        assert await client.closed()


async def test_a_body_that_does_not_come_is_408() -> None:
    async with upstream() as server, sidecar(server.url, body_timeout=0.05) as running, running.client() as client:
        await client.send(post(call("get_thing"))[:-10])
        assert (await client.reply()).status == 408
        assert await client.closed()
        assert server.seen == []


async def test_an_idle_client_is_closed_and_a_busy_one_is_not() -> None:
    release = asyncio.Event()

    async def script(peer: Peer, seen: Seen) -> None:
        await release.wait()
        await echo(peer, seen)

    async with upstream(script) as server, sidecar(server.url, client_keepalive=0.1) as running:
        async with running.client() as idle, running.client() as busy:
            await busy.post_only(call("get_thing"))
            assert await idle.closed()
            release.set()
            assert (await busy.reply()).status == 200


async def test_requests_above_the_concurrency_limit_are_503() -> None:
    release = asyncio.Event()

    async def script(peer: Peer, seen: Seen) -> None:
        await release.wait()
        await echo(peer, seen)

    async with upstream(script) as server, sidecar(server.url, max_concurrency=1) as running:
        async with running.client() as one, running.client() as two:
            await one.post_only(call("get_thing"))
            await server.until(lambda: len(server.seen) == 1)
            reply = await two.call("get_thing")
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            release.set()
            assert (await one.reply()).status == 200
            assert (await two.call("get_thing")).status == 200


async def test_connections_above_the_limit_are_told_and_closed() -> None:
    async with upstream() as server, sidecar(server.url, max_connections=1) as running, running.client() as one:
        assert (await one.call("get_thing")).status == 200
        async with running.client() as two:
            assert (await two.reply()).status == 503
            assert await two.closed()


async def test_upstream_connections_above_the_limit_are_503_and_nothing_is_executed() -> None:
    release = asyncio.Event()

    async def script(peer: Peer, seen: Seen) -> None:
        await release.wait()
        await echo(peer, seen)

    async with upstream(script) as server, sidecar(server.url, upstream_connections=1) as running:
        async with running.client() as one, running.client() as two:
            await one.post_only(call("get_thing"))
            await server.until(lambda: len(server.seen) == 1)
            reply = await two.call("get_thing")
            assert reply.status == 503
            assert "nothing was executed" in reply.text
            release.set()
            assert (await one.reply()).status == 200


async def test_a_list_longer_than_can_be_looked_at_is_502() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.answer({"jsonrpc": "2.0", "id": 1, "result": {"tools": [], "x": "y" * 5000}})

    async with upstream(script) as server, sidecar(server.url, max_list=2048) as running, running.client() as client:
        assert (await client.post(request("tools/list"))).status == 502


# -- what is refused at the door


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (
            b"GET /mcp HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            400,
        ),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"PUT /mcp HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", 405),
        (b"GET /mcp HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"DELETE /mcp HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"OPTIONS /mcp HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"GET /mcp HTTP/1.1\r\n\r\n", 400),
        (b"GET /mcp HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST /mcp HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /mcp HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST /mcp HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST /mcp HTTP/1.1\nHost: h\n\n", 400),
        (b"GET http://h/mcp HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"GET /MCP HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"GET /mcp/ HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"GET /x/../mcp HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"GET //h/mcp HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
async def test_what_is_no_request_to_us_is_refused(data: bytes, status: int) -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        await client.send(data)
        reply = await client.reply()
        assert reply.status == status
        assert "server" not in reply.headers
        assert server.seen == []


async def test_a_body_on_get_never_becomes_the_next_request() -> None:
    smuggled = post(call("get_smuggled"))
    head = b"GET /mcp HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        await client.send(head + smuggled)
        assert (await client.reply()).status == 400
        assert await client.closed()
        assert server.seen == []


async def test_what_follows_a_refused_upgrade_is_not_served() -> None:
    data = b"GET /mcp HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        await client.send(data + post(call("get_thing")))
        assert (await client.reply()).status == 400
        assert await client.closed()
        assert server.seen == []


# -- drain


async def test_a_drain_finishes_calls_ends_streams_and_accepts_nothing_new() -> None:
    release = asyncio.Event()
    opened = asyncio.Event()

    async def script(peer: Peer, seen: Seen) -> None:
        if seen.method == "GET":
            await peer.open_stream()
            opened.set()
            await peer.gone()
        else:
            await release.wait()
            await echo(peer, seen)

    async with upstream(script) as server, sidecar(server.url) as running:
        async with running.client() as stream, running.client() as one, running.client() as idle:
            await stream.get()
            await stream.head()
            await one.post_only(call("get_thing"))
            await server.until(lambda: len(server.seen) == 2)
            draining = asyncio.create_task(running.sidecar.drain())
            assert await idle.closed()
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", running.port)
            release.set()
            assert (await one.reply()).text == "executed get_thing"
            assert await one.closed()
            assert await stream.chunk() is None
            async with asyncio.timeout(5):
                await draining


async def test_what_does_not_end_within_the_grace_period_is_broken_off() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.gone()

    async with upstream(script) as server, sidecar(server.url, drain_grace=0.05) as running, running.client() as client:
        await client.post_only(call("get_thing"))
        await server.until(lambda: len(server.seen) == 1)
        async with asyncio.timeout(5):
            await running.sidecar.drain()
        assert await client.closed()
