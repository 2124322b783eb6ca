"""HTTP heads as bytes: which header goes through, which stays, and how a request or an answer of ours is written. No
I/O.

Names are looked up as they were written; what a spelling means is worked out once (bounded, since callers choose it).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus

from toolpolicy.mcp.headers import HOP_BY_HOP

RawHeader = tuple[bytes, bytes]

MAX_SPELLINGS = 2048


class Kind(IntEnum):
    PLAIN = 1
    DROP = 2
    LOCATION = 3
    CONTENT_TYPE = 4
    CONTENT_ENCODING = 5
    SESSION = 6
    LENGTH = 7
    ACCEPT_ENCODING = 8


class Names:
    """From a header's name, as spelled, to its :class:`Kind`."""

    def __init__(self, kinds: dict[bytes, Kind]) -> None:
        self._kinds = kinds
        self.seen: dict[bytes, Kind] = {}
        """What is known already; a missing name is asked of :meth:`kind`."""

    def kind(self, name: bytes) -> Kind:
        return self.seen.get(name) or self._learn(name)

    def _learn(self, name: bytes) -> Kind:
        lower = name.lower()
        known = self._kinds.get(lower, Kind.PLAIN)
        # CGI and WSGI take Content_Length for Content-Length: a second opinion of where a request ends.
        if known is Kind.PLAIN and b"_" in lower and self._kinds.get(lower.replace(b"_", b"-")) is Kind.DROP:
            known = Kind.DROP
        if len(self.seen) >= MAX_SPELLINGS:
            self.seen.clear()
        self.seen[name] = known
        return known


_hop = dict.fromkeys((n if isinstance(n, bytes) else n.encode() for n in HOP_BY_HOP), Kind.DROP)  # type: ignore[redundant]
_never = dict.fromkeys((b"http2-settings", b"expect"), Kind.DROP)

REQUEST = Names(_hop | _never | {b"content-length": Kind.DROP, b"accept-encoding": Kind.ACCEPT_ENCODING})
ANSWER = Names(
    _hop
    | {
        b"content-length": Kind.LENGTH,
        b"location": Kind.LOCATION,
        b"content-location": Kind.LOCATION,
        b"content-type": Kind.CONTENT_TYPE,
        b"content-encoding": Kind.CONTENT_ENCODING,
        b"mcp-session-id": Kind.SESSION,
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of our own, whole."""

    status: int
    body: bytes = b""
    content_type: bytes = b"application/json"
    headers: tuple[RawHeader, ...] = ()
    close: bool = False


def answer_bytes(answer: Answer, *, close: bool, head_only: bool = False) -> bytes:
    out = [status_line(answer.status)]
    if answer.body:
        out.append(b"Content-Type: %b\r\n" % answer.content_type)
    for name, value in answer.headers:
        out.append(b"%b: %b\r\n" % (name, value))
    out.append(b"Content-Length: %d\r\n" % len(answer.body))
    out.append(b"Connection: close\r\n\r\n" if close or answer.close else b"\r\n")
    if not head_only:
        out.append(answer.body)
    return b"".join(out)


def status_line(status: int, reason: bytes | None = None) -> bytes:
    if reason is None:
        try:
            reason = HTTPStatus(status).phrase.encode()
        except ValueError:
            reason = b""
    return b"HTTP/1.1 %d %b\r\n" % (status, reason)


def relative(location: bytes, origins: tuple[bytes, ...]) -> bytes:
    """A URL of the upstream's own address as the path it is; any other unchanged."""
    lowered = location.lower()
    for origin in origins:
        if lowered.startswith(origin):
            rest = location[len(origin) :]
            if not rest:
                return b"/"
            if rest[:1] in (b"/", b"?", b"#"):
                return rest if rest[:1] == b"/" else b"/" + rest
    return location


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
