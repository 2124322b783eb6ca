"""The operator sees when its guard was lifted, and says what that means."""

from __future__ import annotations

import copy
import logging

import pytest

from support import install
from toolpolicy_operator.guard import PROTECTS, Guard, fault, faults
from toolpolicy_operator.kube import ApiError, Object


class Cluster:
    def __init__(self) -> None:
        kinds = {
            "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
            "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
        }
        root = "/apis/admissionregistration.k8s.io/v1"
        found = [d for d in install.documents("guard.yaml") if d["kind"] in kinds]
        self.objects = {f"{root}/{kinds[d['kind']]}/{d['metadata']['name']}": d for d in found}
        self.up = True

    async def get(self, path: str) -> Object:
        if not self.up:
            raise ApiError(0, "Unreachable", path)
        if path not in self.objects:
            raise ApiError(404, "NotFound", path)
        return copy.deepcopy(self.objects[path])

    def find(self, plural: str, name: str) -> str:
        return next(p for p in self.objects if p.endswith(f"/{plural}/{name}"))


@pytest.mark.asyncio
async def test_what_is_installed_is_in_force_and_all_of_it_is_looked_for() -> None:
    cluster = Cluster()
    assert await faults(cluster) == {}
    names = {d["metadata"]["name"] for d in cluster.objects.values()}
    assert names == PROTECTS.keys()


@pytest.mark.asyncio
@pytest.mark.parametrize("plural", ["validatingadmissionpolicies", "validatingadmissionpolicybindings"])
async def test_a_policy_without_its_binding_is_as_good_as_none(plural: str) -> None:
    for name in PROTECTS:
        cluster = Cluster()
        del cluster.objects[cluster.find(plural, name)]
        assert [*await faults(cluster)] == [name]


def test_each_way_to_disarm_a_policy_is_seen() -> None:
    policy: Object = {"spec": {"failurePolicy": "Fail"}}
    binding: Object = {"spec": {"policyName": "x", "validationActions": ["Deny"]}}
    assert fault(policy, binding) == ""
    assert "failurePolicy" in fault({"spec": {"failurePolicy": "Ignore"}}, binding)
    assert "does not Deny" in fault(policy, {"spec": {"validationActions": ["Warn", "Audit"]}})
    narrowed: Object = {"spec": {"validationActions": ["Deny"], "matchResources": {"namespaceSelector": {"a": "b"}}}}
    assert "matchResources" in fault(policy, narrowed)
    unknown: Object = {**policy, "status": {"typeChecking": {"expressionWarnings": [{"warning": "x"}]}}}
    assert "does not understand" in fault(unknown, binding)


@pytest.mark.asyncio
async def test_a_change_is_told_once_and_an_api_server_that_is_away_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster, told = Cluster(), list[dict[str, str]]()
    guard = Guard(cluster, changed=told.append)
    caplog.set_level(logging.INFO)
    path = cluster.find("validatingadmissionpolicybindings", "toolpolicy-exec")
    binding = cluster.objects.pop(path)
    for _ in range(3):
        await guard.look()
    assert told == [{"toolpolicy-exec": "its binding is missing"}]
    assert "commands can be run as the sidecar" in caplog.text
    cluster.up = False
    await guard.look()
    assert guard.missing
    cluster.up = True
    cluster.objects[path] = binding
    await guard.look()
    assert told[-1] == {}
    assert "in force again" in caplog.text
