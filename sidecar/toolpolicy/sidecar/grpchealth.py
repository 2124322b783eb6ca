"""One question to ``grpc.health.v1.Health/Check``, in as much of HTTP/2 (RFC 9113) as that takes.

No header is compressed by what this sends (RFC 7541 allows literals without an index), and none that comes is decoded:
the answer is a message of at most a few bytes in DATA frames, and a server that refuses sends none. So gRPC's status in
the trailers, whatever it is, can't make SERVING of an answer that did not say it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8
MAX_FRAME = 16 * 1024
MAX_FRAMES = 64
MAX_MESSAGE = 1024
STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


class GrpcFault(Exception):
    """No answer to the question; the message says what came instead."""


async def check_health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str, service: str) -> str:
    """The serving status, one of :data:`STATUSES`. Raises :class:`GrpcFault`, OSError or IncompleteReadError."""
    writer.write(PREFACE + frame(SETTINGS, 0, 0, b"") + question(authority, service))
    message = b""
    for _ in range(MAX_FRAMES):
        kind, flags, stream, payload = await _read_frame(reader)
        if kind == SETTINGS and not flags & ACK:
            writer.write(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            writer.write(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY or (kind == RST_STREAM and stream == 1):
            raise GrpcFault("the server ended the connection instead of an answer")
        elif stream == 1 and kind in (DATA, HEADERS):
            if kind == DATA:
                message += _unpadded(payload) if flags & PADDED else payload
                if len(message) > MAX_MESSAGE:
                    raise GrpcFault("the answer is too long for a health status")
            if flags & END_STREAM:
                return status_of(message)
    raise GrpcFault("no answer among the server's first frames")


def question(authority: str, service: str) -> bytes:
    """The frames of the call: its headers, and a HealthCheckRequest whose field 1 is ``service``."""
    name = service.encode()
    request = b"" if not name else b"\x0a" + _varint(len(name)) + name
    headers = header_block(
        (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "kube-probe/1.0 (toolpolicy)"),
        )
    )
    message = b"\0" + len(request).to_bytes(4, "big") + request
    return frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1, message)


def header_block(headers: Sequence[tuple[str, str]]) -> bytes:
    """HPACK: literal fields, not indexed, names and values as plain octets (RFC 7541, section 6.2.2)."""
    return b"".join(b"\0" + _octets(name.encode()) + _octets(value.encode()) for name, value in headers)


def _octets(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),)) + text
    return b"\x7f" + _varint(len(text) - 127) + text


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    head = await reader.readexactly(9)
    length = int.from_bytes(head[:3], "big")
    if length > MAX_FRAME:  # what RFC 9113 allows without an agreement on more, and "HTTP/1.1 400" read as a length
        raise GrpcFault("the server does not speak HTTP/2")
    return head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF, await reader.readexactly(length)


def _unpadded(payload: bytes) -> bytes:
    return payload[1 : len(payload) - payload[0]] if payload else b""


def status_of(message: bytes) -> str:
    """The status of a gRPC message with a HealthCheckResponse; its field 1 left out is the first. Raises GrpcFault."""
    if len(message) < 5:
        raise GrpcFault("the server knows no grpc.health.v1.Health, or not this service")
    length = int.from_bytes(message[1:5], "big")
    body = message[5:]
    if message[0] != 0 or len(body) != length or (body and (len(body) != 2 or body[0] != 0x08)):
        raise GrpcFault("the answer is no HealthCheckResponse")
    number = body[1] if body else 0
    return STATUSES[number] if number < len(STATUSES) else f"status {number}"
