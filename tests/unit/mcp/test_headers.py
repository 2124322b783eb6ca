"""Headers that contradict, repeat or hide what the body says."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from toolpolicy.mcp.envelope import Message, parse
from toolpolicy.mcp.headers import (
    DOWNSTREAM_DROP,
    HOP_BY_HOP,
    UPSTREAM_DROP,
    accepts_events,
    accepts_json,
    check_request_content,
    connection_options,
    declared_parameters,
    decode_value,
    header,
    verify,
)

Pairs = list[tuple[bytes, bytes]]
VERSION = "io.modelcontextprotocol/protocolVersion"


def message(method: str, version: str | None = None, **params: Any) -> Message:
    if version is not None:
        params["_meta"] = {VERSION: version}
    found = parse(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
    assert isinstance(found, Message)
    return found


CALL = message("tools/call", "2026-07-28", name="delete_datastore", arguments={"region": "eu", "count": 3, "dry": True})


def encoded(text: str) -> bytes:
    return b"=?base64?" + base64.b64encode(text.encode()) + b"?="


@pytest.mark.parametrize(
    "value",
    [
        b"application/json",
        b"application/json; charset=utf-8",
        b"application/json;charset=UTF-8",
        b'Application/JSON ; charset="utf-8"',
        b"application/json ",
    ],
)
def test_json_in_utf_8(value: bytes) -> None:
    assert check_request_content([(b"Host", b"x"), (b"content-TYPE", value)]) is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"Content-Type", b"")],
        [(b"Content-Type", b"text/plain")],
        [(b"Content-Type", b"application/json, text/plain")],
        [(b"Content-Type", b"text/plain; a=application/json")],
        [(b"Content-Type", b"application/json; charset=utf-16")],
        [(b"Content-Type", b"application/json; charset=latin-1")],
        [(b"Content-Type", b"application/json; charset=utf-8; charset=utf-16")],
        [(b"Content-Type", b"application/json; boundary=x")],
        [(b"Content-Type", b"application/json;")],
        [(b"Content-Type", b"application/jsonp")],
        [(b"Content-Type", b"application/json-rpc")],
        [(b"Content-Type", b"application/vnd.api+json")],
        [(b"Content-Type", b"\xa0application/json")],
        [(b"Content-Type", b"application/json"), (b"content-type", b"application/json")],
        [(b"Content-Type", b"application/json"), (b"Content-Encoding", b"gzip")],
        [(b"Content-Encoding", b"identity"), (b"Content-Type", b"application/json")],
    ],
)
def test_everything_else_is_415(headers: Pairs) -> None:
    fault = check_request_content(headers)
    assert fault is not None
    assert fault.status == 415
    assert ":" in fault.message or "must" in fault.message


AGREE: list[tuple[Message, Pairs]] = [
    (CALL, []),
    (CALL, [(b"Mcp-Method", b"tools/call")]),
    (CALL, [(b"mcp-name", b"delete_datastore"), (b"MCP-METHOD", b" tools/call\t")]),
    (CALL, [(b"Mcp-Name", encoded("delete_datastore"))]),
    (CALL, [(b"MCP-Protocol-Version", b"2026-07-28")]),
    (message("tools/call", name="löschen"), [(b"Mcp-Name", encoded("löschen"))]),
    (message("tools/call", name="=?base64?eA==?="), [(b"Mcp-Name", encoded("=?base64?eA==?="))]),
    (message("resources/read", uri="file:///a"), [(b"Mcp-Name", b"file:///a")]),
    (message("prompts/get", name="p"), [(b"Mcp-Name", b"p")]),
    (message("tasks/get", taskId="t"), [(b"Mcp-Name", b"t")]),
    (message("tools/list"), [(b"Mcp-Method", b"tools/list"), (b"Mcp-Name", b"whatever")]),
    (message("initialize", protocolVersion="2025-11-25"), [(b"MCP-Protocol-Version", b"2025-06-18")]),
    (message("tools/call", name="t"), [(b"MCP-Protocol-Version", b"2025-11-25")]),
    (CALL, [(b"Connection", b"keep-alive")]),
    (CALL, [(b"Connection", b"close, TE, X-Hop")]),
    (CALL, [(b"X-Custom", b"1"), (b"X-Custom", b"2"), (b"Accept", b"a"), (b"Accept", b"b")]),
    (CALL, [(b"X_Custom_Header", b"1")]),
]


@pytest.mark.parametrize(("found", "headers"), AGREE)
def test_headers_that_agree(found: Message, headers: Pairs) -> None:
    assert verify(found, headers) is None


DIFFER: list[tuple[Message | tuple[Message, ...], Pairs]] = [
    (CALL, [(b"Mcp-Method", b"tools/list")]),
    (CALL, [(b"Mcp-Method", b"Tools/Call")]),
    (CALL, [(b"Mcp-Method", b"")]),
    (CALL, [(b"Mcp-Method", b"tools/call, tools/list")]),
    (CALL, [(b"Mcp-Name", b"read_datastore")]),
    (CALL, [(b"Mcp-Name", b"Delete_Datastore")]),
    (CALL, [(b"Mcp-Name", b"")]),
    (CALL, [(b"Mcp-Name", encoded("read_datastore"))]),
    (CALL, [(b"Mcp-Name", b"=?base64?####?=")]),
    (CALL, [(b"Mcp-Name", b"=?base64?/w==?=")]),
    (CALL, [(b"Mcp-Name", "delete_datastor\u00e9".encode())]),
    (message("tools/call", name="x"), [(b"Mcp-Name", b"=?base64?eB==?=")]),
    (message("tools/call", name="löschen"), [(b"Mcp-Name", "löschen".encode())]),
    (message("resources/read", uri="file:///a"), [(b"Mcp-Name", b"file:///b")]),
    (message("tasks/cancel", taskId="a"), [(b"Mcp-Name", b"b")]),
    (CALL, [(b"MCP-Protocol-Version", b"2025-11-25")]),
    (CALL, [(b"MCP-Protocol-Version", b"")]),
    (CALL, [(b"Mcp-Name", b"delete_datastore"), (b"mcp-name", b"delete_datastore")]),
    (CALL, [(b"Mcp-Method", b"tools/call"), (b"MCP-METHOD", b"tools/call")]),
    (CALL, [(b"Mcp-Protocol-Version", b"2026-07-28"), (b"mcp-protocol-version", b"2026-07-28")]),
    (CALL, [(b"Mcp-Session-Id", b"a"), (b"Mcp-Session-Id", b"b")]),
    (CALL, [(b"Last-Event-ID", b"a"), (b"last-event-id", b"a")]),
    (CALL, [(b"Mcp_Name", b"delete_datastore")]),
    (CALL, [(b"MCP_METHOD", b"tools/list")]),
    (CALL, [(b"Mcp_Session_Id", b"x")]),
    (CALL, [(b"Mcp_Param_region", b"us")]),
    (CALL, [(b"Mcp-Name", b"delete_datastore"), (b"Connection", b"Mcp-Name")]),
    (CALL, [(b"Connection", b"keep-alive, mcp-method")]),
    (CALL, [(b"Connection", b"Authorization")]),
    (CALL, [(b"Connection", b"close,Content-Type")]),
    (CALL, [(b"Connection", b"Mcp-Session-Id")]),
    ((CALL, CALL), [(b"Mcp-Method", b"tools/call")]),
    ((CALL,), [(b"Mcp-Name", b"delete_datastore")]),
    ((), [(b"Mcp-Method", b"tools/call")]),
]


@pytest.mark.parametrize(("found", "headers"), DIFFER)
def test_headers_that_contradict_repeat_or_hide(found: Message | tuple[Message, ...], headers: Pairs) -> None:
    fault = verify(found, headers)
    assert fault is not None
    assert (fault.status, fault.code) == (400, -32020)


def test_an_answer_to_the_server_has_no_method() -> None:
    answer = parse(b'{"jsonrpc":"2.0","id":1,"result":{}}')
    assert verify(answer, [(b"Mcp-Session-Id", b"s")]) is None
    assert verify(answer, [(b"Mcp-Method", b"tools/call")]) is not None
    assert verify(answer, [(b"Mcp-Name", b"delete_datastore")]) is not None


DECLARED = declared_parameters(
    {
        "type": "object",
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "count": {"type": "integer", "x-mcp-header": "Item_Count"},
            "dry": {"type": "boolean", "x-mcp-header": "Dry"},
            "filter": {"properties": {"owner": {"type": "string", "x-mcp-header": "Owner"}}},
            "list": {"items": {"type": "string", "x-mcp-header": "Ignored"}},
            "bad": {"type": "string", "x-mcp-header": 7},
        },
    }
)


def test_the_headers_a_schema_declares() -> None:
    assert DECLARED == {
        b"mcp-param-region": ("region",),
        b"mcp-param-item_count": ("count",),
        b"mcp-param-dry": ("dry",),
        b"mcp-param-owner": ("filter", "owner"),
    }
    assert declared_parameters(None) == {}


PARAMETERS: list[tuple[Mapping[bytes, tuple[str, ...]] | None, bytes, bytes, bool]] = [
    (DECLARED, b"Mcp-Param-Region", b"eu", True),
    (DECLARED, b"mcp-param-region", encoded("eu"), True),
    (DECLARED, b"Mcp-Param-Region", b"us", False),
    (DECLARED, b"Mcp-Param-Region", b"", False),
    (DECLARED, b"Mcp-Param-Region", b"=?base64?*?=", False),
    (DECLARED, b"Mcp-Param-Item_Count", b"3", True),
    (DECLARED, b"Mcp-Param-Item_Count", b"3.0", True),
    (DECLARED, b"Mcp-Param-Item_Count", b"3.5", False),
    (DECLARED, b"Mcp-Param-Item_Count", b"3e0", False),
    (DECLARED, b"Mcp-Param-Item_Count", b"4", False),
    (DECLARED, b"Mcp-Param-Item_Count", b"9" * 5000, False),
    (DECLARED, b"Mcp-Param-Dry", b"true", True),
    (DECLARED, b"Mcp-Param-Dry", b"True", False),
    (DECLARED, b"Mcp-Param-Dry", b"1", False),
    (DECLARED, b"Mcp-Param-Owner", b"me", False),
    (DECLARED, b"Mcp-Param-Other", b"anything", True),
    (None, b"Mcp-Param-Region", b"eu", True),
    (None, b"Mcp-Param-Whatever", b"3", True),
    (None, b"Mcp-Param-Region", b"us", False),
    ({}, b"Mcp-Param-Region", b"us", True),
]


@pytest.mark.parametrize(("declared", "name", "value", "agrees"), PARAMETERS)
def test_mirrored_arguments(
    declared: Mapping[bytes, tuple[str, ...]] | None, name: bytes, value: bytes, agrees: bool
) -> None:
    fault = verify(CALL, [(name, value)], "2026-07-28", declared)
    assert (fault is None) is agrees
    assert fault is None or (fault.status, fault.code) == (400, -32020)


def test_a_mirrored_argument_twice() -> None:
    twice = [(b"Mcp-Param-Region", b"eu"), (b"mcp-param-region", b"eu")]
    assert verify(CALL, twice, "2026-07-28", DECLARED) is not None


@pytest.mark.parametrize(
    ("value", "decoded"),
    [
        (b"plain text", "plain text"),
        (b" padded\t", "padded"),
        (b"=?base64?w6k=?=", "é"),
        (b"=?base64??=", ""),
        (b"=?BASE64?w6k=?=", "=?BASE64?w6k=?="),
        (b"=?base64?w6k?=", None),
        (b"=?base64?w6l=?=", None),
        (b"=?base64?/w==?=", None),
        (b"=?base64?w6 k=?=", None),
        (b"\xc3\xa9", None),
        (b"a\x00b", None),
        (b"a\x7f", None),
    ],
)
def test_decoding(value: bytes, decoded: str | None) -> None:
    assert decode_value(value) == decoded


@pytest.mark.parametrize(
    ("accept", "json", "events"),
    [
        ([], True, False),
        ([b""], True, False),
        ([b"*/*"], True, True),
        ([b"application/json, text/event-stream"], True, True),
        ([b"application/json"], True, False),
        ([b"application/*"], True, False),
        ([b"text/event-stream"], False, True),
        ([b"text/event-stream, application/json;q=0"], False, True),
        ([b"text/event-stream;q=0.5, application/json;q=0.1"], True, True),
        ([b"text/event-stream", b"application/json"], True, True),
        ([b"Text/Event-Stream"], False, True),
        ([b"text/html"], False, False),
    ],
)
def test_accept(accept: list[bytes], json: bool, events: bool) -> None:
    headers = [(b"Accept", value) for value in accept]
    assert (accepts_json(headers), accepts_events(headers)) == (json, events)


def test_hop_by_hop() -> None:
    assert {b"connection", b"transfer-encoding", b"te", b"upgrade", b"keep-alive"} <= HOP_BY_HOP
    assert HOP_BY_HOP <= UPSTREAM_DROP
    assert HOP_BY_HOP <= DOWNSTREAM_DROP
    assert b"accept-encoding" in UPSTREAM_DROP
    assert not {b"host", b"origin", b"authorization", b"mcp-session-id", b"last-event-id"} & UPSTREAM_DROP
    options = connection_options([(b"Connection", b"Close, X-Hop"), (b"connection", b" TE ,,")])
    assert options == {b"close", b"x-hop", b"te"}


def test_lookup() -> None:
    headers = [(b"Mcp-Session-Id", b"a"), (b"mcp-session-id", b"b")]
    assert header(headers, b"mcp-session-id") == b"a"
    assert header(headers, b"mcp-session-ix") is None


def test_spellings_are_remembered_for_a_bounded_number() -> None:
    many = [(f"X-Header-{n}".encode(), b"") for n in range(5000)]
    assert verify(CALL, many) is None
    assert verify(CALL, [*many, (b"mCP-nAME", b"other")]) is not None
