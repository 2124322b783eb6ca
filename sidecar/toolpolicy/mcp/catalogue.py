"""What the server has said of its tools, and the filter of its listings.

Knowledge is only ever added to within a server's life: a later listing may make a tool look stricter
(``destructiveHint`` true, ``readOnlyHint`` false) and never milder, and a tool that is no longer listed stays known.
``list_changed`` makes the knowledge stale, not unknown. Everything is bounded: what does not fit is unknown, and a
decision that needs it denies.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from toolpolicy.mcp.headers import declared_parameters
from toolpolicy.policy.types import ToolInfo

MAX_TOOLS: Final = 4096
MAX_BYTES: Final = 16 * 1024 * 1024
"""Of all input schemas and annotations together, as JSON."""
MAX_PAGES_OPEN: Final = 64

JsonObject = dict[str, Any]
_encode: Final = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
).encode

_STRICT_WHEN: Final = {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True, "idempotentHint": False}
"""The value of each hint that claims less safety; once seen it stays."""


class ToolCatalogue:
    """The tools of one upstream server (``policy.types.Catalogue``). Not thread-safe: one event loop owns it.

    ``fresh``: a complete listing was observed since the start or the last :meth:`invalidate`. ``version`` grows with
    every change, for caches of what is derived from it.
    """

    def __init__(self, *, max_tools: int = MAX_TOOLS, max_bytes: int = MAX_BYTES) -> None:
        self._max_tools = max_tools
        self._max_bytes = max_bytes
        self._tools: dict[str, ToolInfo] = {}
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._headers: dict[str, dict[bytes, tuple[str, ...]]] = {}
        self._cursors: set[str] = set()
        self.fresh = False
        self.version = 0
        self.dropped = 0
        """Tools that did not fit or were malformed."""

    def __len__(self) -> int:
        return len(self._tools)

    def get(self, name: str) -> ToolInfo | None:
        """What is known of a tool; None is unknown, which is not the same as harmless."""
        return self._tools.get(name)

    def declared(self, name: str) -> Mapping[bytes, tuple[str, ...]] | None:
        """The ``Mcp-Param-*`` headers that the tool's schema declares, for ``headers.verify``; None if it is
        unknown."""
        return self._headers.get(name)

    def names(self) -> list[str]:
        """Every known tool, in the order of first sight."""
        return list(self._tools)

    def observe(self, result: Mapping[str, Any], cursor: str | None = None) -> bool:
        """Take in one page of ``tools/list``; ``cursor`` is what its request carried. True once a listing is
        complete."""
        tools = result.get("tools")
        if isinstance(tools, list):
            for tool in cast(list[Any], tools):
                self._add(tool)
        if cursor is not None and cursor not in self._cursors:
            return False
        if cursor is not None:
            self._cursors.discard(cursor)
        following = result.get("nextCursor")
        if not isinstance(following, str):
            self.fresh = True
            return True
        if len(self._cursors) >= MAX_PAGES_OPEN:
            self._cursors.clear()
        self._cursors.add(following)
        return False

    def invalidate(self) -> None:
        """The server said that its list has changed."""
        self.fresh = False
        self._cursors.clear()

    def reset(self) -> None:
        """Another server process took the place: forget everything."""
        self.__init__(max_tools=self._max_tools, max_bytes=self._max_bytes)

    def _add(self, tool: Any) -> None:
        if not isinstance(tool, dict):
            self.dropped += 1
            return
        tool = cast(JsonObject, tool)
        name, schema, annotations = tool.get("name"), tool.get("inputSchema"), tool.get("annotations")
        if not isinstance(name, str) or not name:
            self.dropped += 1
            return
        known = self._tools.get(name)
        info = ToolInfo(
            name,
            cast(JsonObject, schema) if isinstance(schema, dict) else None,
            _stricter(
                known.annotations if known else {},
                cast(JsonObject, annotations) if isinstance(annotations, dict) else {},
            ),
        )
        if info == known:
            return
        size = len(json.dumps([info.input_schema, info.annotations], default=str)) + len(name)
        total = self._bytes - self._sizes.get(name, 0) + size
        if total > self._max_bytes or (known is None and len(self._tools) >= self._max_tools):
            self.dropped += 1
            return
        self._bytes = total
        self._sizes[name] = size
        self._tools[name] = info
        self._headers[name] = declared_parameters(info.input_schema)
        self.version += 1


def _stricter(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations of both, where a hint was ever strict it stays so."""
    return {**new, **{hint: strict for hint, strict in _STRICT_WHEN.items() if known.get(hint) is strict}}


def looks_like_tools_list(message: Any) -> bool:
    """Whether a parsed message (or a batch of them) carries the result of a ``tools/list``, on whatever stream it
    comes."""
    if isinstance(message, list):
        return any(looks_like_tools_list(item) for item in cast(list[Any], message))
    if not isinstance(message, dict):
        return False
    result = cast(JsonObject, message).get("result")
    return isinstance(result, dict) and isinstance(cast(JsonObject, result).get("tools"), list)


def filter_tools(result: Mapping[str, Any], visible: Callable[[str], bool], ttl_cap_ms: int) -> JsonObject | None:
    """A ``tools/list`` result without the invisible tools; None if nothing has to change.

    The answer depends on who asks and on the rules of this moment, so ``cacheScope`` becomes ``private`` and
    ``ttlMs`` at most ``ttl_cap_ms`` wherever the server states them. An item that is no object with a name is left
    out.
    """
    listed = cast(list[Any], result["tools"])
    kept = [tool for tool in listed if (name := _name_of(tool)) is not None and visible(name)]
    changes: JsonObject = {}
    if len(kept) != len(listed):
        changes["tools"] = kept
    if ("cacheScope" in result or "ttlMs" in result) and result.get("cacheScope") != "private":
        changes["cacheScope"] = "private"
    if "ttlMs" in result:
        ttl = result["ttlMs"]
        if not (type(ttl) in (int, float) and ttl <= ttl_cap_ms):
            changes["ttlMs"] = max(0, ttl_cap_ms)
    return {**result, **changes} if changes else None


def _name_of(tool: Any) -> str | None:
    name = cast(JsonObject, tool).get("name") if isinstance(tool, dict) else None
    return name if isinstance(name, str) else None


def encode(value: Any) -> bytes:
    """Compact JSON on one line. A float that is out of a double's range becomes the largest one there is."""
    try:
        return _encode(value).encode("utf-8", "replace")
    except ValueError:
        return _encode(_finite(value)).encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return max(-sys.float_info.max, min(sys.float_info.max, value)) if not math.isnan(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast(JsonObject, value).items()}
    if isinstance(value, list):
        return [_finite(item) for item in cast(list[Any], value)]
    return value
