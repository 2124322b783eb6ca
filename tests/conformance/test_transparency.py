"""What the suite does not notice: a real server's answers are the same behind the sidecar, header by header."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping

import pytest

from bypass.vectors.build import ACCEPT, BASE, HOST, JSON_TYPE, LEGACY, MODERN, call, compact, modern, request, standard
from conformance.test_conformance import POLICY
from support import servers
from support.rawhttp import Stream, exchange
from support.relay import Relay
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("conformance")]

REVISION = ("MCP-Protocol-Version", LEGACY)
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date"}
"""Of one connection, or of one second."""
RANDOM = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}|(?<=id: )\d+")
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "v", "version": "1"}},
}


def _message(method: str, **params: object) -> bytes:
    return compact({"jsonrpc": "2.0", "id": 5, "method": method, "params": params})


def _discover() -> bytes:
    message = modern()
    return compact(message | {"method": "server/discover", "params": {"_meta": message["params"]["_meta"]}})


SPACED = compact(call("echo", {"value": "ok"})).replace(
    b'{"value":"ok"}', rb'{ "value" : "\u006fk" , "f":1.50, "e":1E2,  "u":"\u00e9" }'
)
NOTIFICATION = compact({"jsonrpc": "2.0", "method": "notifications/initialized"})
REQUESTS: dict[str, bytes] = {
    "initialize": request("POST", "/mcp", [*BASE, REVISION], compact(INITIALIZE)),
    "initialize, with an allowed origin": request(
        "POST", "/mcp", [*BASE, REVISION, ("Origin", "http://localhost:1234")], compact(INITIALIZE)
    ),
    "initialize, with a foreign origin": request(
        "POST", "/mcp", [*BASE, REVISION, ("Origin", "http://evil.example")], compact(INITIALIZE)
    ),
    "initialize, with a foreign host": request(
        "POST", "/mcp", [("Host", "evil.example"), JSON_TYPE, ACCEPT, REVISION], compact(INITIALIZE)
    ),
    "a call": request("POST", "/mcp", [*BASE, REVISION], compact(call("get_sum", {"a": 1, "b": 2}))),
    "a call of the newest revision": standard(modern("get_sum", {"a": 1, "b": 2}), name="get_sum"),
    "a call whose bytes must not be rewritten": request("POST", "/mcp", [*BASE, REVISION], SPACED),
    "an unknown tool": request("POST", "/mcp", [*BASE, REVISION], compact(call("no_such_tool"))),
    "a list": request("POST", "/mcp", [*BASE, REVISION], _message("tools/list")),
    "a ping": request("POST", "/mcp", [*BASE, REVISION], _message("ping")),
    "an unknown method": request("POST", "/mcp", [*BASE, REVISION], _message("no/such/method")),
    "a discovery": request(
        "POST", "/mcp", [*BASE, ("MCP-Protocol-Version", MODERN), ("Mcp-Method", "server/discover")], _discover()
    ),
    "a notification": request("POST", "/mcp", [*BASE, REVISION], NOTIFICATION),
    "an unacceptable Accept": request(
        "POST", "/mcp", [HOST, JSON_TYPE, ("Accept", "text/html"), REVISION], _message("ping")
    ),
    "no Accept": request("POST", "/mcp", [HOST, JSON_TYPE, REVISION], _message("ping")),
    "a session that is unknown": request(
        "POST", "/mcp", [*BASE, REVISION, ("Mcp-Session-Id", "unknown")], _message("ping")
    ),
    "a stream without a session": request("GET", "/mcp", [HOST, ACCEPT, REVISION]),
    "a stream of an unknown session": request("GET", "/mcp", [HOST, ACCEPT, REVISION, ("Mcp-Session-Id", "unknown")]),
    "a stream resumed nowhere": request("GET", "/mcp", [HOST, ACCEPT, REVISION, ("Last-Event-ID", "999999")]),
    "an end without a session": request("DELETE", "/mcp", [HOST, REVISION]),
    "an end of an unknown session": request("DELETE", "/mcp", [HOST, REVISION, ("Mcp-Session-Id", "unknown")]),
    "OPTIONS": request(
        "OPTIONS", "/mcp", [HOST, ("Origin", "http://localhost"), ("Access-Control-Request-Method", "POST")]
    ),
    "HEAD": request("HEAD", "/mcp", [HOST]),
    "a discovery document": request("GET", "/.well-known/oauth-protected-resource/mcp", [HOST]),
}


@pytest.fixture(scope="module", params=["sessions", "python1", "node1", "node2", "everything"])
def pair(request: pytest.FixtureRequest) -> Generator[tuple[Relay, Sidecar]]:
    """A server behind a relay and behind a sidecar."""
    kind = str(request.param)
    start = {"sessions": servers.reference, "everything": servers.everything}
    with (
        start.get(kind, lambda: servers.stack(kind))() as server,
        Relay(server.address) as relay,
        Sidecar(POLICY, server.url) as sidecar,
    ):
        yield relay, sidecar


def answer(address: tuple[str, int], data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; of a HEAD or of a GET that opens a stream, the head alone."""
    if data.startswith((b"HEAD", b"GET")):
        with Stream(address, data) as stream:
            head = stream.until(b"\r\n\r\n").partition(b"\r\n\r\n")[0]
        lines = [line.decode("latin-1").partition(": ") for line in head.split(b"\r\n")[1:]]
        headers = {name.lower(): value for name, _, value in lines}
        if data.startswith(b"HEAD") or headers.get("content-type") == "text/event-stream":
            return int(head.split(b" ")[1]), shown(headers), b""
    reply = exchange(address, data).reply
    assert reply is not None, "no answer"
    return reply.status, shown(reply.headers), RANDOM.sub(b"*", reply.body)


def shown(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that are the server's own, without what is random in them."""
    kept = {name: value for name, value in headers.items() if name not in HOP}
    return {name: RANDOM.sub(b"*", value.encode("latin-1")).decode("latin-1") for name, value in kept.items()}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answer_is_the_servers_own(pair: tuple[Relay, Sidecar], name: str) -> None:
    relay, sidecar = pair
    direct = answer(("127.0.0.1", relay.port), REQUESTS[name])
    assert answer(sidecar.address, REQUESTS[name]) == direct, sidecar.log()
