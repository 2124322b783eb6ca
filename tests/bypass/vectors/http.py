"""Vectors in HTTP itself: framing, bodies where none belongs, paths, and headers that contradict the body."""

from __future__ import annotations

import base64
import itertools

from bypass.vectors.build import (
    ACCEPT,
    ALL,
    BASE,
    DELETE,
    HOST,
    JSON_TYPE,
    LEGACY,
    MODERN,
    Vector,
    call,
    compact,
    modern,
    post,
    request,
    standard,
)

BODIES = "a body on GET, HEAD, OPTIONS or DELETE"
FRAMING = "request smuggling"
SEGMENTS = "one request in several segments, several in one"
HEADERS = "headers that differ from the body"
PATHS = "paths"
DENIED = compact(call())
INNER = post(call())
"""A whole denied request, to be hidden inside another."""
ALLOWED = compact(call("echo", {"value": "ok"}))
REVISION = ("MCP-Protocol-Version", LEGACY)


def bodies() -> list[Vector]:
    """A server that leaves the body unread runs it as the next request."""
    found: list[Vector] = []
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        data = request(method, "/mcp", [HOST, ACCEPT, REVISION], INNER)
        found.append(Vector(f"body: on {method}", BODIES, data, ("plain",)))
    discovery = "/.well-known/oauth-protected-resource"
    for target in (discovery, f"{discovery}/mcp", "/.well-known/openid-configuration"):
        data = request("GET", target, [HOST, ACCEPT], INNER)
        found.append(Vector(f"body: on GET {target}", BODIES, data, ("plain",)))
    chunked = request("GET", "/mcp", [HOST, ACCEPT, ("Transfer-Encoding", "chunked")])
    data = chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(DENIED), DENIED)
    found.append(Vector("body: chunked on GET", BODIES, data, ("golang",)))
    found.append(Vector("body: on GET, direct", BODIES, request("GET", "/mcp", [*BASE, REVISION], DENIED), ("golang",)))
    found.append(Vector("body: on PUT", BODIES, request("PUT", "/mcp", [*BASE, REVISION], DENIED), ("golang",)))
    found.append(Vector("body: on PATCH", BODIES, request("PATCH", "/mcp", [*BASE, REVISION], DENIED), ("golang",)))
    found.append(
        Vector("body: on an unknown method", BODIES, request("CALL", "/mcp", [*BASE, REVISION], DENIED), ("golang",))
    )
    return found


def _framed(name: str, data: bytes, *stacks: str, expect: int = 2, control: str = "") -> Vector:
    return Vector(f"framing: {name}", FRAMING, data, stacks, expect=expect, control=control)


