"""The webhook of policies: its errors are check's, its warnings name what will not work and the command that helps."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from toolpolicy.policy.load import load_object
from toolpolicy.policy.shapes import mapping
from toolpolicy_operator import parsed
from toolpolicy_operator.admission import policies
from toolpolicy_operator.admission.policies import review_policy, validate_policy
from toolpolicy_operator.admission.policy_warnings import LONGEST
from toolpolicy_operator.kube import ApiError, Object
from toolpolicy_operator.records import Kind
from toolpolicy_operator.store import Store

READ = {"name": "read", "action": "Allow", "match": {"categories": ["Read"]}}
LIMITED = {**READ, "rateLimit": {"max": 5, "window": "60s"}}
NAMED = [{"name": "mcp", "port": 80, "targetPort": "mcp"}]
NUMBERED = [{"name": "mcp", "port": 80, "targetPort": 8000}]
WITHOUT_TARGET = [{"port": 8000}]
INJECTED = {"initContainers": [{"name": "toolpolicy-sidecar"}]}


def policy(name: str = "imaging", namespace: str | None = "agents", **spec: Any) -> Object:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    kind = "ToolPolicy" if namespace else "ClusterToolPolicy"
    spec = {"selector": {"matchLabels": {"app": "mcp"}}, "rules": [READ], **spec}
    return {"apiVersion": "toolpolicy.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def review(manifest: Object, operation: str = "CREATE", old: Object | None = None, **extra: Any) -> dict[str, Any]:
    metadata = mapping(manifest.get("metadata"))
    request = {
        "uid": "u-1",
        "operation": operation,
        "kind": {"group": "toolpolicy.dev", "version": "v1alpha1", "kind": manifest.get("kind")},
        "name": metadata.get("name"),
        "namespace": metadata.get("namespace"),
        "object": manifest,
        "oldObject": old,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {**request, **extra}}


class Cluster:
    """A store that was told of objects."""

    def __init__(self, default_injection: bool = False) -> None:
        self.store = Store(default_injection)
        self.version = 0

    def put(self, kind: Kind, obj: Object) -> None:
        self.version += 1
        metadata = {"uid": f"u{self.version}", "resourceVersion": str(self.version), **obj["metadata"]}
        self.store.put(kind, {**obj, "metadata": metadata})

    def namespace(self, name: str = "agents", labels: Mapping[str, str] | None = None, *, enabled: bool = True) -> None:
        own = {"toolpolicy.dev/injection": "enabled"} if enabled else {}
        self.put(Kind.NAMESPACE, {"metadata": {"name": name, "labels": {**own, **(labels or {})}}})

    def pod(
        self,
        name: str = "a",
        namespace: str = "agents",
        *,
        spec: Object | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        owner: Mapping[str, str] | None = None,
        phase: str = "Running",
    ) -> None:
        owners = [{"apiVersion": "apps/v1", "uid": "o", "controller": True, **owner}] if owner else []
        metadata = {"name": name, "namespace": namespace, "ownerReferences": owners, "annotations": annotations or {}}
        metadata["labels"] = {"app": "mcp", **(labels or {})}
        self.put(Kind.POD, {"metadata": metadata, "spec": spec or {}, "status": {"phase": phase}})

    def replica(self, name: str) -> None:
        self.pod(name, owner={"kind": "ReplicaSet", "name": "web-5d4"}, labels={"pod-template-hash": "5d4"})

    def policy(self, manifest: Object) -> None:
        kind = Kind(manifest["kind"])
        self.put(kind, manifest)


def answer(manifest: Object, cluster: Cluster | None = None, **extra: Any) -> dict[str, Any]:
    store = cluster.store if cluster is not None else None
    services = {"agents": extra.pop("services", [])}
    result = review_policy(review(manifest, **extra), store, services)
    assert (result["apiVersion"], result["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert result["response"]["uid"] == "u-1"
    json.dumps(result)
    return result["response"]


def warned(manifest: Object, cluster: Cluster, **extra: Any) -> list[str]:
    response = answer(manifest, cluster, **extra)
    assert response["allowed"], response
    said: list[str] = response.get("warnings", [])
    assert all(len(text) <= LONGEST and text.isprintable() for text in said)
    assert sum(map(len, said)) < 4096
    return said


def test_every_error_is_a_cause_with_its_field_and_checks_own_words() -> None:
    manifest = policy(mode="enforce", rules=[{**READ, "validation": [], "when": "1 +"}])
    response = answer(manifest)
    problems = load_object(manifest, "")[1]
    assert len(problems) == 3
    assert not response["allowed"]
    status = response["status"]
    assert (status["code"], status["reason"]) == (422, "Invalid")
    assert [(c["field"], c["message"]) for c in status["details"]["causes"]] == [(p.path, p.message) for p in problems]
    assert status["message"].splitlines() == [f"{p.path}: {p.message}" for p in problems]


def test_a_flood_of_errors_is_cut_and_says_so() -> None:
    rules = [{"name": f"r{i}", "action": "Allow", "wrong": 1} for i in range(200)]
    causes = answer(policy(rules=rules))["status"]["details"]["causes"]
    assert len(causes) == 51
    assert "150 more" in causes[-1]["message"]


STRANGE: dict[str, Object] = {
    "no spec": {"spec": None},
    "a list as spec": {"spec": []},
    "a list as metadata": {"metadata": []},
    "a number as version": {"apiVersion": 5},
    "no kind": {"kind": None},
    "a long text as rules": {"spec": {"selector": {}, "rules": "x" * 100_000}},
    "a control character": {"spec": {"selector": {}, "rules": [{"name": "x", "match": {"tools": "\u0000"}}]}},
    "a null as label": {"spec": {"selector": {"matchLabels": {"a": None}}}},
    "a key of two lines": {"sp\nec": 1},
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE.keys())
def test_whatever_is_sent_is_answered(strange: Object) -> None:
    cluster = Cluster()
    cluster.namespace()
    assert not answer({**policy(), **strange}, cluster)["allowed"]


def test_a_generated_name_is_no_error() -> None:
    manifest = policy()
    manifest["metadata"] = {"generateName": "x-"}
    assert answer(manifest)["allowed"]


def test_metadata_and_finalizers_of_an_invalid_policy_can_be_changed_and_nothing_else() -> None:
    old = policy(mode="Sometimes")
    new = copy.deepcopy(old)
    new["metadata"]["labels"] = {"a": "b"}
    response = answer(new, operation="UPDATE", old=old)
    assert response["allowed"]
    assert "spec.mode" in response["warnings"][0]
    assert not answer(policy(mode="Never"), operation="UPDATE", old=old)["allowed"]
    new["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    new["spec"]["mode"] = "Never"
    assert answer(new, operation="UPDATE", old=old)["allowed"]
    assert answer({}, operation="DELETE", old=old)["allowed"]


def test_nothing_is_said_where_all_is_well() -> None:
    cluster = Cluster()
    cluster.namespace()
    cluster.pod(spec=INJECTED)
    assert warned(policy(), cluster) == []


def test_a_namespace_that_is_not_enabled_is_named_with_the_command_that_enables_it() -> None:
    cluster = Cluster()
    cluster.namespace(enabled=False)
    cluster.pod()
    assert warned(policy(), cluster) == [
        "namespace agents is not enabled for injection, so nothing is enforced: "
        "kubectl label namespace agents toolpolicy.dev/injection=enabled"
    ]
    opt_out = Cluster(default_injection=True)
    opt_out.namespace(enabled=False)
    opt_out.pod(spec=INJECTED)
    assert warned(policy(), opt_out) == []


def test_a_cluster_policy_names_namespaces_with_pods_that_are_not_enabled() -> None:
    cluster = Cluster()
    assert "no namespace has these labels" in warned(policy(namespace=None), cluster)[0]
    cluster.namespace("one", {"team": "a"})
    cluster.namespace("two", {"team": "a"}, enabled=False)
    cluster.namespace("three", {"team": "a"}, enabled=False)
    cluster.namespace("other", {"team": "b"}, enabled=False)
    cluster.pod("p", "one", spec=INJECTED)
    cluster.pod("p", "two")
    cluster.pod("p", "other")
    manifest = policy(namespace=None, namespaceSelector={"matchLabels": {"team": "a"}})
    assert warned(manifest, cluster) == [
        "nothing is enforced in two, not enabled for injection: "
        "kubectl label namespace two toolpolicy.dev/injection=enabled"
    ]


def test_a_selector_without_pods() -> None:
    cluster = Cluster()
    cluster.namespace()
    cluster.pod("done", phase="Succeeded")
    assert warned(policy(), cluster) == ["spec.selector: no pod of namespace agents matches app=mcp yet"]
    assert warned(policy(namespace=None), cluster) == [
        "spec.selector: no pod of the 1 selected namespace matches app=mcp yet"
    ]
    empty = Cluster()
    empty.namespace()
    assert warned(policy(selector={}), empty) == ["spec.selector: no pod of namespace agents matches yet"]


def test_pods_older_than_the_policy_are_counted_with_the_command_that_restarts_them() -> None:
    cluster = Cluster()
    cluster.namespace()
    cluster.replica("web-5d4-a")
    cluster.replica("web-5d4-b")
    cluster.pod("new", spec=INJECTED)
    assert warned(policy(), cluster) == [
        "2 of 3 selected pods run without the sidecar until restarted: kubectl -n agents rollout restart deployment/web"
    ]
    cluster.pod("bare")
    [text] = warned(policy(), cluster)
    assert text.endswith("kubectl -n agents delete pod bare (and create it again) (and 1 other workload)")
    [text] = warned(policy(rollout="Restart"), cluster)
    assert "will be evicted" in text


def test_a_pod_that_opted_out_needs_no_restart() -> None:
    cluster = Cluster()
    cluster.namespace()
    cluster.pod(labels={"toolpolicy.dev/injection": "disabled"})
    assert warned(policy(), cluster) == []


def test_rules_that_can_never_apply_are_checks_warnings_and_its_notes_are_left_to_it() -> None:
    cluster = Cluster()
    cluster.namespace()
    cluster.pod(spec=INJECTED)
    deny = {"name": "no", "action": "Deny", "match": {"categories": ["Read"]}}
    [text] = warned(policy(mode="Audit", rules=[READ, deny]), cluster)
    assert text.startswith("spec.rules[0]: the rule never grants anything")


SERVICE = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "mcp"}}}


@pytest.mark.parametrize(
    ("ports", "spec", "served", "labels", "told"),
    [
        (NUMBERED, {"interception": "Port"}, "8000", {}, True),
        (WITHOUT_TARGET, {"interception": "Port"}, "8000", {}, True),
        (NUMBERED, {"interception": "Port"}, "9000", {}, False),
        (NUMBERED, {"interception": "Port"}, None, {}, True),
        (NUMBERED, {"interception": "Port", "server": {"port": 9000}}, None, {}, False),
        (NAMED, {"interception": "Port"}, "8000", {}, False),
        (NUMBERED, {"interception": "Redirect"}, "8000", {}, False),
        (NUMBERED, {}, "8000", {}, False),
        (NUMBERED, {}, "8000", {"pod-security.kubernetes.io/enforce": "restricted"}, True),
        (NUMBERED, {"interception": "Redirect"}, "8000", {"pod-security.kubernetes.io/enforce": "restricted"}, False),
        (NUMBERED, {}, "8000", {"pod-security.kubernetes.io/enforce": "privileged"}, False),
    ],
)
def test_a_service_that_leads_past_the_sidecar(
    ports: list[Object], spec: Object, served: str | None, labels: dict[str, str], told: bool
) -> None:
    cluster = Cluster()
    cluster.namespace(labels=labels)
    cluster.pod(spec=INJECTED, annotations={"toolpolicy.dev/servers": served} if served else {})
    service = {**SERVICE, "spec": {**SERVICE["spec"], "ports": ports}}
    said = warned(policy(**spec), cluster, services=[service])
    assert len(said) == (1 if told else 0)
    if told:
        assert said[0].startswith("Service agents/web targets port 8000 by number")


def test_services_of_other_pods_are_not_named() -> None:
    cluster = Cluster()
    cluster.namespace()
    cluster.pod(spec=INJECTED)
    other = {"metadata": {"name": "o"}, "spec": {"selector": {"app": "other"}, "ports": NUMBERED}}
    headless = {"metadata": {"name": "h"}, "spec": {"ports": NUMBERED}}
    assert warned(policy(interception="Port"), cluster, services=[other, headless]) == []


def test_limits_are_counted_by_each_pod() -> None:
    cluster = Cluster()
    cluster.namespace()
    cluster.pod("a", spec=INJECTED)
    assert warned(policy(rules=[LIMITED]), cluster) == []
    cluster.pod("b", spec=INJECTED)
    assert warned(policy(rules=[LIMITED]), cluster) == [
        "each of 2 pods counts for itself, so a rateLimit can be used 2 times over: rule read"
    ]
    assert warned(policy(rules=[LIMITED], mode="Audit"), cluster) == []


def large(kib: int, name: str = "large", namespace: str | None = "agents") -> Object:
    """A policy of about ``kib`` KiB."""
    deny = {"action": "Deny", "match": {"tools": ["x" * 200]}, "reason": "y" * 730}
    return policy(name, namespace, rules=[READ, *({**deny, "name": f"r{i}"} for i in range(kib))])


def test_what_does_not_fit_into_one_configmap_is_refused_with_the_sizes() -> None:
    cluster = Cluster()
    cluster.namespace()
    cluster.pod(spec=INJECTED)
    for i in range(16):
        cluster.policy(large(58, f"p{i}"))
    response = answer(large(58), cluster)
    assert not response["allowed"]
    [cause] = response["status"]["details"]["causes"]
    assert cause["field"] == "spec"
    assert "the rules of namespace agents come to " in cause["message"]
    assert "one ConfigMap takes 900 KiB" in cause["message"]
    assert "ToolPolicy p" in cause["message"]
    assert not answer(large(58, namespace=None), cluster)["allowed"]


def test_an_edit_that_makes_nothing_larger_is_never_refused_for_its_size() -> None:
    cluster = Cluster()
    cluster.namespace()
    for i in range(18):
        cluster.policy(large(58, f"p{i}"))
    assert answer(large(57, "p3"), cluster, operation="UPDATE", old=large(58, "p3"))["allowed"]
    assert answer(large(58, "p3"), cluster, operation="UPDATE", old=large(58, "p3"))["allowed"]
    assert not answer(large(59, "p3"), cluster, operation="UPDATE", old=large(58, "p3"))["allowed"]


def test_an_edited_policy_counts_once() -> None:
    cluster = Cluster()
    cluster.namespace()
    for i in range(15):
        cluster.policy(large(58, f"p{i}"))
    assert answer(large(59, "p3"), cluster, operation="UPDATE", old=large(58, "p3"))["allowed"]
    assert not answer(large(59, "another"), cluster)["allowed"]


def test_a_limit_that_is_near_is_a_warning() -> None:
    cluster = Cluster()
    cluster.namespace()
    cluster.pod(spec=INJECTED)
    for i in range(13):
        cluster.policy(large(58, f"p{i}"))
    said = [text for text in warned(large(58), cluster) if "KiB" in text]
    assert len(said) == 2
    assert "at most 64.0 KiB" in said[0]
    assert "of 900 KiB" in said[1]


@pytest.mark.asyncio
async def test_services_are_asked_for_only_where_they_matter_and_may_be_missing() -> None:
    asked: list[str] = []

    async def listing(namespace: str) -> list[Object]:
        asked.append(namespace)
        return [{**SERVICE, "spec": {**SERVICE["spec"], "ports": NUMBERED}}]

    async def forbidden(namespace: str) -> list[Object]:
        raise ApiError(403, "Forbidden", f"services in {namespace}")

    cluster = Cluster()
    cluster.namespace()
    cluster.pod(spec=INJECTED)
    for manifest in (policy(), policy(interception="Port", mode="wrong")):
        await validate_policy(review(manifest), cluster.store, listing)
    assert asked == []
    told = await validate_policy(review(policy(interception="Port")), cluster.store, listing)
    assert "by number" in told["response"]["warnings"][0]
    assert asked == ["agents"]
    untold = await validate_policy(review(policy(interception="Port")), cluster.store, forbidden)
    assert untold["response"] == {"uid": "u-1", "allowed": True}


@pytest.mark.asyncio
async def test_a_policy_is_examined_beside_the_event_loop_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods are asked about meanwhile; two registrations ask about the same manifest."""
    threads: list[int] = []

    def observed(manifest: Object, file: str) -> Any:
        threads.append(threading.get_ident())
        return load_object(manifest, file)

    monkeypatch.setattr(policies, "load_object", observed)
    manifest = policy("examined-once")
    for _ in range(2):
        assert (await validate_policy(review(manifest)))["response"]["allowed"]
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


