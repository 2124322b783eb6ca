"""Values that parsers read differently although the JSON is valid.

One exact walk over the parsed value finds them all. For larger bodies a look at the raw bytes says first whether
there can be anything to find; it costs a small part of the walk, and never misses. No recursion anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, cast

JsonObject = dict[str, Any]
JsonArray = list[Any]

PROTOTYPE: Final = "__proto__"
"""Assigned in JavaScript it becomes an object's prototype, whose members are then read as if they were the object's."""

_SMALL: Final = 1024
"""Bytes of a body up to which the walk is the cheaper look."""
_SIGNS: Final = bytes(
    0x30 if 0x30 <= c <= 0x39 else 0x65 if c in b"eE" else 0x5B if c in b"[{" else 0x20 for c in range(256)
)
"""Digits become 0, exponent marks e, both opening brackets [, and everything else a blank (``+`` is deleted)."""
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
"""A string, or one that never ends: so that no place is looked at twice, whatever the bytes are."""
_EXPONENT: Final = b"e000"
_DIGIT_RUN: Final = b"0" * 19
"""2**64 has 20 digits; a float with fewer than 19 digits before its exponent needs three digits in it to overflow."""


def more_than(body: bytes, limit: int) -> bool:
    """Whether a body has more than ``limit`` values. Looked at before it is parsed: each value costs time there and in
    every later step, for which all other callers wait. (A body that is no JSON may be told so instead.)"""
    if _marks(body) < limit:
        return False
    return _marks(_STRING.sub(b"", body)) >= limit


def _marks(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def fault(body: bytes, value: Any, max_depth: int) -> str | None:
    """The first fault of a parsed value as a sentence with the cure; None if there is none."""
    if len(body) > _SMALL and not _suspicious(body, max_depth):
        return None
    return _walk(value, max_depth)


def contains_nul(body: bytes, value: Any) -> bool:
    """Whether a key or string holds U+0000, which valid JSON can only write as an escape."""
    return b"\\" in body and b"\\u0000" in body and any("\0" in text for text in _texts(value))


def _suspicious(body: bytes, max_depth: int) -> bool:
    signs = body.translate(_SIGNS, b"+")
    return (
        signs.count(b"[") > max_depth
        or (b"000" in signs and (_EXPONENT in signs or _DIGIT_RUN in signs))
        or PROTOTYPE.encode() in body
        or (b"\\" in body and b"\\u00" in body)
    )


def _walk(value: Any, max_depth: int) -> str | None:
    level: list[Any] = [value] if type(value) is dict or type(value) is list else []
    for _ in range(max_depth):
        below: list[Any] = []
        for node in level:
            items: Any = node
            if node.__class__ is dict:
                if PROTOTYPE in node:
                    return 'a key is called "__proto__", which JavaScript does not take for a key: name it otherwise'
                items = node.values()
            for item in items:
                kind: object = item.__class__
                if kind is str:
                    continue
                if kind is dict or kind is list:
                    below.append(item)
                elif kind is int:
                    if not -9223372036854775808 <= item <= 18446744073709551615:
                        return "a whole number needs more than 64 bits: send it as a string"
                elif kind is float and item - item != 0.0:
                    return "a number is out of range (as 1e400 is): send it as a string"
        if not below:
            return None
        level = below
    return f"the JSON is nested deeper than {max_depth} levels: flatten it"


def _texts(value: Any) -> Iterable[str]:
    stack: list[Any] = [value]
    while stack:
        node = stack.pop()
        if type(node) is str:
            yield node
        elif type(node) is dict:
            yield from cast(JsonObject, node)
            stack.extend(cast(JsonObject, node).values())
        elif type(node) is list:
            stack.extend(cast(JsonArray, node))