def _head(*headers: tuple[str, str] | bytes) -> bytes:
    usual = (("Host", "127.0.0.1:1"), ("Content-Type", "application/json"), ("Accept", ACCEPT[1]), REVISION)
    lines = [b"POST /mcp HTTP/1.1", *(f"{name}: {value}".encode() for name, value in usual)]
    lines += [item if isinstance(item, bytes) else f"{item[0]}: {item[1]}".encode() for item in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def framing() -> list[Vector]:
    size = str(len(DENIED))
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(DENIED), DENIED)
    hidden = b"0\r\n\r\n" + INNER
    takers = ("reference", "python1", "golang")
    refused = "every server we have refuses it, as the sidecar must"
    return [
        _framed(
            "CL and TE, the front sees the CL",
            _head(("Content-Length", str(len(hidden))), ("Transfer-Encoding", "chunked")) + hidden,
            *takers,
        ),
        _framed(
            "CL and TE, the front sees the TE",
            _head(("Content-Length", "5"), ("Transfer-Encoding", "chunked")) + hidden,
            *takers,
            "plain",
        ),
        _framed(
            "two different CL", _head(("Content-Length", size), ("Content-Length", "0")) + DENIED, "plain", expect=1
        ),
        _framed(
            "two CL, the small one first",
            _head(("Content-Length", "0"), ("Content-Length", str(len(INNER)))) + INNER,
            "plain",
        ),
        _framed(
            "a list of CL", _head(("Content-Length", f"{size}, {size}")) + DENIED, "reference", "python1", expect=1
        ),
        _framed("a signed CL", _head(("Content-Length", f"+{size}")) + DENIED, "plain", expect=1),
        _framed(
            "a CL with an underline", _head(("Content-Length", f"{size[0]}_{size[1:]}")) + DENIED, "plain", expect=1
        ),
        _framed("a CL with a blank inside", _head(("Content-Length", f"{size} 0")) + DENIED, expect=1, control=refused),
        _framed("a hexadecimal CL", _head(("Content-Length", hex(len(DENIED)))) + DENIED, expect=1, control=refused),
        _framed(
            "an unknown TE and a CL",
            _head(("Transfer-Encoding", "xchunked"), ("Content-Length", size)) + DENIED,
            "plain",
            expect=1,
        ),
        _framed(
            "TE identity and a CL",
            _head(("Transfer-Encoding", "identity"), ("Content-Length", size)) + DENIED,
            "plain",
            expect=1,
        ),
        _framed(
            "TE behind a vertical tab",
            _head(b"Transfer-Encoding: \x0bchunked", ("Content-Length", size)) + DENIED,
            "plain",
            expect=1,
        ),
        _framed(
            "TE with a blank before the colon",
            _head(b"Transfer-Encoding : chunked", ("Content-Length", size)) + DENIED,
            expect=1,
            control=refused,
        ),
        _framed(
            "TE twice",
            _head(("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")) + chunks,
            expect=1,
            control=refused,
        ),
        _framed("TE gzip, chunked", _head(("Transfer-Encoding", "gzip, chunked")) + chunks, "node1", "node2", expect=1),
        _framed(
            "a folded header line",
            _head(b"X-Note: a\r\n b", ("Content-Length", size)) + DENIED,
            *takers,
            "plain",
            expect=1,
        ),
        _framed("a folded CL", _head(b"Content-Length:\r\n " + size.encode()) + DENIED, *takers, "plain", expect=1),
        _framed("NUL in a header", _head(b"X-Note: a\0b", ("Content-Length", size)) + DENIED, "plain", expect=1),
        _framed(
            "a bare CR in a header",
            _head(b"X-Note: a\rb", ("Content-Length", size)) + DENIED,
            expect=1,
            control=refused,
        ),
        _framed(
            "bare LF as line ends",
            _head(("Content-Length", size)).replace(b"\r\n", b"\n") + DENIED,
            *takers,
            "plain",
            expect=1,
        ),
        _framed(
            "a bare LF hides a header",
            _head(b"X-Note: a\nContent-Length: " + size.encode()) + DENIED,
            *takers,
            "plain",
            expect=1,
        ),
        _framed(
            "a header without a colon", _head(b"X-Note", ("Content-Length", size)) + DENIED, expect=1, control=refused
        ),
        _framed(
            "a header name with a blank",
            _head(b"X Note: a", ("Content-Length", size)) + DENIED,
            expect=1,
            control=refused,
        ),
        _framed(
            "a websocket upgrade",
            _head(("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Content-Length", size)) + DENIED,
            *ALL,
            expect=1,
        ),
        _framed(
            "an h2c upgrade",
            _head(
                ("Connection", "Upgrade, HTTP2-Settings"),
                ("Upgrade", "h2c"),
                ("HTTP2-Settings", ""),
                ("Content-Length", size),
            )
            + DENIED,
            *ALL,
            expect=1,
        ),
        _framed("pipelined behind an allowed call", post(call("echo", {"value": "ok"})) + INNER, *ALL),
        _framed(
            "a chunk size with an underline",
            _head(("Transfer-Encoding", "chunked")) + b"0_" + chunks,
            expect=1,
            control=refused,
        ),
        _framed(
            "a signed chunk size", _head(("Transfer-Encoding", "chunked")) + b"+" + chunks, expect=1, control=refused
        ),
        _framed(
            "a chunk longer than its size",
            _head(("Transfer-Encoding", "chunked")) + b"1\r\n" + DENIED + b"\r\n0\r\n\r\n",
            expect=1,
            control=refused,
        ),
        _framed("an expectation", _head(("Expect", "100-continue"), ("Content-Length", size)) + DENIED, *ALL, expect=1),
    ]


