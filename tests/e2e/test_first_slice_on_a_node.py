"""One policy, one pod, on a real node: injected, redirected, a call denied by a rule, the rule edited, the next call
allowed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator
from typing import Any

import pytest

from cluster import pods, privileges
from cluster.control import ControlPlane
from cluster.fixtures import uncaptured
from cluster.installation import ACCOUNT, Operator, documents, listed

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.xdist_group("node")]

READY = "--timeout=100s"


@pytest.fixture(scope="module")
def operator(node: ControlPlane) -> Generator[Operator]:
    with Operator(node) as running:
        yield running


def policy(namespace: str, delete: str) -> dict[str, Any]:
    """Notes are read by everyone; ``delete`` is the action for delete_note."""
    rules: list[dict[str, Any]] = [
        {"name": "read", "match": {"tools": ["read_note"]}, "action": "Allow"},
        {"name": "delete", "match": {"tools": ["delete_note"]}, "action": delete},
    ]
    if delete == "Deny":
        rules[1]["reason"] = "notes are kept for the auditors"
    return {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": "notes", "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": "notes"}}, "rules": rules},
    }


def workload(namespace: str) -> list[dict[str, Any]]:
    """The MCP server with its Service, and a pod with a client."""
    return [pods.server(namespace), pods.client(namespace), pods.service(namespace)]


def test_a_rule_holds_for_a_pod_and_its_edit_for_the_next_call(
    node: ControlPlane, operator: Operator, node_namespace: str, request: pytest.FixtureRequest
) -> None:
    begun = time.time()
    node.kubectl("label", "namespace", node_namespace, "toolpolicy.dev/injection=enabled")
    node.kubectl("apply", "-f", "-", stdin=listed([policy(node_namespace, "Deny"), *workload(node_namespace)]))
    try:
        node.kubectl("wait", "pod/notes", "pod/client", "-n", node_namespace, "--for=condition=Ready", READY)
    except Exception:
        sys.stderr.write(told(node, node_namespace, operator))
        raise
    ready = time.time()
    node.kubectl("wait", "toolpolicy/notes", "-n", node_namespace, "--for=condition=Enforced", READY)

    injected = json.loads(node.kubectl("get", "pod", "notes", "-n", node_namespace, "-o", "json").stdout)
    assert [c["name"] for c in injected["spec"]["initContainers"]] == ["toolpolicy-redirect", "toolpolicy-sidecar"]
    service = node.kubectl("get", "service", "notes", "-n", node_namespace, "-o", "jsonpath={.spec.clusterIP}").stdout
    client = pods.Client(node, node_namespace)
    for url in (f"http://{service}/mcp", f"http://{injected['status']['podIP']}:8000/mcp"):
        assert client.call(url, "read_note", '{"name": "n"}')["outcome"] == "allowed"
        denied = client.call(url, "delete_note", '{"name": "n"}')
        assert denied["outcome"] == "denied"
        assert "notes are kept for the auditors" in denied["text"]
        unknown = client.call(url, "write_note", '{"name": "n", "text": "t"}')
        assert unknown["outcome"] == "denied"

    url = f"http://{service}/mcp"
    waiting = client.until_allowed(url, "delete_note", '{"name": "n"}')
    edited = time.time()
    node.kubectl("apply", "-f", "-", stdin=json.dumps(policy(node_namespace, "Allow")))
    output, _ = waiting.communicate(timeout=90)
    outcome = json.loads(output.splitlines()[-1])
    assert outcome["outcome"] == "allowed", told(node, node_namespace, operator)
    with uncaptured(request.config):
        sys.stderr.write(
            f"\nfrom apply to Ready {ready - begun:.1f} s, from the edit's apply to its being obeyed "
            f"{outcome['at'] - edited:.2f} s\n"
        )


def test_the_operator_asked_for_nothing_that_it_was_refused(
    node: ControlPlane, operator: Operator, request: pytest.FixtureRequest
) -> None:
    """Comes last, since it goes by all that was done before. What was granted and not used is said, not an error: not
    every way is gone here.
    """
    asked = privileges.events(node.audit_log, operator.user)
    assert asked
    findings = privileges.compare(asked, privileges.granted(documents("rbac.yaml"), ACCOUNT))
    with uncaptured(request.config):
        sys.stderr.write(f"\nrights of the operator that were not used: {', '.join(map(str, findings.unused))}\n")
    assert not findings.refused, f"refused: {', '.join(map(str, findings.refused))}"


def told(node: ControlPlane, namespace: str, operator: Operator) -> str:
    """What there is to say of a slice that failed."""
    parts = [operator.program.log()]
    for command in (
        ["get", "pods,configmaps,toolpolicies,events", "-o", "wide"],
        ["describe", "pod", "notes"],
        ["logs", "notes", "--all-containers", "--prefix", "--tail=40"],
        ["get", "toolpolicy", "notes", "-o", "yaml"],
    ):
        done = node.kubectl(*command, "-n", namespace, check=False)
        parts.append(f"$ kubectl {' '.join(command)}\n{done.stdout}{done.stderr}")
    return "\n".join(parts)
