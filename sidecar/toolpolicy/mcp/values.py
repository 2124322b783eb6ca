"""Values that parsers read differently although the JSON is valid: what has to be searched for, and the cheap signs
of it.

Each check has a sign in the raw bytes that costs a fraction of a microsecond and is never missing where the fault is
present; only then is the parsed value walked. The walks are loops, not recursions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

JsonObject = dict[str, Any]

_SIGNS: Final = bytes(
    0x30 if 0x30 <= c <= 0x39 else 0x65 if c in b"eE" else 0x5B if c in b"[{" else 0x20 for c in range(256)
)
"""Digits become 0, exponent marks e, both opening brackets [, and everything else a blank (``+`` is deleted)."""
_EXPONENT: Final = b"e000"
_DIGIT_RUN: Final = b"0" * 19
"""2**64 has 20 digits; a float with fewer than 19 digits before its exponent needs three digits in it to overflow."""

PROTOTYPE: Final = "__proto__"
_PROTOTYPE: Final = PROTOTYPE.encode()


def inspect(body: bytes, value: Any, max_depth: int) -> tuple[str | None, bool]:
    """The first fault of a parsed value, as a sentence with the cure (or None); and whether a string holds U+0000."""
    signs = body.translate(_SIGNS, b"+")
    if signs.count(b"[") > max_depth and deeper_than(value, max_depth):
        return f"the JSON is nested deeper than {max_depth} levels: flatten it", False
    if b"000" in signs and (_EXPONENT in signs or _DIGIT_RUN in signs) and (found := _number_fault(value)) is not None:
        return found, False
    # In valid JSON U+0000 can only be written as an escape, and the letters of a key may be.
    escaped = b"\\" in body and b"\\u00" in body
    if (escaped or _PROTOTYPE in body) and has_prototype(value):
        return 'a key is called "__proto__", which JavaScript does not take for a key: name it otherwise', False
    return None, escaped and b"\\u0000" in body and any("\0" in text for text in _texts(value))


def deeper_than(value: Any, limit: int) -> bool:
    """Whether arrays and objects are nested more than ``limit`` deep."""
    level: list[Any] = [value]
    for _ in range(limit):
        level = [child for node in level for child in _children(node) if type(child) is dict or type(child) is list]
        if not level:
            return False
    return True


def has_prototype(value: Any) -> bool:
    """Whether an object anywhere has a key ``__proto__``: assigned in JavaScript it becomes the object's prototype,
    whose members are then read as if they were arguments."""
    stack: list[Any] = [value]
    while stack:
        node = stack.pop()
        if type(node) is dict and PROTOTYPE in node:
            return True
        stack.extend(_children(node))
    return False


def _number_fault(value: Any) -> str | None:
    stack: list[Any] = [value]
    while stack:
        node = stack.pop()
        if type(node) is float:
            if node - node != 0.0:
                return "a number is out of range (as 1e400 is): send it as a string"
        elif type(node) is int:
            if not -(2**63) <= node < 2**64:
                return "a whole number needs more than 64 bits: send it as a string"
        else:
            stack.extend(_children(node))
    return None


def _texts(value: Any) -> Iterable[str]:
    stack: list[Any] = [value]
    while stack:
        node = stack.pop()
        if type(node) is str:
            yield node
        elif type(node) is dict:
            yield from cast(JsonObject, node)
        stack.extend(_children(node))


def _children(node: Any) -> Iterable[Any]:
    if type(node) is dict:
        return cast(JsonObject, node).values()
    return cast(list[Any], node) if type(node) is list else ()
