"""Arguments for the audit, without what a policy says must not be in it (RFC 6901 JSON pointers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

REDACTED = "[redacted]"


def redact(arguments: Mapping[str, Any], pointers: Sequence[str]) -> Mapping[str, Any]:
    """A copy in which each value that a pointer names is ``[redacted]``; what is not there is passed over. The input
    stays.
    """
    result: Any = arguments
    for pointer in pointers:
        if pointer == "":
            return {"": REDACTED}
        tokens = [t.replace("~1", "/").replace("~0", "~") for t in pointer.split("/")[1:]]
        result = _without(result, tokens)
    return cast("Mapping[str, Any]", result)


def _without(value: Any, tokens: Sequence[str]) -> Any:
    if not tokens:
        return REDACTED
    head, rest = tokens[0], tokens[1:]
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        return {**fields, head: _without(fields[head], rest)} if head in fields else fields
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if head.isascii() and head.isdigit() and len(head) < 10 and int(head) < len(items):
            at = int(head)
            return [*items[:at], _without(items[at], rest), *items[at + 1 :]]
        return items
    return value
