"""The store knows what is, whatever order events come in, and says which tasks a change asks for."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from support.replicas import cluster_policy, namespace_of, pod, policy
from toolpolicy_operator import names, tasks
from toolpolicy_operator.kube import Listing
from toolpolicy_operator.records import Kind, Record, pod_record
from toolpolicy_operator.store import Change, Store
from toolpolicy_operator.tasks import Task, What

Obj = dict[str, Any]


def at(obj: Obj, version: int, uid: str | None = None, **metadata: Any) -> Obj:
    """The object at a resourceVersion, with a uid."""
    about = {**obj["metadata"], "uid": uid or f"uid-{obj['metadata']['name']}", "resourceVersion": str(version)}
    return {**obj, "metadata": {"generation": 1, **about, **metadata}}


def listing(version: int, *objects: Obj) -> Listing:
    found = Listing(objects)
    found.resource_version = str(version)
    return found


def running(name: str, version: int, namespace: str = "agents", **annotations: Any) -> Obj:
    return {**at(pod(namespace, name, **annotations), version), "status": {"phase": "Running"}}


def asked(store: Store, change: Any) -> set[Task]:
    found: set[Task] = set()
    store.listen(lambda c: found.update(tasks.after(c, store)))
    change()
    return found


def whats(found: set[Task]) -> set[tuple[str, str | None, str]]:
    return {(t.what.value, t.namespace, t.name) for t in found}


def test_an_older_event_changes_nothing() -> None:
    store = Store()
    store.put(Kind.NAMESPACE, at(namespace_of("agents"), 5))
    assert not store.put(Kind.NAMESPACE, at(namespace_of("agents", team="old"), 4))
    assert "team" not in store.namespace_labels("agents")


def test_a_deletion_of_an_earlier_object_of_the_same_name_changes_nothing() -> None:
    store = Store()
    store.put(Kind.POD, at(pod("agents", "mcp-0"), 9, "second"))
    assert not store.remove(Kind.POD, at(pod("agents", "mcp-0"), 8, "first"))
    assert store.pod("agents", "mcp-0") is not None


def test_what_was_deleted_does_not_come_back_by_a_late_event_or_an_older_list() -> None:
    store, gone = Store(), at(pod("agents", "mcp-0"), 5)
    store.put(Kind.POD, gone)
    store.remove(Kind.POD, gone)
    assert not store.put(Kind.POD, at(pod("agents", "mcp-0"), 4))
    store.replace(Kind.POD, listing(5, gone))
    assert store.pod("agents", "mcp-0") is None
    assert not store.pod_exists("uid-mcp-0")


def test_a_list_prunes_what_a_missed_deletion_left_and_keeps_what_is_newer_than_it() -> None:
    store = Store()
    store.put(Kind.POD, at(pod("agents", "left-over"), 5))
    store.put(Kind.POD, at(pod("agents", "newer"), 20))
    assert store.replace(Kind.POD, listing(10, at(pod("agents", "unseen"), 7))) == 2
    assert sorted(p.name for p in store.pods_in("agents")) == ["newer", "unseen"]


def test_it_is_synced_when_every_kind_was_listed() -> None:
    store = Store()
    for kind in Kind:
        assert not store.synced
        assert kind.value in store.missing
        store.replace(kind, listing(1))
    assert store.synced


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_events_does_not_matter(seed: int) -> None:
    events: list[tuple[bool, Kind, Obj]] = [
        (False, Kind.NAMESPACE, at(namespace_of("agents"), 1)),
        (False, Kind.TOOL_POLICY, at(policy("agents", "imaging"), 2)),
        (False, Kind.TOOL_POLICY, at(policy("agents", "imaging", "write_*"), 6, generation=2)),
        (False, Kind.POD, running("mcp-0", 3)),
        (False, Kind.POD, running("mcp-0", 4, rules="1-1")),
        (False, Kind.POD, running("mcp-1", 5)),
        (True, Kind.POD, running("mcp-1", 7)),
        (False, Kind.POD, at(running("mcp-1", 8), 8, "its successor")),
    ]
    random.Random(seed).shuffle(events)
    store = Store()
    for deleted, kind, obj in events:
        (store.remove if deleted else store.put)(kind, obj)
    found = store.policy("ToolPolicy", "agents", "imaging")
    assert found is not None
    assert found.generation == 2
    assert {p.name: (p.uid, p.version) for p in store.pods_in("agents")} == {
        "mcp-0": ("uid-mcp-0", 4),
        "mcp-1": ("its successor", 8),
    }


def test_policies_of_a_namespace_and_of_the_cluster_select_a_new_pod() -> None:
    store = Store()
    store.put(Kind.NAMESPACE, at(namespace_of("agents", tier="gold"), 1))
    store.put(Kind.TOOL_POLICY, at(policy("agents", "imaging"), 2))
    store.put(Kind.TOOL_POLICY, at(policy("elsewhere", "other"), 3))
    gold = cluster_policy("gold", namespaceSelector={"matchLabels": {"tier": "gold"}})
    lead = cluster_policy("lead", namespaceSelector={"matchLabels": {"tier": "lead"}})
    store.put(Kind.CLUSTER_TOOL_POLICY, at(gold, 4))
    store.put(Kind.CLUSTER_TOOL_POLICY, at(lead, 5))
    assert sorted(p.metadata.name for p in store.policies_for("agents", {"app": "mcp"})) == ["gold", "imaging"]
    assert store.policies_for("agents", {"app": "web"}) == []
    named = store.policies_for("agents", {"app": "mcp"}, {"tier": "lead"})
    assert sorted(p.metadata.name for p in named) == ["imaging", "lead"]


def test_a_cluster_policy_stays_while_a_pod_runs_that_it_took_at_admission() -> None:
    store = Store()
    store.put(Kind.NAMESPACE, at(namespace_of("agents"), 1))
    store.put(Kind.CLUSTER_TOOL_POLICY, at(cluster_policy("gold", namespaceSelector={"matchLabels": {"t": "g"}}), 2))
    assert store.policies_of("agents") == []
    store.put(Kind.POD, running("mcp-0", 3, namespace_labels='{"t":"g"}'))
    assert [r.name for r in store.policies_of("agents")] == ["gold"]
    ended = {**running("mcp-0", 4, namespace_labels='{"t":"g"}'), "status": {"phase": "Succeeded"}}
    store.put(Kind.POD, ended)
    assert store.policies_of("agents") == []


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"t": 1}', "[" * 100_000])
def test_labels_at_admission_that_are_none_are_passed_over(text: str) -> None:
    store = Store()
    store.put(Kind.CLUSTER_TOOL_POLICY, at(cluster_policy("gold", namespaceSelector={"matchLabels": {"t": "g"}}), 2))
    store.put(Kind.POD, running("mcp-0", 3, namespace_labels=text))
    assert store.policies_of("agents") == []


def test_a_running_pod_stays_selected_by_its_labels_at_admission() -> None:
    store = Store()
    store.put(Kind.TOOL_POLICY, at(policy("agents", "imaging"), 1))
    obj = running("mcp-0", 2)
    obj["metadata"]["labels"] = {"app": "disguised"}
    obj["spec"]["initContainers"][0]["env"] = [{"name": "TOOLPOLICY_POD_LABELS", "value": '{"app":"mcp"}'}]
    store.put(Kind.POD, obj)
    found = store.policy("ToolPolicy", "agents", "imaging")
    assert found is not None
    assert [p.name for p in store.selected(found)] == ["mcp-0"]


def test_a_policy_is_parsed_again_only_when_its_generation_changes() -> None:
    store = Store()
    store.put(Kind.TOOL_POLICY, at(policy("agents", "imaging"), 1))
    first = store.policy("ToolPolicy", "agents", "imaging")
    store.put(Kind.TOOL_POLICY, {**at(policy("agents", "imaging"), 2), "status": {"rules": 1}})
    second = store.policy("ToolPolicy", "agents", "imaging")
    assert first is not None
    assert second is not None
    assert second.policy is first.policy
    assert second.status == {"rules": 1}


# Which tasks a change asks for


def populated() -> Store:
    store = Store()
    for name in ("agents", "others"):
        store.put(Kind.NAMESPACE, at(namespace_of(name), 1))
        store.put(Kind.TOOL_POLICY, at(policy(name, "imaging"), 2))
        store.put(Kind.POD, running("mcp-0", 3, name))
    store.put(Kind.CLUSTER_TOOL_POLICY, at(cluster_policy("baseline"), 4))
    return store


def test_an_edit_asks_for_the_rules_of_its_namespace_and_its_own_status() -> None:
    store = populated()
    edit = at(policy("agents", "imaging", "write_*"), 10, generation=2)
    found = asked(store, lambda: store.put(Kind.TOOL_POLICY, edit))
    assert whats(found) == {("rules", "agents", ""), ("status", "agents", "imaging")}


def test_an_edit_of_a_cluster_policy_asks_for_every_namespace_it_reaches() -> None:
    store = populated()
    edit = at(cluster_policy("baseline", "write_*"), 10, generation=2)
    found = asked(store, lambda: store.put(Kind.CLUSTER_TOOL_POLICY, edit))
    assert whats(found) == {("rules", "agents", ""), ("rules", "others", ""), ("status", None, "baseline")}


def test_a_status_or_label_of_a_policy_asks_for_no_rules() -> None:
    store = populated()
    changed = {**at(policy("agents", "imaging"), 10), "status": {"rules": 9}}
    found = asked(store, lambda: store.put(Kind.TOOL_POLICY, changed))
    assert {t.what for t in found} == {What.STATUS}


def test_a_pod_of_which_nothing_changed_but_its_version_asks_for_nothing() -> None:
    store = populated()
    assert asked(store, lambda: store.put(Kind.POD, running("mcp-0", 11))) == set()


def test_our_own_touch_asks_for_nothing() -> None:
    store = populated()
    assert asked(store, lambda: store.put(Kind.POD, running("mcp-0", 11, rules="1-7"))) == set()


def test_a_pod_asks_for_its_own_policies_alone() -> None:
    store = populated()
    obj = {**at(pod("agents", "mcp-1"), 12), "status": {"phase": "Running"}}
    found = asked(store, lambda: store.put(Kind.POD, obj))
    assert whats(found) == {
        ("rules", "agents", ""), ("touch", "agents", ""),
        ("status", "agents", "imaging"), ("status", None, "baseline"),
    }  # fmt: skip


def test_a_pod_that_no_policy_selects_asks_for_nothing_once_it_is_known() -> None:
    store = populated()
    plain = pod("agents", "web", injected=False)
    plain["metadata"]["labels"] = {"app": "web"}
    assert asked(store, lambda: store.put(Kind.POD, at(plain, 12))) == set()


def test_a_namespace_whose_labels_change_asks_for_rules_and_statuses() -> None:
    store = populated()
    changed = at(namespace_of("agents", toolpolicy__injection="x"), 12)
    found = asked(store, lambda: store.put(Kind.NAMESPACE, changed))
    assert whats(found) == {
        ("rules", "agents", ""), ("status", "agents", "imaging"), ("status", None, "baseline")
    }  # fmt: skip


def test_a_namespace_of_which_nothing_changed_but_its_version_asks_for_nothing() -> None:
    store = populated()
    assert asked(store, lambda: store.put(Kind.NAMESPACE, at(namespace_of("agents"), 12))) == set()


def test_rules_that_change_or_go_are_looked_at() -> None:
    store = populated()
    rules = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "toolpolicy-rules", "namespace": "agents"}}
    found = asked(store, lambda: store.put(Kind.RULES, at(rules, 12)))
    assert ("rules", "agents", "") in whats(found)
    found = asked(store, lambda: store.remove(Kind.RULES, at(rules, 13)))
    assert ("rules", "agents", "") in whats(found)


def test_what_is_asked_for_after_any_change_is_part_of_everything() -> None:
    store = populated()
    all_of_it = set(tasks.everything(store))
    changes: list[Change] = []
    store.listen(changes.append)
    store.put(Kind.POD, running("mcp-0", 20, namespace_labels="{}"))
    store.put(Kind.TOOL_POLICY, at(policy("others", "imaging", "x_*"), 21, generation=2))
    assert changes
    assert {t for c in changes for t in tasks.after(c, store)} <= all_of_it


def test_records_do_not_keep_what_decisions_do_not_need() -> None:
    store = Store()
    obj = running("mcp-0", 3)
    obj["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = "x" * 10_000
    store.put(Kind.POD, obj)
    found: Record | None = store.pod("agents", "mcp-0")
    assert found is not None
    assert "x" * 100 not in repr(replace(found))


BROKEN: list[Obj] = [{"name": "x", "match": {}, "action": "Allow", "when": "foo(("}]


def of_generation(generation: int, version: int, name: str = "imaging", uid: str | None = None, **spec: Any) -> Obj:
    return at(policy("agents", name, **spec), version, uid, generation=generation)


def test_a_policy_that_became_invalid_stays_in_force_as_it_was() -> None:
    store = Store()
    store.put(Kind.TOOL_POLICY, of_generation(1, 5))
    store.put(Kind.TOOL_POLICY, of_generation(2, 6, rules=BROKEN))
    store.put(Kind.TOOL_POLICY, of_generation(3, 7, rules=BROKEN))
    (found,) = store.policies_of("agents")
    assert found.policy is None
    assert (found.generation, found.binding.policy.metadata.generation, found.binding.stand_in) == (3, 1, False)
    assert [p.metadata.generation for p in store.policies_for("agents", {"app": "mcp"}, {})] == [1]
    store.put(Kind.TOOL_POLICY, of_generation(4, 8))
    assert store.policies_of("agents")[0].binding.policy.metadata.generation == 4


def test_another_policy_of_the_same_name_inherits_nothing() -> None:
    store = Store()
    store.put(Kind.TOOL_POLICY, of_generation(1, 5))
    store.put(Kind.TOOL_POLICY, of_generation(1, 6, uid="another", rules=BROKEN))
    assert store.policies_of("agents")[0].binding.stand_in


@pytest.mark.parametrize(
    ("spec", "labels", "mode"),
    [
        ({"rules": BROKEN}, {"app": "mcp"}, "Enforce"),
        ({"selector": {"matchLabels": {"app": "/"}}}, {"any": "label"}, "Enforce"),
        ({"selector": "all"}, {}, "Enforce"),
        ({"newField": {"restricts": True}, "server": {"port": 9000}}, {"app": "mcp"}, "Enforce"),
        ({"rules": BROKEN, "mode": "Audit"}, {"app": "mcp"}, "Audit"),
        ({"rules": BROKEN, "mode": "Loose"}, {"app": "mcp"}, "Enforce"),
    ],
)
def test_a_policy_that_was_never_valid_here_selects_its_pods_and_allows_nothing(
    spec: Obj, labels: dict[str, str], mode: str
) -> None:
    store = Store()
    store.put(Kind.TOOL_POLICY, of_generation(1, 5, **spec))
    (found,) = store.policies_for("agents", labels, {})
    assert (found.spec.mode, found.spec.default_action, found.spec.rules) == (mode, "Deny", ())
    assert found.spec.server.port == spec.get("server", {}).get("port")


def test_an_invalid_cluster_policy_reaches_the_namespaces_that_it_names_or_all() -> None:
    store = Store()
    manifest = cluster_policy("baseline", rules=BROKEN, namespaceSelector={"matchLabels": {"team": "a"}})
    store.put(Kind.CLUSTER_TOOL_POLICY, at(manifest, 5))
    assert store.policies_for("agents", {"app": "mcp"}, {"team": "a"})
    assert not store.policies_for("agents", {"app": "mcp"}, {"team": "b"})
    store.put(Kind.CLUSTER_TOOL_POLICY, at(cluster_policy("wide", namespaceSelector={"matchLabels": 3}), 6))
    assert [p.metadata.name for p in store.policies_for("agents", {"app": "mcp"}, {"team": "b"})] == ["wide"]


@pytest.mark.parametrize("spec", [None, [], "x", {}, {"selector": None, "mode": None, "server": None}])
def test_whatever_stands_in_a_spec_there_is_something_in_force(spec: Any) -> None:
    store = Store()
    store.put(Kind.TOOL_POLICY, {**at(policy("agents", "n" * 253), 5, "u"), "spec": spec})
    (found,) = store.policies_for("agents", {}, {})
    assert not found.spec.rules


def test_of_a_pods_annotations_only_those_that_mean_something_are_remembered() -> None:
    noted = {names.SERVERS_ANNOTATION: "8000", f"{names.GROUP}/filler": "x" * 100_000, "other": "y"}
    found = pod_record({"metadata": {"name": "a", "namespace": "b", "annotations": noted}})
    assert found.annotations == {names.SERVERS_ANNOTATION: "8000"}
