"""Event streams both ways: never held back, never unfiltered, never ended cleanly by a death."""

# ruff: noqa: SIM117 -- the client lives within the sidecar that it talks to

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.policies import allow, deny, policy
from wire.rig import READS, TOOLS, Client, Peer, Seen, call, echo, request, sidecar, upstream

pytestmark = pytest.mark.asyncio


def event(body: Any, *, ends: str = "\n") -> str:
    return ends.join(["event: message", "id: 1", f"data: {json.dumps(body)}", "", ""])


def listing(id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": {"tools": TOOLS}}


def names(data: bytes) -> list[str]:
    line = next(line for line in data.splitlines() if line.startswith(b"data:"))
    return [tool["name"] for tool in json.loads(line[5:])["result"]["tools"]]


class Stage:
    """A stream whose next event the test decides."""

    def __init__(self) -> None:
        self.peer: asyncio.Queue[Peer] = asyncio.Queue()
        self.over = asyncio.Event()

    async def script(self, peer: Peer, seen: Seen) -> None:
        if seen.method == "POST" and b"stream" not in seen.body:
            await echo(peer, seen)
            return
        await peer.open_stream("Cache-Control: no-cache")
        self.peer.put_nowait(peer)
        await self.over.wait()

    async def opened(self, client: Client) -> Peer:
        reply = await client.head()
        assert reply.status == 200
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.headers["cache-control"] == "no-cache"
        async with asyncio.timeout(5):
            return await self.peer.get()


async def test_the_first_event_does_not_wait_for_a_second() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        peer = await stage.opened(client)
        for text in (": hello\n\n", "id: 1\nretry: 5\ndata: {}\n\n", "data: a\r\ndata: b\r\n\r\n"):
            await peer.event(text)
            assert await client.chunk() == text.encode()
        await peer.end_stream()
        assert await client.chunk() is None
        stage.over.set()


async def test_an_event_in_pieces_is_handed_on_when_it_is_whole() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        peer = await stage.opened(client)
        for piece in ("da", "ta: {", "}\n", "\nid: 7\n\n"):
            await peer.event(piece)
        got = b""
        while not got.endswith(b"id: 7\n\n"):
            got += await client.chunk() or b""
        assert got == b"data: {}\n\nid: 7\n\n"
        stage.over.set()


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "key",
    [
        '"tools"',
        '"\\u0074ools"',
        '"to\\u006Fls"',
    ],
)
async def test_a_list_is_filtered_on_every_stream_by_its_shape(ends: str, key: str) -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get("Last-Event-ID: 4")
        peer = await stage.opened(client)
        assert server.seen[0].header("Last-Event-ID") == "4"
        await peer.event(event(listing(), ends=ends).replace('"tools"', key))
        got = await client.chunk() or b""
        assert names(got) == ["get_thing"]
        assert got.startswith(b"event: message" + ends.encode() + b"id: 1")
        assert got.endswith(ends.encode() * 2)
        stage.over.set()


async def test_a_list_spread_over_data_lines_and_chunks_is_filtered() -> None:
    text = json.dumps(listing(), indent=1)
    lines = "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        peer = await stage.opened(client)
        for start in range(0, len(lines), 40):
            await peer.event(lines[start : start + 40])
        assert names(await client.chunk() or b"") == ["get_thing"]
        stage.over.set()


async def test_a_list_whose_end_looks_harmless_is_filtered() -> None:
    text = event(listing(9))
    cut = text.index("delete_th")
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.post_only(call("get_stream"))
        peer = await stage.opened(client)
        await peer.event(": one\n\n" + text[:cut])
        assert await client.chunk() == b": one\n\n"
        await peer.event(text[cut:])
        assert names(await client.chunk() or b"") == ["get_thing"]
        stage.over.set()


