"""What a vector is, and the pieces they are built from.

A vector is one connection's bytes. Sent through a plain relay it makes a real server run ``tool``; through the sidecar
it must be refused and run nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.rawhttp import Headers, request

LEGACY = "2025-06-18"
MODERN = "2026-07-28"
DELETE = "delete_everything"
"""The tool that the policies deny."""
NOT_OK = "echo-not-ok"
"""Counts the runs of ``echo`` with a value that the policies' validation refuses."""
ALL = ("reference", "python1", "node1", "node2", "golang", "plain")
HOST = ("Host", "127.0.0.1:1")
JSON_TYPE = ("Content-Type", "application/json")
ACCEPT = ("Accept", "application/json, text/event-stream")
BASE: Headers = (HOST, JSON_TYPE, ACCEPT)


@dataclass(frozen=True)
class Vector:
    """One row of the table.

    ``row`` is the kind of bypass that it belongs to. ``stacks`` are the servers on which it runs ``tool`` through a
    plain relay; none: ``control`` says why it is kept all the same. ``policies``: with which of the policies it must
    be refused. ``status``: the HTTP status of the refusal, where one is promised.
    """

    name: str
    row: str
    data: bytes | tuple[bytes, ...]
    stacks: tuple[str, ...]
    tool: str = DELETE
    policies: tuple[str, ...] = ("allow-list", "deny-list")
    status: int | None = None
    expect: int = 1
    """Answers on the connection, if it is kept open."""
    control: str = field(default="")


def compact(value: Any) -> bytes:
    """JSON with nothing escaped that needs no escape."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def call(tool: str = DELETE, arguments: Mapping[str, Any] | None = None, **envelope: Any) -> dict[str, Any]:
    """A ``tools/call`` as older revisions have it; ``envelope`` adds or replaces members of the message."""
    params: dict[str, Any] = {"name": tool, "arguments": dict(arguments or {})}
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params} | envelope


def modern(tool: str = DELETE, arguments: Mapping[str, Any] | None = None, version: str = MODERN) -> dict[str, Any]:
    """A ``tools/call`` of 2026-07-28."""
    message = call(tool, arguments)
    message["params"]["_meta"] = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientInfo": {"name": "vector", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return message


def post(
    body: bytes | Mapping[str, Any] | Sequence[Any], *extra: tuple[str | bytes, str | bytes], path: str = "/mcp"
) -> bytes:
    """A POST of ``body`` with the usual headers of 2025-06-18 and ``extra`` ones."""
    data = body if isinstance(body, bytes) else compact(body)
    return request("POST", path, [*BASE, ("MCP-Protocol-Version", LEGACY), *extra], data)


def bare(body: bytes, headers: Headers, path: str = "/mcp") -> bytes:
    """A POST with ``headers`` and a Content-Length, and nothing else."""
    return request("POST", path, [HOST, ACCEPT, *headers], body)


def standard(
    body: Mapping[str, Any] | bytes,
    method: str | None = "tools/call",
    name: str | None = DELETE,
    *extra: tuple[str, str],
) -> bytes:
    """A POST of 2026-07-28 with its standard headers; None leaves one out."""
    headers: list[tuple[str | bytes, str | bytes]] = [*BASE, ("MCP-Protocol-Version", MODERN)]
    headers += [("Mcp-Method", method)] if method is not None else []
    headers += [("Mcp-Name", name)] if name is not None else []
    return request("POST", "/mcp", [*headers, *extra], body if isinstance(body, bytes) else compact(body))


def text(message: Mapping[str, Any], *replacements: tuple[str, str]) -> bytes:
    """``message`` as JSON with textual ``replacements``, for what no serialiser would write."""
    data = compact(message).decode()
    for old, new in replacements:
        assert old in data, f"{old!r} is not in {data}"
        data = data.replace(old, new)
    return data.encode("utf-8", "surrogatepass")
