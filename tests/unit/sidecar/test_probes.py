"""Probes that the sidecar asks for the kubelet: what passes, what fails, and that nothing else can be asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.processes import Program
from toolpolicy.sidecar.admin import Health, start_admin
from toolpolicy.sidecar.audit import NoAuditLog
from toolpolicy.sidecar.grpchealth import GrpcFault, frame, question, status_of
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.probes import Probe, Probes, check, parse_probes
from toolpolicy.sidecar.rules import FileRules
from tools import environments

DEADLINE = 10.0


class Server:
    """Answers every request with ``answer(request's head)``; counts them."""

    def __init__(self, answer: Callable[[str], bytes | None]) -> None:
        self.answer = answer
        self.heads: list[str] = []
        self.port = 0
        self.asked = asyncio.Event()
        self.held = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        self.asked.set()
        said = self.answer(head)
        if said is None:
            await self.held.wait()
            said = b"HTTP/1.1 200 OK\r\n\r\n"
        writer.write(said)
        await reader.read()  # it is left open: an answer is whole by its length


def answer(status: int, *headers: str, body: bytes = b"") -> Callable[[str], bytes]:
    lines = [f"HTTP/1.1 {status} X", *headers, f"Content-Length: {len(body)}", "", ""]
    return lambda head: "\r\n".join(lines).encode() + body


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, host: str = "127.0.0.1") -> AsyncGenerator[int]:
    """The port of a server that is gone, every connection of it, when this ends."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(handle(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(connected, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*tasks)


@asynccontextmanager
async def serving(said: Callable[[str], bytes | None]) -> AsyncGenerator[Server]:
    found = Server(said)
    async with listening(found.serve) as found.port:
        try:
            yield found
        finally:
            found.held.set()


async def asked(probe: Probe) -> tuple[bool, str]:
    async with asyncio.timeout(DEADLINE):
        return await check(probe)


# -- HTTP


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "passes"), [(200, True), (204, True), (301, True), (399, True), (400, False), (404, False), (503, False)]
)
async def test_http_passes_from_200_to_399(status: int, passes: bool) -> None:
    async with serving(answer(status)) as server:
        assert await asked(Probe("http", server.port)) == (passes, f"HTTP {status}")


@pytest.mark.asyncio
async def test_http_asks_what_the_kubelet_would() -> None:
    async with serving(answer(200, body=b"x" * 50_000)) as server:
        probe = Probe("http", server.port, path="/healthz?deep=1", headers=(("X-A", "1"), ("host", "mcp.example")))
        assert (await asked(probe))[0]
    head = server.heads[0]
    assert head.startswith("GET /healthz?deep=1 HTTP/1.1\r\n")
    assert "\r\nX-A: 1\r\n" in head
    assert head.lower().count("\r\nhost:") == 1
    assert "\r\nhost: mcp.example\r\n" in head
    assert "\r\nUser-Agent: kube-probe/" in head


@pytest.mark.asyncio
async def test_a_redirect_to_the_server_itself_is_followed_and_decides() -> None:
    def said(head: str) -> bytes:
        if head.startswith("GET /healthz "):
            return answer(302, "Location: /deep/")(head)
        return answer(500)(head)

    async with serving(said) as server:
        assert await asked(Probe("http", server.port, path="/healthz")) == (False, "HTTP 500")
        assert len(server.heads) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "location", ["http://{other}/", "//{other}/x", "https://localhost:{port}/", "http://[::1", "ftp://x", "\x01"]
)
async def test_a_redirect_elsewhere_is_an_answer_and_not_followed(location: str) -> None:
    async with serving(answer(200)) as other, serving(lambda head: b"") as server:
        where = location.format(other=f"127.0.0.1:{other.port}", port=server.port)
        server.answer = answer(302, f"Location: {where}")
        assert await asked(Probe("http", server.port)) == (True, "HTTP 302")
        assert (len(server.heads), other.heads) == (1, [])


@pytest.mark.asyncio
async def test_redirects_in_a_circle_fail() -> None:
    async with serving(answer(302, "Location: /")) as server:
        assert await asked(Probe("http", server.port)) == (False, "more than 10 redirects")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "said", [b"", b"hello\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, b"\xff" * 10]
)
async def test_what_is_no_answer_fails(said: bytes) -> None:
    async with serving(lambda head: said) as server:
        passed, found = await asked(Probe("http", server.port, timeout=0.5))
    assert not passed
    assert found


@pytest.mark.asyncio
async def test_a_server_that_hangs_fails_in_time() -> None:
    async with serving(lambda head: None) as server:
        assert await asked(Probe("http", server.port, timeout=0.2)) == (False, "no answer within 0.2 s")


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["http", "tcp", "grpc"])
async def test_a_dead_server_fails(kind: str) -> None:
    async with serving(answer(200)) as server:
        port = server.port
        assert (await asked(Probe("tcp", port))) == (True, "connected")
    passed, found = await asked(Probe(kind, port))
    assert not passed
    assert "refused" in found


@pytest.mark.asyncio
async def test_a_server_on_ipv6_alone_is_found() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(accept, "::1") as port:
        assert await asked(Probe("tcp", port)) == (True, "connected")


# -- gRPC


@pytest.fixture(scope="module")
def health() -> Iterator[int]:
    script = Path(__file__).parents[2] / "fixtures" / "health.cjs"
    with Program([environments.node(), script], name="health") as program:
        yield program.first_json()["port"]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("service", "passes", "found"),
    [
        ("", True, "SERVING"),
        ("good", True, "SERVING"),
        ("padded", True, "SERVING"),
        ("bad", False, "its health is NOT_SERVING"),
        ("vague", False, "its health is UNKNOWN"),
        ("nobody" * 40, False, "the server knows no grpc.health.v1.Health, or not this service"),
        ("slow", False, "no answer within 2 s"),
    ],
)
async def test_a_grpc_servers_health_decides(health: int, service: str, passes: bool, found: str) -> None:
    assert await asked(Probe("grpc", health, timeout=2, service=service)) == (passes, found)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(7, 0, 0, bytes(8)),
        frame(3, 0, 1, bytes(4)),
        frame(0, 1, 1, b""),
        frame(0, 1, 1, b"\0\0\0\0\2\x08\2"),
        frame(0, 1, 3, b"\0\0\0\0\2\x08\1"),
        frame(0, 0, 1, b"\0\0\0\0\2\x08\1") * 600,
        frame(4, 0, 0, b"") * 100,
        frame(0, 9, 1, b"\xff\0"),
    ],
)
async def test_what_is_no_health_fails(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()

    async with listening(serve) as port:
        passed, found = await asked(Probe("grpc", port, timeout=0.5))
    assert not passed
    assert found


@pytest.mark.parametrize(
    "message", [b"", b"\0", b"\1\0\0\0\2\x08\1", b"\0\0\0\0\3\x08\1", b"\0\0\0\0\2\x10\1", b"\0\0\0\0\4\x08\1\x08\1"]
)
def test_only_an_exact_message_is_a_status(message: bytes) -> None:
    with pytest.raises(GrpcFault):
        status_of(message)


def test_a_long_service_name_is_framed_by_its_length() -> None:
    name = "s" * 300
    assert b"\x0a\xac\x02" + name.encode() in question("localhost:1", name)


# -- once at a time, configured ones only


@pytest.mark.asyncio
async def test_many_who_ask_at_once_get_one_answer() -> None:
    async with serving(lambda head: None) as server:
        probes = Probes({"app/liveness": Probe("http", server.port, timeout=5)})
        async with asyncio.timeout(DEADLINE):
            asking = [asyncio.create_task(probes.ask("app/liveness")) for _ in range(200)]
            await server.asked.wait()
            asking[0].cancel()  # one that gives up takes nobody with it
            server.held.set()
            found = await asyncio.gather(*asking, return_exceptions=True)
            again = await probes.ask("app/liveness")
        await probes.close()
    assert isinstance(found[0], asyncio.CancelledError)
    assert set(map(str, found[1:])) == {str(again)}
    assert len(server.heads) == 1


@pytest.mark.asyncio
async def test_a_hook_is_carried_out_each_time() -> None:
    async with serving(answer(200)) as server:
        probes = Probes({"app/preStop": Probe("http", server.port)})
        async with asyncio.timeout(DEADLINE):
            for _ in range(3):
                assert (await probes.ask("app/preStop"))[0]
        await probes.close()
    assert len(server.heads) == 3


@pytest.mark.asyncio
async def test_the_admin_port_answers_configured_probes_alone(tmp_path: Path) -> None:
    async with serving(answer(503)) as server:
        text = json.dumps(
            {"app/liveness": {"type": "http", "port": server.port}, "b.c/startup": {"type": "tcp", "port": 1}}
        )
        probes = Probes(parse_probes(text))
        health = Health(FileRules([tmp_path]), NoAuditLog(), lambda: 0)
        admin = await start_admin("127.0.0.1:0", health, Metrics(), probes)
        timeout = aiohttp.ClientTimeout(total=DEADLINE)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{admin.port}", timeout=timeout) as client:
            failed = await client.get("/probe/app/liveness")
            assert (failed.status, await failed.text()) == (503, "failed: HTTP 503\n")
            assert (await client.get("/probe/b.c/startup")).status == 503
            for path in ("/probe/app/readiness", "/probe/x/liveness", "/probe/app/liveness/", "/probe/app", "/probe"):
                assert (await client.get(path)).status == 404
            assert (await client.get("/probe/app/liveness?port=22&path=/x")).status == 503
            assert (await client.post("/probe/app/liveness")).status == 405
        await admin.close()
        await probes.close()
    assert len(server.heads) == 1


# -- what is configured


def test_what_a_pod_says_is_understood() -> None:
    found = parse_probes(
        json.dumps(
            {
                "app/liveness": {
                    "type": "http", "port": 8000, "path": "healthz", "scheme": "HTTPS",
                    "headers": [{"name": "X-A", "value": "b c"}], "timeout": 3,
                },
                "app/readiness": {"type": "tcp", "port": 8000},
                "app/startup": {"type": "grpc", "port": 9000, "service": "a.B"},
            }
        )
    )  # fmt: skip
    assert found == {
        "app/liveness": Probe("http", 8000, 3.0, "/healthz", True, (("X-A", "b c"),)),
        "app/readiness": Probe("tcp", 8000),
        "app/startup": Probe("grpc", 9000, service="a.B"),
    }


GOOD: dict[str, Any] = {"type": "http", "port": 8000}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "expected an object"),
        ({"app": GOOD}, "expected CONTAINER/"),
        ({"app/other": GOOD}, "expected CONTAINER/"),
        ({"../liveness": GOOD}, "expected CONTAINER/"),
        ({"app/liveness": None}, "type: expected http, tcp, grpc"),
        ({"app/liveness": {**GOOD, "type": "exec"}}, "type: expected http, tcp, grpc"),
        ({"app/liveness": {**GOOD, "host": "169.254.169.254"}}, "host: no such field"),
        ({"app/liveness": {**GOOD, "port": "8000"}}, "port: expected"),
        ({"app/liveness": {**GOOD, "port": True}}, "port: expected"),
        ({"app/liveness": {**GOOD, "port": 0}}, "port: expected"),
        ({"app/liveness": {**GOOD, "timeout": 0}}, "timeout: expected"),
        ({"app/liveness": {**GOOD, "timeout": "1"}}, "timeout: expected"),
        ({"app/liveness": {**GOOD, "path": "/a b"}}, "path and service"),
        ({"app/liveness": {**GOOD, "path": "/\r\nX: y"}}, "path and service"),
        ({"app/liveness": {**GOOD, "path": 3}}, "path and service"),
        ({"app/liveness": {**GOOD, "scheme": "ftp"}}, "scheme: expected"),
        ({"app/liveness": {**GOOD, "headers": {"a": "b"}}}, "headers: expected"),
        ({"app/liveness": {**GOOD, "headers": [{"name": "a b", "value": ""}]}}, "headers: expected"),
        ({"app/liveness": {**GOOD, "headers": [{"name": "a", "value": "x\r\ny: z"}]}}, "headers: expected"),
        ({f"c{i}/liveness": GOOD for i in range(65)}, "65 probes are more than 64"),
    ],
)
def test_what_cannot_be_a_probe_is_refused(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_probes(value if isinstance(value, str) else json.dumps(value))