async def test_a_list_in_the_answer_to_a_call_is_filtered_too() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.post_only(call("get_stream"))
        peer = await stage.opened(client)
        await peer.event(
            event({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}) + event(listing(9))
        )
        got = await client.chunk() or b""
        assert b"notifications/progress" in got
        assert b"delete_thing" not in got
        stage.over.set()


async def test_the_rules_of_the_moment_filter_a_stream_that_was_open_before() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url, policy(allow())) as running:
        async with running.client() as client:
            await client.get()
            peer = await stage.opened(client)
            await peer.event(event(listing()))
            assert names(await client.chunk() or b"") == ["get_thing", "delete_thing"]
            running.rules.put(READS)
            seen = await client.chunk() or b""
            assert b"notifications/tools/list_changed" in seen
            await peer.event(event(listing()))
            assert names(await client.chunk() or b"") == ["get_thing"]
            stage.over.set()


async def test_no_list_changed_where_nothing_changed_for_the_caller() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        peer = await stage.opened(client)
        await peer.event(event(listing()))
        await client.chunk()
        running.rules.put(policy(allow("get_*"), deny("delete_*"), deny("other_*")))
        await peer.event(": after\n\n")
        assert await client.chunk() == b": after\n\n"
        stage.over.set()


async def test_an_event_that_could_hold_a_list_and_is_no_json_breaks_the_stream() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        peer = await stage.opened(client)
        await peer.event('data: {"result":{"tools":[{"name":"delete_thing"}]}\n\n')
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.chunk()
        stage.over.set()


async def test_an_event_above_the_limit_breaks_the_stream() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url, max_list=2048) as running:
        async with running.client() as client:
            await client.get()
            peer = await stage.opened(client)
            await peer.event("data: " + "x" * 4096)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.chunk()
            stage.over.set()


async def test_a_stream_whose_server_dies_is_broken_off_not_ended() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        peer = await stage.opened(client)
        await peer.event("data: {}\n\n")
        await client.chunk()
        peer.abort()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.chunk()
        stage.over.set()


async def test_a_client_that_goes_away_closes_the_upstream_stream() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        peer = await stage.opened(client)
        client.abort()
        await peer.gone()
        stage.over.set()


async def test_a_client_that_goes_away_cancels_its_call() -> None:
    over = asyncio.Event()

    async def script(peer: Peer, seen: Seen) -> None:
        await peer.gone()
        over.set()

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        await client.post_only(call("get_slow"))
        await server.until(lambda: len(server.seen) == 1)
        client.abort()
        async with asyncio.timeout(5):
            await over.wait()


