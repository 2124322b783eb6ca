"""``rollout: Restart`` evicts what predates the policy, once, and only for those who may evict themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.control import ControlPlane
from support.replicas import cluster_policy, namespace_of, objects, pod, policy, run_pod
from toolpolicy_operator import names, rollout
from toolpolicy_operator.admission.rollout import access_review, asks, check
from toolpolicy_operator.control.reports import Reports
from toolpolicy_operator.events import Happening
from toolpolicy_operator.kube import Api, ApiError
from toolpolicy_operator.records import Kind, PolicyRecord
from toolpolicy_operator.statuses import Statuses
from toolpolicy_operator.store import Store
from toolpolicy_operator.tasks import Task
from toolpolicy_operator.tasks import rollout as rollout_of

Obj = dict[str, Any]
WRITTEN = "2026-01-01T12:00:00Z"
BEFORE, AFTER = "2026-01-01T11:59:59Z", "2026-01-01T12:00:00Z"


def old_pod(name: str = "mcp-0", *, owner: str | None = "ReplicaSet", created: str = BEFORE, **changes: Any) -> Obj:
    obj = pod("agents", name, injected=changes.pop("injected", False))
    about = {**obj["metadata"], "uid": f"uid-{name}", "resourceVersion": "7", "creationTimestamp": created, **changes}
    if owner:
        about["ownerReferences"] = [{"kind": owner, "name": "mcp", "uid": "u", "apiVersion": "x", "controller": True}]
    return {**obj, "metadata": about, "status": {"phase": "Running"}}


def stored(*pods: Obj, enabled: bool = True, **spec: Any) -> tuple[Store, PolicyRecord]:
    store = Store(default_injection=False)
    space = namespace_of("agents")
    about: Obj = {**space["metadata"], "uid": "ns", "resourceVersion": "1", "labels": {}}
    if enabled:
        about["labels"] = space["metadata"]["labels"]
    store.put(Kind.NAMESPACE, {**space, "metadata": about})
    manifest = policy("agents", "imaging", rollout=spec.pop("rollout", "Restart"), **spec)
    fields: list[Obj] = [{"manager": "kubectl", "operation": "Update", "time": WRITTEN, "fieldsV1": {"f:spec": {}}}]
    metadata: Obj = {
        **manifest["metadata"],
        "uid": "p",
        "generation": 1,
        "resourceVersion": "2",
        "managedFields": fields,
    }
    store.put(Kind.TOOL_POLICY, {**manifest, "metadata": metadata})
    for obj in pods:
        store.put(Kind.POD, obj)
    found = store.policy("ToolPolicy", "agents", "imaging")
    assert found is not None
    return store, found


def chosen(store: Store, found: PolicyRecord) -> list[str]:
    statuses = Statuses(None, store, Reports(), again=lambda task, seconds: None)  # pyright: ignore[reportArgumentType]
    return [p.name for p in rollout.candidates(found, statuses.situation(found))]


@pytest.mark.parametrize(("port", "enabled", "goes"), [(9000, True, True), (8000, True, False), (9000, False, False)])
def test_a_pod_goes_that_was_admitted_for_another_port_where_it_comes_back_injected(
    port: int, enabled: bool, goes: bool
) -> None:
    """Where the namespace is not enabled any more, it would come back with no sidecar at all."""
    noted = {names.INJECTED_ANNOTATION: "0.1.0", names.SERVERS_ANNOTATION: "8000"}
    given = old_pod(injected=True, annotations=noted)
    assert bool(chosen(*stored(given, enabled=enabled, server={"port": port}))) is goes


@pytest.mark.parametrize(
    ("changes", "goes"),
    [
        ({}, True),
        ({"owner": "StatefulSet"}, True),
        ({"owner": "DaemonSet"}, True),
        ({"owner": "Job"}, False),
        ({"owner": None}, False),
        ({"created": AFTER}, False),
        ({"injected": True}, False),
        ({"deletionTimestamp": AFTER}, False),
        ({"annotations": {"toolpolicy.dev/ineligible": "HostNetwork"}}, False),
        ({"labels": {"app": "web"}}, False),
        ({"labels": {"app": "mcp", "toolpolicy.dev/injection": "disabled"}}, False),
    ],
    ids=["predates", "stateful", "daemon", "job", "bare", "later", "injected", "going", "ineligible", "other", "out"],
)
def test_only_pods_that_predate_the_policy_and_come_back_go(changes: Obj, goes: bool) -> None:
    assert chosen(*stored(old_pod(**changes))) == (["mcp-0"] if goes else [])


def test_nothing_goes_where_it_is_not_asked_for_or_would_not_help() -> None:
    assert chosen(*stored(old_pod(), rollout="Manual")) == []
    assert chosen(*stored(old_pod(), enabled=False)) == []


class Evictions:
    def __init__(self) -> None:
        self.seen: list[Obj] = []
        self.fault: ApiError | None = None

    async def create(self, path: str, obj: Obj, **_: Any) -> Obj:
        if self.fault is not None:
            raise self.fault
        assert path.endswith(f"/pods/{obj['metadata']['name']}/eviction")
        self.seen.append(obj)
        return {}


@pytest.mark.asyncio
async def test_they_go_one_after_the_other_and_a_budget_is_waited_for() -> None:
    store, found = stored(old_pod("mcp-0"), old_pod("mcp-1", created="2026-01-01T00:00:00Z"))
    api, asked, told = Evictions(), list[float](), list[Happening]()
    statuses = Statuses(api, store, Reports(), again=lambda t, s: None)  # pyright: ignore[reportArgumentType]
    step = rollout.Rollout(
        api,  # pyright: ignore[reportArgumentType]
        store,
        statuses.situation,
        again=lambda task, seconds: asked.append(seconds),
        tell=told.append,
    )
    task: Task = rollout_of(found)
    await step(task)
    assert [e["metadata"]["name"] for e in api.seen] == ["mcp-1"], "the oldest first, one at a time"
    assert api.seen[0]["deleteOptions"] == {"preconditions": {"uid": "uid-mcp-1"}}
    assert asked == [rollout.BETWEEN_SECONDS]
    assert [(h.reason, h.regarding["name"]) for h in told] == [("Restarted", "mcp-1")]
    api.fault = ApiError(429, "TooManyRequests", "disruption budget")
    await step(task)
    assert asked[-1] == rollout.BLOCKED_SECONDS


# Who may ask for it


def review(obj: Obj, *, user: str = "ann", old: Obj | None = None, operation: str = "CREATE") -> Obj:
    request = {"uid": "u", "operation": operation, "namespace": obj["metadata"].get("namespace"), "object": obj}
    info = {"username": user, "groups": ["devs"], "extra": {"k": ["v"]}}
    return {"request": {**request, "oldObject": old, "userInfo": info}}


def test_it_is_asked_about_only_where_it_is_new_or_the_spec_changed() -> None:
    manual, restart = policy("agents", "imaging"), policy("agents", "imaging", rollout="Restart")
    assert asks(review(restart)["request"])
    assert asks(review(restart, old=manual, operation="UPDATE")["request"])
    assert not asks(review(restart, old=restart, operation="UPDATE")["request"])
    assert not asks(review(manual)["request"])
    assert not asks(review(restart, operation="DELETE")["request"])
    assert not asks({"operation": "CREATE", "object": None})


def test_the_question_is_about_the_user_and_the_place() -> None:
    spec = access_review(review(policy("agents", "imaging"))["request"])["spec"]
    assert spec["resourceAttributes"] == {
        "verb": "create", "resource": "pods", "subresource": "eviction", "namespace": "agents"
    }  # fmt: skip
    assert (spec["user"], spec["groups"], spec["extra"]) == ("ann", ["devs"], {"k": ["v"]})
    everywhere = access_review(review(cluster_policy("baseline"))["request"])["spec"]
    assert "namespace" not in everywhere["resourceAttributes"]


@pytest.mark.asyncio
async def test_without_an_answer_it_is_refused() -> None:
    api = Evictions()
    api.fault = ApiError(0, "Timeout", "no answer")
    refusal = await check(review(policy("agents", "imaging", rollout="Restart")), api)
    assert refusal is not None
    assert not refusal["response"]["allowed"]
    assert "could not be asked" in refusal["response"]["status"]["message"]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_api_server_says_who_may_evict(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "rolebinding", "edits", "--clusterrole=edit", "--user=ann", "-n", namespace)
    asked = policy(namespace, "imaging", rollout="Restart")
    async with await Api.connect(control_plane.kubeconfig) as api:
        assert await check(review(asked, user="ann"), api) is None
        refusal = await check(review(asked, user="bob"), api)
        everywhere = await check(review(cluster_policy("b", rollout="Restart"), user="ann"), api)
    assert refusal is not None
    assert "bob may not create pods/eviction" in refusal["response"]["status"]["message"]
    assert everywhere is not None


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_api_server_takes_the_eviction_of_just_that_pod(control_plane: ControlPlane, namespace: str) -> None:
    obj = pod(namespace, "mcp-0", injected=False)
    del obj["spec"]["nodeName"]
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(obj))
    run_pod(control_plane, namespace, "mcp-0")
    store = Store()
    async with await Api.connect(control_plane.kubeconfig) as api:
        for kind, listing in ((Kind.POD, await api.list(f"/api/v1/namespaces/{namespace}/pods")),):
            store.replace(kind, listing)
        found = store.pod(namespace, "mcp-0")
        _, record = stored()
        assert found is not None
        step = rollout.Rollout(api, store, lambda r: pytest.fail("unused"), again=print, tell=lambda h: None)
        assert await step.evict(found, record)
    gone = objects(control_plane, "pod", "mcp-0", "-n", namespace)
    assert not gone or gone["metadata"].get("deletionTimestamp")
