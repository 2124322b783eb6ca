"""A body is either refused or means the same to every server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolpolicy.mcp.envelope import MAX_BATCH, MAX_ID_LENGTH, EnvelopeError, Kind, Message, parse
from toolpolicy.mcp.lookalikes import fold

CALL: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "delete_datastore", "arguments": {"datastore_id": "d1"}},
}


def call(**changes: Any) -> dict[str, Any]:
    """The call with members of the envelope replaced, or (with None) left out."""
    return {key: value for key, value in {**CALL, **changes}.items() if value is not ...}


def params(**changes: Any) -> bytes:
    merged = {**CALL["params"], **changes}
    return json.dumps(call(params={key: value for key, value in merged.items() if value is not ...})).encode()


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def one(raw: bytes) -> Message:
    message = parse(raw)
    assert isinstance(message, Message)
    return message


def refusal(raw: bytes, **options: int) -> EnvelopeError:
    with pytest.raises(EnvelopeError) as caught:
        parse(raw, **options)
    return caught.value


class TestWhatIsRead:
    def test_a_call(self) -> None:
        message = one(body(CALL))
        assert (message.kind, message.id, message.method) == (Kind.REQUEST, 1, "tools/call")
        assert (message.tool, message.name) == ("delete_datastore", "delete_datastore")
        assert message.arguments == {"datastore_id": "d1"}
        assert message.judged
        assert not message.has_nul

    @pytest.mark.parametrize("arguments", [..., None, {}])
    def test_absent_null_and_empty_arguments_are_an_empty_object(self, arguments: Any) -> None:
        assert one(params(arguments=arguments)).arguments == {}

    def test_white_space_around_the_message(self) -> None:
        assert one(b" \r\n\t" + body(CALL) + b"\n ").tool == "delete_datastore"

    @pytest.mark.parametrize("id", ["", "a", "7", 0, -1, 2**53 - 1, "é" * MAX_ID_LENGTH])
    def test_an_id_keeps_its_type(self, id: int | str) -> None:
        found = one(body(call(id=id))).id
        assert (type(found), found) == (type(id), id)

    def test_a_notification(self) -> None:
        message = one(body({"jsonrpc": "2.0", "method": "notifications/initialized"}))
        assert (message.kind, message.id, message.judged) == (Kind.NOTIFICATION, None, False)

    @pytest.mark.parametrize("answer", [{"result": {}}, {"error": {"code": -1, "message": "no"}}])
    def test_an_answer_to_the_server(self, answer: dict[str, Any]) -> None:
        message = one(body({"jsonrpc": "2.0", "id": 3, **answer}))
        assert (message.kind, message.id, message.judged, message.tool) == (Kind.RESPONSE, 3, False, None)

    def test_an_error_that_names_no_request(self) -> None:
        message = one(body({"jsonrpc": "2.0", "error": {"code": -32700, "message": "?"}}))
        assert (message.kind, message.id) == (Kind.RESPONSE, None)

    def test_the_envelope_of_2026_07_28(self) -> None:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "agent", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
            "progressToken": 5,
        }
        message = one(params(_meta=meta))
        assert message.protocol_version == "2026-07-28"
        assert message.client_info == {"name": "agent", "version": "1"}
        assert message.meta["progressToken"] == 5

    def test_initialize(self) -> None:
        info = {"name": "agent", "version": "1"}
        message = one(
            body(
                {
                    "jsonrpc": "2.0",
                    "id": 0,
                    "method": "initialize",
                    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info},
                }
            )
        )
        assert (message.protocol_version, message.client_info, message.judged) == ("2025-11-25", info, False)

    @pytest.mark.parametrize(
        ("method", "member"),
        [("prompts/get", "name"), ("resources/read", "uri"), ("resources/subscribe", "uri"), ("tasks/get", "taskId")],
    )
    def test_the_name_of_other_methods(self, method: str, member: str) -> None:
        message = one(body({"jsonrpc": "2.0", "id": 1, "method": method, "params": {member: "x"}}))
        assert message.name == "x"
        assert message.tool is None
        assert message.task_id == ("x" if member == "taskId" else None)
        assert message.task_ids == (("x",) if member == "taskId" else ())

    @pytest.mark.parametrize(
        ("wanted", "tasks"),
        [({"taskIds": ["a", "b"]}, ("a", "b")), ({"taskIds": "a"}, ()), ({"toolsListChanged": True}, ()), ([], ())],
    )
    def test_the_tasks_that_a_subscription_wants_to_hear_of(self, wanted: Any, tasks: tuple[str, ...]) -> None:
        message = one(body(call(method="subscriptions/listen", params={"notifications": wanted})))
        assert message.task_ids == tasks

    @pytest.mark.parametrize("method", ["resources/subscribe", "resources/unsubscribe"])
    @pytest.mark.parametrize("params", [{}, {"params": {}}])
    def test_a_method_that_was_removed_needs_no_name(self, method: str, params: dict[str, object]) -> None:
        message = one(body({"jsonrpc": "2.0", "id": 1, "method": method, **params}))
        assert message.name is None

    def test_a_batch(self) -> None:
        found = parse(body([CALL, call(id=2), {"jsonrpc": "2.0", "method": "notifications/cancelled"}]))
        assert isinstance(found, tuple)
        assert [(m.kind, m.id) for m in found] == [
            (Kind.REQUEST, 1),
            (Kind.REQUEST, 2),
            (Kind.NOTIFICATION, None),
        ]

    def test_unknown_members_that_resemble_nothing(self) -> None:
        assert one(body(call(vendor=1))).tool == "delete_datastore"
        assert one(params(vendor=1)).tool == "delete_datastore"

    @pytest.mark.parametrize("where", ["arguments", "_meta"])
    def test_keys_inside_arguments_and_meta_may_be_called_anything(self, where: str) -> None:
        tags: dict[str, Any] = {"Name": "x", "name": "y", "METHOD": 1, "Arguments": {"Name": 2}, "ID": [], "paramſ": 0}
        assert one(params(**{where: tags})).params == {**CALL["params"], where: tags}

    @pytest.mark.parametrize("number", ["0", "-0", "1E2", "0.1e1", "1e308", "-1e308", "1e-400", "18446744073709551615"])
    def test_numbers_that_all_parsers_can_hold(self, number: str) -> None:
        raw = body(call(params={"name": "t", "arguments": {"n": 0}})).replace(b'"n": 0', b'"n": ' + number.encode())
        assert float(one(raw).arguments["n"]) == float(number)

    def test_digits_and_exponents_inside_strings_are_no_numbers(self) -> None:
        text = "1e400 " + "9" * 400 + " e000 [[[[" * 50
        assert one(params(arguments={"text": text})).arguments == {"text": text}

    @pytest.mark.parametrize("arguments", [{"s": "x\0y"}, {"k\0": 1}, {"deep": [{"a": ["\0"]}]}])
    def test_nul_is_seen_wherever_it_is(self, arguments: dict[str, Any]) -> None:
        assert one(params(arguments=arguments)).has_nul

    @pytest.mark.parametrize("text", ["\\u0000", "u0000", "\\\\u0000", "\u00e9"])
    def test_what_only_looks_like_nul(self, text: str) -> None:
        assert not one(params(arguments={"s": text})).has_nul

    def test_depth_up_to_the_limit(self) -> None:
        raw = body(call(params={"name": "t", "arguments": {"a": 0}})).replace(b"0}", b"[" * 61 + b"]" * 61 + b"}")
        assert one(raw).tool == "t"
        assert refusal(raw, max_depth=63).status == 200

    def test_wide_is_not_deep(self) -> None:
        assert one(params(arguments={"rows": [[{}]] * 200})).arguments["rows"][199] == [{}]


TEXT = body(CALL)
SYNTAX = {
    "empty": b"",
    "blank": b" \n",
    "byte order mark": b"\xef\xbb\xbf" + TEXT,
    "UTF-16": json.dumps(CALL).encode("utf-16"),
    "UTF-16 without mark": json.dumps(CALL).encode("utf-16-le"),
    "UTF-32": json.dumps(CALL).encode("utf-32-be"),
    "invalid UTF-8": TEXT.replace(b"d1", b"d\xff"),
    "overlong UTF-8": TEXT.replace(b"d1", b"d\xc0\x80"),
    "surrogate in UTF-8": TEXT.replace(b"d1", b"\xed\xa0\x80"),
    "code point above the last": TEXT.replace(b"d1", b"\xf4\x90\x80\x80"),
    "half an escaped pair": TEXT.replace(b"d1", b"\\ud800"),
    "second half alone": TEXT.replace(b"d1", b"\\udc00"),
    "halves swapped": TEXT.replace(b"d1", b"\\udc00\\ud800"),
    "half pair in a key": TEXT.replace(b"datastore_id", b"\\ud83d"),
    "NaN": TEXT.replace(b'"d1"', b"NaN"),
    "Infinity": TEXT.replace(b'"d1"', b"Infinity"),
    "-Infinity": TEXT.replace(b'"d1"', b"-Infinity"),
    "trailing garbage": TEXT + b"x",
    "two values": TEXT + TEXT,
    "two values on lines": TEXT + b"\n" + TEXT,
    "trailing NUL": TEXT + b"\0",
    "trailing comma": TEXT[:-1] + b",}",
    "comment": b"/* x */" + TEXT,
    "line comment": b"// x\n" + TEXT,
    "single quotes": TEXT.replace(b'"', b"'"),
    "unquoted key": TEXT.replace(b'"id"', b"id"),
    "leading zero": TEXT.replace(b'"id": 1', b'"id": 01'),
    "plus sign": TEXT.replace(b'"id": 1', b'"id": +1'),
    "hexadecimal": TEXT.replace(b'"id": 1', b'"id": 0x1'),
    "underscore in a number": TEXT.replace(b'"id": 1', b'"id": 1_0'),
    "bare decimal point": TEXT.replace(b'"id": 1', b'"id": 1.'),
    "control character in a string": TEXT.replace(b"d1", b"d\n1"),
    "raw NUL in a string": TEXT.replace(b"d1", b"d\0001"),
    "unknown escape": TEXT.replace(b"d1", b"\\x41"),
    "vertical tab": b"\x0b" + TEXT,
    "no-break space": b"\xc2\xa0" + TEXT,
    "cut off": TEXT[:-5],
}


@pytest.mark.parametrize("raw", SYNTAX.values(), ids=SYNTAX.keys())
def test_text_that_is_not_json_in_utf_8(raw: bytes) -> None:
    error = refusal(raw)
    assert (error.status, error.code) == (400, -32700)
    assert ":" in error.message, "the message names the cure"


INVALID = {
    "duplicate key": TEXT.replace(b'"id": 1', b'"id": 1, "id": 2'),
    "duplicate escaped key": TEXT.replace(b'"method"', b'"\\u006dethod": "ping", "method"'),
    "duplicate key in params": TEXT.replace(b'"name"', b'"name": "read", "name"'),
    "duplicate key in arguments": TEXT.replace(b'"datastore_id"', b'"datastore_id": "a", "datastore_id"'),
    "duplicate key deep in arguments": params(arguments={"a": 0}).replace(b'"a": 0', b'"a": [{"b": 1, "b": 2}]'),
    "nested 5000 deep": b"[" * 5000 + b"]" * 5000,
    "number": b"1",
    "string": b'"tools/call"',
    "null": b"null",
    "true": b"true",
    "empty object": b"{}",
    "empty batch": b"[]",
    "batch of numbers": b"[1]",
    "batch in a batch": body([[CALL]]),
    "batch too long": body([call(id=n) for n in range(MAX_BATCH + 1)]),
    "batch with one id twice": body([CALL, CALL]),
    "batch with initialize": body([call(method="initialize", params={})]),
    "no jsonrpc": body(call(jsonrpc=...)),
    "jsonrpc 1.0": body(call(jsonrpc="1.0")),
    "jsonrpc a number": body(call(jsonrpc=2.0)),
    "jsonrpc null": body(call(jsonrpc=None)),
    "method null": body(call(method=None)),
    "method a list": body(call(method=["tools/call"])),
    "method empty": body(call(method="")),
    "method with blank": body(call(method="tools/call ")),
    "method with NUL": body(call(method="tools/call\0")),
    "method not ASCII": body(call(method="tools/caſl")),
    "method in another case": body(call(method="Tools/Call")),
    "method without slash": body(call(method="tools.call")),
    "method too long": body(call(method="x" * 129)),
    "request and result": body(call(result={})),
    "request and error": body(call(error={"code": 1, "message": ""})),
    "notification and result": body(call(id=..., result={})),
    "result and error": body({"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}}),
    "answer without id": body({"jsonrpc": "2.0", "result": {}}),
    "answer with null id": body({"jsonrpc": "2.0", "id": None, "result": {}}),
    "call without id": body(call(id=...)),
    "unknown method without id": body(call(id=..., method="vendor/run")),
    "list without id": body(call(id=..., method="tools/list", params={})),
    "notification with id": body(call(method="notifications/cancelled")),
    "id null": body(call(id=None)),
    "id boolean": body(call(id=True)),
    "id array": body(call(id=[1])),
    "id object": body(call(id={})),
    "id fractional": body(call(id=1.5)),
    "id with fraction 0": body(call(id=1.0)),
    "id with exponent": TEXT.replace(b'"id": 1', b'"id": 1e0'),
    "id beyond 2^53": body(call(id=2**53)),
    "id below -2^53": body(call(id=-(2**53))),
    "id of 30 digits": body(call(id=10**30)),
    "id too long": body(call(id="x" * (MAX_ID_LENGTH + 1))),
    "params a list": body(call(params=["delete_datastore"])),
    "params a string": body(call(params="x")),
    "params null": body(call(params=None)),
    "params absent": body(call(params=...)),
    "name absent": params(name=...),
    "name null": params(name=None),
    "name a number": params(name=1),
    "name a list": params(name=["delete_datastore"]),
    "arguments a list": params(arguments=[]),
    "arguments a string": params(arguments="{}"),
    "arguments false": params(arguments=False),
    "_meta a list": params(_meta=[]),
    "uri absent": body(call(method="resources/read", params={})),
    "uri a list": body(call(method="resources/subscribe", params={"uri": []})),
    "prompt absent": body(call(method="prompts/get", params={})),
    "task absent": body(call(method="tasks/result", params={})),
}


@pytest.mark.parametrize("raw", INVALID.values(), ids=INVALID.keys())
def test_json_that_is_no_strict_message(raw: bytes) -> None:
    error = refusal(raw)
    assert error.status == 400
    assert error.code in (-32600, -32602)
    assert len(error.message) < 200


LOOKALIKES = [
    *[
        (key, None)
        for key in ("Method", "METHOD", "ID", "Id", "iD", "JSONRPC", "jsonRpc", "json_rpc", "Params", "paramſ")
    ],
    *[(key, None) for key in ("Result", "ERROR", "re\u017fult", "\uff49\uff44", "method\0", " method", "İd", "ıd")],
    *[
        (None, key)
        for key in ("Name", "NAME", "name ", "name\0", "\u200bname", "nam\u0435".replace("\u0435", "e\u0301"))
    ],
    *[
        (None, key)
        for key in ("Arguments", "argument\u017f", "ARGUMENTS", "tas\u212a", "Task", "URI", "Uri", "meta", "_Meta")
    ],
    *[(None, key) for key in ("input_responses", "request_state", "task_id", "TaskID", "Cursor", "progress-token")],
]


@pytest.mark.parametrize(("envelope", "param"), LOOKALIKES, ids=[ascii(a or b) for a, b in LOOKALIKES])
def test_keys_that_some_parser_takes_for_a_reserved_one(envelope: str | None, param: str | None) -> None:
    raw = body(call(**{envelope: "x"})) if envelope else params(**{param or "": "x"})
    error = refusal(raw)
    assert (error.status, error.code) == (400, -32600)
    assert "can be mistaken" in error.message


@pytest.mark.parametrize(
    ("method", "nested"),
    [
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "a", "Name": "b"}, "argument": {}}),
        ("completion/complete", {"ref": {"type": "ref/resource", "URI": "b"}, "argument": {}}),
        ("completion/complete", {"ref": {}, "argument": {"name": "a", "Value": "b"}}),
        ("tools/call", {"name": "t", "task": {"TTL": 1}}),
        ("subscriptions/listen", {"notifications": {"TaskIds": ["a"]}}),
    ],
)
def test_lookalikes_in_the_objects_that_params_defines(method: str, nested: dict[str, Any]) -> None:
    assert "can be mistaken" in refusal(body(call(method=method, params=nested))).message


def test_folding() -> None:
    assert fold("_Meta") == fold("meta") == "meta"
    assert fold("argument\u017f") == "arguments"
    assert fold("tas\u212a") == "task"
    assert fold("nam\u0435") != "name", "a Cyrillic letter is another letter to every parser"


IN_ARGUMENTS = {
    "1e400": b"1e400",
    "-1e400": b"-1E+400",
    "1e00400": b"1e00400",
    "1 and 400 zeros": b"1" + b"0" * 400,
    "many digits and a small exponent": b"1" + b"0" * 290 + b"e99",
    "10^309 as a float": b"1" + b"0" * 309 + b".5",
    "2^64": b"18446744073709551616",
    "below -2^63": b"-9223372036854775809",
    "nested": b'{"a": [1, {"b": 1e999}]}',
    "too deep": b"[" * 64 + b"]" * 64,
    "prototype": b'{"__proto__": {"datastore_id": "d2"}}',
    "escaped prototype": b'{"\\u005f\\u005fproto__": 1}',
    "prototype in a list": b'[{"__proto__": null}]',
}


@pytest.mark.parametrize("padding", [0, 2000], ids=["small", "large"])
@pytest.mark.parametrize("value", IN_ARGUMENTS.values(), ids=IN_ARGUMENTS.keys())
def test_a_fault_in_the_arguments_is_told_to_the_agent(value: bytes, padding: int) -> None:
    error = refusal(TEXT.replace(b'"d1"', value) + b" " * padding)
    assert (error.status, error.id, error.method) == (200, 1, "tools/call")
    assert ":" in error.message


@pytest.mark.parametrize("value", [b"1e400", b'{"__proto__": 1}', b"[" * 100 + b"]" * 100])
def test_the_same_elsewhere_is_an_http_error(value: bytes) -> None:
    for raw in (TEXT.replace(b"tools/call", b"vendor/run"), b"[" + TEXT + b"]"):
        error = refusal(raw.replace(b'"d1"', value))
        assert (error.status, error.method) == (400, None)


@pytest.mark.parametrize(
    ("raw", "id"),
    [
        (TEXT.replace(b'"name"', b'"name": "x", "name"'), 1),
        (body(call(id="a", jsonrpc="1.0")), "a"),
        (body(call(method=7)), 1),
        (params(name=None), 1),
        (body(call(id=1.5, jsonrpc="1.0")), None),
        (body(call(id=True)), None),
        (TEXT[:-1], None),
    ],
)
def test_the_id_is_given_where_it_is_known(raw: bytes, id: int | str | None) -> None:
    assert refusal(raw).id == id


def test_long_input_is_never_echoed() -> None:
    for raw in (
        b'{"' + b"k" * 5000 + b'": 1, "' + b"k" * 5000 + b'": 2}',
        body(call(method="m" * 5000)),
        body(call(id="i" * 5000)),
        body(call(**{"ME" + "_" * 5000 + "THOD": 1})),
    ):
        assert len(refusal(raw).message) < 200
