"""What a namespace's rules say, and when they are to be written again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from support.replicas import cluster_policy, policy
from toolpolicy.policy.rulesindex import parse_index, read_manifests
from toolpolicy_operator import configmap, names
from toolpolicy_operator.configmap import ABSENT, Contents
from toolpolicy_operator.records import Kind, NamespaceRecord, PolicyRecord, RulesRecord, policy_record, rules_record

SPACE = NamespaceRecord("agents", "uid-of-agents", 3, {})
CA = "-----BEGIN CERTIFICATE-----\n"


def record(manifest: dict[str, Any], generation: int = 1) -> PolicyRecord:
    metadata = {**manifest["metadata"], "uid": f"uid-{manifest['metadata']['name']}", "generation": generation}
    return policy_record(Kind(manifest["kind"]), {**manifest, "metadata": {**metadata, "resourceVersion": "7"}})


def contents(*records: PolicyRecord, ca: str | None = CA) -> Contents:
    return configmap.contents(records, ca)


def stored(obj: dict[str, Any], **metadata: Any) -> RulesRecord:
    """What the API server would have after the apply."""
    fields: dict[str, Any] = {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": {"f:data": {}}}
    about = {**obj["metadata"], "uid": "uid-of-rules", "resourceVersion": "12", "managedFields": [fields], **metadata}
    return rules_record({**obj, "metadata": about})


@pytest.fixture
def wanted() -> Contents:
    return contents(record(policy("agents", "imaging"), 4), record(cluster_policy("baseline")))


def test_sidecars_can_read_the_index_and_every_file_of_it(wanted: Contents) -> None:
    data = configmap.manifest(wanted, SPACE, (3, "3-17"), 3, None)["data"]
    index = parse_index(data["index.json"].encode())
    assert (index.epoch, index.revision) == (3, "3-17")
    found = {e.key: e for e, _ in read_manifests(index, lambda key: data[key].encode())}
    assert found["toolpolicy.imaging.json"].generation == 4
    assert found["toolpolicy.imaging.json"].namespace == "agents"
    assert found["clustertoolpolicy.baseline.json"].namespace is None
    assert data["control-ca.crt"] == CA


def test_what_was_written_is_not_written_again(wanted: Contents) -> None:
    current = stored(configmap.manifest(wanted, SPACE, (3, "3-17"), 3, None))
    assert configmap.holds(wanted, current)
    assert current.owned
    assert configmap.written(current).revision == "3-17"


@pytest.mark.parametrize("generation", [4, 5])
def test_an_edit_is_written(wanted: Contents, generation: int) -> None:
    current = stored(configmap.manifest(wanted, SPACE, (3, "3-17"), 3, None))
    edited = contents(record(policy("agents", "imaging", "write_*"), generation), record(cluster_policy("baseline")))
    assert not configmap.holds(edited, current)


CHANGES: dict[str, dict[str, str | None]] = {
    "key gone": {"toolpolicy.imaging.json": None},
    "key changed": {"toolpolicy.imaging.json": "{}"},
    "key more": {"more": "x"},
    "CA gone": {"control-ca.crt": None},
    "index gone": {"index.json": None},
    "index broken": {"index.json": "{"},
    "index of fewer": {"index.json": '{"apiVersion":"toolpolicy.dev/v1alpha1","epoch":3,"kind":"RulesIndex",'
                       '"policies":{},"revision":"3-17"}'},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_someone_else_changes_is_found(wanted: Contents, change: dict[str, str | None]) -> None:
    obj = configmap.manifest(wanted, SPACE, (3, "3-17"), 3, None)
    obj["data"] = {k: v for k, v in {**obj["data"], **change}.items() if v is not None}
    assert not configmap.holds(wanted, stored(obj))


def test_data_of_another_manager_is_found_even_where_it_says_the_same(wanted: Contents) -> None:
    fields: dict[str, Any] = {
        "manager": "kubectl-edit",
        "operation": "Update",
        "fieldsV1": {"f:data": {"f:index.json": {}}},
    }
    current = stored(configmap.manifest(wanted, SPACE, (3, "3-17"), 3, None), managedFields=[fields])
    assert current.foreign
    assert not configmap.holds(wanted, current)


def test_a_write_names_the_version_it_read_or_asks_that_there_be_none(wanted: Contents) -> None:
    created = configmap.manifest(wanted, SPACE, (1, "1-1"), 1, None)
    assert created["metadata"]["resourceVersion"] == ABSENT
    current = stored(created)
    again = configmap.manifest(wanted, SPACE, (1, "1-1"), 2, current)["metadata"]
    assert (again["uid"], again["resourceVersion"]) == ("uid-of-rules", "12")


def test_a_new_term_changes_the_annotation_and_no_data(wanted: Contents) -> None:
    first = configmap.manifest(wanted, SPACE, (1, "1-1"), 1, None)
    second = configmap.manifest(wanted, SPACE, (1, "1-1"), 2, stored(first))
    assert second["data"] == first["data"]
    assert second["metadata"]["annotations"] == {names.EPOCH_ANNOTATION: "2"}


def test_it_belongs_to_its_namespace_and_copies_no_labels(wanted: Contents) -> None:
    metadata = configmap.manifest(wanted, SPACE, (1, "1-1"), 1, None)["metadata"]
    assert [o["uid"] for o in metadata["ownerReferences"]] == ["uid-of-agents"]
    assert "labels" not in metadata


def test_an_invalid_policy_that_was_never_valid_here_denies_what_it_selects() -> None:
    broken = record(policy("agents", "broken", defaultAction="Perhaps"))
    assert broken.policy is None
    assert broken.problems
    (file,) = contents(broken).files.values()
    spec = json.loads(file)["spec"]
    assert spec == {"selector": {"matchLabels": {"app": "mcp"}}, "defaultAction": "Deny"}


def test_without_policies_the_index_is_empty_and_valid() -> None:
    data = configmap.manifest(contents(ca=""), SPACE, (1, "1-1"), 1, None)["data"]
    assert parse_index(data["index.json"].encode()).entries == ()
    assert set(data) == {"index.json"}


@pytest.mark.parametrize("length", [10, 200, 253])
def test_a_name_of_any_length_makes_a_key_that_a_configmap_takes(length: int) -> None:
    found = replace(record(cluster_policy("baseline")), name="a" * length)
    key = configmap.key_of(found)
    assert len(key) <= 253
    assert key != configmap.key_of(replace(found, name="a" * (length - 1) + "b"))


def test_the_same_policies_in_any_order_are_the_same_bytes() -> None:
    one, two = record(policy("agents", "one")), record(policy("agents", "two"))
    first = configmap.manifest(contents(one, two), SPACE, (1, "1-1"), 1, None)
    second = configmap.manifest(contents(two, one), SPACE, (1, "1-1"), 1, None)
    assert json.dumps(first["data"], sort_keys=True) == json.dumps(second["data"], sort_keys=True)


def test_rules_that_were_written_before_keep_an_older_valid_generation_at_hand() -> None:
    before = record(policy("agents", "imaging"), 4)
    obj = configmap.manifest(contents(before), SPACE, (1, "1-1"), 1, None)
    broken = record(policy("agents", "imaging", defaultAction="Perhaps"), 5)
    assert broken.binding.stand_in
    assert configmap.older(broken, stored(obj))
    found = configmap.kept(broken, obj)
    assert found == before.binding
    another = replace(broken, uid="another")
    assert not configmap.older(another, stored(obj))
    assert configmap.kept(another, obj) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"kind": "ToolPolicy"}', "null"])
def test_what_was_written_and_cannot_be_read_is_not_kept(text: str) -> None:
    broken = record(policy("agents", "imaging", defaultAction="Perhaps"), 5)
    assert configmap.kept(broken, {"data": {"toolpolicy.imaging.json": text}}) is None
    assert configmap.kept(broken, {}) is None
