"""Heads as bytes: what is forwarded, what is remembered, and what of the upstream's address is given away."""

from __future__ import annotations

import pytest

from toolpolicy.sidecar.head import Head, forwarded_head, with_body
from toolpolicy.sidecar.target import Target, parse_target
from toolpolicy.sidecar.wiring import ANSWER, MAX_SPELLINGS, Answer, Kind, answer_bytes, relative, status_line

HEADERS = (
    (b"Host", b"h"),
    (b"Content-Length", b"10"),
    (b"Mcp-Session-Id", b"s-1"),
    (b"Authorization", b"Bearer x"),
)


@pytest.mark.parametrize(
    ("method", "target", "headers", "same"),
    [
        ("POST", "/mcp", HEADERS, True),
        ("POST", "/mcp", (HEADERS[0], (b"Content-Length", b"99"), *HEADERS[2:]), True),
        ("POST", "/mcp", (HEADERS[0], (b"content-length", b"10"), *HEADERS[2:]), False),
        ("POST", "/mcp", (HEADERS[0], (b"X-Other", b"10"), *HEADERS[2:]), False),
        ("POST", "/mcp", (HEADERS[0], *HEADERS[2:]), False),
        ("POST", "/mcp", (*HEADERS, (b"X", b"y")), False),
        ("POST", "/mcp", (*HEADERS[:3], (b"Authorization", b"Bearer y")), False),
        ("POST", "/mcp", ((b"Host", b"g"), *HEADERS[1:]), False),
        ("POST", "/mcp", HEADERS[:2], False),
        ("GET", "/mcp", HEADERS, False),
        ("POST", "/mcp?x", HEADERS, False),
    ],
)
def test_a_head_is_the_same_but_for_the_length(
    method: str, target: str, headers: tuple[tuple[bytes, bytes], ...], same: bool
) -> None:
    assert Head("POST", "/mcp", HEADERS).same(method, target, headers) is same


def test_a_head_without_length_is_not_one_with() -> None:
    without = (HEADERS[0], *HEADERS[2:])
    assert Head("POST", "/mcp", without).same("POST", "/mcp", without)
    assert not Head("POST", "/mcp", without).same("POST", "/mcp", (*without, (b"Content-Length", b"1")))


def test_what_ends_at_this_hop_is_not_forwarded() -> None:
    headers = (
        *HEADERS,
        (b"Connection", b"keep-alive"),
        (b"TE", b"trailers"),
        (b"Expect", b"100-continue"),
        (b"Accept-Encoding", b"gzip"),
        (b"X-Kept", b"\xe9"),
    )
    head = forwarded_head("POST", "/mcp", headers, host=b"up:1", encodings=False)
    assert with_body(head, b"{}") == (
        b"POST /mcp HTTP/1.1\r\nHost: up:1\r\nMcp-Session-Id: s-1\r\nAuthorization: Bearer x\r\nX-Kept: \xe9\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    assert with_body(b"GET / HTTP/1.1\r\n", None) == b"GET / HTTP/1.1\r\n\r\n"
    assert b"Accept-Encoding: gzip" in forwarded_head("GET", "/mcp", headers, host=None, encodings=True)


def test_spellings_of_names_do_not_fill_memory() -> None:
    for number in range(2 * MAX_SPELLINGS):
        assert ANSWER.kind(b"x-%d" % number) is Kind.PLAIN
    assert len(ANSWER.seen) <= MAX_SPELLINGS
    assert ANSWER.kind(b"tRANSFER-eNCODING") is Kind.DROP


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (b"http://127.0.0.1:9000/mcp/", b"/mcp/"),
        (b"HTTP://127.0.0.1:9000", b"/"),
        (b"http://127.0.0.1:9000?x", b"/?x"),
        (b"http://127.0.0.1:9000.example/", b"http://127.0.0.1:9000.example/"),
        (b"http://127.0.0.1:90001/", b"http://127.0.0.1:90001/"),
        (b"http://127.0.0.1:9000@example/", b"http://127.0.0.1:9000@example/"),
        (b"https://login.example/", b"https://login.example/"),
        (b"/mcp/", b"/mcp/"),
    ],
)
def test_only_the_upstreams_own_address_becomes_a_path(location: bytes, shown: bytes) -> None:
    assert relative(location, Target("127.0.0.1", 9000).origins) == shown


def test_an_answer_of_ours_is_whole() -> None:
    refusal = Answer(503, b"{}", headers=((b"Retry-After", b"1"),))
    assert answer_bytes(refusal, close=True) == (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
    )
    assert answer_bytes(Answer(202), close=False) == b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
    assert status_line(299) == b"HTTP/1.1 299 \r\n"


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("http://127.0.0.1:8000/mcp", Target("127.0.0.1", 8000, path="/mcp"), b"127.0.0.1:8000"),
        ("http://host", Target("host", 80), b"host"),
        ("https://host/", Target("host", 443, tls=True), b"host"),
        ("https://[::1]:8443/x", Target("::1", 8443, tls=True, path="/x"), b"[::1]:8443"),
        ("unix:/run/mcp.sock", Target("localhost", 80, socket_path="/run/mcp.sock"), b"localhost"),
    ],
)
def test_an_upstream_is_parsed(url: str, target: Target, authority: bytes) -> None:
    assert parse_target(url) == target
    assert target.authority == authority


@pytest.mark.parametrize(
    "url", ["", "host:80", "ftp://h", "http://", "http://h:x/", "http://u:p@h/", "http://h/?q", "http://h/#f", "unix:x"]
)
def test_what_is_no_upstream_says_what_is_expected(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_target(url)
