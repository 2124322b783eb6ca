"""Request headers: what must agree with the body, what must not be there, and what ends at this hop.

Some servers and intermediaries route by ``Mcp-Method``, ``Mcp-Name`` and ``Mcp-Param-*`` (2026-07-28, SEP-2243). The
body decides here; a header that says something else is refused with 400 and −32020, so that nobody behind can prefer
it. A header that is *missing* is the server's to refuse: it changes nothing about what was judged.

All functions take the raw ``(name, value)`` pairs as they came. What a name means is decided once per spelling.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from toolpolicy.mcp import methods
from toolpolicy.mcp.envelope import JsonObject, Message

RawHeaders = Sequence[tuple[bytes, bytes]]

HEADER_MISMATCH: Final = -32020
UNSUPPORTED_MEDIA_TYPE: Final = 415

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 section 7.6.1 and RFC 2616 section 13.5.1: never forwarded, in either direction. Lower case."""

UPSTREAM_DROP: Final = HOP_BY_HOP | {b"content-length", b"expect", b"accept-encoding", b"http2-settings"}
"""Not copied to the upstream request: the length is set anew, ``Expect`` was answered here, and a compressed answer
could not be filtered."""

DOWNSTREAM_DROP: Final = HOP_BY_HOP
"""Not copied to the client's answer. ``Content-Length`` is dropped too where the body changes."""

_END_TO_END: Final = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"cookie",
        b"accept",
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"last-event-id",
        b"traceparent",
        b"tracestate",
        b"forwarded",
    }
)
_CONNECTION_USUAL: Final = frozenset({b"keep-alive", b"close"})


@dataclass(frozen=True, slots=True)
class HeaderFault:
    """Why a request is refused for its headers: HTTP status, JSON-RPC code, and a message with the cure."""

    status: int
    code: int
    message: str


_NONE: Final = 0
_SINGLE: Final = 1
_METHOD: Final = 2
_NAME: Final = 3
_VERSION: Final = 4
_PARAM: Final = 5
_CONNECTION: Final = 6
_DISGUISED: Final = 7

_ROLES: Final = {
    b"mcp-method": _METHOD,
    b"mcp-name": _NAME,
    b"mcp-protocol-version": _VERSION,
    b"mcp-session-id": _SINGLE,
    b"last-event-id": _SINGLE,
    b"connection": _CONNECTION,
}
_PARAM_PREFIX: Final = b"mcp-param-"
_MAX_SPELLINGS: Final = 1024
_spellings: dict[bytes, int] = {}

