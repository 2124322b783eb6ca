"""``Mcp-Param-*``: arguments of a tool call repeated as HTTP headers where the tool's schema says ``x-mcp-header``.

Required of clients since 2026-07-28 (Streamable HTTP, custom headers). A stdio client does not write headers, so they
are made here, from the ``tools/list`` answers that pass by.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final, cast

_ANNOTATION: Final = "x-mcp-header"
_PREFIX: Final = "Mcp-Param-"
_MAX_TOOLS: Final = 10_000
_MAX_DEPTH: Final = 32
_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

Place = tuple[tuple[str, ...], str]
"""The keys that lead to an argument, and the header's name."""


def header_value(value: str) -> str:
    """``value`` as it may stand in a header: as it is, or in the specification's base64 wrapping."""
    plain = value.isascii() and value.isprintable() and value == value.strip()
    if plain and not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _places(schema: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[Place]:
    """Annotated properties that are reached through ``properties`` alone; others are not taken (specification)."""
    for key, below in _object(schema.get("properties")).items():
        inner = _object(below)
        name = inner.get(_ANNOTATION)
        if isinstance(name, str) and name and set(name) <= _TOKEN:
            yield (*above, key), _PREFIX + name
        if len(above) < _MAX_DEPTH:
            yield from _places(inner, (*above, key))


class ParamHeaders:
    """What the tools seen so far want as headers."""

    def __init__(self) -> None:
        self._tools: dict[str, list[Place]] = {}

    def learn(self, result: object) -> None:
        """From the result of a ``tools/list``."""
        tools = _object(result).get("tools")
        for tool in cast("list[object]", tools) if isinstance(tools, list) else []:
            name = _object(tool).get("name")
            if isinstance(name, str):
                places = list(_places(_object(_object(tool).get("inputSchema"))))
                if places and (name in self._tools or len(self._tools) < _MAX_TOOLS):
                    self._tools[name] = places
                else:
                    self._tools.pop(name, None)

    def of(self, tool: str, arguments: object) -> dict[str, str]:
        """The headers for a call of ``tool``; arguments that are missing, null or of another type have none."""
        headers: dict[str, str] = {}
        for path, header in self._tools.get(tool, []):
            value: object = arguments
            for key in path:
                value = _object(value).get(key)
            if isinstance(value, bool):
                headers[header] = "true" if value else "false"
            elif isinstance(value, int | str):
                headers[header] = header_value(str(value))
        return headers
