"""The JSON-RPC envelope, parsed so strictly that every server reads the same call out of it.

Parsers disagree: on which of two equal keys wins, on ``Name`` for ``name`` (Go), ``ſ`` for ``s`` (Go), ``meta`` for
``_meta`` (pydantic's aliases), on byte order marks, ``NaN``, ``1e400``, on what an id of ``1.0`` or ``null`` makes of
a request. What is judged here must be what the server executes, so whatever two parsers read differently is refused,
with the cure in the message. The original bytes are forwarded; nothing here is re-serialised.

Traps: keys are compared by their folded form only in the envelope and directly in ``params``. Inside ``arguments`` and
``_meta`` a key may be called ``Name`` (AWS tags are).
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, cast

import jiter

from toolpolicy.mcp import methods
from toolpolicy.mcp.revisions import META_CLIENT_INFO, META_PROTOCOL_VERSION

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602

MAX_BATCH: Final = 64
"""Items of a JSON-RPC batch."""
MAX_ID_LENGTH: Final = 256
MAX_SAFE_INTEGER: Final = 2**53 - 1

JsonObject = dict[str, Any]

_ENVELOPE: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_PARAMS: Final = frozenset(
    {
        "_meta",
        "name",
        "arguments",
        "task",
        "uri",
        "cursor",
        "ref",
        "argument",
        "context",
        "level",
        "taskId",
        "inputResponses",
        "requestState",
        "notifications",
        "protocolVersion",
        "capabilities",
        "clientInfo",
        "requestId",
        "reason",
        "progressToken",
        "progress",
        "total",
        "message",
    }
)
_NESTED: Final = (
    ("ref", frozenset({"type", "name", "uri"})),
    ("argument", frozenset({"name", "value"})),
    ("task", frozenset({"ttl"})),
)
_METHOD: Final = re.compile(r"[A-Za-z0-9_.$/-]{1,128}")
_POSITION: Final = re.compile(r" at (line \d+ column \d+)$")
_DUPLICATE: Final = re.compile(r'Detected duplicate key "(.*)"', re.DOTALL)

_DIGITS: Final = bytes(
    0x30 if 0x30 <= c <= 0x39 else 0x65 if c in b"eE" else c if c in b"." else 0x20 for c in range(256)
)
"""Every digit becomes 0 and every other byte that can't be part of a number a blank, so that runs can be searched."""
_HUGE_EXPONENT: Final = b"e000"
_LONG_INTEGER: Final = b"0" * 19


