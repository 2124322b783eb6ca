"""The node enforces NetworkPolicies: what tests of the Port interception rest on."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from cluster import pods
from cluster.control import ControlPlane
from cluster.installation import listed

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.xdist_group("node")]

DEADLINE = 60.0
POLICY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "notes"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "notes"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}],
    },
}


def test_a_pod_that_a_policy_does_not_admit_is_kept_out(node: ControlPlane, node_namespace: str) -> None:
    here = ("-n", node_namespace)
    wanted = [pods.server(node_namespace), pods.client(node_namespace), pods.service(node_namespace)]
    node.kubectl("apply", "-f", "-", stdin=listed(wanted))
    node.kubectl("wait", "pod/notes", "pod/client", *here, "--for=condition=Ready", "--timeout=100s")
    address = json.loads(node.kubectl("get", "pod", "notes", *here, "-o", "json").stdout)["status"]["podIP"]
    service = json.loads(node.kubectl("get", "service", "notes", *here, "-o", "json").stdout)["spec"]["clusterIP"]
    client = pods.Client(node, node_namespace)
    targets = ((address, 8000), (service, 80))
    assert all(client.reaches(*target) for target in targets)

    node.kubectl("apply", "-f", "-", *here, stdin=json.dumps(POLICY))
    until(lambda: not any(client.reaches(*target) for target in targets), "the policy keeps the client out")
    node.kubectl("label", "pod", "client", "role=friend", *here)
    until(lambda: all(client.reaches(*target) for target in targets), "the policy admits the client")


def until(condition: Any, what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE:.0f} s: {what}"
