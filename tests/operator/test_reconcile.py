"""One step at a time, against an API that answers as the test wants: conflicts, limits on requests, foreign fields."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from support.replicas import namespace_of, pod, policy
from toolpolicy_operator import configmap, names, tasks
from toolpolicy_operator.election import Election
from toolpolicy_operator.kube import Api, ApiError
from toolpolicy_operator.reconcile import Reconciler, floor
from toolpolicy_operator.records import Kind
from toolpolicy_operator.store import Store
from toolpolicy_operator.tasks import Task

pytestmark = pytest.mark.asyncio
Obj = dict[str, Any]


class Cluster:
    """ConfigMaps with the optimistic locking of server-side apply, and pods that take patches."""

    def __init__(self) -> None:
        self.maps: dict[str, Obj] = {}
        self.version = 100
        self.writes: list[str] = []
        self.touched: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], ApiError | None] = lambda verb, path: None

    async def get(self, path: str, **_: Any) -> Obj:
        self._ask("get", path)
        if path not in self.maps:
            raise ApiError(404, "NotFound", path)
        return self.maps[path]

    async def apply(self, path: str, obj: Obj, **_: Any) -> Obj:
        self._ask("apply", path)
        asked, there = obj["metadata"].get("resourceVersion"), self.maps.get(path)
        if there is None and "uid" in obj["metadata"]:
            raise ApiError(409, "Conflict", "uid mismatch")
        if there is not None and asked != there["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        self.version += 1
        if there is not None:  # what another manager owns stays
            others = {m["fieldsV1"]["f:data"].popitem()[0][2:] for m in there["metadata"]["managedFields"][1:]}
            obj = {**obj, "data": {**obj["data"], **{k: there["data"][k] for k in others}}}
        fields: Obj = {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": {"f:data": {}}}
        about: Obj = {"uid": f"uid-{self.version}", **obj["metadata"], "managedFields": [fields]}
        self.maps[path] = {**obj, "metadata": {**about, "resourceVersion": str(self.version)}}
        self.writes.append(path)
        return self.maps[path]

    async def delete(self, path: str, *, uid: str, resource_version: str) -> None:
        self._ask("delete", path)
        if self.maps[path]["metadata"]["resourceVersion"] != resource_version:
            raise ApiError(409, "Conflict", "modified")
        del self.maps[path]

    async def patch(self, path: str, patch: Obj, **_: Any) -> Obj:
        self._ask("patch", path)
        self.touched.append((path.rpartition("/")[2], patch["metadata"]["annotations"][names.RULES_ANNOTATION]))
        return {}

    def _ask(self, verb: str, path: str) -> None:
        fault = self.fault(verb, path)
        if fault is not None:
            raise fault


class Term:
    """A term of the Lease that the test gives and takes."""

    def __init__(self, epoch: int = 1) -> None:
        self.leading, self.epoch = True, epoch

    async def raise_epoch(self, above: int) -> None:
        self.epoch = above + 1


class Writer:
    """One replica's store and reconciler on a cluster that several may share."""

    def __init__(self, cluster: Cluster, epoch: int = 1, ca: str | None = "") -> None:
        self.term, self.store = Term(epoch), Store()
        self.reconciler = Reconciler(cast("Api", cluster), self.store, cast("Election", self.term), ca=lambda: ca)
        self.put(Kind.NAMESPACE, namespace_of("agents"), 1)
        self.put(Kind.TOOL_POLICY, policy("agents", "imaging"), 2)
        self.reconciler.queue.clear()

    def put(self, kind: Kind, obj: Obj, version: int, **metadata: Any) -> None:
        about = {"uid": f"uid-{obj['metadata']['name']}", "generation": 1, **obj["metadata"], **metadata}
        self.store.put(kind, {**obj, "metadata": {**about, "resourceVersion": str(version)}})

    def edit(self, version: int, tool: str) -> None:
        self.put(Kind.TOOL_POLICY, policy("agents", "imaging", tool), version, generation=version)

    async def rules(self) -> None:
        await self.reconciler.do(tasks.rules("agents"))

    async def touch(self) -> None:
        await self.reconciler.do(tasks.touch("agents"))

    @property
    def problem(self) -> str:
        return " ".join(self.reconciler.problems.values())


