"""HTTP/1.1 as bytes: vectors that no client library would send, and a reader that never waits past its deadline."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

DEADLINE = 10.0
PAUSE = 0.005
"""Seconds between two segments: enough for a peer on the same machine to read the first by itself."""
Headers = Sequence[tuple[str | bytes, str | bytes]]


@dataclass(frozen=True)
class Reply:
    """One response. ``complete`` is False when the connection ended or the deadline passed inside it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool

    def json(self) -> Any:
        return json.loads(self.body)

    def messages(self) -> list[dict[str, Any]]:
        """Every JSON-RPC message, from a JSON body or from the events of a stream."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            events = self.body.replace(b"\r\n", b"\n").split(b"\n\n")
            data = [
                b"\n".join(line[5:].lstrip() for line in event.split(b"\n") if line[:5] == b"data:") for event in events
            ]
            return [cast(dict[str, Any], json.loads(text)) for text in data if text.strip()]
        with contextlib.suppress(ValueError):
            found = self.json()
            return cast(list[dict[str, Any]], found if isinstance(found, list) else [found])
        return []


@dataclass
class Exchange:
    """What came back on one connection. ``hung`` means that the deadline passed without an answer or an end."""

    replies: list[Reply] = field(default_factory=list[Reply])
    closed: bool = False
    hung: bool = False
    raw: bytes = b""

    @property
    def reply(self) -> Reply | None:
        return self.replies[-1] if self.replies else None


def request(
    method: str | bytes,
    target: str | bytes,
    headers: Headers,
    body: bytes = b"",
    *,
    length: bool = True,
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """The bytes of one request; ``length`` adds a Content-Length."""
    head = [b"%s %s %s" % (_bytes(method), _bytes(target), version)]
    head += [b"%s: %s" % (_bytes(name), _bytes(value)) for name, value in headers]
    if length and body:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def exchange(
    address: tuple[str, int], data: bytes | Iterable[bytes], *, expect: int = 1, deadline: float = DEADLINE
) -> Exchange:
    """Send ``data`` and read ``expect`` responses, or until the peer closes, or until the deadline.

    Several chunks are sent as several segments, each after the peer had :data:`PAUSE` to read the one before, or has
    answered. The sending side stays open, as a real client's does.
    """
    result = Exchange()
    end = time.monotonic() + deadline
    with socket.create_connection(address, timeout=deadline) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for position, chunk in enumerate([data] if isinstance(data, bytes) else data):
                if position:
                    select.select([connection], [], [], PAUSE)
                connection.sendall(chunk)
        except (ConnectionError, TimeoutError):
            # A server may refuse before it has read everything; its answer is still to be read.
            pass
        buffer = b""
        while len(result.replies) < expect:
            reply, rest = _parse(buffer, ended=False)
            if reply is not None:
                result.replies.append(reply)
                buffer = rest
                continue
            connection.settimeout(max(0.01, end - time.monotonic()))
            try:
                chunk = connection.recv(65536)
            except TimeoutError:
                result.hung = True
                break
            except ConnectionError:
                chunk = b""
            if not chunk:
                result.closed = True
                reply, _ = _parse(buffer, ended=True)
                if reply is not None:
                    result.replies.append(reply)
                break
            buffer += chunk
            result.raw += chunk
    return result


def _parse(data: bytes, *, ended: bool) -> tuple[Reply | None, bytes]:
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return None, data
    lines = head.split(b"\r\n")
    status = int(lines[0].split(b" ", 2)[1])
    pairs = [line.partition(b":") for line in lines[1:]]
    headers = {name.strip().lower().decode("latin-1"): value.strip().decode("latin-1") for name, _, value in pairs}
    if 100 <= status < 200 and status != 101:
        return _parse(rest, ended=ended)
    if status in {101, 204, 304}:
        return Reply(status, headers, b"", complete=True), rest
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body, after, complete = _dechunk(rest)
        if complete or ended:
            return Reply(status, headers, body, complete), after
        return None, data
    if "content-length" in headers:
        length = int(headers["content-length"])
        if len(rest) >= length:
            return Reply(status, headers, rest[:length], complete=True), rest[length:]
        return (Reply(status, headers, rest, complete=False), b"") if ended else (None, data)
    # Without a length the end of the connection is the end of the body.
    return (Reply(status, headers, rest, complete=True), b"") if ended else (None, data)


def _dechunk(data: bytes) -> tuple[bytes, bytes, bool]:
    body = b""
    while True:
        line, separator, rest = data.partition(b"\r\n")
        if not separator:
            return body, b"", False
        size = int(line.split(b";")[0], 16)
        if len(rest) < size + 2:
            return body + rest[:size], b"", False
        body += rest[:size]
        data = rest[size + 2 :]
        if size == 0:
            return body, data, True


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8")


class Stream:
    """A connection whose answer is read bit by bit, as an event stream must be."""

    def __init__(self, address: tuple[str, int], data: bytes, *, deadline: float = DEADLINE) -> None:
        self._deadline = deadline
        self._socket = socket.create_connection(address, timeout=deadline)
        self._socket.sendall(data)
        self.received = b""
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """End the connection with a reset, as a client that crashes does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1])

    def until(self, wanted: bytes | None) -> bytes:
        """Everything received once it contains ``wanted``, or once the peer closed (None). Fails at the deadline."""
        end = time.monotonic() + self._deadline
        while wanted is None or wanted not in self.received:
            if not self._more(end, wanted):
                assert wanted is None, f"closed before {wanted!r}, after {self.received!r}"
                break
        return self.received

    def event(self, wanted: bytes) -> bytes:
        """The data of the first whole event that contains ``wanted``. Fails at the deadline."""
        end = time.monotonic() + self._deadline
        while True:
            for event in self.events():
                if wanted in event:
                    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
            assert self._more(end, wanted), f"closed before {wanted!r}, after {self.received!r}"

    def events(self) -> list[bytes]:
        """The whole events so far, each with its lines ended by LF."""
        head, _, rest = self.received.partition(b"\r\n\r\n")
        body = _dechunk(rest)[0] if b"chunked" in head.lower() else rest
        return body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]

    def _more(self, end: float, wanted: bytes | None) -> bool:
        self._socket.settimeout(max(0.01, end - time.monotonic()))
        try:
            chunk = self._socket.recv(65536)
        except TimeoutError:
            raise AssertionError(f"no {wanted!r} within {self._deadline} s, only {self.received!r}") from None
        except ConnectionError:
            chunk = b""
        self.received += chunk
        self.closed = not chunk
        return bool(chunk)
