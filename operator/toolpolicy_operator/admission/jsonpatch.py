"""The JSON patch (RFC 6902) that makes one JSON value of another, small enough to be read in an audit log."""

from __future__ import annotations

from typing import Any, cast

Operation = dict[str, Any]


def difference(before: Any, after: Any, path: str = "") -> list[Operation]:
    """Operations in the order in which they apply.

    Lists that grew at their beginning or end get what was added, lists of one length are compared item by item, any
    others are replaced whole.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        return _of_objects(cast("dict[str, Any]", before), cast("dict[str, Any]", after), path)
    if isinstance(before, list) and isinstance(after, list):
        return _of_lists(cast("list[Any]", before), cast("list[Any]", after), path)
    same = before == after and isinstance(before, bool) == isinstance(after, bool)
    return [] if same else [{"op": "replace", "path": path, "value": after}]


def _of_objects(before: dict[str, Any], after: dict[str, Any], path: str) -> list[Operation]:
    found: list[Operation] = []
    for key in [*before, *(key for key in after if key not in before)]:
        where = f"{path}/{escape(key)}"
        if key not in after:
            found.append({"op": "remove", "path": where})
        elif key not in before:
            found.append({"op": "add", "path": where, "value": after[key]})
        else:
            found.extend(difference(before[key], after[key], where))
    return found


def _of_lists(before: list[Any], after: list[Any], path: str) -> list[Operation]:
    if len(before) == len(after):
        return [
            op for i, (b, a) in enumerate(zip(before, after, strict=True)) for op in difference(b, a, f"{path}/{i}")
        ]
    grown = len(after) - len(before)
    if grown > 0 and after[: len(before)] == before:
        return [{"op": "add", "path": f"{path}/-", "value": item} for item in after[len(before) :]]
    if grown > 0 and after[grown:] == before:
        return [{"op": "add", "path": f"{path}/{i}", "value": item} for i, item in enumerate(after[:grown])]
    return [{"op": "replace", "path": path, "value": after}]


def escape(key: str) -> str:
    """A key as a part of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")
