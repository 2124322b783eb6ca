"""MCP servers that say just what a test wants, over HTTP and stdio, without any SDK."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

TOOLS: list[dict[str, Any]] = [
    {"name": "get_item", "inputSchema": {"type": "object", "properties": {"id": {"type": "string"}}}},
    {"name": "delete_item", "inputSchema": {"type": "object"}},
    {"name": "list_things", "inputSchema": {"type": "object"}, "annotations": {"destructiveHint": True}},
    {"name": "create_item", "inputSchema": {"type": "object", "required": ["id"]}},
    {"name": "get_secret", "inputSchema": {"type": "object"}},
    {"name": "pay_invoice", "inputSchema": {"type": "object"}},
    {"name": "run_it", "inputSchema": {"type": "no-such-type"}},
]
INFO = {"name": "fixture server", "version": "1.2"}

Asked = tuple[str, dict[str, Any], dict[str, str]]
Answer = Callable[["Fixture", dict[str, Any]], tuple[int, dict[str, str], bytes] | None]


@dataclass
class Fixture:
    """An MCP server over HTTP. ``answer`` may answer in its place; ``seen`` is what it was asked."""

    answer: Answer = lambda _fixture, _message: None
    page: int = 3
    stream: bool = False
    url: str = ""
    seen: list[Asked] = field(default_factory=list[Asked])

    def result(self, message: dict[str, Any]) -> dict[str, Any]:
        params = cast("dict[str, Any]", message.get("params") or {})
        if message["method"] in ("initialize", "server/discover"):
            return {"protocolVersion": params.get("protocolVersion"), "capabilities": {"tools": {}}, "serverInfo": INFO}
        start = int(params.get("cursor", 0))
        end = start + self.page
        listed: dict[str, Any] = {"tools": TOOLS[start:end]}
        return listed | ({"nextCursor": str(end)} if end < len(TOOLS) else {})

    def respond(self, message: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        own = self.answer(self, message)
        if own is not None:
            return own
        if "id" not in message:
            return 202, {}, b""
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": self.result(message)}).encode()
        headers = {"Content-Type": "application/json"}
        if self.stream:
            note = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "hi"}}).encode()
            body = b": hello\r\n\r\ndata: " + note + b"\r\n\r\nevent: message\r\ndata: " + body + b"\r\n\r\n"
            headers = {"Content-Type": "text/event-stream"}
        if message["method"] == "initialize":
            headers["Mcp-Session-Id"] = "s-1"
        return 200, headers, body


STDIO = """
import json, os, signal, sys
mode = sys.argv[1]
TOOLS = json.loads(sys.argv[2])
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("to stderr: hello", file=sys.stderr, flush=True)
if mode == "dies":
    sys.exit(3)
def say(value): print(json.dumps(value), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if mode == "silent" or "id" not in message or "method" not in message:
        continue
    if mode == "noisy":
        print("not json")
        say({"jsonrpc": "2.0", "id": "q", "method": "ping"})
        assert json.loads(sys.stdin.readline())["result"] == {}
        say({"jsonrpc": "2.0", "id": "r", "method": "roots/list"})
        assert json.loads(sys.stdin.readline())["error"]["code"] == -32601
    if mode == "endless":
        while True:
            say({"jsonrpc": "2.0", "method": "notifications/x"})
    if mode == "long":
        print("x" * (17 * 1024 * 1024), flush=True)
    if message["method"] == "initialize" and mode == "stateless":
        say({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no"}})
        continue
    say({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": TOOLS, "protocolVersion": "2025-11-25"}})
if mode == "stubborn":
    with open(sys.argv[3], "w") as file:
        file.write(str(os.getpid()))
    signal.pause()
"""
