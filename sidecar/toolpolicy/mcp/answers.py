"""What a refused caller is told, in the shape that its client shows to the agent.

A denied ``tools/call`` is a *successful* HTTP exchange with a tool result that is an error: the agent reads the
reason and can act on it. Clients' habits, read and measured: the Python client 1.x ends the session at a 400 or 403;
2.x shows a 4xx whose JSON-RPC error has an id, null included, and says nothing useful where the member is missing; the
TypeScript ones raise with the body's text. With status 200 every client waits for ever on an error whose id is null, so
a body without a known id always goes with a 4xx.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from toolpolicy.mcp import methods
from toolpolicy.mcp.envelope import EnvelopeError, Message
from toolpolicy.mcp.headers import HeaderFault
from toolpolicy.policy.types import Code, Decision

META_KEY: Final = "toolpolicy.dev/decision"
DENIED: Final = -32010
"""JSON-RPC code of a denied method other than ``tools/call``. From the implementation-defined range −32000…−32019;
not −32001 (clients take it for a timeout), nor −32020…−32099 (the specification's own)."""
INTERNAL: Final = -32603

_ascii: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False).encode
_quote: Final = json.encoder.encode_basestring_ascii

_CALL_HEAD: Final = '{"jsonrpc":"2.0","id":'
_CALL_TEXT: Final = ',"result":{"resultType":"complete","isError":true,"content":[{"type":"text","text":'
_CALL_META: Final = '}],"_meta":{"' + META_KEY + '":'
_CALL_TAIL: Final = "}}}"
_EVENT_HEAD: Final = b"event: message\ndata: "
_EVENT_TAIL: Final = b"\n\n"

JSON_TYPE: Final = b"application/json"
EVENT_TYPE: Final = b"text/event-stream"


def denial(message: Message, decision: Decision, *, revision: str | None = None) -> bytes:
    """The JSON body (for HTTP 200) that answers a denied request. The same shape in every revision: ``resultType`` is
    mandatory from 2026-07-28 on and harmless before."""
    return refusal(message, decision.reason or "The policy denies this call.", details(decision))


def refusal(message: Message, text: str, detail: dict[str, Any]) -> bytes:
    """The same for a refusal that is not a policy's: an overload, an upstream that does not answer."""
    return _refusal(message.method, message.id, text, detail)


def _refusal(method: str | None, known: int | str | None, text: str, detail: dict[str, Any]) -> bytes:
    id = _quote(known) if isinstance(known, str) else str(known)
    if method == methods.CALL:
        return f"{_CALL_HEAD}{id}{_CALL_TEXT}{_quote(text)}{_CALL_META}{_json(detail)}{_CALL_TAIL}".encode("ascii")
    return (
        f'{{"jsonrpc":"2.0","id":{id},"error":{{"code":{DENIED},"message":{_quote(text)},'
        f'"data":{{"{META_KEY}":{_json(detail)}}}}}}}'
    ).encode("ascii")


def details(decision: Decision) -> dict[str, Any]:
    """What goes under ``_meta["toolpolicy.dev/decision"]``: code, rules, retryAfter (seconds, rounded up) and the
    rest."""
    found: dict[str, Any] = {"action": str(decision.action), "code": decision.code}
    if decision.rules:
        found["rules"] = [str(rule) for rule in decision.rules]
    if decision.retry_after is not None and math.isfinite(decision.retry_after):
        found["retryAfter"] = math.ceil(decision.retry_after * 1000) / 1000
    if decision.details:
        found["details"] = dict(decision.details)
    return found


def parse_error(error: EnvelopeError) -> bytes:
    """The JSON body for a request that was refused before it could be judged; goes with ``error.status``."""
    if error.method is not None:
        detail = {"action": "Deny", "code": Code.INVALID_REQUEST}
        return _refusal(error.method, error.id, error.message, detail)
    return http_error(error.code, error.message, error.id)


def header_error(fault: HeaderFault, message: Message | tuple[Message, ...] | None = None) -> bytes:
    """The JSON body for a request that was refused for its headers; goes with ``fault.status``."""
    return http_error(fault.code, fault.message, message.id if isinstance(message, Message) else None)


def http_error(code: int, text: str, id: int | str | None = None) -> bytes:
    """A JSON-RPC error for an HTTP status of 400 or above, with the id null where it is not known."""
    known = "null" if id is None else _quote(id) if isinstance(id, str) else str(id)
    return f'{{"jsonrpc":"2.0","id":{known},"error":{{"code":{code},"message":{_quote(text)}}}}}'.encode("ascii")


def as_sse(body: bytes) -> bytes:
    """One event that carries this JSON body (which has no line break); for a client that takes no JSON, or an open
    stream."""
    return _EVENT_HEAD + body + _EVENT_TAIL


def _json(value: dict[str, Any]) -> str:
    try:
        return _ascii(value)
    except (ValueError, TypeError):
        return _ascii({key: item for key, item in value.items() if key != "details"})
