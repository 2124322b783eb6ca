"""The stdio front: lines in, lines out, with the bridge and a real server process behind it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from toolpolicy.sidecar.stdio_client import FrontLimits, serve_stdio
from toolpolicy.sidecar.stdio_params import ParamHeaders, header_value
from toolpolicy.sidecar.stdio_server import StdioBridge

SCRIPT = [sys.executable, str(Path(__file__).parents[2] / "support" / "stdio_script.py")]
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@dataclass
class Front:
    """A running front, seen as its client sees it: two pipes."""

    to: int
    stdout: asyncio.StreamReader
    task: asyncio.Task[int]
    stop: asyncio.Event
    log: list[str]
    early: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def send(self, *messages: Any) -> None:
        lines = (m if isinstance(m, bytes) else json.dumps({"jsonrpc": "2.0", **m}).encode() for m in messages)
        left = b"".join(line + b"\n" for line in lines)
        while left:
            left = left[os.write(self.to, left) :]

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            line = await self.stdout.readline()
        assert line, "stdout ended"
        message: dict[str, Any] = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        return message

    async def answer(self, request_id: Any) -> dict[str, Any]:
        """The answer to that request; what else comes is kept in ``early``."""
        while True:
            message = await self.receive()
            if message.get("id") == request_id and "method" not in message:
                return message
            self.early.append(message)

    async def initialize(self) -> str:
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t"}}
        self.send({"id": "init", "method": "initialize", "params": params}, {"method": "notifications/initialized"})
        return (await self.answer("init"))["result"]["serverInfo"]["version"]

    def call(self, request_id: Any, tool: str, meta: dict[str, Any] | None = None, **arguments: Any) -> None:
        params = {"name": tool, "arguments": arguments} | ({"_meta": meta} if meta else {})
        self.send({"id": request_id, "method": "tools/call", "params": params})

    def close(self) -> None:
        os.close(self.to)
        self.to = -1

    async def code(self) -> int:
        async with asyncio.timeout(10):
            return await self.task


@asynccontextmanager
async def front_of(target: str, **limits: Any) -> AsyncGenerator[Front]:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    reader = asyncio.StreamReader(limit=1 << 24)
    out = os.fdopen(out_read, "rb")
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), out)
    stop = asyncio.Event()
    log: list[str] = []
    with os.fdopen(in_read, "rb") as stdin, os.fdopen(out_write, "wb") as stdout:
        quick: dict[str, Any] = {"drain": 0.2, "retry": 0.01}
        bounds = FrontLimits(**quick | limits)
        task = asyncio.create_task(serve_stdio(target, stdin, stdout, stop=stop, limits=bounds, log=log.append))
        task.add_done_callback(lambda _: stdout.close())
        front = Front(in_write, reader, task, stop, log)
        try:
            yield front
        finally:
            if front.to >= 0:
                front.close()
            await asyncio.wait([task], timeout=10)
            task.cancel()
            transport.close()


@asynccontextmanager
async def front_and_bridge(*arguments: str, shared: bool = False, **limits: Any) -> AsyncGenerator[Front]:
    bridge = StdioBridge([*SCRIPT, *arguments], shared, log=lambda line: None)
    await bridge.start()
    try:
        async with front_of(bridge.url, **limits) as front:
            yield front
    finally:
        await bridge.stop()


@pytest.mark.asyncio
async def test_calls_run_side_by_side_and_keep_their_ids() -> None:
    async with front_and_bridge() as front:
        await front.initialize()
        front.call("long", "wait", {"progressToken": "p"})
        assert (await front.receive())["params"] == {"progressToken": "p", "progress": 0}
        front.call(1, "echo", a=1)
        front.call("1", "echo", a=2)
        answers: list[dict[str, Any]] = [await front.receive(), await front.receive()]
        texts = {json.dumps(m["id"]): m["result"]["content"][0]["text"] for m in answers}
        assert texts == {"1": '{"a": 1}', '"1"': '{"a": 2}'}


@pytest.mark.asyncio
async def test_large_messages_pass_both_ways() -> None:
    async with front_and_bridge() as front:
        await front.initialize()
        large = "x" * 3_000_000
        sending = asyncio.create_task(asyncio.to_thread(front.call, 1, "echo", text=large))
        answer = await front.answer(1)
        await sending
        assert json.loads(answer["result"]["content"][0]["text"]) == {"text": large}


@pytest.mark.asyncio
async def test_the_server_may_ask_the_client() -> None:
    async with front_and_bridge() as front:
        await front.initialize()
        front.call(1, "ask", method="roots/list")
        asked = await front.receive()
        assert asked["method"] == "roots/list"
        front.send({"id": asked["id"], "result": {"roots": []}})
        assert (await front.answer(1))["result"]["content"][0]["text"] == '{"roots": []}'


@pytest.mark.asyncio
async def test_messages_of_the_servers_own_arrive_between_calls() -> None:
    async with front_and_bridge() as front:
        await front.initialize()
        front.call(1, "update")
        await front.answer(1)
        if not front.early:
            front.early.append(await front.receive())
        assert front.early[0]["method"] == "notifications/tools/list_changed"


@pytest.mark.asyncio
async def test_a_cancellation_reaches_the_server_and_nothing_more_is_said_of_the_call() -> None:
    async with front_and_bridge(drain=30.0) as front:
        await front.initialize()
        front.call("w", "wait", {"progressToken": 1})
        await front.receive()
        front.send({"method": "notifications/cancelled", "params": {"requestId": "w"}})
        front.call(2, "release")
        assert len(json.loads((await front.answer(2))["result"]["content"][0]["text"])) == 1
        front.close()
        assert await front.code() == 0
        assert front.early == [] and await front.stdout.read() == b""


@pytest.mark.asyncio
async def test_a_call_of_2026_07_28_is_cancelled_by_closing_its_post() -> None:
    async with front_and_bridge() as front:
        front.call("w", "wait", META | {"progressToken": 1})
        await front.receive()
        front.send({"method": "notifications/cancelled", "params": {"requestId": "w"}})
        async with asyncio.timeout(10):
            cancelled: list[int] = []
            number = 0
            while not cancelled:
                number += 1
                front.call(number, "release", META)
                cancelled = json.loads((await front.answer(number))["result"]["content"][0]["text"])


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("line", "request_id", "code"),
    [
        (b"{", None, -32700),
        (b"nonsense", None, -32700),
        (b'{"jsonrpc":"2.0","id":7,"method":"x","result":{}}', 7, -32600),
        (b'{"jsonrpc":"2.0","id":"a","id":"b","method":"x"}', "b", -32600),
        (b"x" * 5000, None, -32600),
    ],
)
async def test_a_line_that_is_no_message_is_answered_and_the_next_one_works(
    line: bytes, request_id: Any, code: int
) -> None:
    async with front_and_bridge(max_line=4000) as front:
        front.send(line)
        answer = await front.receive()
        assert (answer["id"], answer["error"]["code"]) == (request_id, code)
        await front.initialize()


@pytest.mark.asyncio
async def test_the_end_of_stdin_waits_for_the_answers_and_ends_the_session() -> None:
    async with front_and_bridge(drain=10.0) as front:
        pid = int(await front.initialize())
        for number in range(20):
            front.call(number, "echo", n=number)
        front.close()
        assert await front.code() == 0
        lines = [json.loads(line) for line in (await front.stdout.read()).splitlines()]
        assert {message["id"] for message in lines} == set(range(20))
        async with asyncio.timeout(10):
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_stop_does_not_wait_for_the_end_of_stdin() -> None:
    async with front_and_bridge() as front:
        await front.initialize()
        front.stop.set()
        assert await front.code() == 0


@pytest.mark.asyncio
async def test_the_death_of_the_server_is_told_and_ends_the_front() -> None:
    async with front_and_bridge() as front:
        await front.initialize()
        front.call(1, "exit", status=3)
        assert "exited with status 3" in (await front.answer(1))["error"]["message"]
        assert await front.code() == 1
        assert any("ended the session" in line for line in front.log)


@pytest.mark.asyncio
async def test_a_client_that_is_gone_ends_the_front() -> None:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    os.close(out_read)
    with os.fdopen(in_read, "rb") as stdin, os.fdopen(out_write, "wb") as stdout, os.fdopen(in_write, "wb") as feed:
        feed.write(b"nonsense\n")
        feed.flush()
        async with asyncio.timeout(10):
            assert await serve_stdio("unix:/no/such.sock", stdin, stdout, log=lambda line: None) == 1


@pytest.mark.asyncio
async def test_a_file_as_input_and_no_server_behind(tmp_path: Path) -> None:
    """Regular files and /dev/null cannot be polled; a server that is not there is an error for each call."""
    commands = tmp_path / "in"
    commands.write_bytes(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n\n  \n{"jsonrpc":"2.0","method":"x"}')
    with commands.open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        assert await serve_stdio("unix:/no/such.sock", stdin, stdout, log=lambda line: None) == 0
    answer = json.loads((tmp_path / "out").read_bytes())
    assert answer["id"] == 1 and "cannot be reached" in answer["error"]["message"]


# -- against servers that a bridge never is ----------------------------------------------------------------------------


@asynccontextmanager
async def served(handler: Any) -> AsyncGenerator[str]:
    app = web.Application()
    app.router.add_route("*", "/mcp", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/mcp"
    finally:
        await runner.cleanup()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (503, "busy", "HTTP 503"),
        (400, '{"jsonrpc":"2.0","id":null,"error":{"code":-32020,"message":"header mismatch"}}', "header mismatch"),
        (202, "", "HTTP 202"),
        (200, "", "before it answered"),
        (200, "<html>", "before it answered"),
    ],
)
async def test_every_refusal_becomes_an_error_for_the_request(status: int, body: str, words: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type="application/json")

    async with served(handler) as url, front_of(url) as front:
        front.send({"id": "r", "method": "ping"})
        assert words in (await front.answer("r"))["error"]["message"]


@pytest.mark.asyncio
async def test_a_stream_that_breaks_off_is_picked_up_where_the_server_gave_event_ids() -> None:
    resumed: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if request.method == "POST":
            await response.write(b'id: 7\ndata: {"jsonrpc":"2.0",\ndata: "method":"notifications/x"}\n\n')
        else:
            resumed.append(request.headers["Last-Event-ID"])
            await response.write(b'id: 8\r\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\r\n\r\n')
        return response

    async with served(handler) as url, front_of(url, retry=0.01) as front:
        front.send({"id": 1, "method": "ping"})
        assert (await front.answer(1))["result"] == {}
        assert [message["method"] for message in front.early] == ["notifications/x"]
        assert resumed == ["7"]


@pytest.mark.asyncio
async def test_the_headers_of_2026_07_28_are_written_from_the_body() -> None:
    seen: list[dict[str, str]] = []
    schema = {"properties": {"region": {"type": "string", "x-mcp-header": "Region"}, "n": {"type": "integer"}}}

    async def handler(request: web.Request) -> web.Response:
        message = await request.json()
        seen.append({k: v for k, v in request.headers.items() if k.startswith("M")})
        tools = {"tools": [{"name": "f", "inputSchema": schema}]}
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": tools})

    async with served(handler) as url, front_of(url) as front:
        front.send({"id": 1, "method": "tools/list", "params": {"_meta": META}})
        await front.answer(1)
        front.send(
            {"id": 2, "method": "tools/call", "params": {"name": "f", "arguments": {"region": "Zürich"}, "_meta": META}}
        )
        await front.answer(2)
    version = {"MCP-Protocol-Version": "2026-07-28"}
    assert seen[0] == version | {"Mcp-Method": "tools/list"}
    assert seen[1] == version | {
        "Mcp-Method": "tools/call",
        "Mcp-Name": "f",
        "Mcp-Param-Region": "=?base64?WsO8cmljaA==?=",
    }


def test_header_values_and_places() -> None:
    assert header_value("plain text") == "plain text"
    assert header_value(" edge") == "=?base64?IGVkZ2U=?="
    assert header_value("=?base64?x?=").startswith("=?base64?")
    params = ParamHeaders()
    inner = {"properties": {"b": {"x-mcp-header": "B"}, "bad": {"x-mcp-header": "not a token"}}}
    params.learn({"tools": [{"name": "t", "inputSchema": {"properties": {"a": inner}}}, {"name": 1}, 7]})
    assert params.of("t", {"a": {"b": True}}) == {"Mcp-Param-B": "true"}
    assert params.of("t", {"a": {"b": 5}}) == {"Mcp-Param-B": "5"}
    assert params.of("t", {"a": {"b": None}}) == params.of("t", {"a": 1}) == params.of("u", {}) == {}
    params.learn({"tools": [{"name": "t", "inputSchema": None}]})
    assert params.of("t", {"a": {"b": True}}) == {}


@pytest.mark.asyncio
async def test_an_empty_input_ends_at_once() -> None:
    null = Path(os.devnull)
    with null.open("rb") as stdin, null.open("wb") as stdout:
        assert await serve_stdio("unix:/no/such.sock", stdin, stdout, log=lambda line: None) == 0