def segments() -> list[Vector]:
    """The same bytes cut elsewhere: a parser must not care, nor the one that looks at its first segment alone."""
    allowed = post(call("echo", {"value": "ok"}))
    body = len(INNER) - len(DENIED)
    cuts = {
        "within the method": (2,),
        "within the path": (7,),
        "within a header": (60,),
        "before the empty line": (body - 2,),
        "between head and body": (body,),
        "within the body": (body + 20,),
        "everywhere": tuple(range(8, len(INNER), 16)),
    }
    found: list[Vector] = []
    for name, places in cuts.items():
        edges = (0, *places, len(INNER))
        pieces = tuple(INNER[start:end] for start, end in itertools.pairwise(edges))
        found.append(Vector(f"segments: cut {name}", SEGMENTS, pieces, ("reference", "node2", "plain")))
    middle = len(INNER) // 2
    joined = {
        "half behind an allowed call": ((allowed + INNER[:middle], INNER[middle:]), 2),
        "behind half an allowed call": ((allowed[:middle], allowed[middle:] + INNER), 2),
        "behind two allowed calls": ((allowed + allowed + INNER,), 3),
        "between two allowed calls": ((allowed + INNER + allowed,), 3),
        "behind an allowed call, cut in its body": ((allowed[:-3], allowed[-3:] + INNER[:-3], INNER[-3:]), 2),
    }
    for name, (pieces, answers) in joined.items():
        stacks = ("reference", "node1", "golang", "plain")
        found.append(Vector(f"segments: {name}", SEGMENTS, pieces, stacks, expect=answers))
    head = _head(("Transfer-Encoding", "chunked"))
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (DENIED[:30], DENIED[30:31], DENIED[31:])]
    takers = ("reference", "python1", "node1", "node2", "golang")
    for name, pieces in {
        "chunked": (head + b"".join(chunks) + b"0\r\n\r\n",),
        "chunked, each chunk by itself": (head, *chunks, b"0\r\n\r\n"),
        "chunked, cut in a size": (head + chunks[0][:1], chunks[0][1:] + b"".join(chunks[1:]), b"0\r\n\r\n"),
        "chunked, with an extension": (head + b"".join(chunks).replace(b"\r\n", b";x=y\r\n", 1) + b"0\r\n\r\n",),
        "chunked, with a trailer": (head + b"".join(chunks) + b"0\r\nMcp-Name: echo\r\n\r\n",),
    }.items():
        found.append(Vector(f"segments: {name}", SEGMENTS, pieces, takers))
    return found


def versions() -> list[Vector]:
    """Other versions of the protocol, and methods that are no POST to everyone."""
    old = INNER.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    kept = old.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n", 1)
    return [
        Vector("version: HTTP/1.0", FRAMING, old, ALL),
        Vector("version: HTTP/1.0, kept alive", FRAMING, kept, ALL),
        Vector(
            "version: HTTP/1.0, pipelined", FRAMING, post(call("echo")) + kept, ("python1", "golang", "plain"), expect=2
        ),
        Vector("method: post in lower case", BODIES, INNER.replace(b"POST", b"post", 1), ("golang",)),
        Vector("method: TRACE with a body", BODIES, INNER.replace(b"POST", b"TRACE", 1), ("golang",)),
    ]