_JSON_TYPES: Final = frozenset(
    {b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"}
)
_JSON_TYPE: Final = re.compile(rb'application/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?[ \t]*', re.IGNORECASE)

_SENTINEL_START: Final = b"=?base64?"
_SENTINEL_END: Final = b"?="
_DECIMAL: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def check_request_content(headers: RawHeaders) -> HeaderFault | None:
    """415 unless the body is declared exactly as JSON in UTF-8, unencoded. For every request with a judged body."""
    found: bytes | None = None
    for name, value in headers:
        if len(name) == 12:
            if name.lower() == b"content-type":
                if found is not None:
                    return HeaderFault(415, -32600, "Content-Type occurs twice: send it once, as application/json")
                found = value
        elif len(name) == 16 and name.lower() == b"content-encoding":
            return HeaderFault(415, -32600, "an encoded request body is not accepted: send it without Content-Encoding")
    if found is None:
        return HeaderFault(415, -32600, "Content-Type is missing: send application/json")
    if found in _JSON_TYPES or _JSON_TYPE.fullmatch(found) is not None:
        return None
    return HeaderFault(415, -32600, "Content-Type must be application/json, in UTF-8, without other parameters")


def connection_options(headers: RawHeaders) -> frozenset[bytes]:
    """The header names that ``Connection`` asks to be removed at this hop, in lower case."""
    named: set[bytes] = set()
    for name, value in headers:
        if len(name) == 10 and name.lower() == b"connection":
            named.update(part.strip(b" \t").lower() for part in value.split(b","))
    return frozenset(named - {b""})


def accepts_json(headers: RawHeaders) -> bool:
    """Whether the client takes an ``application/json`` answer; a missing or empty ``Accept`` takes anything."""
    seen = False
    for name, value in headers:
        if len(name) == 6 and name.lower() == b"accept":
            if b"application/json" in value:
                return b"q=0" not in value or _accepts(value, b"application/json")
            seen = seen or bool(value.strip())
            if _accepts(value, b"application/json"):
                return True
    return not seen


def accepts_events(headers: RawHeaders) -> bool:
    """Whether the client takes a ``text/event-stream`` answer."""
    return any(
        len(name) == 6 and name.lower() == b"accept" and _accepts(value, b"text/event-stream")
        for name, value in headers
    )


def _accepts(value: bytes, media_type: bytes) -> bool:
    wanted = {media_type, media_type.partition(b"/")[0] + b"/*", b"*/*"}
    for item in value.lower().split(b","):
        kind, *parameters = [part.strip() for part in item.split(b";")]
        if kind in wanted and not any(re.fullmatch(rb"q=0(\.0*)?", part) for part in parameters):
            return True
    return False


def verify(
    message: Message | tuple[Message, ...],
    headers: RawHeaders,
    revision: str | None = None,
    declared: Mapping[bytes, tuple[str, ...]] | None = None,
) -> HeaderFault | None:
    """Check that no header contradicts, repeats or hides what the body says. Returns the fault, or None.

    ``declared`` maps the tool's ``mcp-param-…`` header names (lower case) to the path of the argument they mirror, as
    :func:`declared_parameters` reads them from the tool's schema; None where the tool is not known: then a header of
    that kind must at least carry the value of some argument. ``revision`` is accepted for symmetry: a header that
    contradicts the body is refused in every revision, whether or not that revision defines it.
    """
    seen: dict[bytes, bytes] = {}
    spellings = _spellings
    for name, value in headers:
        role = spellings.get(name)
        if role is None:
            role = _role(name)
        if role == _NONE:
            continue
        if role == _CONNECTION:
            if value.lower() not in _CONNECTION_USUAL and (fault := _check_connection(value)) is not None:
                return fault
            continue
        if role == _DISGUISED:
            return _mismatch("a header name with _ can be mistaken for an MCP header: write it with -")
        key = name.lower()
        if key in seen:
            return _mismatch(f"{_shown(key)} occurs twice: send it once")
        seen[key] = value
    if not seen:
        return None
    if isinstance(message, tuple):
        if b"mcp-method" in seen or b"mcp-name" in seen:
            return _mismatch("Mcp-Method and Mcp-Name describe a single message: send them with that one alone")
        return None
    return _compare(message, seen, declared)


def _compare(
    message: Message, seen: Mapping[bytes, bytes], declared: Mapping[bytes, tuple[str, ...]] | None
) -> HeaderFault | None:
    stated = seen.get(b"mcp-method")
    if stated is not None and stated != (message.method or "").encode() and _text(stated) != message.method:
        return _mismatch("Mcp-Method differs from the method in the body: send the same")
    stated = seen.get(b"mcp-name")
    if stated is not None and (message.method in methods.NAME_PARAMETER or message.method is None):
        decoded = decode_value(stated)
        if decoded is None:
            return _mismatch("Mcp-Name must be visible ASCII or =?base64?…?= of UTF-8")
        if decoded != message.name:
            return _mismatch("Mcp-Name differs from the name in the body: send the same")
    stated = seen.get(b"mcp-protocol-version")
    if stated is not None and message.method != "initialize":
        in_body = message.protocol_version
        if in_body is not None and _text(stated) != in_body:
            return _mismatch("MCP-Protocol-Version differs from the version in the body's _meta: send the same")
    for name in seen:
        if name not in _ROLES:
            return _compare_parameters(message, seen, declared)
    return None


def _compare_parameters(
    message: Message, seen: Mapping[bytes, bytes], declared: Mapping[bytes, tuple[str, ...]] | None
) -> HeaderFault | None:
    arguments = message.arguments if message.method == methods.CALL else {}
    for name, value in seen.items():
        if name in _ROLES:
            continue
        decoded = decode_value(value)
        shown = _shown(name)
        if decoded is None:
            return _mismatch(f"{shown} must be visible ASCII or =?base64?…?= of UTF-8")
        if declared is None:
            if not any(_same(decoded, candidate) for candidate in _scalars(arguments)):
                return _mismatch(f"{shown} is not the value of any argument in the body: send the argument's value")
        elif (path := declared.get(name)) is not None:
            candidate = _at(arguments, path)
            if candidate is not None and not _same(decoded, candidate):
                return _mismatch(f"{shown} differs from the argument {'.'.join(path)[:64]} in the body: send the same")
            if candidate is None:
                return _mismatch(f"{shown} is sent but the argument {'.'.join(path)[:64]} is not: leave the header out")
    return None


def declared_parameters(input_schema: Mapping[str, Any] | None) -> dict[bytes, tuple[str, ...]]:
    """``mcp-param-…`` header name → argument path, for every ``x-mcp-header`` on a pure chain of ``properties``."""
    found: dict[bytes, tuple[str, ...]] = {}
    stack: list[tuple[tuple[str, ...], Any]] = [((), input_schema)]
    while stack:
        path, schema = stack.pop()
        if not isinstance(schema, dict):
            continue
        schema = cast(JsonObject, schema)
        token = schema.get("x-mcp-header")
        if path and isinstance(token, str) and token.isascii():
            found[_PARAM_PREFIX + token.lower().encode()] = path
        properties = schema.get("properties")
        if isinstance(properties, dict) and len(path) < 16:
            stack.extend(((*path, name), child) for name, child in cast(JsonObject, properties).items())
    return found


def decode_value(value: bytes) -> str | None:
    """Decode a mirrored value: visible ASCII as it is, ``=?base64?…?=`` as UTF-8. None: malformed, never a match."""
    value = value.strip(b" \t")
    if value.startswith(_SENTINEL_START) and value.endswith(_SENTINEL_END):
        payload = value[len(_SENTINEL_START) : -len(_SENTINEL_END)]
        try:
            decoded = base64.b64decode(payload, validate=True)
            if base64.b64encode(decoded) != payload:
                return None
            return decoded.decode("utf-8")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return None
    return _text(value)


def header(headers: RawHeaders, name: bytes) -> bytes | None:
    """The value of one header (``name`` in lower case); None if it is absent. The first one if it is repeated."""
    size = len(name)
    for key, value in headers:
        if len(key) == size and key.lower() == name:
            return value
    return None


def _text(value: bytes) -> str | None:
    value = value.strip(b" \t")
    return value.decode("ascii") if value.isascii() and b"\x7f" not in value and min(value, default=32) >= 32 else None


def _role(name: bytes) -> int:
    """What a spelling of a header name means here; remembered, for a bounded number of spellings."""
    lower = name.lower()
    role = _ROLES.get(lower, _NONE)
    if role == _NONE:
        plain = lower.replace(b"_", b"-")
        if lower.startswith(_PARAM_PREFIX):
            role = _PARAM
        elif plain in _ROLES or plain.startswith(_PARAM_PREFIX):
            role = _DISGUISED
    if len(_spellings) < _MAX_SPELLINGS:
        _spellings[name] = role
    return role


def _shown(name: bytes) -> str:
    return name.decode("latin-1")[:64]


def _check_connection(value: bytes) -> HeaderFault | None:
    for part in value.split(b","):
        option = part.strip(b" \t").lower()
        if option in _END_TO_END or option.startswith(b"mcp-"):
            return _mismatch("Connection must not name a header that the server needs: leave it out")
    return None


def _scalars(arguments: JsonObject) -> Iterable[Any]:
    stack: list[Any] = [arguments]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            stack.extend(cast(JsonObject, node).values())
        elif isinstance(node, list):
            stack.extend(cast(list[Any], node))
        else:
            yield node


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    node = arguments
    for key in path:
        if not isinstance(node, dict):
            return None
        node = cast(JsonObject, node).get(key)
    return node


def _same(decoded: str, value: Any) -> bool:
    """Whether a mirrored value is this argument's: strings exactly, booleans as words, numbers numerically."""
    if isinstance(value, str):
        return decoded == value
    if isinstance(value, bool):
        return decoded == ("true" if value else "false")
    if isinstance(value, int | float):
        if len(decoded) > 64 or _DECIMAL.fullmatch(decoded) is None:
            return decoded == str(value)
        whole, _, fraction = decoded.partition(".")
        if fraction.strip("0") == "" and isinstance(value, int):
            return int(whole) == value
        return float(decoded) == value
    return False


def _mismatch(text: str) -> HeaderFault:
    return HeaderFault(400, HEADER_MISMATCH, text)