PATH = "/api/v1/namespaces/agents/configmaps/toolpolicy-rules"


def index_of(cluster: Cluster) -> str:
    return str(cluster.maps[PATH]["data"]["index.json"])


async def test_the_same_content_is_written_once() -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    for _ in range(3):
        await writer.rules()
    assert cluster.writes == [PATH]


async def test_two_that_both_believe_to_be_the_first_do_not_overwrite_each_other() -> None:
    cluster = Cluster()
    one, two = Writer(cluster, 1), Writer(cluster, 2)
    await one.rules()
    two.edit(5, "list_*")
    await two.rules()
    assert len(cluster.writes) == 1, "the second asked that there be none, and there was one"
    await two.rules()
    assert '"epoch":2' in index_of(cluster)


async def test_an_old_writer_whose_term_ended_unnoticed_can_not_write_after_its_successor() -> None:
    """The Lease says nothing here: both terms lead. What fences is the version, which the successor changed."""
    cluster = Cluster()
    old = Writer(cluster, 1)
    await old.rules()
    new = Writer(cluster, 2)
    new.store.put(Kind.RULES, cluster.maps[PATH])
    await new.rules()
    assert len(cluster.writes) == 2, "the successor takes possession although no policy changed"
    assert '"epoch":1' in index_of(cluster), "without changing what sidecars read"
    old.edit(5, "stale_*")
    await old.rules()
    assert len(cluster.writes) == 2
    assert "stale" not in cluster.maps[PATH]["data"]["toolpolicy.imaging.json"]


async def test_rules_that_claim_a_later_term_raise_ours() -> None:
    cluster = Cluster()
    writer = Writer(cluster, 7)
    await writer.rules()
    other = Writer(cluster, 3)
    other.store.put(Kind.RULES, cluster.maps[PATH])
    assert floor(other.store) == 7
    other.edit(9, "list_*")
    await other.rules()
    assert other.term.epoch == 8
    assert '"epoch":8' in index_of(cluster)


