"""Injected pods as a kubelet runs them: unprivileged in a restricted namespace, and probed through the sidecar."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any, cast

import pytest

from cluster import images
from cluster.control import ClusterError, ControlPlane
from cluster.installation import Operator, listed
from support.replicas import eventually

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.xdist_group("node")]

Object = dict[str, Any]
READY = "--timeout=100s"
RESTRICTED: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def operator(node: ControlPlane) -> Generator[Operator]:
    with Operator(node) as running:
        yield running


def policy(namespace: str) -> Object:
    rules = [{"name": "read", "match": {"tools": ["read_note"]}, "action": "Allow"}]
    return {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": "notes", "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": "notes"}}, "rules": rules},
    }


def pod(namespace: str, name: str, command: list[str], **container: Any) -> Object:
    image = {"image": images.MCP, "imagePullPolicy": "Never", "command": command, "securityContext": RESTRICTED}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", **image, **container}]},
    }


def enable(node: ControlPlane, namespace: str, *labels: str) -> None:
    node.kubectl("label", "namespace", namespace, "toolpolicy.dev/injection=enabled", *labels)


def get(node: ControlPlane, *what: str) -> Object:
    return cast("Object", json.loads(node.kubectl("get", *what, "-o", "json").stdout))


def test_a_restricted_namespace_gets_its_sidecar_by_the_ports_name(
    node: ControlPlane, operator: Operator, node_namespace: str
) -> None:
    enable(node, node_namespace, "pod-security.kubernetes.io/enforce=restricted")
    server = pod(
        node_namespace,
        "notes",
        ["python3", "/opt/mcp/server.py"],
        ports=[{"name": "mcp", "containerPort": 8000}],
        startupProbe={"tcpSocket": {"port": "mcp"}, "periodSeconds": 1, "failureThreshold": 60},
        livenessProbe={"tcpSocket": {"port": 8000}, "periodSeconds": 1},
        readinessProbe={"httpGet": {"path": "/healthz", "port": "mcp"}, "periodSeconds": 1},
    )
    client = pod(node_namespace, "client", ["/bin/sleep", "100000"])
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "notes", "namespace": node_namespace},
        "spec": {"selector": {"app": "notes"}, "ports": [{"port": 80, "targetPort": "mcp"}]},
    }
    node.kubectl("apply", "-f", "-", stdin=listed([policy(node_namespace), server, client, service]))
    try:
        node.kubectl("wait", "pod/notes", "pod/client", "-n", node_namespace, "--for=condition=Ready", READY)
    except ClusterError as error:
        told = node.kubectl("describe", "pod", "-n", node_namespace).stdout
        raise AssertionError(told + operator.program.log()) from error
    stored = get(node, "pod", "notes", "-n", node_namespace)
    assert [c["name"] for c in stored["spec"]["initContainers"]] == ["toolpolicy-sidecar"]
    address = get(node, "service", "notes", "-n", node_namespace)["spec"]["clusterIP"]

    def call(tool: str) -> Object:
        arguments = ["--", "python3", "/opt/mcp/client.py", f"http://{address}/mcp", tool, '{"name": "n"}']
        done = node.kubectl("exec", "client", "-n", node_namespace, *arguments)
        return cast("Object", json.loads(done.stdout.splitlines()[-1]))

    node.kubectl("wait", "toolpolicy/notes", "-n", node_namespace, "--for=condition=Accepted", READY)
    assert call("read_note")["outcome"] == "allowed"
    assert call("delete_note")["outcome"] == "denied"
    after = get(node, "pod", "notes", "-n", node_namespace)["status"]["containerStatuses"]
    assert [s["restartCount"] for s in after] == [0]


def test_a_server_that_does_not_listen_fails_its_probes_although_the_sidecar_does(
    node: ControlPlane, operator: Operator, node_namespace: str
) -> None:
    enable(node, node_namespace)
    dead = pod(
        node_namespace,
        "notes",
        ["/bin/sleep", "100000"],
        ports=[{"name": "mcp", "containerPort": 8000}],
        readinessProbe={"tcpSocket": {"port": "mcp"}, "periodSeconds": 1},
    )
    node.kubectl("apply", "-f", "-", stdin=listed([policy(node_namespace), dead]))

    def unhealthy() -> list[str]:
        selector = "--field-selector=reason=Unhealthy,involvedObject.name=notes"
        events = get(node, "events", "-n", node_namespace, selector)["items"]
        about = [e for e in events if e["involvedObject"].get("fieldPath") == "spec.containers{main}"]
        return [e["message"] for e in about]

    said = eventually(unhealthy, "the kubelet says that the server is not ready", 100)
    assert all("Readiness probe failed" in message for message in said)
    status = get(node, "pod", "notes", "-n", node_namespace)["status"]
    ready = {s["name"]: s["ready"] for s in (*status["initContainerStatuses"], *status["containerStatuses"])}
    assert ready == {"toolpolicy-redirect": True, "toolpolicy-sidecar": True, "main": False}
