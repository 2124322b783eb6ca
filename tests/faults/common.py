"""What the fault tests share: a policy, a call, and an answer."""

from __future__ import annotations

from typing import Any

from bypass.vectors.build import call, post
from support.rawhttp import DEADLINE, Reply, Stream, exchange
from support.sidecar import Sidecar

ANY = """\
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {{name: {name}}}
spec:
  selector: {{}}
  defaultAction: {default}
  onAuditFailure: {audit}
  rules:
  - name: never-delete
    match: {{tools: [delete_everything]}}
    action: Deny
    reason: nothing is deleted here
    hide: true
  - name: once
    match: {{tools: [once, once_dying]}}
    action: Allow
    rateLimit: {{max: 1, window: 1h, per: Tool}}
"""


def policy(name: str = "faults", *, default: str = "Allow", audit: str = "Deny") -> str:
    """One tool is denied, one may be called once, everything else is as ``default`` says."""
    return ANY.format(name=name, default=default, audit=audit)


def ask(sidecar: Sidecar, tool: str, *, deadline: float = DEADLINE, **arguments: Any) -> Reply:
    """Call a tool; the test fails if there is no answer within ``deadline`` seconds."""
    got = exchange(sidecar.address, post(call(tool, arguments)), deadline=deadline)
    assert got.reply is not None, f"{tool}: {'no answer' if got.hung else 'closed without an answer'}\n{sidecar.log()}"
    return got.reply


def open_call(sidecar: Sidecar, tool: str) -> Stream:
    """A call whose answer is read bit by bit."""
    return Stream(sidecar.address, post(call(tool)))


def told(reply: Reply) -> dict[str, Any]:
    """The JSON-RPC error in an HTTP error, with the request's own id."""
    message = reply.json()
    assert message["id"] == 7, message
    return message["error"]


def is_denied(reply: Reply, reason: str) -> bool:
    result = reply.json().get("result", {})
    return bool(result.get("isError")) and reason in result["content"][0]["text"]