def paths() -> list[Vector]:
    """The Go server takes every path that cleans to /mcp in any case. All carry a call that the policy allows."""
    targets = (
        "/MCP",
        "/mcp/",
        "//mcp",
        "/./mcp",
        "/x/../mcp",
        "/mcp/.",
        "/mcp/../mcp",
        "/%6dcp",
        "/mc%70",
        "/mcp%2f",
        "/mcp%2F",
        "/.%2e/mcp",
        "/%2e/mcp",
        "/mcp//",
        "///mcp",
        "/Mcp/",
        "/.well-known/mcp",
        "/.well-known/x/../../mcp",
        "/x/.well-known/y",
        "/.well-known/oauth-protected-resource",
        "/.well-known/oauth-authorization-server/mcp",
        "/mcp/.well-known/openid-configuration",
    )
    found = [
        Vector(
            f"path: {target}",
            PATHS,
            request("POST", target, [*BASE, REVISION], ALLOWED),
            ("node2", "golang", "plain"),
            "echo",
            status=404,
        )
        for target in targets
    ]
    for target in ("http://127.0.0.1/mcp", "http://evil.example/mcp", "HTTP://127.0.0.1:1/mcp"):
        data = request("POST", target, [*BASE, REVISION], ALLOWED)
        found.append(Vector(f"path: {target}", PATHS, data, ("golang", "plain"), "echo"))
    found.append(
        Vector(
            "path: /mcp#f",
            PATHS,
            request("POST", "/mcp#f", [*BASE, REVISION], ALLOWED),
            ("node1", "node2", "plain"),
            "echo",
            status=404,
        )
    )
    loud = request("POST", "/MCP", [*BASE, REVISION], ALLOWED)
    found.append(Vector("path: /MCP of express", PATHS, loud, ("node1",), "echo", status=404))
    slash = request("POST", "/mcp/", [*BASE, REVISION], ALLOWED)
    found.append(Vector("path: /mcp/ of express", PATHS, slash, ("node1",), "echo", status=404))
    return found


def headers() -> list[Vector]:
    """Someone on the way may judge by the headers, and the server by the body: both must say the same."""
    echo = modern("echo", {"value": "ok"})
    lenient = ("golang", "plain")
    encoded = f"=?base64?{base64.b64encode(DELETE.encode()).decode()}?="
    denied = {
        "Mcp-Name names an allowed tool": standard(modern(), name="echo"),
        "Mcp-Method names another method": standard(modern(), method="tools/list"),
        "no Mcp-Name": standard(modern(), name=None),
        "no Mcp-Method": standard(modern(), method=None),
        "Mcp-Name twice": standard(modern(), "tools/call", "echo", ("Mcp-Name", DELETE)),
        "Mcp-Method twice": standard(modern(), "tools/list", DELETE, ("Mcp-Method", "tools/call")),
        "Mcp-Name removed by Connection": standard(modern(), "tools/call", "echo", ("Connection", "Mcp-Name")),
        "Mcp-Method removed by Connection": standard(modern(), "ping", DELETE, ("Connection", "close, mcp-method")),
        "the revision removed by Connection": standard(
            modern(), "tools/call", DELETE, ("Connection", "MCP-Protocol-Version")
        ),
    }
    found = [Vector(f"header: {name}", HEADERS, data, lenient) for name, data in denied.items()]
    allowed = {
        "Mcp-Name names a denied tool": standard(echo, name=DELETE),
        "Mcp-Name names a denied tool, encoded": standard(echo, name=encoded),
        "Mcp-Name in another case": standard(echo, name="ECHO"),
        "Mcp-Name badly encoded": standard(echo, name="=?base64?ZWNobw?="),
        "Mcp-Method in another case": standard(echo, method="Tools/Call", name="echo"),
        "Mcp-Name twice with the same name": standard(echo, "tools/call", "echo", ("Mcp-Name", "echo")),
        "the body is of another revision": standard(modern("echo", version=LEGACY), name="echo"),
        "the header is of another revision": post(echo),
    }
    found += [Vector(f"header: {name}", HEADERS, data, lenient, "echo", status=400) for name, data in allowed.items()]
    twice = request("POST", "/mcp", [*BASE, ("MCP-Protocol-Version", MODERN), REVISION], DENIED)
    found.append(Vector("header: two revisions", HEADERS, twice, lenient))
    unknown = request("POST", "/mcp", [HOST, JSON_TYPE, ACCEPT, ("MCP-Protocol-Version", "1999-01-01")], DENIED)
    found.append(Vector("header: an unknown revision", HEADERS, unknown, lenient))
    return found


def vectors() -> list[Vector]:
    """All of this file."""
    return [*bodies(), *framing(), *segments(), *versions(), *paths(), *headers()]
