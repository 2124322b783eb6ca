"""Hypothesis strategies for request bodies: calls that are right, and calls that are wrong in every way that was
thought of.

Objects are lists of pairs, so that keys can repeat; numbers and other tokens can be written literally; strings can be
escaped or not. What is drawn shrinks towards a plain call.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Members(list[tuple[str, Any]]):
    """A JSON object as it is written: keys may repeat."""


class Token(str):
    """Written as it is, without quotes."""

    __slots__ = ()


EVIL = "delete_everything"
GOOD = "read_one"
NAMES = ("name", "arguments", "_meta", "task", "uri", "cursor")
NUMBERS = (
    *("1e400", "-1e999", "1E2", "0.1e1", "-0", "-0.0", "1e-400", "123456789012345678901234567890", "9007199254740993"),
    *(
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
        "1.0",
        "1e19",
        "NaN",
        "Infinity",
        "01",
        "0x1",
    ),
    *(
        "5e-324",
        "1.7976931348623157e308",
        "1.7976931348623159e308",
        "0.1",
        "100000000000000000000000.5",
        "9" * 400,
        "1" * 290 + "e99",
    ),
)
IDS = (
    *(
        "1.0",
        "1e0",
        "1.5",
        "null",
        "true",
        "false",
        "[]",
        "[1]",
        "{}",
        '""',
        '"1"',
        "-0",
        "-1",
        "9007199254740992",
        "1" + "0" * 30,
    ),
    *("9007199254740991", '"\\u0000"', '"\\ud800"'),
)
METHODS = (
    *("Tools/Call", "tools/call ", "tools/call\0", "TOOLS/CALL", "tools/list", "toolscall", "tools//call", "ping", ""),
    *("tools/cal\u217c", "tool\u017f/call", "notifications/initialized", "vendor/run"),
)
TOKENS = st.sampled_from(NUMBERS).map(Token)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=6) | TOKENS
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(st.text(max_size=4), inner), max_size=3).map(Members)
    ),
    max_leaves=6,
)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def lookalikes(name: str) -> st.SearchStrategy[str]:
    """Other spellings of a key; first and foremost those that some parser takes for it."""
    folding = [
        name.upper(),
        name[:-1] + name[-1].upper(),
        name[0].upper() + name[1:],
        name.replace("s", "\u017f"),
        name.replace("k", "\u212a"),
        name.lstrip("_"),
    ]
    others = [name + " ", " " + name, name + "\0", "_" + name, name.replace("i", "\u0131"), name.replace("e", "\u0435")]
    return st.sampled_from([key for key in folding * 3 + others if key != name])


def _envelope(draw: Draw, call: Members) -> None:
    """A key of the envelope twice, or misspelt."""
    name = draw(st.sampled_from(("params", "params", "params", "method", "id", "jsonrpc")))
    evil: Any = Members([("name", EVIL), ("arguments", Members())])
    value = {"params": evil, "method": draw(st.sampled_from(("tools/call", "ping")))}.get(name, draw(VALUES))
    key = name if draw(st.integers(0, 3)) == 3 else draw(lookalikes(name))
    call.insert(draw(st.sampled_from((len(call), 0))), (key, value))


def _params(draw: Draw, call: Members) -> None:
    """A member of params twice, or misspelt."""
    params = _at(call, "params")
    if isinstance(params, Members):
        name = draw(st.sampled_from(("name", "arguments", *NAMES)))
        value: Any = EVIL if name == "name" else Members([("x", draw(LEAVES))]) if name == "arguments" else draw(VALUES)
        key = name if draw(st.integers(0, 3)) == 3 else draw(lookalikes(name))
        params.insert(draw(st.sampled_from((len(params), 0))), (key, value))


def _number(draw: Draw, call: Members) -> None:
    """A number that parsers read differently, among the arguments."""
    arguments = Members([("n", draw(TOKENS)), ("m", Members([("list", [draw(TOKENS)])]))])
    _set(call, "params", Members([("name", GOOD), ("arguments", arguments)]))


def _arguments(draw: Draw, call: Members) -> None:
    """Arguments of any kind, with repeated keys."""
    arguments = draw(
        st.lists(st.tuples(st.sampled_from(("a", "b", "A", "", "Name", "name")), VALUES), max_size=5).map(Members)
        | VALUES
    )
    _set(call, "params", Members([("name", draw(st.sampled_from((GOOD, EVIL)))), ("arguments", arguments)]))


def _prototype(draw: Draw, call: Members) -> None:
    params = _at(call, "params")
    target = draw(st.sampled_from(("params", "arguments")))
    inner = Members([("name", EVIL), ("path", "/evil")])
    if isinstance(params, Members):
        holder = params if target == "params" else _at(params, "arguments")
        if isinstance(holder, Members):
            holder.append(("__proto__", inner))


def _id(draw: Draw, call: Members) -> None:
    _set(call, "id", Token(draw(st.sampled_from(IDS))))


def _method(draw: Draw, call: Members) -> None:
    _set(call, "method", draw(st.sampled_from(METHODS) | st.text(max_size=4)))


def _name(draw: Draw, call: Members) -> None:
    params = _at(call, "params")
    if isinstance(params, Members):
        _set(params, "name", draw(st.sampled_from((EVIL, EVIL + " ", EVIL.upper(), "\u0435vil", "", None)) | VALUES))


def _drop(draw: Draw, call: Members) -> None:
    if call:
        del call[draw(st.integers(0, len(call) - 1))]


def _extra(draw: Draw, call: Members) -> None:
    key = draw(st.sampled_from(("result", "error", "Result", "vendor", "x-trace", "")))
    call.append((key, draw(st.none() | VALUES)))


def _deep(draw: Draw, call: Members) -> None:
    depth = draw(st.sampled_from((10, 60, 62, 70, 190, 210)))
    _set(call, "params", Members([("name", GOOD), ("arguments", Members([("a", Token("[" * depth + "]" * depth))]))]))


STRUCTURAL = (
    _envelope,
    _envelope,
    _params,
    _params,
    _number,
    _arguments,
    _prototype,
    _id,
    _method,
    _name,
    _drop,
    _extra,
    _deep,
)


def _at(members: Members, name: str) -> Any:
    return next((value for key, value in members if key == name), None)


def _set(members: Members, name: str, value: Any) -> None:
    for n, (key, _) in enumerate(members):
        if key == name:
            members[n] = (name, value)
            return
    members.append((name, value))


def written(value: Any, draw: Draw, style: str) -> str:
    """``value`` as JSON text; ``style`` says how strings are escaped and whether there is white space."""
    if isinstance(value, Token):
        return str(value)
    blank = draw(st.sampled_from((" ", "\n", "\t", "\r\n  "))) if style == "blank" else ""
    if isinstance(value, dict):
        value = Members(cast(dict[str, Any], value).items())
    if isinstance(value, Members):
        pairs = [f"{_quoted(k, style)}{blank}:{blank}{written(v, draw, style)}" for k, v in value]
        return "{" + blank + f",{blank}".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, draw, style) for item in cast(list[Any], value)) + blank + "]"
    if isinstance(value, str):
        return _quoted(value, style)
    return json.dumps(value)


def _quoted(text: str, style: str) -> str:
    if style == "escaped":
        units = text.encode("utf-16-be", "surrogatepass")
        return '"' + "".join(f"\\u{units[n]:02X}{units[n + 1]:02x}" for n in range(0, len(units), 2)) + '"'
    return json.dumps(text, ensure_ascii=style != "raw").replace("/", "\\/" if style == "blank" else "/")


def _bytes(draw: Draw, body: bytes) -> bytes:
    """A change that knows nothing of JSON."""
    where = draw(st.integers(0, max(0, len(body) - 1)))
    kind = draw(st.sampled_from(("insert", "delete", "replace", "cut", "twice", "repeat")))
    if kind == "insert":
        odd = (
            b"\0",
            b"\xff",
            b"\xc0\x80",
            b"\xed\xa0\x80",
            b"\\",
            b'"',
            b",",
            b"}",
            b"\n",
            b"\xef\xbb\xbf",
            b"/**/",
            b"\\ud800",
        )
        return body[:where] + draw(st.sampled_from(odd) | st.binary(min_size=1, max_size=2)) + body[where:]
    if kind == "delete":
        return body[:where] + body[where + draw(st.integers(1, 3)) :]
    if kind == "replace":
        return body[:where] + draw(st.binary(min_size=1, max_size=1)) + body[where + 1 :]
    if kind == "cut":
        return body[:where]
    if kind == "twice":
        return (
            body
            + draw(st.sampled_from((b"", b"\n", b" ", b"\0", b",", b";")))
            + body.replace(GOOD.encode(), EVIL.encode())
        )
    return body[:where] + body[where : where + 20] + body[where:]


def _encoded(draw: Draw, text: str) -> bytes:
    encoding = draw(
        st.sampled_from(("utf-8",) * 30 + ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8 junk"))
    )
    if encoding == "utf-8 junk":
        return text.encode("utf-8", "surrogatepass") + draw(
            st.sampled_from((b" ", b"\n\n", b"\0", b"x", b"{}", b"\x1a", b"]"))
        )
    return text.encode(encoding, "surrogatepass")


@st.composite
def bodies(draw: Draw) -> bytes:
    """One request body."""
    arguments = Members(draw(st.dictionaries(st.text(max_size=5), PLAIN, max_size=3)).items())
    call = Members(
        [
            ("jsonrpc", "2.0"),
            ("id", draw(st.integers(0, 9) | st.text(max_size=3))),
            ("method", "tools/call"),
            ("params", Members([("name", GOOD), ("arguments", arguments)])),
        ]
    )
    for _ in range(draw(st.sampled_from((1, 0, 1, 1, 2)))):
        draw(st.sampled_from(STRUCTURAL))(draw, call)
    document: Any = call
    if draw(st.integers(0, 11)) == 11:
        document = [
            call,
            Members([("jsonrpc", "2.0"), ("id", "b"), ("method", "tools/call"), ("params", Members([("name", EVIL)]))]),
        ]
    body = _encoded(draw, written(document, draw, draw(st.sampled_from(("plain", "raw", "escaped", "blank")))))
    if draw(st.integers(0, 4)) == 4:
        body = _bytes(draw, body)
    # Larger bodies are looked at another way first.
    return body + b" " * 2000 if draw(st.integers(0, 2)) == 2 else body
