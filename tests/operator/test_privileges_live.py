"""Least privilege: an operator with the rights of `manifests/install` does its work, and needs all of them."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.control import Components, ControlPlane
from support import guarded, install
from support.privileges import granted, used
from support.replicas import Replica, Replicas, eventually, objects

pytestmark = pytest.mark.slow

USER = "system:serviceaccount:toolpolicy-system:toolpolicy-operator"
NOT_HERE = {
    "create pods/eviction": "only with spec.rollout: Restart",
    "create subjectaccessreviews.authorization.k8s.io": "only with spec.rollout: Restart",
    "delete configmaps": "only when a namespace is no longer enabled",
    "get configmaps": "only after a conflict",
    "get namespaces": "only when a pod comes before the store knows its namespace or policies",
    "list services": "only of policies whose pods are intercepted by Port",
    "patch events.events.k8s.io": "only when a status turns",
    "create events.events.k8s.io": "only when a status turns",
    "update secrets": "only when a certificate is renewed",
}
"""Rights that this test's day in the life does not use, and what would."""


def policy(name: str, action: str, kind: str = "ToolPolicy") -> str:
    rule = {"name": "r", "match": {"tools": ["a"]}, "action": action}
    spec = {"selector": {"matchLabels": {"app": "mcp"}}, "defaultAction": "Deny", "rules": [rule]}
    return json.dumps({"apiVersion": "toolpolicy.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})


def configured(plane: ControlPlane, replica: Replica) -> None:
    """The webhooks by URL, under the name that the roles allow to patch, with no CA: the operator brings it."""
    found = install.webhooks_by_url(f"https://127.0.0.1:{replica.ports['webhooks']}", "", "x")
    for configuration in found:
        configuration["metadata"]["name"] = "toolpolicy"
        for webhook in configuration["webhooks"]:
            del webhook["clientConfig"]["caBundle"]
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(found))


def trusted(plane: ControlPlane) -> bool:
    found = objects(plane, "validatingwebhookconfiguration", "toolpolicy").get("webhooks", [])
    return bool(found) and all(w["clientConfig"].get("caBundle") for w in found)


def report(plane: ControlPlane, replica: Replica) -> int:
    """An empty report with a token that the kubelet asked for, as the guard lets it: reviewed, and then refused."""
    kubelet = ("--as=system:node:nowhere", "--as-group=system:nodes", "--as-group=system:authenticated")
    uid = objects(plane, "pod", "mcp", "--namespace=agents")["metadata"]["uid"]
    bound = ("--bound-object-kind=Pod", "--bound-object-name=mcp", f"--bound-object-uid={uid}")
    for_us = ("--namespace=agents", "--audience=toolpolicy.dev")
    made = plane.kubectl("create", "token", "default", *for_us, *bound, *kubelet)
    token = made.stdout.strip()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"https://127.0.0.1:{replica.ports['control']}/v1/report"
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=b"{}", headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def a_day(plane: ControlPlane, replica: Replica) -> None:
    """Policies of both kinds, a pod that is injected, an edit that touches it, a report, a policy that goes."""
    eventually(lambda: trusted(plane), "the operator publishes its CA")
    plane.kubectl("create", "namespace", "agents")
    plane.kubectl("label", "namespace", "agents", "toolpolicy.dev/injection=enabled")
    plane.kubectl("create", "serviceaccount", "default", "--namespace=agents", check=False)
    plane.kubectl("apply", "--namespace=agents", "-f", "-", stdin=policy("tenant", "Allow"))
    baseline = json.loads(policy("platform", "Allow", "ClusterToolPolicy"))
    baseline["spec"]["namespaceSelector"] = {}
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(baseline))
    eventually(lambda: objects(plane, "configmap", "toolpolicy-rules", "--namespace=agents"), "the rules are written")
    guarded.apply(plane, [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "nowhere"}}])
    scheduled = '--overrides={"spec": {"nodeName": "nowhere"}}'
    run = ("run", "mcp", "--image=x.invalid/mcp:1", "--labels=app=mcp", "--port=8000", scheduled, "--namespace=agents")
    eventually(lambda: not plane.kubectl(*run, check=False).returncode, "the pod is admitted")
    names = [c["name"] for c in objects(plane, "pod", "mcp", "--namespace=agents")["spec"]["initContainers"]]
    assert "toolpolicy-sidecar" in names
    plane.kubectl("apply", "--namespace=agents", "-f", "-", stdin=policy("tenant", "Deny"))

    def touched() -> Any:
        found = objects(plane, "pod", "mcp", "--namespace=agents")
        return found["metadata"]["annotations"].get("toolpolicy.dev/rules")

    eventually(touched, "the pod is touched")
    for kind, where in (("toolpolicy/tenant", "--namespace=agents"), ("clustertoolpolicy/platform", "")):
        wanted = f"the status of {kind}"
        eventually(lambda k=kind, w=where: objects(plane, k, *filter(None, [w])).get("status"), wanted)
    assert report(plane, replica) == 400
    assert replica.state["guardMissing"] == {}
    plane.kubectl("delete", "toolpolicy", "tenant", "--namespace=agents")


def test_an_operator_needs_the_rights_it_has_and_no_others(
    own_control_plane: tuple[ControlPlane, Components], tmp_path: Path
) -> None:
    plane, _ = own_control_plane
    wanted = [o for o in install.documents() if not o["kind"].endswith("WebhookConfiguration")]
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(wanted))
    kubeconfig = guarded.with_token(plane, "toolpolicy-system", "toolpolicy-operator")
    operator = Replicas(kubeconfig, tmp_path / "operator")
    try:
        replica = operator.start("one")
        eventually(lambda: replica.ready and replica.leading, "the operator is ready, and writes")
        configured(plane, replica)
        a_day(plane, replica)
    finally:
        operator.close()
    use = used(plane.audit_log, USER)
    assert not use.denied, f"missing in manifests/install/rbac.yaml: {', '.join(map(str, sorted(use.denied)))}"
    unused = {str(p) for p in granted(install.documents(), "toolpolicy-operator") - use.done}
    print("granted and not used:", *(f"\n  {name}: {NOT_HERE.get(name, '?')}" for name in sorted(unused)))
    assert unused <= NOT_HERE.keys(), "granted, not used, and nobody says what for"
