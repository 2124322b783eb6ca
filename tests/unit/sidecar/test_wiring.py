"""Which header goes through."""

from __future__ import annotations

import pytest

from toolpolicy.sidecar.head import forwarded_head


@pytest.mark.parametrize(
    "name", [b"Content_Length", b"Transfer_Encoding", b"transfer_encoding", b"Content-Length", b"TE"]
)
def test_nothing_that_a_server_may_take_for_framing_is_forwarded(name: bytes) -> None:
    head = forwarded_head("POST", "/mcp", ((b"Host", b"a"), (name, b"5")), host=None, encodings=False)
    assert head == b"POST /mcp HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize("name", [b"X_Mine", b"X-Mine", b"X_Content_Length"])
def test_other_headers_are_forwarded_as_they_came(name: bytes) -> None:
    head = forwarded_head("POST", "/mcp", ((name, b"5"),), host=None, encodings=False)
    assert head == b"POST /mcp HTTP/1.1\r\n" + name + b": 5\r\n"