async def test_a_client_that_does_not_read_holds_the_server_back() -> None:
    stage = Stage()
    written = 0
    async with upstream(stage.script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get()
        peer = await stage.opened(client)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        block = "data: " + "x" * 60_000 + "\n\n"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                for _ in range(2000):
                    await peer.event(block)
                    written += len(block)
        assert written < 100_000_000
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        got = 0
        while got < written:
            got += len(await client.chunk() or b"")
        stage.over.set()


async def test_streams_above_the_limit_are_refused() -> None:
    stage = Stage()
    async with upstream(stage.script) as server, sidecar(server.url, max_streams=1) as running:
        async with running.client() as one, running.client() as two:
            await one.get()
            await stage.opened(one)
            await two.get()
            reply = await two.reply()
            assert reply.status == 503
            assert reply.headers["retry-after"] == "1"
            stage.over.set()


# -- HTTP+SSE of 2024-11-05


class LegacyServer:
    """Answers on the stream what is posted to the path that it announces."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.stream: Peer | None = None
        self.over = asyncio.Event()

    async def script(self, peer: Peer, seen: Seen) -> None:
        if seen.method == "GET":
            self.stream = peer
            await peer.open_stream()
            await peer.event(f"event: endpoint\ndata: {self.endpoint}\n\n")
            await self.over.wait()
            return
        assert self.stream is not None
        message = seen.json()
        await peer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 8\r\n\r\nAccepted")
        result: dict[str, Any] = {"tools": TOOLS} if message["method"] == "tools/list" else {"content": [], "ran": True}
        await self.stream.event(event({"jsonrpc": "2.0", "id": message["id"], "result": result}))


@pytest.mark.parametrize("absolute", [False, True])
async def test_a_legacy_session_is_judged_and_filtered(absolute: bool) -> None:
    legacy = LegacyServer("/messages/?session_id=abc")
    async with upstream(legacy.script) as server, sidecar(server.url) as running:
        if absolute:
            legacy.endpoint = f"http://127.0.0.1:{server.port}/messages/?session_id=abc"
        target = "/messages/?session_id=abc"
        async with running.client() as stream, running.client() as client:
            assert (await client.post(call("get_thing"), target=target)).status == 404
            await stream.get(target="/sse")
            await stream.head()
            assert await stream.chunk() == f"event: endpoint\ndata: {target}\n\n".encode()
            assert (await client.post(call("get_thing", id=1), target=target)).status == 202
            assert b'"ran": true' in (await stream.chunk() or b"")
            assert (await client.post(call("delete_thing", id=2), target=target)).status == 202
            refused = await stream.chunk() or b""
            assert b'"id":2' in refused
            assert b"no deletes" in refused
            assert (await client.post(request("tools/list", id=3), target=target)).status == 202
            assert names(await stream.chunk() or b"") == ["get_thing"]
            assert server.executed == ["get_thing"]
            assert running.audit.entries[0].session == target
            stream.abort()
            await legacy.stream.gone()  # type: ignore[union-attr]
            assert (await client.post(call("get_thing"), target=target)).status == 404
        legacy.over.set()


async def test_the_catalogue_of_a_legacy_session_is_listed_on_its_stream_unseen_by_the_client() -> None:
    legacy = LegacyServer("/messages/?session_id=abc")
    rules = policy({"match": {"categories": ["Read"]}, "action": "Allow"})
    async with upstream(legacy.script) as server, sidecar(server.url, rules) as running:
        async with running.client() as stream, running.client() as client:
            await stream.get(target="/sse")
            await stream.head()
            await stream.chunk()
            reply = await client.post(call("get_thing", id=1), target="/messages/?session_id=abc")
            assert reply.status == 202
            assert b'"ran": true' in (await stream.chunk() or b"")
            assert [seen.json()["method"] for seen in server.seen[1:]] == ["tools/list", "tools/call"]
        legacy.over.set()


async def test_an_announced_path_that_is_no_plain_path_breaks_the_stream() -> None:
    legacy = LegacyServer("/messages/../mcp%2f")
    async with upstream(legacy.script) as server, sidecar(server.url) as running, running.client() as stream:
        await stream.get(target="/sse")
        await stream.head()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await stream.chunk()
        legacy.over.set()


async def test_a_drain_waits_for_the_answers_that_a_legacy_stream_still_owes() -> None:
    release = asyncio.Event()
    legacy = LegacyServer("/messages/?session_id=abc")

    async def script(peer: Peer, seen: Seen) -> None:
        if seen.method == "POST":
            await peer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
            await release.wait()
            assert legacy.stream is not None
            await legacy.stream.event(event({"jsonrpc": "2.0", "id": 1, "result": {"content": [], "ran": True}}))
        else:
            await legacy.script(peer, seen)

    async with upstream(script) as server, sidecar(server.url) as running:
        async with running.client() as stream, running.client() as client:
            await stream.get(target="/sse")
            await stream.head()
            await stream.chunk()
            assert (await client.post(call("get_thing"), target="/messages/?session_id=abc")).status == 202
            draining = asyncio.create_task(running.sidecar.drain())
            assert await client.closed()
            release.set()
            assert b'"ran": true' in (await stream.chunk() or b"")
            assert await stream.chunk() is None
            async with asyncio.timeout(5):
                await draining
        legacy.over.set()
