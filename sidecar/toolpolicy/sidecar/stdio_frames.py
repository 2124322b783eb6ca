"""JSON-RPC messages as text in which single values are replaced, and every other byte stays as it was sent.

A bridge between many HTTP clients and one pipe has to give requests ids of its own. Parsing and serialising anew would
do it, and would change numbers on the way (``1.10``, 30 digits), so that the server runs something else than what was
judged. So only the spans of the few routed values (``id``, ``requestId``, the progress token, the subscription id) are
exchanged.

A line of the stdio transport ends at a newline. Raw line breaks can stand only *between* JSON tokens, where they are
turned into blanks; U+2028, U+2029 and U+0085, which some readers take for line ends, can stand only *inside* strings,
where their escape means the same.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NoReturn, cast

RequestId = str | int
Path = tuple[str, ...]

SUBSCRIPTION_KEY: Final = "io.modelcontextprotocol/subscriptionId"
VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
ID: Final[Path] = ("id",)
METHOD_PARAMS: Final[Path] = ("params",)
ASKED_TOKEN: Final[Path] = ("params", "_meta", "progressToken")
TOLD_TOKEN: Final[Path] = ("params", "progressToken")
CANCELLED_ID: Final[Path] = ("params", "requestId")
SUBSCRIPTION_PATHS: Final[tuple[Path, ...]] = (
    ("params", "_meta", SUBSCRIPTION_KEY),
    ("result", "_meta", SUBSCRIPTION_KEY),
)

_BLANK: Final = re.compile(r"[ \t\n\r]*")
_LINE_ENDS: Final = str.maketrans({"\n": " ", "\r": " ", "\u2028": "\\u2028", "\u2029": "\\u2029", "\u0085": "\\u0085"})
_LONGEST_INTEGER: Final = 4000


class FrameError(ValueError):
    """The text is not a JSON-RPC message. ``code`` is JSON-RPC's (-32700 not JSON, -32600 JSON of another shape)."""

    def __init__(self, message: str, code: int = -32600) -> None:
        super().__init__(message)
        self.code = code


class Shape(Enum):
    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    # int() refuses very long digits; the value is never used, since the text itself is passed on
    return int(digits) if len(digits) <= _LONGEST_INTEGER else 0.0


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_integer)


def one_line(text: str) -> str:
    """The same JSON without anything that a reader could take for the end of the line."""
    return text.translate(_LINE_ENDS)


