"""An upstream that misbehaves on request: the name of the called tool says how.

It is a socket server, not an HTTP library, because no library would do what it does.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Self, cast

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PROGRESS = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}'
FLOOD_LIMIT = 256 * 1024 * 1024
"""Bytes after which a flood ends by itself."""
STALLED = 2.0
"""Seconds without room to send after which a flood counts as held back."""


class Faulty:
    """Listens on 127.0.0.1; ``asked`` counts requests by tool, ``gone`` the tools whose client went away."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.gone: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.flooded = 0
        """Bytes that a flood sent before it was held back."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._ways: dict[str, Callable[[socket.socket, Any], bool]] = {
            "hang": self._hang,
            "die_before": lambda _, __: False,
            "once_dying": lambda _, __: False,
            "die_mid_stream": self._die_mid_stream,
            "die_mid_body": self._die_mid_body,
            "garbage": lambda peer, _: self._write(peer, b"\x00\x01\x02 not HTTP at all\r\n\r\n"),
            "huge_head": lambda peer, _: self._write(
                peer, b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * 1_000_000 + b"\r\n\r\n"
            ),
            "slow": self._slow,
            "flood": self._flood,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for gate in list(self.gates.values()):
            gate.set()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        self._connections.add(peer)
        try:
            with peer, contextlib.suppress(OSError):
                while (message := self._read(peer)) is not None:
                    params = cast(dict[str, Any], message.get("params") or {})
                    tool = str(params.get("name", message.get("method")))
                    self.asked[tool] += 1
                    if not self._ways.get(tool, self._answer)(peer, message):
                        return
        finally:
            self._connections.discard(peer)

    def _read(self, peer: socket.socket) -> dict[str, Any] | None:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = peer.recv(65536)
            if not chunk:
                return None
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        ]
        while len(body) < sum(lengths):
            body += peer.recv(65536)
        return cast(dict[str, Any], json.loads(body)) if body else {"method": head.split(b" ")[0].decode()}

    def _write(self, peer: socket.socket, data: bytes) -> bool:
        peer.sendall(data)
        return True

    def _answer(self, peer: socket.socket, message: dict[str, Any]) -> bool:
        if message.get("id") is None:
            return self._write(peer, b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        result: dict[str, Any] = {"content": [{"type": "text", "text": "done"}]}
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        if message.get("method") == "tools/list":
            body = b"<html>this is no list of tools: delete_everything</html>"
        return self._write(peer, JSON % len(body) + body)

    def _hang(self, peer: socket.socket, _: Any) -> bool:
        if not peer.recv(1):
            self.gone["hang"].set()
        return False

    def _die_mid_stream(self, peer: socket.socket, _: Any) -> bool:
        self._event(peer, PROGRESS)
        self.gates["die_mid_stream"].wait(30)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _die_mid_body(self, peer: socket.socket, _: Any) -> bool:
        peer.sendall(JSON % 1000 + b'{"jsonrpc":"2.0","id":7,')
        return False

    def _slow(self, peer: socket.socket, message: dict[str, Any]) -> bool:
        self._event(peer, PROGRESS)
        self.gates["slow"].wait(30)
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"content": []}}).encode()
        self._event(peer, body, head=b"")
        return self._write(peer, b"0\r\n\r\n")

    def _flood(self, peer: socket.socket, _: Any) -> bool:
        self._event(peer, PROGRESS)
        event = b"data: " + b"x" * 65536 + b"\n\n"
        chunk = b"%x\r\n%s\r\n" % (len(event), event)
        peer.settimeout(STALLED)
        sent = 0
        try:
            while sent < FLOOD_LIMIT:
                sent += peer.send(chunk[sent % len(chunk) :])
        except TimeoutError:
            pass
        self.flooded = sent
        self.gates["flooded"].set()
        return False

    def _event(self, peer: socket.socket, data: bytes, head: bytes = EVENTS) -> None:
        event = b"data: " + data + b"\n\n"
        peer.sendall(head + b"%x\r\n%s\r\n" % (len(event), event))
