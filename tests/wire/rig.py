"""A sidecar in this process between raw clients and scripted upstreams. Everything has a deadline, nothing sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from support.policies import allow, compiled, deny, policy
from toolpolicy.policy.model import Policy
from toolpolicy.sidecar.app import Sidecar
from toolpolicy.sidecar.identity import RequestIdentifier
from toolpolicy.sidecar.interfaces import AuditEntry, AuditLog, Identifier, StateStore
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.rules import RuleSet
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.state.memory import MemoryState

DEADLINE = 10.0
JSON_HEADERS = (
    "Content-Type: application/json",
    "Accept: application/json, text/event-stream",
)
READS = policy(allow("get_*", "list_*"), deny("delete_*", reason="no deletes"))


# ---- the rules, the audit


class StaticRules:
    """A RuleSource that is told what to hold."""

    def __init__(self, *policies: Policy) -> None:
        self.current: RuleSet | None = None
        self._subscribers: list[Callable[[], None]] = []
        if policies:
            self.put(*policies)

    def put(self, *policies: Policy) -> None:
        self.current = RuleSet(compiled(*policies), f"r{id(policies)}", 0, 0.0)
        self._changed()

    def lose(self) -> None:
        self.current = None
        self._changed()

    def _changed(self) -> None:
        for changed in self._subscribers:
            changed()

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._subscribers.append(changed)


class ListAudit:
    """Keeps entries; ``works`` False: a full disk."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        self.works = True

    def record(self, entry: AuditEntry) -> bool:
        self.entries.append(entry)
        return self.works

    def close(self) -> None:
        pass


# ---- the upstream


