"""What a checked CEL expression reads, taken from the runtime's own syntax tree.

cel-expr-python shows no tree, but serialises one: ``Expression.serialize()`` is a ``google.protobuf.Any`` that holds a
``cel.expr.CheckedExpr`` (github.com/google/cel-spec, ``proto/cel/expr/{checked,syntax}.proto``). This is a reader of
just the fields we need. It sees what the checker saw: strings with their escapes resolved, macros expanded, names
resolved, so that no second opinion about CEL's grammar can differ from the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

Wire = dict[int, list[int | bytes]]
"""One message: field number → its values (varints as int, everything of a length as bytes)."""

# syntax.proto: Expr, and within it
_ID, _CONST, _IDENT, _SELECT, _CALL, _LIST, _STRUCT, _COMPREHENSION = 2, 3, 4, 5, 6, 7, 8, 9
_CONST_STRING = 6
_COMPREHENSION_VARS = (1, 8)
_COMPREHENSION_PARTS = (2, 4, 5, 6, 7)


@dataclass(frozen=True, slots=True)
class Literal:
    """A string literal given to a function. ``offset`` counts code points of the source."""

    function: str
    text: str
    offset: int


@dataclass(slots=True)
class Facts:
    identifiers: set[str] = field(default_factory=set[str])
    """Every name that is read, dotted where the checker resolved it so (``tool.name``); the variables of macros among
    them.

    """
    bound: set[str] = field(default_factory=set[str])
    """Variables that macros introduce (``x`` in ``list.all(x, …)``)."""
    literals: list[Literal] = field(default_factory=list[Literal])


def read(serialized: bytes) -> Facts:
    """The facts of one ``Expression.serialize()``. Raises ValueError if the bytes are not what we know."""
    checked = _message(_one(_message(serialized), 2))
    positions = {
        _int(entry, 1): _int(entry, 2) for entry in map(_message, _all(_message(_one(checked, 5)), 4))
    }  # SourceInfo.positions: expression id → offset
    facts = Facts()
    stack = [_message(_one(checked, 4))]
    while stack:
        node = stack.pop()
        _visit(node, facts, positions)
        stack.extend(_children(node))
    return facts


def _visit(node: Wire, facts: Facts, positions: dict[int, int]) -> None:
    for raw in _all(node, _IDENT):
        facts.identifiers.add(_text(_message(raw), 1).removeprefix("."))
    for raw in _all(node, _COMPREHENSION):
        message = _message(raw)
        facts.bound.update(name for number in _COMPREHENSION_VARS if (name := _text(message, number)))
    for raw in _all(node, _CALL):
        call = _message(raw)
        function = _text(call, 2)
        for argument in map(_message, _all(call, 3)):
            for constant in _all(argument, _CONST):
                for text in _all(_message(constant), _CONST_STRING):
                    facts.literals.append(Literal(function, text.decode(), positions.get(_int(argument, _ID), 0)))


def _children(node: Wire) -> Iterator[Wire]:
    for raw in _all(node, _SELECT):
        yield from map(_message, _all(_message(raw), 1))
    for raw in _all(node, _CALL):
        call = _message(raw)
        yield from map(_message, _all(call, 1))
        yield from map(_message, _all(call, 3))
    for raw in _all(node, _LIST):
        yield from map(_message, _all(_message(raw), 1))
    for raw in _all(node, _STRUCT):
        for entry in map(_message, _all(_message(raw), 2)):
            yield from map(_message, _all(entry, 3))
            yield from map(_message, _all(entry, 4))
    for raw in _all(node, _COMPREHENSION):
        message = _message(raw)
        for number in _COMPREHENSION_PARTS:
            yield from map(_message, _all(message, number))


def _message(data: bytes) -> Wire:
    """Protocol buffers' wire format, one level deep (protobuf.dev/programming-guides/encoding)."""
    out: Wire = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            out.setdefault(key >> 3, []).append(value)
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind == 1:
            length = 8
        elif kind == 5:
            length = 4
        else:
            raise ValueError(f"unknown wire type {kind} in a serialised expression")
        if at + length > len(data):
            raise ValueError("a serialised expression ends early")
        out.setdefault(key >> 3, []).append(data[at : at + length])
        at += length
    return out


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("a serialised expression ends early")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _all(message: Wire, number: int) -> list[bytes]:
    return [value for value in message.get(number, ()) if isinstance(value, bytes)]


def _one(message: Wire, number: int) -> bytes:
    found = _all(message, number)
    if len(found) != 1:
        raise ValueError(f"a serialised expression has {len(found)} fields {number}, expected one")
    return found[0]


def _text(message: Wire, number: int) -> str:
    found = _all(message, number)
    return found[0].decode() if found else ""


def _int(message: Wire, number: int) -> int:
    values = message.get(number, ())
    return values[0] if values and isinstance(values[0], int) else 0
