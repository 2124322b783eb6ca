"""How pods are named to people, and the command that recreates them."""

from __future__ import annotations

import pytest

from toolpolicy_operator.kube import Object
from toolpolicy_operator.records import pod_record
from toolpolicy_operator.workloads import count, named, restart_commands, workload


def pod(name: str = "p", kind: str | None = None, owner: str = "", **labels: str) -> Object:
    owners = [{"apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": "u", "controller": True}] if kind else []
    held = {key.replace("_", "-"): value for key, value in labels.items()}
    return {"metadata": {"name": name, "namespace": "agents", "uid": name, "labels": held, "ownerReferences": owners}}


@pytest.mark.parametrize(
    ("given", "kind", "name", "command"),
    [
        (pod(), "Pod", "p", "kubectl -n agents delete pod p (and create it again)"),
        (pod("w-5d-x", "ReplicaSet", "w-5d", pod_template_hash="5d"), "Deployment", "w",
         "kubectl -n agents rollout restart deployment/w"),
        (pod("w-x", "ReplicaSet", "w"), "ReplicaSet", "w", "kubectl -n agents delete pod w-x"),
        (pod("db-0", "StatefulSet", "db"), "StatefulSet", "db", "kubectl -n agents rollout restart statefulset/db"),
        (pod("a-1", "DaemonSet", "a"), "DaemonSet", "a", "kubectl -n agents rollout restart daemonset/a"),
        (pod("j-1", "Job", "j"), "Job", "j", "kubectl -n agents delete pod j-1"),
    ],
)  # fmt: skip
def test_a_pod_belongs_to_what_a_user_would_restart(given: Object, kind: str, name: str, command: str) -> None:
    record = pod_record(given)
    assert workload(record) == (kind, name)
    assert restart_commands([record, record]) == [command]


def test_things_are_counted_and_named_in_words() -> None:
    assert [count(1, "pod"), count(2, "pod"), count(2, "policy", "policies")] == ["1 pod", "2 pods", "2 policies"]
    assert [named(list("abcdefg"[:n])) for n in range(1, 6)] == ["a", "a and b", "a, b and c", "a, b, c and d", "a, b, c and 2 more"]  # noqa: E501  # fmt: skip
    assert [named(["a"], "rule"), named(["a", "b"], "rule")] == ["rule a", "rules a and b"]