@dataclass
class Seen:
    """A request as the upstream got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        return found[0] if found else None

    def json(self) -> Any:
        return json.loads(self.body)


class Peer:
    """One connection to the upstream, from its side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number
        self.over = False
        """The other side has closed."""

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: Any, status: int = 200, *headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(data)}", *headers]
        await self.write("\r\n".join([*head, "", ""]).encode() + data)

    async def open_stream(self, *headers: str) -> None:
        head = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", *headers]
        await self.write("\r\n".join([*head, "", ""]).encode())

    async def event(self, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.write(b"0\r\n\r\n")

    def abort(self) -> None:
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Until the other side has closed."""
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


Script = Callable[[Peer, Seen], Awaitable[None]]


async def echo(peer: Peer, seen: Seen) -> None:
    """Answers every request with a result that says what was called."""
    if seen.method != "POST":
        await peer.answer(b"", 405, "Allow: POST")
        return
    message = seen.json()
    items: list[Any] = cast(list[Any], message) if isinstance(message, list) else [message]
    answers = [{"jsonrpc": "2.0", "id": m["id"], "result": result_of(m)} for m in items if "id" in m and "method" in m]
    if not answers:
        await peer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
    elif items[0].get("method") == "initialize":
        await peer.answer(answers[0], 200, "Mcp-Session-Id: s-1")
    else:
        await peer.answer(answers if isinstance(message, list) else answers[0])


TOOLS: list[dict[str, Any]] = [
    {"name": "get_thing", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}},
    {"name": "delete_thing", "inputSchema": {"type": "object"}},
]


def result_of(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("method") == "tools/list":
        return {"tools": TOOLS}
    name = message.get("params", {}).get("name")
    return {"content": [{"type": "text", "text": f"executed {name}"}]}


@dataclass
class Upstream:
    """A scripted HTTP server; ``script`` is called for each whole request."""

    script: Script
    port: int = 0
    seen: list[Seen] = field(default_factory=list[Seen])
    peers: list[Peer] = field(default_factory=list[Peer])
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @property
    def executed(self) -> list[str]:
        """The tools that were called, in order."""
        names: list[str] = []
        for seen in self.seen:
            if seen.method == "POST" and seen.body:
                message = seen.json()
                items: list[Any] = cast(list[Any], message) if isinstance(message, list) else [message]
                names.extend(item["params"]["name"] for item in items if item.get("method") == "tools/call")
        return names

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE), self.changed:
            await self.changed.wait_for(holds)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, len(self.peers))
        self.peers.append(peer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                seen = await read_request(reader, peer.number)
                self.seen.append(seen)
                async with self.changed:
                    self.changed.notify_all()
                await self.script(peer, seen)
        writer.close()
        async with self.changed:
            peer.over = True
            self.changed.notify_all()


async def read_request(reader: asyncio.StreamReader, connection: int) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line)]
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    return Seen(method, target, headers, await reader.readexactly(length), connection)


@contextlib.asynccontextmanager
async def upstream(script: Script = echo) -> AsyncGenerator[Upstream]:
    found = Upstream(script)
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(found.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        failures = await asyncio.gather(*tasks, return_exceptions=True)
        for peer in found.peers:
            peer.abort()
        for failure in failures:
            if isinstance(failure, Exception):
                raise failure


# ---- the sidecar


class Running:
    """A sidecar and what it works with."""

    def __init__(self, sidecar: Sidecar, rules: StaticRules, audit: ListAudit, metrics: Metrics) -> None:
        self.sidecar = sidecar
        self.rules = rules
        self.audit = audit
        self.metrics = metrics

    @property
    def port(self) -> int:
        return self.sidecar.port

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        client = Client(reader, writer)
        try:
            yield client
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def sidecar(
    target: str,
    *policies: Policy,
    rules: StaticRules | None = None,
    identifier: Identifier | None = None,
    state: StateStore | None = None,
    audit: AuditLog | None = None,
    **settings: Any,
) -> AsyncGenerator[Running]:
    wanted: dict[str, Any] = {"listen": "127.0.0.1:0", "upstream": target, "drain_grace": 2.0, **settings}
    chosen = Settings(**wanted)
    source = rules if rules is not None else StaticRules(*(policies or (READS,)))
    kept = ListAudit()
    metrics = Metrics()
    found = Sidecar(
        chosen,
        source,
        identifier or RequestIdentifier(None, b"key", chosen),
        state or MemoryState(),
        audit or kept,
        metrics,
    )
    await found.start()
    try:
        yield Running(found, source, kept, metrics)
    finally:
        async with asyncio.timeout(DEADLINE):
            await found.drain()


# ---- the client


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True
    """False: the connection broke inside the answer."""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """What the agent is told."""
        found = self.json()
        if "result" in found:
            return cast(str, found["result"]["content"][0]["text"])
        return cast(str, found["error"]["message"])

    @property
    def denied(self) -> bool:
        found = self.json()
        return bool(found.get("result", {}).get("isError")) or "error" in found


class Client:
    """A raw HTTP/1.1 client on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, body: Any, *headers: str, target: str = "/mcp") -> Reply:
        await self.send(post(body, *headers, target=target))
        return await self.reply()

    async def post_only(self, body: Any, *headers: str) -> None:
        await self.send(post(body, *headers))

    async def call(self, tool: str, arguments: dict[str, Any] | None = None, *headers: str, id: Any = 1) -> Reply:
        return await self.post(call(tool, arguments, id=id), *headers)

    async def get(self, *headers: str, target: str = "/mcp", method: str = "GET") -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/event-stream", *headers, "", ""]
        await self.send("\r\n".join(lines).encode())

    async def head(self) -> Reply:
        """The status and headers of the next answer; the body is left on the connection."""
        async with asyncio.timeout(DEADLINE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines[1:] if line]
        headers: dict[str, str] = {}
        for name, _, value in pairs:
            assert name.lower() not in headers, f"{name} occurs twice"
            headers[name.lower()] = value.strip()
        return Reply(int(lines[0].split(" ")[1]), headers, b"")

    async def reply(self, *, bodiless: bool = False) -> Reply:
        reply = await self.head()
        if bodiless or reply.status in (204, 304):
            return reply
        async with asyncio.timeout(DEADLINE):
            try:
                if reply.headers.get("transfer-encoding") == "chunked":
                    while (piece := await self._chunk()) is not None:
                        reply.body += piece
                elif "content-length" in reply.headers:
                    reply.body = await self.reader.readexactly(int(reply.headers["content-length"]))
                else:
                    reply.body = await self.reader.read()
            except (asyncio.IncompleteReadError, ConnectionError):
                reply.whole = False
        return reply

    async def chunk(self) -> bytes | None:
        """The next chunk of an open stream; None at its clean end. Raises IncompleteReadError or ConnectionError if it
        breaks.
        """
        async with asyncio.timeout(DEADLINE):
            return await self._chunk()

    async def _chunk(self) -> bytes | None:
        line = await self.reader.readuntil(b"\r\n")
        size = int(line, 16)
        data = await self.reader.readexactly(size + 2)
        return data[:-2] if size else None

    async def closed(self) -> bool:
        """Whether the other side closes; True once it did."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    def abort(self) -> None:
        self.writer.transport.abort()


def call(tool: str, arguments: dict[str, Any] | None = None, *, id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments or {}}}


def request(method: str, params: dict[str, Any] | None = None, *, id: Any = 1) -> dict[str, Any]:
    found: dict[str, Any] = {"jsonrpc": "2.0", "id": id, "method": method}
    return found if params is None else {**found, "params": params}


def post(body: Any, *headers: str, target: str = "/mcp", usual: Sequence[str] = JSON_HEADERS) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {target} HTTP/1.1", "Host: 127.0.0.1", *usual, f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


INITIALIZE = request(
    "initialize",
    {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "tester", "version": "1"}},
    id=0,
)