def _value(text: str, start: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise FrameError("the message is nested too deeply", -32700) from error
    except ValueError as error:
        raise FrameError(f"not JSON: {error}", -32700) from error


def _skip(text: str, index: int) -> int:
    found = _BLANK.match(text, index)
    return found.end() if found else index


def _expect(text: str, index: int, characters: str) -> str:
    if index < len(text) and text[index] in characters:
        return text[index]
    raise FrameError(f"not JSON: expected one of {characters!r} at character {index}", -32700)


@dataclass(frozen=True, slots=True)
class Span:
    """A value and where its text stands: ``text[start:end]``."""

    value: Any
    start: int
    end: int


def members(text: str, start: int) -> dict[str, Span]:
    """The members of the object that begins at ``start``. Two of the same name are refused: readers differ on which
    counts."""
    found: dict[str, Span] = {}
    _expect(text, start, "{")
    index = _skip(text, start + 1)
    if index < len(text) and text[index] == "}":
        return found
    while True:
        _expect(text, index, '"')
        key, index = _value(text, index)
        index = _skip(text, index)
        _expect(text, index, ":")
        begin = _skip(text, index + 1)
        value, index = _value(text, begin)
        if key in found:
            raise FrameError(f"the member {key!r} appears twice")
        found[key] = Span(value, begin, index)
        index = _skip(text, index)
        if _expect(text, index, ",}") == "}":
            return found
        index = _skip(text, index + 1)


def elements(text: str, start: int) -> list[Span]:
    """The elements of the array that begins at ``start``."""
    found: list[Span] = []
    _expect(text, start, "[")
    index = _skip(text, start + 1)
    if index < len(text) and text[index] == "]":
        return found
    while True:
        value, end = _value(text, index)
        found.append(Span(value, index, end))
        index = _skip(text, end)
        if _expect(text, index, ",]") == "]":
            return found
        index = _skip(text, index + 1)


def as_id(value: object) -> RequestId | None:
    """``value`` if JSON-RPC in MCP allows it as an id: a string or an integer, never a boolean, a fraction or null."""
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class Frame:
    """One JSON-RPC message: its text, and what routing needs of it."""

    text: str
    shape: Shape
    method: str
    """Empty for a response."""
    id: RequestId | None
    top: dict[str, Span] = field(repr=False)

    @classmethod
    def of(cls, text: str) -> Frame:
        """From the text of one JSON object; raises FrameError."""
        top = members(text, _skip(text, 0))
        method = top["method"].value if "method" in top else None
        has_id = "id" in top
        request_id = as_id(top["id"].value) if has_id else None
        if isinstance(method, str):
            if "result" in top or "error" in top:
                raise FrameError("a message cannot be a request and an answer at once")
            if has_id and request_id is None:
                raise FrameError("the id of a request must be a string or an integer")
            return cls(text, Shape.REQUEST if has_id else Shape.NOTIFICATION, method, request_id, top)
        if method is None and has_id and ("result" in top) != ("error" in top):
            return cls(text, Shape.RESPONSE, "", request_id, top)
        raise FrameError("not a JSON-RPC message: neither a request, a notification nor an answer")

    def span(self, path: Path) -> Span | None:
        """The value at ``path``, or None where it or an object above it is missing."""
        level = self.top
        for depth, key in enumerate(path):
            span = level.get(key)
            if span is None or depth == len(path) - 1:
                return span
            if not isinstance(span.value, dict):
                return None
            level = members(self.text, span.start)
        return None

    def raw(self, path: Path) -> str | None:
        """The text of the value at ``path``."""
        span = self.span(path)
        return None if span is None else self.text[span.start : span.end]

    def value(self, path: Path) -> Any:
        span = self.span(path)
        return None if span is None else span.value

    def replaced(self, values: dict[Path, str]) -> str:
        """The text with the values at those paths (missing ones are passed over) exchanged for the given JSON texts."""
        text = self.text
        found = [(span, new) for path, new in values.items() if (span := self.span(path)) is not None]
        for span, new in sorted(found, key=lambda pair: pair[0].start, reverse=True):
            text = text[: span.start] + new + text[span.end :]
        return text

    @property
    def params(self) -> dict[str, Any]:
        value = self.value(METHOD_PARAMS)
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def parse(body: bytes) -> tuple[list[Frame], bool]:
    """The messages of ``body``, and whether they came as a JSON-RPC batch. Raises FrameError."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FrameError("the message is not UTF-8", -32700) from error
    start = _skip(text, 0)
    if start == len(text):
        raise FrameError("the message is empty", -32700)
    batch = text[start] == "["
    _, end = _value(text, start)
    if _skip(text, end) != len(text):
        raise FrameError("there is something after the end of the message", -32700)
    if not batch:
        return [Frame.of(text[start:end])], False
    frames = [Frame.of(text[span.start : span.end]) for span in elements(text, start)]
    if not frames:
        raise FrameError("an empty batch")
    return frames, True


def error_text(request_id: str, code: int, message: str) -> str:
    """A JSON-RPC error. ``request_id`` is JSON text (``null`` where there is none)."""
    return f'{{"jsonrpc":"2.0","id":{request_id},"error":{{"code":{code},"message":{json.dumps(message)}}}}}'


def result_text(request_id: str, result: str) -> str:
    """A JSON-RPC result from two JSON texts."""
    return f'{{"jsonrpc":"2.0","id":{request_id},"result":{result}}}'