class Kind(Enum):
    """What a JSON-RPC object is."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


class EnvelopeError(ValueError):
    """A body that is refused: HTTP ``status``, JSON-RPC ``code``, a message with the cure, and the id where it is
    known."""

    def __init__(self, status: int, code: int, message: str, id: int | str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.id = id


@dataclass(slots=True, eq=False)
class Message:
    """One JSON-RPC object that passed every check. Read-only: it is what was judged.

    ``id`` is None for notifications (and for an error response that names no request). ``has_nul``: a string or a key
    somewhere in the body contains U+0000, at which some expression runtimes cut strings off.
    """

    kind: Kind
    method: str | None
    id: int | str | None
    params: JsonObject | None
    body: JsonObject
    has_nul: bool = False

    @property
    def tool(self) -> str | None:
        """The tool that a ``tools/call`` names; None for every other method."""
        if self.method != methods.CALL or self.params is None:
            return None
        return cast(str, self.params["name"])

    @property
    def arguments(self) -> JsonObject:
        """``params.arguments``; absent and null are an empty object, as every server treats them."""
        found = self.params.get("arguments") if self.params is not None else None
        return cast(JsonObject, found) if found is not None else {}

    @property
    def meta(self) -> JsonObject:
        """``params._meta``, or an empty object."""
        found = self.params.get("_meta") if self.params is not None else None
        return cast(JsonObject, found) if found is not None else {}

    @property
    def name(self) -> str | None:
        """What is asked for: the tool, the prompt, the URI or the task (``methods.NAME_PARAMETER``)."""
        member = methods.NAME_PARAMETER.get(self.method or "")
        return cast(str, self.params[member]) if member is not None and self.params is not None else None

    @property
    def task_id(self) -> str | None:
        """The task that a ``tasks/…`` method acts on."""
        return self.name if self.method in methods.TASK_METHODS else None

    @property
    def client_info(self) -> JsonObject:
        """``clientInfo`` of ``initialize`` or of the 2026-07-28 envelope: a label for the audit, never an identity."""
        found: Any = None
        if self.params is not None:
            found = self.params.get("clientInfo") if self.method == "initialize" else self.meta.get(META_CLIENT_INFO)
        return cast(JsonObject, found) if isinstance(found, dict) else {}

    @property
    def protocol_version(self) -> str | None:
        """The revision that the body itself states: in ``initialize``, or in ``_meta`` from 2026-07-28 on."""
        found: Any = None
        if self.params is not None:
            found = (
                self.params.get("protocolVersion")
                if self.method == "initialize"
                else self.meta.get(META_PROTOCOL_VERSION)
            )
        return found if isinstance(found, str) else None

    @property
    def judged(self) -> bool:
        """Whether this needs a decision."""
        return self.kind is Kind.REQUEST and methods.judged(self.method or "")


def parse(body: bytes, *, max_depth: int = 64) -> Message | tuple[Message, ...]:
    """Parse one HTTP body: a message, or a tuple of them for a JSON-RPC batch (which only 2025-03-26 has).

    ``max_depth`` counts nested arrays and objects; more than 200 are never read. Raises :class:`EnvelopeError` for
    everything that two servers could read differently.
    """
    try:
        value: Any = jiter.from_json(body, catch_duplicate_keys=True, allow_inf_nan=False, cache_mode="keys")
    except ValueError as error:
        raise _syntax_error(body, str(error)) from None
    if body.count(b"{") + body.count(b"[") > max_depth and _deeper_than(value, max_depth):
        raise EnvelopeError(
            400, INVALID_REQUEST, f"the JSON is nested deeper than {max_depth} levels: flatten it", _id_of(value)
        )
    runs = body.translate(_DIGITS, b"+")
    if _LONG_INTEGER in runs or _HUGE_EXPONENT in runs:
        _check_numbers(value)
    has_nul = b"\\u0000" in body and _contains_nul(value)
    if type(value) is dict:
        return _message(cast(JsonObject, value), has_nul)
    if type(value) is list:
        return _batch(cast(list[Any], value), has_nul)
    raise EnvelopeError(400, INVALID_REQUEST, 'the body must be a JSON-RPC object: {"jsonrpc":"2.0",…}')


def _batch(items: list[Any], has_nul: bool) -> tuple[Message, ...]:
    if not 1 <= len(items) <= MAX_BATCH:
        raise EnvelopeError(400, INVALID_REQUEST, f"a batch must hold 1 to {MAX_BATCH} messages; send them one by one")
    found: list[Message] = []
    ids: set[tuple[type, int | str]] = set()
    for item in items:
        if type(item) is not dict:
            raise EnvelopeError(400, INVALID_REQUEST, "every item of a batch must be a JSON-RPC object")
        message = _message(cast(JsonObject, item), has_nul)
        if message.kind is Kind.REQUEST and message.id is not None:
            key = (type(message.id), message.id)
            if key in ids:
                raise EnvelopeError(400, INVALID_REQUEST, "two requests of a batch have the same id: give each its own")
            ids.add(key)
        if message.method == "initialize":
            raise EnvelopeError(400, INVALID_REQUEST, "initialize can't be part of a batch: send it alone", message.id)
        found.append(message)
    return tuple(found)


def _message(body: JsonObject, has_nul: bool) -> Message:
    if not body.keys() <= _ENVELOPE:
        _refuse_lookalikes(body, _ENVELOPE_FOLDED, "the message", _id_of(body))
    if body.get("jsonrpc") != "2.0":
        raise EnvelopeError(400, INVALID_REQUEST, 'the member "jsonrpc" must be the string "2.0"', _id_of(body))
    method = body.get("method")
    if method is None and "method" not in body:
        return _response(body, has_nul)
    if type(method) is not str or _METHOD.fullmatch(method) is None:
        raise EnvelopeError(
            400, INVALID_REQUEST, '"method" must be a string of 1 to 128 letters, digits and _ . $ / -', _id_of(body)
        )
    if "result" in body or "error" in body:
        raise EnvelopeError(
            400,
            INVALID_REQUEST,
            'a request can\'t have "result" or "error": send either a request or an answer',
            _id_of(body),
        )
    if "id" in body:
        id = _checked_id(body["id"])
        kind = Kind.REQUEST
        if method.startswith(methods.NOTIFICATION_PREFIX):
            raise EnvelopeError(400, INVALID_REQUEST, 'a notification has no "id": leave it out', id)
    else:
        id = None
        kind = Kind.NOTIFICATION
        if not method.startswith(methods.NOTIFICATION_PREFIX):
            raise EnvelopeError(
                400, INVALID_REQUEST, 'the "id" is missing: every request needs one, a string or a whole number'
            )
    params = body.get("params")
    if params is not None:
        if type(params) is not dict:
            raise EnvelopeError(400, INVALID_PARAMS, '"params" must be an object', id)
        params = cast(JsonObject, params)
        _check_params(params, id)
    if method not in _EXACT_METHODS:
        _check_unknown_method(method, id)
    elif (member := methods.NAME_PARAMETER.get(method)) is not None and (
        params is None or type(params.get(member)) is not str
    ):
        raise EnvelopeError(400, INVALID_PARAMS, f'{method} needs "params" with "{member}", a string', id)
    return Message(kind, method, id, params, body, has_nul)


def _response(body: JsonObject, has_nul: bool) -> Message:
    if ("result" in body) == ("error" in body):
        raise EnvelopeError(
            400,
            INVALID_REQUEST,
            'a message needs "method" (a request) or exactly one of "result" and "error" (an answer)',
        )
    if "id" not in body and "error" in body:
        return Message(Kind.RESPONSE, None, None, None, body, has_nul)
    return Message(Kind.RESPONSE, None, _checked_id(body.get("id")), None, body, has_nul)


def _check_params(params: JsonObject, id: int | str | None) -> None:
    if not params.keys() <= _PARAMS:
        _refuse_lookalikes(params, _PARAMS_FOLDED, '"params"', id)
    arguments = params.get("arguments")
    if arguments is not None and type(arguments) is not dict:
        raise EnvelopeError(400, INVALID_PARAMS, '"arguments" must be an object', id)
    meta = params.get("_meta")
    if meta is not None and type(meta) is not dict:
        raise EnvelopeError(400, INVALID_PARAMS, '"_meta" must be an object', id)
    for member, reserved in _NESTED:
        nested = params.get(member)
        if type(nested) is dict and not (nested := cast(JsonObject, nested)).keys() <= reserved:
            _refuse_lookalikes(nested, _folded(reserved), f'"{member}"', id)


def _check_unknown_method(method: str, id: int | str | None) -> None:
    """A method that only looks like a known one is refused: a lenient server would run it as that one."""
    if method.startswith(methods.NOTIFICATION_PREFIX):
        return
    known = _METHODS_FOLDED.get(fold(method))
    if known is not None:
        raise EnvelopeError(400, INVALID_REQUEST, f'"{method}" is not a method: it is written "{known}"', id)


def _checked_id(id: Any) -> int | str:
    if type(id) is str:
        if len(id) <= MAX_ID_LENGTH:
            return id
        raise EnvelopeError(
            400, INVALID_REQUEST, f'the "id" is longer than {MAX_ID_LENGTH} characters: use a shorter one'
        )
    if type(id) is int and -MAX_SAFE_INTEGER <= id <= MAX_SAFE_INTEGER:
        return id
    raise EnvelopeError(
        400,
        INVALID_REQUEST,
        'the "id" must be a string or a whole number within ±(2^53 - 1), without fraction or exponent',
    )


def _id_of(value: Any) -> int | str | None:
    """The id for an error answer, where there is a usable one."""
    if type(value) is not dict:
        return None
    try:
        return _checked_id(cast(JsonObject, value).get("id"))
    except EnvelopeError:
        return None


def fold(key: str) -> str:
    """What a lenient parser may take a key for: case, separators, ligatures and marks removed.

    Covers Go's ``encoding/json`` (case, U+017F, U+212A), json/v2's and pydantic's ``snake_case`` for ``camelCase``, and
    Java's ``equalsIgnoreCase`` (dotted and dotless i).
    """
    if not key.isascii():
        key = unicodedata.normalize("NFKD", key.replace("\u0131", "i")).casefold()
    return "".join(c for c in key.lower() if c.isascii() and c.isalnum())


def _folded(names: Iterable[str]) -> dict[str, str]:
    return {fold(name): name for name in names}


_ENVELOPE_FOLDED: Final = _folded(_ENVELOPE)
_PARAMS_FOLDED: Final = _folded(_PARAMS)
_EXACT_METHODS: Final = methods.JUDGED | methods.PASSING
_METHODS_FOLDED: Final = _folded(_EXACT_METHODS)


def _refuse_lookalikes(found: JsonObject, reserved: dict[str, str], where: str, id: int | str | None) -> None:
    for key in found:
        name = reserved.get(fold(key))
        if name is not None and key != name:
            raise EnvelopeError(
                400,
                INVALID_REQUEST,
                f'a key of {where} can be mistaken for "{name}": write it exactly so, or name it otherwise',
                id,
            )


def _deeper_than(value: Any, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [child for node in level for child in _children(node) if type(child) is dict or type(child) is list]
        if not level:
            return False
    return True


def _children(node: Any) -> Iterable[Any]:
    return (
        cast(JsonObject, node).values() if type(node) is dict else cast(list[Any], node) if type(node) is list else ()
    )


def _check_numbers(value: Any) -> None:
    stack: list[Any] = [value]
    while stack:
        node = stack.pop()
        if type(node) is float:
            if node - node != 0.0:
                raise EnvelopeError(
                    400, INVALID_REQUEST, "a number is out of range (as 1e400 is): send it as a string", _id_of(value)
                )
        elif type(node) is int:
            if not -(2**63) <= node < 2**64:
                raise EnvelopeError(
                    400, INVALID_REQUEST, "a whole number needs more than 64 bits: send it as a string", _id_of(value)
                )
        else:
            stack.extend(_children(node))


def _contains_nul(value: Any) -> bool:
    stack: list[Any] = [value]
    while stack:
        node = stack.pop()
        if type(node) is str:
            if "\0" in node:
                return True
        elif type(node) is dict:
            stack.extend(cast(JsonObject, node))
            stack.extend(cast(JsonObject, node).values())
        elif type(node) is list:
            stack.extend(cast(list[Any], node))
    return False


def _syntax_error(body: bytes, found: str) -> EnvelopeError:
    position = _POSITION.search(found)
    where = f" at {position[1]}" if position else ""
    id = None
    with contextlib.suppress(ValueError):
        id = _id_of(jiter.from_json(body))
    if not body.strip(b" \t\r\n"):
        message = "the body is empty: send a JSON-RPC object"
    elif body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:4]:
        message = "the body must be UTF-8 without a byte order mark"
    elif (duplicate := _DUPLICATE.match(found)) is not None:
        key = duplicate[1] if len(duplicate[1]) <= 40 else duplicate[1][:40] + "…"
        return EnvelopeError(400, INVALID_REQUEST, f'the key "{key}" occurs twice{where}: send every key once', id)
    elif found.startswith("recursion limit"):
        return EnvelopeError(400, INVALID_REQUEST, f"the JSON is nested too deep{where}: flatten it", id)
    elif "surrogate" in found or "hex escape" in found:
        message = f"a string has half of a surrogate pair{where}: send whole characters"
    elif "unicode" in found:
        message = f"the body is not valid UTF-8{where}"
    else:
        reason = _POSITION.sub("", found)
        message = f"the body is not valid JSON{where}: {reason[:80]}"
    return EnvelopeError(400, PARSE_ERROR, message, id)
