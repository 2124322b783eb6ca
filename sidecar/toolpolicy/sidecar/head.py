"""What a request's head says, worked out once: a client sends nearly the same head with every call of a session.

A connection remembers its last :class:`Head` and asks :meth:`Head.same` of the next request: byte for byte equal but
for the length of the body. Everything that is derived from a head is therefore derived from exactly these bytes.
"""

from __future__ import annotations

from functools import cached_property

from toolpolicy.mcp.headers import HeaderFault, check_request_content
from toolpolicy.sidecar.case import bounded_session
from toolpolicy.sidecar.interfaces import RawHeaders
from toolpolicy.sidecar.wiring import REQUEST, Kind

_PLAIN = frozenset(
    {
        b"host", b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"content-type", b"content-length",
        b"origin", b"referer", b"cache-control", b"pragma", b"cookie", b"date", b"priority", b"transfer-encoding",
        b"sec-fetch-mode", b"sec-fetch-site", b"sec-fetch-dest", b"traceparent", b"tracestate", b"baggage",
    }
)  # fmt: skip
"""Headers that neither identify a caller nor are compared with the body."""


class Head:
    """``target`` is the request line's, ``headers`` as they came."""

    def __init__(self, method: str, target: str, headers: RawHeaders) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        session: bytes | None = None
        version: bytes | None = None
        at = len(headers)
        telling: list[tuple[bytes, bytes]] = []
        for index, (name, value) in enumerate(headers):
            lower = name.lower()
            if lower == b"content-length":
                at = index
            elif lower == b"mcp-session-id":
                session = value
            elif lower == b"mcp-protocol-version":
                version = value
            if lower not in _PLAIN:
                telling.append((name, value))
        self._before = headers[:at]
        self._after = headers[at + 1 :]
        self._at = at
        self.telling = tuple(telling)
        """The headers that may identify a caller or have to agree with the body."""
        self.session = None if session is None else bounded_session(session)
        self.version = None if version is None else version.decode("latin-1")

    def same(self, method: str, target: str, headers: RawHeaders) -> bool:
        """Whether another request's head is this one, but for its Content-Length."""
        at = self._at
        return (
            headers[:at] == self._before
            and headers[at + 1 :] == self._after
            and (at == len(self.headers)) == (len(headers) == at)
            and (len(headers) == at or headers[at][0] == self.headers[at][0])
            and method == self.method
            and target == self.target
        )

    @cached_property
    def content_fault(self) -> HeaderFault | None:
        """Why a body that is judged can't come with this head."""
        return check_request_content(self.headers)

    @cached_property
    def forwarded(self) -> bytes:
        """The head that goes upstream, up to its length; Host as it came, no compressed answer asked for."""
        return forwarded_head(self.method, self.target, self.headers, host=None, encodings=False)


def forwarded_head(method: str, target: str, headers: RawHeaders, *, host: bytes | None, encodings: bool) -> bytes:
    """The head of the upstream request without its end. ``host`` replaces Host; ``encodings`` lets Accept-Encoding
    through.
    """
    kind = REQUEST.kind
    out = [b"%b %b HTTP/1.1\r\n" % (method.encode("ascii"), target.encode("ascii"))]
    for name, value in headers:
        k = kind(name)
        if k is Kind.PLAIN:
            if host is not None and len(name) == 4 and name.lower() == b"host":
                out.append(b"%b: %b\r\n" % (name, host))
            else:
                out.append(b"%b: %b\r\n" % (name, value))
        elif k is Kind.ACCEPT_ENCODING and encodings:
            out.append(b"%b: %b\r\n" % (name, value))
    return b"".join(out)


def with_body(head: bytes, body: bytes | None) -> bytes:
    """A whole request: a forwarded head, and its body, if it has one."""
    return head + b"\r\n" if body is None else b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