@pytest.mark.asyncio
async def test_policies_are_examined_one_at_a_time_and_few_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten edits at once must leave the event loop to the pods that are asked about."""
    go, under_way, most, examined = threading.Event(), [0], [0], list[str]()

    def slow(manifest: Object, file: str) -> Any:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        go.wait(10)
        under_way[0] -= 1
        examined.append(manifest["metadata"]["name"])
        return load_object(manifest, file)

    monkeypatch.setattr(policies, "load_object", slow)
    asked = [asyncio.create_task(validate_policy(review(policy(f"waits-{i}")))) for i in range(10)]
    refused, _ = await asyncio.wait(asked[policies.MAX_EXAMINED :], timeout=10)
    assert len(refused) == 10 - policies.MAX_EXAMINED
    for each in refused:
        response = each.result()["response"]
        assert (response["allowed"], response["status"]["code"]) == (False, 503)
        assert "try again" in response["status"]["message"]
    assert (await validate_policy(review(policy("goes"), "DELETE")))["response"]["allowed"]
    asked[3].cancel()
    await asyncio.wait([asked[3]])
    go.set()
    answers = [await asked[i] for i in (0, 1, 2, 4)]
    assert all(answer["response"]["allowed"] for answer in answers)
    assert (most, sorted(examined)) == ([1], ["waits-0", "waits-1", "waits-2", "waits-4"])


@pytest.mark.asyncio
async def test_what_was_examined_is_not_compiled_again_by_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = policy("compiled-once")
    assert (await validate_policy(review(manifest)))["response"]["allowed"]
    loaded: list[str] = []

    def observed(manifest: Object, file: str) -> Any:
        loaded.append(file)
        return load_object(manifest, file)

    monkeypatch.setattr(parsed, "load_object", observed)
    cluster = Cluster()
    cluster.put(Kind.TOOL_POLICY, manifest)
    cluster.put(Kind.TOOL_POLICY, policy("another"))
    (found, _) = sorted(cluster.store.policies_for("agents", {"app": "mcp"}, {}), key=lambda p: p.metadata.uid or "")
    assert loaded == ["ToolPolicy agents/another"]
    assert (found.metadata.name, found.metadata.uid) == ("compiled-once", "u1"), "its identity is the stored one's"
    changed = copy.deepcopy(manifest)
    changed["spec"]["rules"] = []
    cluster.put(Kind.TOOL_POLICY, {**changed, "metadata": {**changed["metadata"], "generation": 2}})
    assert len(loaded) == 2, "another spec is another policy"
