"""A pod is admitted once the rules that it will mount hold its policies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.pods import DEFAULTS, ENABLED, NAMESPACE, Object, pod, review
from toolpolicy_operator import configmap
from toolpolicy_operator.admission.lookup import ApiLookup
from toolpolicy_operator.admission.pods import mutate
from toolpolicy_operator.admission.written import WrittenRules
from toolpolicy_operator.kube import Api
from toolpolicy_operator.records import Kind, NamespaceRecord, RulesRecord
from toolpolicy_operator.store import Store

pytestmark = pytest.mark.asyncio


class Cluster:
    def __init__(self) -> None:
        self.store = Store()
        self.version = 10
        self.store.put(Kind.NAMESPACE, self.object(NAMESPACE, None, labels=ENABLED))
        self.rules = WrittenRules(self.store)
        self.lookup = ApiLookup(Api(type("C", (), {"host": "http://127.0.0.1:9"})()), self.store)

    def object(self, name: str, namespace: str | None = NAMESPACE, **metadata: Any) -> Object:
        self.version += 1
        where = {"namespace": namespace} if namespace else {}
        named = {"name": name, **where, "uid": f"{name}-uid", "generation": 1}
        return {"metadata": {**named, "resourceVersion": str(self.version), **metadata}}

    def policy(self, name: str, **more: Any) -> None:
        spec = {"selector": {"matchLabels": {"app": "mcp"}}, **more}
        self.store.put(Kind.TOOL_POLICY, {**self.object(name), "spec": spec})

    def write(self) -> None:
        """As the reconciler does."""
        wanted = configmap.contents(self.store.policies_of(NAMESPACE), "")
        space, current = self.store.namespace(NAMESPACE), self.store.rules(NAMESPACE)
        assert isinstance(space, NamespaceRecord)
        written = configmap.manifest(wanted, space, (1, f"1-{self.version}"), 1, current)
        metadata = self.object("toolpolicy-rules", annotations=written["metadata"]["annotations"])["metadata"]
        self.store.put(Kind.RULES, {**written, "metadata": metadata})
        assert isinstance(self.store.rules(NAMESPACE), RulesRecord)

    async def admit(self) -> Object:
        answer = await mutate(review(pod()), self.store, self.lookup, DEFAULTS, rules=self.rules)
        return answer["response"]


async def test_a_pod_whose_policies_are_written_does_not_wait() -> None:
    cluster = Cluster()
    cluster.policy("imaging")
    cluster.write()
    async with asyncio.timeout(1):
        assert (await cluster.admit())["patch"]


async def test_a_pod_waits_until_all_its_policies_are_written() -> None:
    cluster = Cluster()
    cluster.policy("imaging")
    cluster.write()
    cluster.policy("second")
    waiting = asyncio.create_task(cluster.admit())
    await asyncio.sleep(0)
    cluster.store.put(Kind.RULES, {**cluster.object("toolpolicy-rules"), "data": {}})
    await asyncio.sleep(0)
    assert not waiting.done()
    cluster.write()
    async with asyncio.timeout(5):
        assert (await waiting)["patch"]


async def test_a_policy_that_was_deleted_and_made_again_is_another_one() -> None:
    cluster = Cluster()
    cluster.policy("imaging")
    cluster.write()
    cluster.store.put(Kind.TOOL_POLICY, {**cluster.object("imaging", uid="another"), "spec": {"selector": {}}})
    waiting = asyncio.create_task(cluster.admit())
    await asyncio.sleep(0)
    assert not waiting.done()
    cluster.write()
    async with asyncio.timeout(5):
        assert (await waiting)["patch"]


async def test_where_nobody_writes_the_pod_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolpolicy_operator.admission.pods.WRITTEN_SECONDS", 0.01)
    cluster = Cluster()
    cluster.policy("imaging")
    response = await cluster.admit()
    assert response["status"]["code"] == 503
    assert response["status"]["message"].startswith("RulesNotWritten: ToolPolicy imaging selects the pod")


async def test_a_policy_in_audit_is_not_waited_for() -> None:
    cluster = Cluster()
    cluster.policy("imaging", mode="Audit")
    async with asyncio.timeout(1):
        assert (await cluster.admit())["patch"]


async def test_a_pod_that_gives_up_leaves_nothing_behind() -> None:
    cluster = Cluster()
    cluster.policy("imaging")
    waiting = asyncio.create_task(cluster.admit())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not vars(cluster.rules)["_waiting"]
