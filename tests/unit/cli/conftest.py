"""Servers that say just what a test wants, and a way to run the command line."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from support.saying import STDIO, TOOLS, Fixture
from toolpolicy.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TOOLPOLICY_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return lambda *args, **extra: CliRunner().invoke(main, [str(arg) for arg in args], **extra)


@pytest.fixture
def serve() -> Iterator[Callable[[Fixture], Fixture]]:
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(fixture: Fixture) -> Fixture:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                message: dict[str, Any] = json.loads(body)
                fixture.seen.append((message["method"], message, dict(self.headers.items())))
                self._send(*fixture.respond(message))

            def do_DELETE(self) -> None:
                fixture.seen.append(("DELETE", {}, dict(self.headers.items())))
                self._send(200, {}, b"")

            def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        fixture.url = f"http://127.0.0.1:{server.server_port}/mcp"
        return fixture

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def stdio(tmp_path: Path) -> Callable[..., list[str]]:
    """The command of a server on stdio that behaves as ``mode`` says."""
    script = tmp_path / "server.py"
    script.write_text(STDIO)

    def command(mode: str = "plain", *more: object) -> list[str]:
        return [sys.executable, str(script), mode, json.dumps(TOOLS), *map(str, more)]

    return command
