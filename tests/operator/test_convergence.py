"""Whatever fails in between, the cluster ends up as a fresh start would have made it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.control import CRDS, Components, ControlPlane, answers, install_crds, wait_until
from support.replicas import (
    Replica,
    Replicas,
    apply,
    cluster_policy,
    eventually,
    generations,
    namespace_of,
    objects,
    plane_of_its_own,
    pod,
    policy,
    rules_of,
    run_pod,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("convergence")]
_names = itertools.count()
_UNTOUCHED = {"lastTransitionTime"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[ControlPlane, Components]]:
    with plane_of_its_own(tmp_path_factory.mktemp("plane")) as found:
        yield found


@pytest.fixture
def plane(own: tuple[ControlPlane, Components]) -> ControlPlane:
    return own[0]


@pytest.fixture
def replicas(plane: ControlPlane, tmp_path: Path) -> Generator[Replicas]:
    started = Replicas(plane.kubeconfig, tmp_path / "replicas")
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def space(plane: ControlPlane) -> Generator[str]:
    """A namespace with policies of its own and of the cluster, two injected pods and one that is none of ours."""
    name = f"agents-{next(_names)}"
    baseline = cluster_policy(f"baseline-{name}", namespaceSelector={"matchLabels": {"space": name}})
    apply(plane, namespace_of(name, space=name), policy(name, "imaging"), policy(name, "billing", "pay_*"), baseline)
    apply(plane, pod(name, "mcp-0"), pod(name, "mcp-1"), pod(name, "web", injected=False))
    for each in ("mcp-0", "mcp-1", "web"):
        run_pod(plane, name, each)
    yield name
    plane.kubectl("delete", "clustertoolpolicy", f"baseline-{name}", "--ignore-not-found", check=False)
    plane.kubectl("delete", "namespace", name, "--wait=false", check=False)


def picture(plane: ControlPlane, space: str) -> dict[str, Any]:
    """All that the operator makes of a namespace, without what differs from one term to the next."""
    rules = objects(plane, "configmap", "toolpolicy-rules", "-n", space)
    data = dict(rules.get("data", {}))
    index: dict[str, Any] = json.loads(data.pop("index.json", "{}"))
    pods = objects(plane, "pods", "-n", space).get("items", [])
    touched = {
        p["metadata"]["name"]: p["metadata"].get("annotations", {}).get("toolpolicy.dev/rules") == index.get("revision")
        for p in pods
    }
    own = objects(plane, "toolpolicies", "-n", space).get("items", [])
    cluster = [objects(plane, "clustertoolpolicy", f"baseline-{space}")]
    return {
        "files": data,
        "policies": index.get("policies"),
        "touched": touched,
        "owners": [o["kind"] for o in rules.get("metadata", {}).get("ownerReferences", [])],
        "statuses": {p["metadata"]["name"]: timeless(p.get("status", {})) for p in (*own, *cluster) if p},
    }


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in cast("dict[str, Any]", value).items() if k not in _UNTOUCHED}
    return [timeless(v) for v in cast("list[Any]", value)] if isinstance(value, list) else value


def converged(plane: ControlPlane, space: str, replica: Replica, **expected: int) -> dict[str, Any]:
    """The picture, once these generations are in the rules, pods are touched and nothing is left to do."""

    def probe() -> dict[str, Any]:
        seen = picture(plane, space)
        found = generations({"policies": seen["policies"] or {}})
        idle = replica.state.get("queued") == 0
        done = seen["touched"] == {"mcp-0": True, "mcp-1": True, "web": False}
        stated = all(s.get("observedGeneration") for s in seen["statuses"].values())
        return seen if idle and done and stated and expected.items() <= found.items() else {}

    return eventually(probe, f"{expected} in {space}")


def same_as_a_fresh_start(plane: ControlPlane, replicas: Replicas, space: str, seen: dict[str, Any]) -> None:
    """End every replica, remove what they made, start one, and compare."""
    replicas.close()
    plane.kubectl("delete", "configmap", "toolpolicy-rules", "-n", space)
    plane.kubectl("delete", "lease", "toolpolicy-operator", "-n", "toolpolicy-system")
    for name in ("imaging", "billing"):
        strip = '{"status":null}'
        plane.kubectl("patch", "toolpolicy", name, "-n", space, "--subresource=status", "--type=merge", "-p", strip)
    fresh = replicas.start("fresh")
    expected = generations({"policies": seen["policies"]})
    assert converged(plane, space, fresh, **expected) == seen


def edit(plane: ControlPlane, space: str, tool: str) -> None:
    apply(plane, policy(space, "imaging", tool))


def test_rules_that_someone_changed_are_as_they_should_be_again(
    plane: ControlPlane, replicas: Replicas, space: str
) -> None:
    one = replicas.start("one")
    before = converged(plane, space, one, imaging=1)
    patches = ({"data": {"toolpolicy.imaging.json": "{}"}}, {"data": {"more": "x"}}, {"data": {"index.json": None}})
    for patch in patches:
        plane.kubectl("patch", "configmap", "toolpolicy-rules", "-n", space, "--type=merge", "-p", json.dumps(patch))
        eventually(lambda: timeless(picture(plane, space)) == before, f"after {patch}")
    plane.kubectl("delete", "configmap", "toolpolicy-rules", "-n", space)
    eventually(lambda: picture(plane, space) == before, "after its deletion")
    edit(plane, space, "list_*")
    same_as_a_fresh_start(plane, replicas, space, converged(plane, space, one, imaging=2, billing=1))


def test_an_api_server_that_is_restarted(own: tuple[ControlPlane, Components], replicas: Replicas, space: str) -> None:
    plane, parts = own
    one = replicas.start("one")
    converged(plane, space, one, imaging=1)
    parts.stop("apiserver")
    eventually(lambda: one.state["lease"], "it notices")
    assert one.ready, "what it knows stays good for admissions"
    parts.start("apiserver")
    wait_until(lambda: answers(parts.layout), "an answer of the API server", parts)
    edit(plane, space, "list_*")
    plane.kubectl("delete", "toolpolicy", "billing", "-n", space)
    apply(plane, policy(space, "billing", "pay_*"))
    same_as_a_fresh_start(plane, replicas, space, converged(plane, space, one, imaging=2, billing=1))


def test_a_store_of_the_api_server_that_hangs(
    own: tuple[ControlPlane, Components], replicas: Replicas, space: str
) -> None:
    plane, parts = own
    one = replicas.start("one")
    converged(plane, space, one, imaging=1)
    edit(plane, space, "list_*")
    parts.pause("etcd")
    try:
        eventually(lambda: not one.leading, "it can't renew the lease and stops writing")
    finally:
        parts.resume("etcd")
    eventually(lambda: one.leading, "it writes again")
    edit(plane, space, "write_*")
    same_as_a_fresh_start(plane, replicas, space, converged(plane, space, one, imaging=3, billing=1))


def test_a_namespace_that_goes_in_the_middle_of_it(plane: ControlPlane, replicas: Replicas, space: str) -> None:
    one = replicas.start("one")
    converged(plane, space, one, imaging=1)
    doomed = f"{space}-doomed"
    apply(plane, namespace_of(doomed), policy(doomed, "imaging"), pod(doomed, "mcp-0"))
    eventually(lambda: rules_of(plane, doomed), "it has rules")
    plane.kubectl("delete", "namespace", doomed, "--wait=false")
    for tool in ("a_*", "b_*", "c_*"):
        plane.kubectl("apply", "-f", "-", stdin=json.dumps(policy(doomed, "imaging", tool)), check=False)
        edit(plane, space, tool)
    plane.kubectl("delete", "pods", "--all", "-n", doomed, "--force", check=False)
    eventually(lambda: not objects(plane, "namespace", doomed), "it is gone")
    seen = converged(plane, space, one, imaging=4, billing=1)
    eventually(lambda: one.state["failing"] == [], "nothing is tried again for what is gone")
    same_as_a_fresh_start(plane, replicas, space, seen)


def test_rules_stay_while_an_injected_pod_runs_and_go_after_it(
    plane: ControlPlane, replicas: Replicas, space: str
) -> None:
    one = replicas.start("one")
    converged(plane, space, one, imaging=1)
    plane.kubectl("label", "namespace", space, "toolpolicy.dev/injection-")
    edit(plane, space, "list_*")
    converged(plane, space, one, imaging=2)
    plane.kubectl("delete", "toolpolicies", "--all", "-n", space)
    plane.kubectl("delete", "clustertoolpolicy", f"baseline-{space}")
    eventually(lambda: rules_of(plane, space).get("policies") == {}, "an empty set, which is not a lost one")
    plane.kubectl("delete", "pod", "mcp-0", "mcp-1", "-n", space, "--force")
    eventually(lambda: not objects(plane, "configmap", "toolpolicy-rules", "-n", space), "no pod is left to read them")


def test_a_cluster_policy_holds_for_pods_it_took_until_they_end(
    plane: ControlPlane, replicas: Replicas, space: str
) -> None:
    one = replicas.start("one")
    apply(plane, pod(space, "kept", namespace_labels=json.dumps({"space": space})))
    run_pod(plane, space, "kept")
    eventually(lambda: generations(rules_of(plane, space)).get(f"baseline-{space}"), "it is in the rules")
    plane.kubectl("label", "namespace", space, "space=another", "--overwrite")
    edit(plane, space, "list_*")
    eventually(lambda: generations(rules_of(plane, space)).get("imaging") == 2, "the edit is in the rules")
    assert f"baseline-{space}" in generations(rules_of(plane, space))
    plane.kubectl("delete", "pod", "kept", "-n", space, "--force")
    eventually(lambda: f"baseline-{space}" not in generations(rules_of(plane, space)), "the last that it took is gone")
    assert one.leading


def test_definitions_that_come_late_and_go_and_come_again(plane: ControlPlane, replicas: Replicas, space: str) -> None:
    plane.kubectl("delete", "-f", CRDS)
    one = replicas.start("one")
    eventually(lambda: any("kubectl apply -f manifests/crds" in p for p in one.state["problems"]), "it says what to do")
    assert not one.ready
    install_crds(plane)
    eventually(lambda: one.ready, "it goes on by itself")
    apply(plane, policy(space, "imaging"))
    eventually(lambda: generations(rules_of(plane, space)) == {"imaging": 1}, "it watches")
    plane.kubectl("delete", "-f", CRDS)
    eventually(lambda: generations(rules_of(plane, space)) == {}, "every policy went with its definition")
    install_crds(plane)
    for name, tool in (("imaging", "read_*"), ("billing", "pay_*")):
        apply(plane, policy(space, name, tool))
    apply(plane, cluster_policy(f"baseline-{space}", namespaceSelector={"matchLabels": {"space": space}}))
    same_as_a_fresh_start(plane, replicas, space, converged(plane, space, one, imaging=1, billing=1))


def test_rights_that_are_missing_are_named_and_enough_once_they_are_granted(
    plane: ControlPlane, replicas: Replicas, space: str
) -> None:
    one = replicas.start("one", kubeconfig=plane.kubeconfig_for(f"operator-of-{space}"))
    eventually(lambda: len(one.state["problems"]) >= 5, "every kind is named")
    said = " ".join(one.state["problems"])
    assert "may not list toolpolicies.toolpolicy.dev" in said
    assert "may not list pods" in said
    assert not one.ready
    plane.kubectl(
        "create",
        "clusterrolebinding",
        f"operator-{space}",
        "--clusterrole=cluster-admin",
        f"--user=operator-of-{space}",
    )
    try:
        eventually(lambda: one.ready, "it goes on by itself")
        converged(plane, space, one, imaging=1, billing=1)
    finally:
        plane.kubectl("delete", "clusterrolebinding", f"operator-{space}")
