"""Asking servers for their tools: both transports, both eras, and servers that misbehave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.saying import INFO, TOOLS, Fixture
from toolpolicy.cli import mcpclient
from toolpolicy.cli.listing import Tools, list_server, list_tools, read_tools, tools_in
from toolpolicy.cli.output import InputError
from toolpolicy.policy.types import ToolInfo

NAMES = [tool["name"] for tool in TOOLS]
Serve = Callable[[Fixture], Fixture]
Stdio = Callable[..., list[str]]
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("stream", [False, True])
def test_streamable_http_with_session_and_pages(serve: Serve, stream: bool) -> None:
    server = serve(Fixture(stream=stream))
    listing = list_server(server.url, None, {"Authorization": "Bearer x"})
    assert [tool.name for tool in listing.tools] == NAMES
    assert listing.tools[2].annotations == {"destructiveHint": True}
    assert (listing.name, listing.version, listing.revision) == (INFO["name"], "1.2", "2025-11-25")
    methods = [method for method, _, _ in server.seen]
    assert methods == ["initialize", "notifications/initialized", *["tools/list"] * 3, "DELETE"]
    assert all(headers["Authorization"] == "Bearer x" for _, _, headers in server.seen)
    assert all(headers["Mcp-Session-Id"] == "s-1" for _, _, headers in server.seen[1:])
    assert all(headers["MCP-Protocol-Version"] == "2025-11-25" for _, _, headers in server.seen[1:])


def test_a_stateless_server_is_asked_as_of_2026(serve: Serve) -> None:
    def answer(_: Fixture, message: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
        if message["method"] != "initialize":
            return None
        error = {"code": -32601, "message": "Method not found"}
        return 404, JSON, json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}).encode()

    server = serve(Fixture(answer))
    listing = list_server(server.url, None)
    assert [tool.name for tool in listing.tools] == NAMES
    assert listing.revision == "2026-07-28"
    method, message, headers = server.seen[-1]
    assert (method, headers["Mcp-Method"], headers["MCP-Protocol-Version"]) == (
        "tools/list",
        "tools/list",
        "2026-07-28",
    )
    assert message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    assert "Mcp-Session-Id" not in headers


def _always(status: int, headers: dict[str, str], body: bytes) -> Fixture:
    return Fixture(lambda _fixture, _message: (status, headers, body))


@pytest.mark.parametrize(
    ("fixture", "said"),
    [
        (_always(302, {"Location": "http://elsewhere/mcp"}, b""), "redirects to http://elsewhere/mcp"),
        (_always(401, {}, b""), "--header"),
        (_always(404, {}, b"nothing here"), "answers 404"),
        (_always(200, {"Content-Type": "text/html"}, b"<html>"), "other than JSON-RPC"),
        (_always(200, JSON, b"[" * 100_000), "other than JSON-RPC"),
        (_always(200, JSON, b'{"jsonrpc":"2.0","id":1,"result":7}'), "neither a result nor an error"),
        (_always(200, {"Content-Type": "text/event-stream"}, b": nothing\n\n"), "ended its stream"),
        (_always(200, JSON, b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"go \\u001b[31m away"}}'), "go"),
        (_always(200, JSON, b'{"jsonrpc":"2.0","id":1,"result":{}}'), "no list of tools"),
    ],
)
def test_answers_that_are_no_list(serve: Serve, fixture: Fixture, said: str) -> None:
    with pytest.raises(InputError, match=said):
        list_tools(serve(fixture).url, None)


def test_a_list_without_end_is_left(serve: Serve) -> None:
    def answer(_: Fixture, message: dict[str, Any]) -> tuple[int, dict[str, str], bytes] | None:
        if message["method"] != "tools/list":
            return None
        result = {"tools": TOOLS, "nextCursor": "again"}
        return 200, JSON, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()

    with pytest.raises(InputError, match="has no end"):
        list_tools(serve(Fixture(answer)).url, None)


def test_a_huge_answer_is_left(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcpclient, "MAX_MESSAGE", 1000)
    with pytest.raises(InputError, match="larger than"):
        list_tools(serve(_always(200, JSON, b" " * 2000)).url, None)
    with pytest.raises(InputError, match="larger than"):
        list_tools(serve(_always(200, {"Content-Type": "text/event-stream"}, b"data: " + b"x" * 2000)).url, None)


def test_nobody_there() -> None:
    with pytest.raises(InputError, match="is the server running there"):
        list_tools("http://127.0.0.1:1/mcp", None)


@pytest.mark.parametrize("url", ["ftp://x/", "http://", "127.0.0.1:8000", "http://\x00/"])
def test_no_url_of_a_server(url: str) -> None:
    with pytest.raises(InputError):
        list_tools(url, None)


@pytest.mark.parametrize("mode", ["plain", "noisy", "stateless"])
def test_stdio(stdio: Stdio, mode: str) -> None:
    listing = list_server(None, stdio(mode))
    assert [tool.name for tool in listing.tools] == NAMES
    assert listing.revision == ("2026-07-28" if mode == "stateless" else "2025-11-25")


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("dies", "ended with 3 without an answer(.|\n)*to stderr: hello"),
        ("endless", "lines without end"),
        ("long", "longer than"),
    ],
)
def test_stdio_servers_that_misbehave(stdio: Stdio, mode: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcpclient, "GRACE", 0.5)
    with pytest.raises(InputError, match=said):
        list_tools(None, stdio(mode))


def test_a_silent_server_is_left(stdio: Stdio) -> None:
    with pytest.raises(InputError, match=r"within 0.2 s"):
        list_server(None, stdio("silent"), patience=0.2)


def test_the_child_is_gone_even_if_it_will_not_go(
    stdio: Stdio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcpclient, "GRACE", 0.5)
    note = tmp_path / "pid"
    assert [tool.name for tool in list_tools(None, stdio("stubborn", note))] == NAMES
    pid = int(note.read_text())  # it outlived the end of its input, as it means to
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(InputError, match="is not installed"):
        list_tools(None, ["no-such-command-here"])
    with pytest.raises(InputError, match="can't be started"):
        list_tools(None, ["a\0b"])


@pytest.mark.parametrize(("url", "command"), [(None, None), (None, []), ("http://x/mcp", ["x"])])
def test_one_server_must_be_named(url: str | None, command: list[str] | None) -> None:
    with pytest.raises(InputError, match="name one server"):
        list_tools(url, command)


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "a"}, {"name": "b"}]}}',
        '{"tools": [{"name": "a", "inputSchema": {}}, {"name": "b", "annotations": null}]}',
        '["a", "b"]',
        "- a\n- name: b\n",
        "tools: [a, b]\n",
    ],
)
def test_tools_from_a_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tools"
    file.write_text(text)
    assert [tool.name for tool in read_tools(str(file))] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "{}", "x: [", '[{"name": ""}]', "[1]", "null", '{"tools": 3}'])
def test_files_that_hold_no_tools(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tools"
    file.write_text(text)
    with pytest.raises(InputError):
        read_tools(str(file))


def test_catalogues() -> None:
    known = ToolInfo("a", {"type": "object"}, {"readOnlyHint": True})
    assert Tools([known]).get("a") == known
    assert Tools([known]).get("b") is None
    assert Tools([known], others=True).get("b") == ToolInfo("b", {"type": "object"})
    assert tools_in(["a"], "here") == [ToolInfo("a")]
