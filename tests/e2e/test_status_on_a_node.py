"""What a policy's status says of real pods on a real node: their sidecars have their tokens from the kubelet, report
over the network, and see which other sockets of the pod listen.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest

from cluster import images
from cluster.control import ControlPlane
from cluster.installation import Operator, listed
from support.reporters import await_enforced

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.xdist_group("node")]

SERVER = "python3 /opt/mcp/server.py"
BESIDE = "python3 -m http.server 9090 & exec " + SERVER


@pytest.fixture(scope="module")
def operator(node: ControlPlane) -> Generator[Operator]:
    with Operator(node) as running:
        yield running


def policy(namespace: str, tool: str) -> dict[str, Any]:
    rules = [{"name": "read", "match": {"tools": [tool]}, "action": "Allow"}]
    return {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": "notes", "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": "notes"}}, "rules": rules},
    }


def pod(namespace: str, name: str, command: str) -> dict[str, Any]:
    server = {
        "name": "server",
        "image": images.MCP,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", command],
        "ports": [{"name": "mcp", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8000}, "periodSeconds": 1},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "notes"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [server]},
    }


def test_enforced_is_what_the_sidecars_of_real_pods_report(
    node: ControlPlane, operator: Operator, node_namespace: str
) -> None:
    def apply(*objects: dict[str, Any]) -> None:
        node.kubectl("apply", "-f", "-", stdin=listed(list(objects)))

    def enforced(status: str, reason: str, generation: int) -> dict[str, Any]:
        try:
            return await_enforced(node, node_namespace, "notes", (status, reason), generation)
        except AssertionError as error:
            logs = node.kubectl("logs", "notes", "-c", "toolpolicy-sidecar", "-n", node_namespace, check=False)
            raise AssertionError(f"{error}\n{logs.stdout[-3000:]}\n{operator.program.log()}") from None

    node.kubectl("label", "namespace", node_namespace, "toolpolicy.dev/injection=enabled")
    apply(policy(node_namespace, "read_note"), pod(node_namespace, "notes", SERVER))
    found = enforced("True", "Programmed", 1)
    assert found["pods"] == {"selected": 1, "injected": 1, "current": 1, "optedOut": 0}
    apply(policy(node_namespace, "list_notes"))
    enforced("True", "Programmed", 2)
    apply(pod(node_namespace, "beside", BESIDE))
    found = enforced("False", "BypassPossible", 2)
    assert "beside also listens on 0.0.0.0:9090" in found["message"]
    node.kubectl("delete", "pod", "beside", "-n", node_namespace, "--force", "--grace-period=0")
    enforced("True", "Programmed", 2)
    status = json.loads(node.kubectl("get", "toolpolicy", "notes", "-n", node_namespace, "-o", "json").stdout)["status"]
    assert status.get("podsNeedingRestart", []) == []
