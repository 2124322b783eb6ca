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
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, cast

import jiter

from toolpolicy.mcp import methods, values
from toolpolicy.mcp.lookalikes import Reserved
from toolpolicy.mcp.revisions import META_CLIENT_INFO, META_PROTOCOL_VERSION

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602

MAX_BATCH: Final = 64
"""Items of a JSON-RPC batch."""
MAX_ID_LENGTH: Final = 256
MAX_VALUES: Final = 100_000
"""Members and items of one body, at any depth."""
MAX_SAFE_INTEGER: Final = 2**53 - 1

JsonObject = dict[str, Any]

_ENVELOPE: Final = Reserved({"jsonrpc", "id", "method", "params", "result", "error"})
_PLAIN_PARAMS: Final = frozenset({"_meta", "name", "arguments", "uri", "cursor", "taskId"})
_PARAMS: Final = Reserved(
    _PLAIN_PARAMS
    | {
        "task",
        "ref",
        "argument",
        "context",
        "level",
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
"""Every member that a revision defines for the ``params`` of a client's message."""
_NESTED: Final = (
    ("ref", Reserved({"type", "name", "uri"})),
    ("argument", Reserved({"name", "value"})),
    ("task", Reserved({"ttl"})),
    (
        "notifications",
        Reserved(
            {"toolsListChanged", "promptsListChanged", "resourcesListChanged", "resourceSubscriptions", "taskIds"}
        ),
    ),
)
_METHODS: Final = Reserved(methods.JUDGED | methods.PASSING)
_METHOD: Final = re.compile(r"[A-Za-z0-9_.$/-]{1,128}")
_POSITION: Final = re.compile(r" at (line \d+ column \d+)$")
_DUPLICATE: Final = re.compile(r'Detected duplicate key "(.*)"', re.DOTALL)


class Kind(Enum):
    """What a JSON-RPC object is."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


class EnvelopeError(ValueError):
    """A body that is refused: HTTP ``status``, JSON-RPC ``code``, a message with the cure, and the id where it is
    known.

    ``method`` is set, and ``status`` is 200, where the envelope is sound and only the arguments of a ``tools/call`` are
    not: that answer can be shown to the agent, who can do better.
    """

    def __init__(
        self, status: int, code: int, message: str, id: int | str | None = None, method: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.id = id
        self.method = method


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
        return cast("str | None", self.params.get(member)) if member is not None and self.params is not None else None

    @property
    def task_id(self) -> str | None:
        """The task that a ``tasks/…`` method acts on."""
        return self.name if self.method in methods.TASK_METHODS else None

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Every task that this message acts on or wants to hear of: ``subscriptions/listen`` may name several."""
        if (one := self.task_id) is not None:
            return (one,)
        if self.method != "subscriptions/listen" or self.params is None:
            return ()
        wanted = self.params.get("notifications")
        listed = cast(JsonObject, wanted).get("taskIds") if isinstance(wanted, dict) else None
        return tuple(str(task) for task in cast(list[Any], listed)) if isinstance(listed, list) else ()

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


def parse(body: bytes, *, max_depth: int = 64, max_values: int = MAX_VALUES) -> Message | tuple[Message, ...]:
    """Parse one HTTP body: a message, or a tuple of them for a JSON-RPC batch (which only 2025-03-26 has).

    ``max_depth`` counts nested arrays and objects; more than 200 are never read. Raises :class:`EnvelopeError` for
    everything that two servers could read differently.
    """
    if values.more_than(body, max_values):
        raise _invalid(f"the JSON holds more than {max_values} values: send fewer at a time")
    try:
        value: Any = jiter.from_json(body, catch_duplicate_keys=True, allow_inf_nan=False)
    except ValueError as error:
        raise _syntax_error(body, str(error)) from None
    has_nul = values.contains_nul(body, value)
    if type(value) is dict:
        message: Message | tuple[Message, ...] = _message(cast(JsonObject, value), has_nul)
    elif type(value) is list:
        message = _batch(cast(list[Any], value), has_nul)
    else:
        raise _invalid('the body must be a JSON-RPC object: {"jsonrpc":"2.0",…}')
    fault = values.fault(body, value, max_depth)
    if fault is None:
        return message
    if type(message) is Message and message.method == methods.CALL:
        raise EnvelopeError(200, INVALID_PARAMS, fault, message.id, methods.CALL)
    raise _invalid(fault, value)


def _invalid(text: str, body: Any = None) -> EnvelopeError:
    return EnvelopeError(400, INVALID_REQUEST, text, _id_of(body))


def _batch(items: list[Any], has_nul: bool) -> tuple[Message, ...]:
    if not 1 <= len(items) <= MAX_BATCH:
        raise _invalid(f"a batch must hold 1 to {MAX_BATCH} messages; send them one by one")
    found: list[Message] = []
    ids: set[tuple[type, int | str]] = set()
    for item in items:
        if type(item) is not dict:
            raise _invalid("every item of a batch must be a JSON-RPC object")
        message = _message(cast(JsonObject, item), has_nul)
        if message.kind is Kind.REQUEST and message.id is not None:
            key = (type(message.id), message.id)
            if key in ids:
                raise _invalid("two requests of a batch have the same id: give each its own")
            ids.add(key)
        if message.method == "initialize":
            raise _invalid("initialize can't be part of a batch: send it alone")
        found.append(message)
    return tuple(found)


def _message(body: JsonObject, has_nul: bool) -> Message:
    if not body.keys() <= _ENVELOPE.exact and (name := _ENVELOPE.first_mistaken(body)) is not None:
        raise _invalid(_LOOKALIKE.format("the message", name), body)
    if body.get("jsonrpc") != "2.0":
        raise _invalid('the member "jsonrpc" must be the string "2.0"', body)
    method = body.get("method")
    if method is None and "method" not in body:
        return _response(body, has_nul)
    if type(method) is not str:
        raise _invalid('"method" must be a string', body)
    if "result" in body or "error" in body:
        raise _invalid('a request can\'t have "result" or "error": send either a request or an answer', body)
    id = None
    kind = Kind.NOTIFICATION
    if "id" in body:
        id = _checked_id(body["id"])
        kind = Kind.REQUEST
    if method not in _METHODS.exact:
        _check_unusual_method(method, kind, body)
    elif kind is Kind.NOTIFICATION:
        raise _invalid('the "id" is missing: every request needs one, a string or a whole number')
    params = body.get("params")
    if params is not None:
        if type(params) is not dict:
            raise EnvelopeError(400, INVALID_PARAMS, '"params" must be an object', id)
        params = cast(JsonObject, params)
        _check_params(params, id)
    member = methods.NAME_PARAMETER.get(method)
    if member is not None and (params is None or type(params.get(member)) is not str):
        if method in methods.NAME_OPTIONAL and (params is None or member not in params):
            return Message(kind, method, id, params, body, has_nul)
        raise EnvelopeError(400, INVALID_PARAMS, f'{method} needs "params" with "{member}", a string', id)
    return Message(kind, method, id, params, body, has_nul)


def _check_unusual_method(method: str, kind: Kind, body: JsonObject) -> None:
    """A notification, or a method that is not known. One that only looks like a known one is refused: a lenient server
    would run it as that one."""
    if _METHOD.fullmatch(method) is None:
        raise _invalid('"method" must be 1 to 128 letters, digits and _ . $ / -', body)
    if method.startswith(methods.NOTIFICATION_PREFIX):
        if kind is Kind.REQUEST:
            raise _invalid('a notification has no "id": leave it out', body)
        return
    known = _METHODS.mistaken(method)
    if known is not None:
        raise _invalid(f'the method can be mistaken for "{known}": write it exactly so', body)
    if kind is Kind.NOTIFICATION:
        raise _invalid('the "id" is missing: every request needs one, a string or a whole number')


def _response(body: JsonObject, has_nul: bool) -> Message:
    if ("result" in body) == ("error" in body):
        raise _invalid('a message needs "method" (a request) or exactly one of "result" and "error" (an answer)', body)
    if "id" not in body and "error" in body:
        return Message(Kind.RESPONSE, None, None, None, body, has_nul)
    return Message(Kind.RESPONSE, None, _checked_id(body.get("id")), None, body, has_nul)


def _check_params(params: JsonObject, id: int | str | None) -> None:
    if not params.keys() <= _PLAIN_PARAMS:
        if (name := _PARAMS.first_mistaken(params)) is not None:
            raise EnvelopeError(400, INVALID_REQUEST, _LOOKALIKE.format('"params"', name), id)
        for member, reserved in _NESTED:
            nested = params.get(member)
            if type(nested) is dict and (name := reserved.first_mistaken(cast(JsonObject, nested))) is not None:
                raise EnvelopeError(400, INVALID_REQUEST, _LOOKALIKE.format(f'"{member}"', name), id)
    for member in ("arguments", "_meta"):
        found = params.get(member)
        if found is not None and type(found) is not dict:
            raise EnvelopeError(400, INVALID_PARAMS, f'"{member}" must be an object', id)


_LOOKALIKE: Final = 'a key of {} can be mistaken for "{}": write it exactly so, or name it otherwise'


def _checked_id(id: Any) -> int | str:
    if type(id) is str:
        if len(id) <= MAX_ID_LENGTH:
            return id
        raise _invalid(f'the "id" is longer than {MAX_ID_LENGTH} characters: use a shorter one')
    if type(id) is int and -MAX_SAFE_INTEGER <= id <= MAX_SAFE_INTEGER:
        return id
    raise _invalid('the "id" must be a string or a whole number within ±(2^53 - 1), without fraction or exponent')


def _id_of(value: Any) -> int | str | None:
    """The id for an error answer, where there is a usable one."""
    if type(value) is not dict:
        return None
    id = cast(JsonObject, value).get("id")
    usable = (type(id) is str and len(id) <= MAX_ID_LENGTH) or (
        type(id) is int and -MAX_SAFE_INTEGER <= id <= MAX_SAFE_INTEGER
    )
    return cast(int | str, id) if usable else None


def _syntax_error(body: bytes, found: str) -> EnvelopeError:
    position = _POSITION.search(found)
    where = f" at {position[1]}" if position else ""
    id = None
    with contextlib.suppress(ValueError):
        id = _id_of(jiter.from_json(body))
    if not body.strip(b" \t\r\n"):
        message = "the body is empty: send a JSON-RPC object"
    elif body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:4]:
        message = "the body is not plain UTF-8: send it as UTF-8 without a byte order mark"
    elif (duplicate := _DUPLICATE.match(found)) is not None:
        key = duplicate[1] if len(duplicate[1]) <= 40 else duplicate[1][:40] + "…"
        return EnvelopeError(400, INVALID_REQUEST, f'the key "{key}" occurs twice{where}: send every key once', id)
    elif found.startswith("recursion limit"):
        return EnvelopeError(400, INVALID_REQUEST, f"the JSON is nested too deep{where}: flatten it", id)
    elif "surrogate" in found or "hex escape" in found:
        message = f"a string has half of a surrogate pair{where}: send whole characters"
    elif "unicode" in found:
        message = f"the body is not valid UTF-8{where}: encode it as UTF-8"
    else:
        reason = _POSITION.sub("", found)
        message = f"the body is not valid JSON{where} ({reason[:80]}): send one JSON-RPC object"
    return EnvelopeError(400, PARSE_ERROR, message, id)