async def test_what_another_manager_owns_is_replaced_as_a_whole() -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    await writer.rules()
    found = cluster.maps[PATH]
    entry: Obj = {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:data": {"f:more": {}}}}
    found["metadata"]["managedFields"].append(entry)
    found["data"]["more"], found["metadata"]["resourceVersion"] = "x", "200"
    cluster.version = 200
    writer.store.put(Kind.RULES, found)
    await writer.rules()
    assert set(cluster.maps[PATH]["data"]) == {"index.json", "toolpolicy.imaging.json"}
    assert cluster.maps[PATH]["metadata"]["resourceVersion"] == "201"


async def test_a_request_that_is_one_too_many_is_tried_when_the_server_says() -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    cluster.fault = lambda verb, path: ApiError(429, "TooManyRequests", "slow down", 17.0)
    await writer.rules()
    assert "slow down" in writer.problem
    assert writer.reconciler.queue.busy(within=16.0) == 0
    assert writer.reconciler.queue.busy(within=18.0) >= 1
    cluster.fault = lambda verb, path: None
    await writer.rules()
    assert writer.problem == ""


async def test_a_right_that_is_missing_is_named() -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    message = 'configmaps "toolpolicy-rules" is forbidden: User "x" cannot patch resource "configmaps"'
    cluster.fault = lambda verb, path: ApiError(403, "Forbidden", message)
    await writer.rules()
    assert "cannot patch resource" in writer.problem
    assert "rules of namespace agents" in writer.problem


async def test_in_a_namespace_that_is_going_nothing_is_made_and_nothing_tried_again() -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    writer.put(Kind.NAMESPACE, namespace_of("agents"), 9, deletionTimestamp="2026-01-01T00:00:00Z")
    await writer.rules()
    assert cluster.writes == []
    other = Writer(cluster)
    forbidden = ApiError(403, "Forbidden", "namespace agents is being terminated")
    cluster.fault = lambda verb, path: forbidden if verb == "apply" else None
    await other.rules()
    assert other.problem == ""


async def test_without_a_ca_nothing_is_written_yet() -> None:
    cluster = Cluster()
    writer = Writer(cluster, ca=None)
    await writer.rules()
    assert cluster.writes == []
    assert "no certificate yet" in writer.problem


async def test_rules_too_large_for_a_configmap_stay_as_they_are_and_policies_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    await writer.rules()
    monkeypatch.setattr(configmap, "MAX_CONFIGMAP", 100)
    writer.edit(5, "list_*")
    await writer.rules()
    assert len(cluster.writes) == 1
    found = writer.store.policy("ToolPolicy", "agents", "imaging")
    assert found is not None
    assert "a ConfigMap holds 100" in str(writer.reconciler.too_large(found))
    monkeypatch.undo()
    await writer.rules()
    assert writer.reconciler.too_large(found) is None


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({}, True),
        ({"spec": {"nodeName": None}}, False),
        ({"status": {"phase": "Succeeded"}}, False),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, False),
        ({"spec": {"initContainers": []}}, False),
        ({"metadata": {"annotations": {names.RULES_ANNOTATION: "1-1"}}}, False),
        ({"metadata": {"annotations": {names.RULES_ANNOTATION: "0-9"}}}, True),
    ],
    ids=["runs", "unscheduled", "ended", "going", "not injected", "up to date", "behind"],
)
async def test_pods_that_have_the_volume_mounted_are_touched(change: Obj, touched: bool) -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    obj = {**pod("agents", "mcp-0"), "status": {"phase": "Running"}}
    obj = {**obj, **{k: {**obj[k], **v} for k, v in change.items()}}
    writer.put(Kind.POD, obj, 8)
    await writer.rules()
    await writer.touch()
    await writer.touch()
    assert cluster.touched == ([("mcp-0", "1-1")] if touched else [])


async def test_one_pod_that_can_not_be_touched_does_not_keep_the_others_from_it() -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    for name in ("a", "b", "c"):
        writer.put(Kind.POD, {**pod("agents", name), "status": {"phase": "Running"}}, 8)
    await writer.rules()
    cluster.fault = lambda verb, path: ApiError(500, "InternalError", "b") if path.endswith("/b") else None
    await writer.touch()
    assert sorted(name for name, _ in cluster.touched) == ["a", "c"]
    cluster.fault = lambda verb, path: None
    await writer.touch()
    assert sorted(name for name, _ in cluster.touched) == ["a", "b", "c"]


async def test_one_that_no_longer_leads_writes_nothing() -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    writer.term.leading = False
    await writer.rules()
    writer.edit(5, "list_*")
    assert cluster.writes == []
    assert len(writer.reconciler.queue) == 0


async def test_workers_do_what_changes_ask_for() -> None:
    cluster = Cluster()
    writer = Writer(cluster)
    work = asyncio.create_task(writer.reconciler.run())
    try:
        writer.reconciler.begin()
        async with asyncio.timeout(10):
            while PATH not in cluster.maps:
                await asyncio.sleep(0.005)
            writer.edit(5, "list_*")
            while "list_*" not in cluster.maps[PATH]["data"]["toolpolicy.imaging.json"]:
                await asyncio.sleep(0.005)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def test_a_task_that_fails_on_a_fault_of_ours_is_tried_again_and_told() -> None:
    cluster = Cluster()
    writer = Writer(cluster)

    async def broken(task: Task) -> None:
        raise ValueError("a fault")

    writer.reconciler.step(tasks.What.STATUS, broken)
    found = writer.store.policy("ToolPolicy", "agents", "imaging")
    assert found is not None
    await writer.reconciler.do(tasks.status(found))
    assert "internal error: a fault" in writer.problem
    assert len(writer.reconciler.queue) == 1
