"""``kubectl toolpolicy check`` against a real API server with the webhook of policies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.control import ControlPlane
from support.admission_server import serving
from support.policy_webhooks import register, unregister
from support.scene import ROOT, Scene
from toolpolicy_operator.admission.policies import review_policy
from toolpolicy_operator.records import Kind
from toolpolicy_operator.store import Store


@pytest.fixture
def scene(control_plane: ControlPlane, namespace: str) -> Scene:
    return Scene(control_plane, namespace)


@pytest.fixture
def admission(scene: Scene) -> Iterator[Scene]:
    """The webhook of policies, which knows the namespace."""
    store = Store()
    store.put(Kind.NAMESPACE, scene.kubectl("get", "namespace", scene.namespace))
    with serving({"/validate/policies": lambda review: review_policy(review, store)}) as hook:
        register(scene.plane, scene.namespace, hook)
        yield scene
        unregister(scene.plane, scene.namespace)


def test_check_prints_the_servers_verdict_and_warnings(admission: Scene, tmp_path: Path) -> None:
    file = tmp_path / "policies.yaml"
    head = "apiVersion: toolpolicy.dev/v1alpha1\nkind: ToolPolicy\nmetadata: {name: NAME}\n"
    spec = "spec: {selector: {}, rules: [{name: a, action: Allow, match: {tools: [x]}}]}\n"
    other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n"
    file.write_text("---\n".join([head.replace("NAME", "good") + spec, other]))
    result = admission.run("check", "-f", str(file))
    assert result.exit_code == 0, result.output
    assert f"{file}:1: ToolPolicy {admission.namespace}/good would be created" in result.stdout
    assert f"kubectl label namespace {admission.namespace} toolpolicy.dev/injection=enabled" in result.stdout
    assert "ConfigMap" in result.stderr
    assert admission.run("check", "--strict", "-f", str(file)).exit_code == 1
    assert admission.plane.kubectl("get", "tp", "-n", admission.namespace, "-o", "name").stdout == ""

    admission.policy("good")
    file.write_text(head.replace("NAME", "good") + spec.replace("match", "macth") + "---\n" + head + "a: [")
    result = admission.run("check", "-f", str(file), "-o", "json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    [verdict] = told["policies"]
    assert verdict["errors"] == [
        {"path": "spec.rules[0].macth", "message": "unknown field 'macth': did you mean match?"}
    ]
    assert len(told["unreadable"]) == 1
    file.write_text(head.replace("NAME", "x, namespace: does-not-exist") + spec)
    result = admission.run("check", "-f", str(file), namespace=False)
    assert (result.exit_code, "not found" in result.stdout) == (1, True), result.output
    file.write_text(head.replace("NAME", "good") + spec)
    assert (
        f"ToolPolicy {admission.namespace}/good would be configured" in admission.run("check", "-f", str(file)).stdout
    )
    assert admission.kubectl("get", "tp", "good")["metadata"]["generation"] == 1


def test_check_refuses_a_policy_of_another_namespace_than_the_one_asked_for(admission: Scene, tmp_path: Path) -> None:
    """As kubectl apply does; a ClusterToolPolicy has none."""
    file = tmp_path / "policy.yaml"
    head = "apiVersion: toolpolicy.dev/v1alpha1\n"
    spec = "spec: {selector: {}, rules: [{name: a, action: Allow, match: {tools: [x]}}]}\n"
    file.write_text(f"{head}kind: ToolPolicy\nmetadata: {{name: a, namespace: other}}\n{spec}")
    result = admission.run("check", "-f", str(file))
    assert result.exit_code == 1
    assert f"metadata.namespace: the file says namespace other, and -n says {admission.namespace}" in result.stdout
    [verdict] = json.loads(admission.run("check", "-f", str(file), "-o", "json").stdout)["policies"]
    assert (verdict["namespace"], verdict["verdict"]) == ("other", "refused")
    file.write_text(f"{head}kind: ClusterToolPolicy\nmetadata: {{name: a-{admission.namespace}}}\n{spec}")
    assert admission.run("check", "-f", str(file)).exit_code == 0


def test_check_needs_the_right_to_create_and_says_so(admission: Scene, tmp_path: Path) -> None:
    file = ROOT / "manifests" / "examples" / "healthimaging.yaml"
    own = tmp_path / "p.yaml"
    own.write_text(file.read_text().replace("namespace: agents", f"namespace: {admission.namespace}"))
    result = admission.run("check", "-f", str(own), kubeconfig=admission.viewer())
    assert result.exit_code == 2
    assert 'cannot create resource "toolpolicies"' in result.stderr
    assert (
        f"kubectl create rolebinding NAME --clusterrole=toolpolicy-edit --user=viewer-{admission.namespace} "
        f"-n {admission.namespace}"
    ) in result.stderr
