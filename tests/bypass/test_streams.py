"""Bypasses that take more than one connection: replayed streams, the legacy transport, lists that others may cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from typing import Any, Self, cast

import pytest

from bypass.vectors.build import ACCEPT, BASE, DELETE, HOST, call, compact, post
from support import servers
from support.rawhttp import Stream, exchange, request
from support.relay import Relay
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("bypass")]

POLICY = """\
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {name: streams}
spec:
  selector: {}
  defaultAction: Deny
  rules:
  - name: harmless
    match: {tools: [get_sum, echo, wait_for_gate]}
    action: Allow
  - name: never-delete
    match: {tools: [delete_everything]}
    action: Deny
    reason: nothing is deleted here
    hide: true
"""
LIST: dict[str, Any] = {"jsonrpc": "2.0", "id": 3, "method": "tools/list", "params": {}}
REVISION = "2025-11-25"
Address = tuple[str, int]


@contextlib.contextmanager
def guarded(server: servers.Server, path: str = "/mcp") -> Generator[tuple[Address, Sidecar]]:
    url = f"http://127.0.0.1:{server.port}{path}"
    with Sidecar(POLICY, url, path=path) as sidecar:
        yield sidecar.address, sidecar


@pytest.fixture(scope="module")
def sessions() -> Generator[servers.Server]:
    with servers.reference() as server:
        yield server


@pytest.fixture(scope="module", params=["python1", "node1"])
def legacy(request: pytest.FixtureRequest) -> Generator[servers.Server]:
    with servers.stack(request.param) as server:
        yield server


# -- replay


def open_session(address: Address, *extra: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """The headers of a new session: its id and its revision."""
    params = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": {"name": "vector", "version": "1"}}
    body = compact({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
    reply = exchange(address, request("POST", "/mcp", [*BASE, *extra], body)).reply
    assert reply is not None
    assert reply.status == 200
    headers = (("Mcp-Session-Id", reply.headers["mcp-session-id"]), ("MCP-Protocol-Version", REVISION))
    ready = compact({"jsonrpc": "2.0", "method": "notifications/initialized"})
    exchange(address, request("POST", "/mcp", [*BASE, *headers, *extra], ready))
    return headers


def replayed_list(address: Address) -> bytes:
    """Ask for the tools, then have the answer replayed from the event before it."""
    session = open_session(address)
    asked = exchange(address, request("POST", "/mcp", [*BASE, *session], compact(LIST))).reply
    assert asked is not None
    primer = next(line for line in asked.body.splitlines() if line.startswith(b"id:"))
    resume = [HOST, ("Accept", "text/event-stream"), *session, ("Last-Event-ID", primer[3:].strip())]
    with Stream(address, request("GET", "/mcp", resume)) as stream:
        return stream.event(b'"tools":')


def test_a_relay_replays_the_whole_list(sessions: servers.Server) -> None:
    with Relay(sessions.address) as relay:
        assert DELETE.encode() in replayed_list(("127.0.0.1", relay.port))


def test_a_replayed_list_is_filtered(sessions: servers.Server) -> None:
    with guarded(sessions) as (address, _):
        found = replayed_list(address)
        assert b'"get_sum"' in found
        assert DELETE.encode() not in found


# -- the legacy transport


class Legacy:
    """A client of HTTP+SSE: one stream for all answers, and a path for messages that the stream announces."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.stream = Stream(address, request("GET", "/sse", [HOST, ("Accept", "text/event-stream")]))
        self.path = self.stream.event(b"event: endpoint").decode()
        params = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "v", "version": "1"}}
        self.ask({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def send(self, message: dict[str, Any]) -> None:
        exchange(self.address, request("POST", self.path, BASE, compact(message)))

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to ``message``, from the stream."""
        self.send(message)
        return cast(dict[str, Any], json.loads(self.stream.event(b'"id":%d' % message["id"])))


def said(answer: dict[str, Any]) -> str:
    return answer["result"]["content"][0]["text"]


def status(address: Address, data: bytes) -> int:
    reply = exchange(address, data).reply
    assert reply is not None
    return reply.status


def test_a_relay_lets_the_legacy_transport_delete(legacy: servers.Server) -> None:
    with Relay(legacy.address) as relay, Legacy(("127.0.0.1", relay.port)) as client:
        before = legacy.executed(DELETE)
        client.ask(call(id=41))
        assert legacy.executed(DELETE) == before + 1
        assert DELETE in json.dumps(client.ask(LIST | {"id": 42}))


@pytest.mark.parametrize("path", ["/sse", "/mcp"])
def test_the_legacy_transport_is_judged_and_filtered(legacy: servers.Server, path: str) -> None:
    """The stream's usual path is served beside the newer endpoint too, for clients that fall back to it."""
    before = legacy.executed(DELETE)
    with guarded(legacy, path) as (address, sidecar), Legacy(address) as client:
        assert said(client.ask(call("get_sum", {"a": 1, "b": 2}, id=40))).startswith("3")
        denied = client.ask(call(id=41))
        assert denied["result"]["isError"], sidecar.log()
        assert "nothing is deleted here" in said(denied)
        listed = json.dumps(client.ask(LIST | {"id": 42}))
        assert "get_sum" in listed
        assert DELETE not in listed
    assert legacy.executed(DELETE) == before


def test_message_paths_of_no_stream_are_closed(legacy: servers.Server) -> None:
    """The messages of a stream that was opened beside the sidecar, and other paths of the same server."""
    before = legacy.executed(DELETE)
    with guarded(legacy) as (address, _), Legacy(legacy.address) as direct:
        for path in (direct.path, "/messages", "/messages/", "/raw"):
            assert status(address, request("POST", path, BASE, compact(call(id=41)))) == 404, path
        direct.ask(LIST | {"id": 43})
    assert legacy.executed(DELETE) == before


def test_a_message_path_that_was_not_announced_is_closed(legacy: servers.Server) -> None:
    """A stranger's message path: its stream was opened beside the sidecar, which has not announced it."""
    before = legacy.executed(DELETE)
    with guarded(legacy, "/sse") as (address, _), Legacy(address) as client, Legacy(legacy.address) as direct:
        bare = client.path.partition("?")[0]
        for path in (bare.upper(), f"{bare}/x", f"{client.path}#x", f"/.{client.path}", f"/{client.path}"):
            assert status(address, request("POST", path, BASE, compact(call(id=41)))) == 404, path
        assert status(address, request("POST", direct.path, BASE, compact(call(id=41)))) in {200, 202, 404}
        direct.ask(LIST | {"id": 43})
        client.ask(LIST | {"id": 44})
    assert legacy.executed(DELETE) == before


# -- lists that others may keep


@pytest.mark.parametrize("kind", ["golang", "plain"])
def test_a_filtered_list_is_nobody_elses(kind: str) -> None:
    """One list for all callers may be kept by a shared cache; a filtered one is for the caller it was filtered for."""
    with servers.stack(kind) as server:
        with Relay(server.address) as relay:
            public = exchange(("127.0.0.1", relay.port), post(LIST)).reply
            assert public is not None
            assert public.json()["result"]["cacheScope"] == "public"
            assert DELETE in public.body.decode()
        with guarded(server) as (address, _):
            private = exchange(address, post(LIST)).reply
            assert private is not None
            result = private.json()["result"]
            assert result["cacheScope"] == "private"
            assert result["ttlMs"] <= 60_000
            assert DELETE not in private.body.decode()


def test_a_list_in_a_batch_is_filtered() -> None:
    with servers.stack("node1") as server:
        headers = [HOST, ("Content-Type", "application/json"), ACCEPT, ("MCP-Protocol-Version", "2025-03-26")]
        data = request("POST", "/mcp", headers, compact([LIST, LIST | {"id": 4}]))
        with Relay(server.address) as relay:
            whole = exchange(("127.0.0.1", relay.port), data).reply
            assert whole is not None
            assert DELETE in whole.body.decode()
        with guarded(server) as (address, _):
            filtered = exchange(address, data).reply
            assert filtered is not None
            assert DELETE not in filtered.body.decode()
