"""Real MCP servers as child processes. Each is a :class:`Server` with its address and, where it has one, its record."""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from support.processes import Program
from tools import environments

FIXTURES = environments.ROOT / "tests" / "fixtures"
STACKS = ("reference", "python1", "node1", "node2", "golang", "plain")
"""The servers of :func:`stack`: two lines of two SDKs, and two without an SDK."""


class Server(Program):
    """A running server on 127.0.0.1."""

    def __init__(self, command: Sequence[str | Path], *, name: str, path: str = "/mcp", **extra: str) -> None:
        super().__init__(command, name=name, env=extra)
        self.path = path
        self.port = 0

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def lab(self) -> dict[str, dict[str, int]]:
        """What a fixture server executed and what was cancelled in it, by name."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_lab", timeout=10) as answer:
            return cast(dict[str, dict[str, int]], json.load(answer))

    def executed(self, tool: str) -> int:
        return self.lab()["executed"].get(tool, 0)

    def open_gate(self, gate: str) -> None:
        """Let ``wait_for_gate`` of the reference server go on."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/_lab/open/{gate}", method="POST")
        urllib.request.urlopen(request, timeout=10).close()


def _announced(server: Server) -> Server:
    """``server`` once it has said where it listens."""
    try:
        server.port = int(server.first_json()["port"])
    except BaseException:
        server.stop()
        raise
    return server


def reference(*arguments: str) -> Server:
    """The reference server (``tests/fixtures/reference``) on the Python SDK 2.x."""
    python = environments.venv("test-mcp2") / "bin" / "python"
    return _announced(Server([python, "-W", "ignore", FIXTURES / "reference", *arguments], name="reference"))


def stack(kind: str) -> Server:
    """One of :data:`STACKS`, without sessions, so that a single request can be a whole vector."""
    source = FIXTURES / "stacks"
    if kind == "reference":
        return reference("--stateless", "--json-response")
    if kind == "python1":
        python = environments.venv("test-mcp1") / "bin" / "python"
        return _announced(Server([python, source / "python1.py"], name=kind))
    if kind in {"node1", "node2"}:
        modules = str(environments.node_modules())
        return _announced(Server([environments.node(), source / f"{kind}.cjs"], name=kind, NODE_PATH=modules))
    if kind == "golang":
        return _announced(Server([environments.go_program(source / "golang")], name=kind))
    if kind == "plain":
        return _announced(Server([sys.executable, source / "plain.py"], name=kind))
    raise ValueError(f"unknown stack {kind!r}; there are {', '.join(STACKS)}")


def everything(transport: str = "streamableHttp") -> Server:
    """npm's server-everything. It has no way to choose its own free port, so one is found first."""
    script = environments.node_modules() / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    port = free_port()
    server = Server([environments.node(), script, transport], name="everything", PORT=str(port))
    server.port = port
    try:
        server.wait_until(lambda: _listens(port), "listening port")
    except BaseException:
        server.stop()
        raise
    return server


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return cast(int, probe.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
