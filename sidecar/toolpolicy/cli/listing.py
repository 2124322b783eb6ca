"""A server's tools: asked of the server itself, or read from a file that holds what it said."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from toolpolicy.cli.mcpclient import (
    REQUEST_TIMEOUT,
    Connection,
    HttpConnection,
    JsonObject,
    ServerError,
    StdioConnection,
)
from toolpolicy.cli.output import InputError, printable, read_text
from toolpolicy.policy import documents
from toolpolicy.policy.types import ToolInfo

MAX_TOOLS = 10_000
MAX_PAGES = 1_000
_ANY: JsonObject = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server said. ``name`` and ``version`` are its own words, ``revision`` the MCP revision spoken."""

    tools: tuple[ToolInfo, ...]
    name: str = ""
    version: str = ""
    revision: str = ""


class Tools:
    """A catalogue of known tools; with ``others``, of every name there is: no annotations, a schema that takes all."""

    def __init__(self, tools: Iterable[ToolInfo], *, others: bool = False) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._others = others

    def get(self, name: str) -> ToolInfo | None:
        known = self._tools.get(name)
        return ToolInfo(name, _ANY) if known is None and self._others else known


def list_tools(
    upstream: str | None, command: Sequence[str] | None, headers: Mapping[str, str] | None = None
) -> list[ToolInfo]:
    """The tools of the server at a URL, or of the one that a command starts. Raises :class:`InputError`."""
    return list(list_server(upstream, command, headers).tools)


def list_server(
    upstream: str | None,
    command: Sequence[str] | None,
    headers: Mapping[str, str] | None = None,
    patience: float = REQUEST_TIMEOUT,
) -> Listing:
    """As :func:`list_tools`, with what the server says of itself. ``patience``: seconds for each answer."""
    if bool(upstream) == bool(command):
        raise InputError("name one server: --upstream URL, or -- COMMAND")
    if upstream:
        parts = urlsplit(upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{upstream[:200]!r} is not a URL of a server: expected http://HOST:PORT/mcp")
    try:
        return asyncio.run(_list_server(upstream, command, headers, patience))
    except ServerError as error:
        raise InputError("\n".join(map(printable, str(error).split("\n")))) from None


async def _list_server(
    upstream: str | None, command: Sequence[str] | None, headers: Mapping[str, str] | None, patience: float
) -> Listing:
    async with _connected(upstream, command, headers, patience) as connection:
        await connection.open()
        tools = await _pages(connection)
    info = connection.server_info
    return Listing(tuple(tools), str(info.get("name") or ""), str(info.get("version") or ""), connection.revision)


@contextlib.asynccontextmanager
async def _connected(
    upstream: str | None, command: Sequence[str] | None, headers: Mapping[str, str] | None, patience: float
) -> AsyncGenerator[Connection]:
    connection: Connection
    if upstream:
        connection = HttpConnection(upstream, headers, patience)
    else:
        connection = await StdioConnection.start(command or (), patience)
    try:
        yield connection
    finally:
        await connection.close()


async def _pages(connection: Connection) -> list[ToolInfo]:
    tools: dict[str, ToolInfo] = {}
    cursor: str | None = None
    seen: set[str] = set()
    for _ in range(MAX_PAGES):
        result = await connection.request("tools/list", {} if cursor is None else {"cursor": cursor})
        for tool in _infos(result.get("tools")):
            tools.setdefault(tool.name, tool)
        following = result.get("nextCursor")
        if not isinstance(following, str):
            return list(tools.values())
        if following in seen or len(tools) > MAX_TOOLS:
            raise ServerError(f"the list of tools has no end: stopped after {len(tools)} tools")
        seen.add(following)
        cursor = following
    raise ServerError(f"the list of tools has more than {MAX_PAGES} pages")


def _infos(tools: object) -> list[ToolInfo]:
    if not isinstance(tools, list):
        raise ServerError("the server's answer to tools/list holds no list of tools: is this an MCP server?")
    return [info for tool in cast(list[Any], tools) if (info := tool_info(tool)) is not None]


def tool_info(tool: object) -> ToolInfo | None:
    """A tool as servers state it, or by its name alone; None for anything else."""
    if isinstance(tool, str) and tool:
        return ToolInfo(tool)
    if not isinstance(tool, dict):
        return None
    tool = cast(JsonObject, tool)
    name, schema, annotations = tool.get("name"), tool.get("inputSchema"), tool.get("annotations")
    if not isinstance(name, str) or not name:
        return None
    return ToolInfo(
        name,
        cast(JsonObject, schema) if isinstance(schema, dict) else None,
        cast(JsonObject, annotations) if isinstance(annotations, dict) else {},
    )


def read_tools(path: str) -> list[ToolInfo]:
    """The tools in a file, JSON or YAML: a ``tools/list`` result or response, a list of tools, a list of names."""
    text = read_text(path)
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        [document, *_] = documents.read(text)
        if document.faults:
            fault = document.faults[0]
            raise InputError(f"{path}:{fault.place.line}:{fault.place.column}: {fault.message}") from None
        value = document.value
    return tools_in(value, path)


def tools_in(value: Any, where: str) -> list[ToolInfo]:
    """The tools in a parsed value, see :func:`read_tools`; ``where`` is named in the error."""
    for key in ("result", "tools"):
        if isinstance(value, dict) and key in value:
            value = cast(JsonObject, value)[key]
    if not isinstance(value, list):
        raise InputError(f"{where} holds no list of tools: expected the result of tools/list, or a list of names")
    tools = [tool_info(tool) for tool in cast(list[Any], value)]
    if None in tools:
        raise InputError(
            f"{where}: tool number {tools.index(None) + 1} has no name: expected a name, or an object with one"
        )
    return [tool for tool in tools if tool is not None]
