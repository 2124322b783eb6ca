"""Pods against a running operator: none starts with rules that say nothing of it."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.control import ControlPlane
from cluster.fixtures import create_namespace
from support.install import documents
from support.pods import pod as plain_pod
from support.replicas import Replica, Replicas, apply, eventually, namespace_of, objects, plane_of_its_own, policy
from toolpolicy_operator.injection import podview

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("replicas")]
SPACES = 12
WHOLE = podview.OUR_CONTAINERS | podview.OUR_VOLUMES


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Generator[ControlPlane]:
    with plane_of_its_own(tmp_path_factory.mktemp("plane")) as (found, _):
        yield found


@pytest.fixture
def replicas(plane: ControlPlane, tmp_path: Path) -> Generator[Replicas]:
    started = Replicas(plane.kubeconfig, tmp_path / "replicas")
    try:
        yield started
    finally:
        plane.kubectl("delete", "mutatingwebhookconfiguration,validatingwebhookconfiguration", "toolpolicy")
        started.close()


def register(plane: ControlPlane, replica: Replica) -> None:
    """Let the API server ask this replica, as installed but by URL; the operator writes whom to trust."""
    configurations = copy.deepcopy(documents("webhooks.yaml"))
    for configuration in configurations:
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"].pop("service")["path"]
            webhook["clientConfig"]["url"] = f"https://127.0.0.1:{replica.ports['webhooks']}{path}"
    apply(plane, *configurations)

    def trusted() -> bool:
        kinds = ("mutatingwebhookconfiguration", "validatingwebhookconfiguration")
        found = [w for kind in kinds for w in objects(plane, kind, "toolpolicy")["webhooks"]]
        return all(webhook["clientConfig"].get("caBundle") for webhook in found)

    eventually(trusted, "the operator's CA stands in the webhook configurations")


def with_pod(space: str) -> list[dict[str, Any]]:
    """A namespace, its policy and a pod, in the order in which one file would have them."""
    metadata = {"name": "mcp", "namespace": space, "labels": {"app": "mcp"}}
    return [namespace_of(space), policy(space, "imaging"), {**plain_pod(), "metadata": metadata}]


def with_deployment(space: str) -> list[dict[str, Any]]:
    template = {"metadata": {"labels": {"app": "mcp"}}, "spec": plain_pod()["spec"]}
    deployment: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mcp", "namespace": space},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "mcp"}}, "template": template},
    }
    return [namespace_of(space), policy(space, "imaging"), deployment]


def pods(plane: ControlPlane, space: str) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", objects(plane, "pods", "-n", space, "-l", "app=mcp").get("items", []))


def unguarded(plane: ControlPlane, space: str) -> list[str]:
    """What a namespace's pods lack of a sidecar."""
    found: list[str] = []
    for one in pods(plane, space):
        named = {o["name"] for o in (*one["spec"].get("initContainers", []), *one["spec"].get("volumes", []))}
        found += [f"{space}: {name}" for name in WHOLE - named]
    return found


def completed(plane: ControlPlane, space: str) -> dict[str, str]:
    """When the first pod of the administrator's and the first rules of a namespace were stored, by the audit log."""
    first: dict[str, str] = {}
    for line in plane.audit_log.read_text().splitlines():
        event = json.loads(line)
        about, code = event.get("objectRef", {}), event.get("responseStatus", {}).get("code", 0)
        if event["stage"] != "ResponseComplete" or about.get("namespace") != space or code >= 300:
            continue
        if event["verb"] == "create" and about["resource"] == "pods" and not about.get("subresource"):
            first.setdefault("pod", event["stageTimestamp"])
        if about["resource"] == "configmaps" and about.get("name") == "toolpolicy-rules" and event["verb"] == "patch":
            first.setdefault("rules", event["stageTimestamp"])
    return first


def test_rules_are_written_before_the_first_pod_that_one_apply_creates_with_its_policy(
    plane: ControlPlane, replicas: Replicas
) -> None:
    replica = replicas.start("a")
    replicas.writer()
    register(plane, replica)
    spaces = [f"one-apply-{index}" for index in range(SPACES)]
    for space in spaces:
        create_namespace(plane, space)
    apply(plane, *(manifest for space in spaces for manifest in with_pod(space)))
    assert [lack for space in spaces for lack in unguarded(plane, space)] == []
    order = {space: completed(plane, space) for space in spaces}
    assert [space for space, first in order.items() if first["pod"] < first["rules"]] == []


def test_while_no_replica_writes_new_policies_have_no_pods_and_old_ones_have(
    plane: ControlPlane, replicas: Replicas
) -> None:
    writer = replicas.start("writer")
    replicas.writer()
    serving = replicas.start("serving")
    register(plane, serving)
    apply(plane, *with_deployment("old"))
    eventually(lambda: pods(plane, "old"), "the old Deployment has its pod")
    eventually(lambda: serving.ready, "the other replica serves")
    writer.signal(signal.SIGSTOP)
    apply(plane, *with_deployment("new"))
    plane.kubectl("scale", "deployment/mcp", "-n", "old", "--replicas=2")
    eventually(lambda: len(pods(plane, "old")) == 2, "a policy that was written before holds up no pod")
    eventually(lambda: pods(plane, "new"), "after the takeover the new Deployment has its pod", 120)
    assert unguarded(plane, "new") == []
    (new,) = pods(plane, "new")
    assert completed(plane, "new")["rules"][:19] <= new["metadata"]["creationTimestamp"][:19]
    said = plane.kubectl("get", "events", "-n", "new", "-o", "json").stdout
    assert "RulesNotWritten: ToolPolicy imaging selects the pod" in said
