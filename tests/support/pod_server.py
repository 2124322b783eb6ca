"""The MCP server of a pod in tests, run inside its network namespace: ``HOST/PORT…`` are where it listens.

Answers every POST with what it executed, GET /healthz with 200, all else with 404.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        port = self.connection.getsockname()[1]
        text = f"{port} executed {message['params']['name']}"
        result = {"content": [{"type": "text", "text": text}]}
        self._answer(200, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode())

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/healthz" else 404, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)


def main() -> None:
    for address in sys.argv[1:]:
        host, _, port = address.rpartition("/")
        threading.Thread(target=Server(host, int(port)).serve_forever).start()
    print('{"ready": true}', flush=True)


if __name__ == "__main__":
    main()
