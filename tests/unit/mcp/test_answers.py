"""The shape of a refusal: what a client shows to its agent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolpolicy.mcp import answers
from toolpolicy.mcp.envelope import EnvelopeError, Message, parse
from toolpolicy.mcp.headers import HeaderFault
from toolpolicy.mcp.revisions import KNOWN
from toolpolicy.policy.model import Action
from toolpolicy.policy.types import Code, Decision, RuleRef

RULE = RuleRef("ToolPolicy", "agents", "imaging", "never-delete")
DENIED = Decision(Action.DENY, Code.DENIED_BY_RULE, "Deletes are off: ask a human.", rules=(RULE,))


def message(method: str = "tools/call", id: int | str = 7) -> Message:
    params = {"name": "delete_datastore", "uri": "file:///x"}
    found = parse(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode())
    assert isinstance(found, Message)
    return found


@pytest.mark.parametrize("revision", [None, *KNOWN, "2030-01-01"])
def test_a_denied_call_is_a_tool_result(revision: str | None) -> None:
    assert json.loads(answers.denial(message(), DENIED, revision=revision)) == {
        "jsonrpc": "2.0",
        "id": 7,
        "result": {
            "resultType": "complete",
            "isError": True,
            "content": [{"type": "text", "text": "Deletes are off: ask a human."}],
            "_meta": {
                "toolpolicy.dev/decision": {
                    "action": "Deny",
                    "code": "DeniedByRule",
                    "rules": ["agents/imaging:never-delete"],
                }
            },
        },
    }


@pytest.mark.parametrize("id", [0, -5, 2**53 - 1, "", "7", 'a"b\\c\n', "é\u2028\U0001f600"])
@pytest.mark.parametrize("method", ["tools/call", "resources/read"])
def test_the_id_keeps_value_and_type(id: int | str, method: str) -> None:
    found = json.loads(answers.denial(message(method, id), DENIED))["id"]
    assert (type(found), found) == (type(id), id)


@pytest.mark.parametrize("method", ["resources/read", "prompts/get", "completion/complete", "vendor/run"])
def test_other_methods_get_an_error(method: str) -> None:
    body = json.loads(answers.denial(message(method), DENIED))
    code = body["error"]["code"]
    assert -32019 <= code <= -32000
    assert code not in (-32000, -32001, -32002)
    assert body["error"]["message"] == DENIED.reason
    assert body["error"]["data"]["toolpolicy.dev/decision"]["code"] == "DeniedByRule"
    assert "result" not in body


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (Decision(Action.DENY, "RateLimited", "r", retry_after=12.3456), {"retryAfter": 12.346}),
        (Decision(Action.DENY, "RateLimited", "r", retry_after=0.0), {"retryAfter": 0.0}),
        (Decision(Action.DENY, "RateLimited", "r", retry_after=float("inf")), {}),
        (Decision(Action.DENY, "SchemaFailed", "r", details={"path": "/n"}), {"details": {"path": "/n"}}),
    ],
)
def test_details(decision: Decision, expected: dict[str, Any]) -> None:
    found = json.loads(answers.denial(message(), decision))["result"]["_meta"]["toolpolicy.dev/decision"]
    assert found == {"action": "Deny", "code": decision.code, **expected}


@pytest.mark.parametrize("odd", [{"n": float("nan")}, {"o": object()}, {("k",): 1}])
def test_details_that_are_no_json_are_left_out(odd: dict[Any, Any]) -> None:
    decision = Decision(Action.DENY, "SchemaFailed", "r", details=odd)
    assert json.loads(answers.denial(message(), decision))["result"]["isError"] is True


@pytest.mark.parametrize("reason", ["", "line one\nline two\r\n", "</script>\u2028\u2029", "\ud800", '"quoted" \\ \0'])
def test_any_reason_is_one_line_of_ascii_json(reason: str) -> None:
    body = answers.denial(message(), Decision(Action.DENY, "DeniedByRule", reason))
    assert body.isascii()
    assert b"\n" not in body
    assert b"\r" not in body
    text = json.loads(body)["result"]["content"][0]["text"]
    assert text == (reason or "The policy denies this call.")


def test_a_fault_in_the_arguments_is_shown_to_the_agent() -> None:
    with pytest.raises(EnvelopeError) as caught:
        parse(b'{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"t","arguments":{"n":1e400}}}')
    assert caught.value.status == 200
    body = json.loads(answers.parse_error(caught.value))
    assert (body["id"], body["result"]["isError"]) == ("a", True)
    assert body["result"]["_meta"]["toolpolicy.dev/decision"]["code"] == Code.INVALID_REQUEST


@pytest.mark.parametrize("id", [None, 3, "x"])
def test_an_http_error_carries_the_id_where_it_is_known(id: int | str | None) -> None:
    error = EnvelopeError(400, -32600, "no", id)
    assert json.loads(answers.parse_error(error)) == {
        "jsonrpc": "2.0",
        "id": id,
        "error": {"code": -32600, "message": "no"},
    }


def test_a_header_fault() -> None:
    fault = HeaderFault(400, -32020, "Mcp-Name differs")
    assert json.loads(answers.header_error(fault, message(id="q")))["id"] == "q"
    assert json.loads(answers.header_error(fault, ()))["id"] is None


def test_as_an_event() -> None:
    body = answers.denial(message(), DENIED)
    assert answers.as_sse(body) == b"event: message\ndata: " + body + b"\n\n"
