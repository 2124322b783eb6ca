"""What was asked for beside what is granted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import installation, privileges
from cluster.privileges import Right

RULES: list[dict[str, Any]] = [
    {
        "kind": "ClusterRole",
        "metadata": {"name": "op"},
        "rules": [
            {"apiGroups": [""], "resources": ["pods", "pods/eviction"], "verbs": ["list", "create"]},
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["rules"], "verbs": ["patch", "create"]},
        ],
    },
    {"kind": "ClusterRole", "metadata": {"name": "other"}, "rules": [{"apiGroups": ["*"], "verbs": ["*"]}]},
    {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "op"},
        "roleRef": {"kind": "ClusterRole", "name": "op"},
        "subjects": [{"kind": "ServiceAccount", "name": "op"}],
    },
]


def event(verb: str, resource: str, name: str = "", sub: str = "", *, code: int = 200, allowed: bool = True) -> Any:
    return {
        "verb": verb,
        "user": {"username": "u"},
        "objectRef": {"resource": resource, "name": name, "subresource": sub},
        "responseStatus": {"code": code},
        "annotations": {"authorization.k8s.io/decision": "allow" if allowed else "forbid"},
    }


def test_only_the_account_s_roles_count() -> None:
    rights = privileges.granted(RULES, "op")
    assert {str(right) for right in rights} == {
        "list pods",
        "create pods",
        "list pods/eviction",
        "create pods/eviction",
        "patch configmaps rules",
        "create configmaps rules",
    }


@pytest.mark.parametrize(
    ("asked", "unused"),
    [
        (event("list", "pods"), Right("", "pods", "list")),
        (event("create", "pods", "p", "eviction"), Right("", "pods/eviction", "create")),
        (event("patch", "configmaps", "rules"), Right("", "configmaps", "patch", "rules")),
        (event("patch", "configmaps", "rules", code=201), Right("", "configmaps", "create", "rules")),
    ],
)
def test_a_right_that_was_used_is_not_reported(asked: Any, unused: Right) -> None:
    rights = privileges.granted(RULES, "op")
    assert unused in privileges.compare([], rights).unused
    findings = privileges.compare([asked], rights)
    assert unused not in findings.unused
    assert not findings.refused


def test_another_name_does_not_use_a_right_to_one() -> None:
    rights = privileges.granted(RULES, "op")
    findings = privileges.compare([event("patch", "configmaps", "mine")], rights)
    assert Right("", "configmaps", "patch", "rules") in findings.unused


def test_what_was_forbidden_is_refused_and_not_used() -> None:
    rights = privileges.granted(RULES, "op")
    findings = privileges.compare([event("list", "pods", allowed=False)], rights)
    assert [str(right) for right in findings.refused] == ["list pods"]
    assert Right("", "pods", "list") in findings.unused


def test_requests_for_no_resource_take_no_right() -> None:
    findings = privileges.compare([{"verb": "get", "requestURI": "/apis"}], [])
    assert not findings.refused


def test_a_log_is_read_up_to_a_line_that_is_still_written(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_text(
        json.dumps(event("list", "pods")) + "\n" + json.dumps({"user": {"username": "v"}}) + '\n{"user": {"u'
    )
    assert [one["verb"] for one in privileges.events(log, "u")] == ["list"]


def test_the_installation_grants_what_it_says() -> None:
    rights = privileges.granted(installation.documents("rbac.yaml"), installation.ACCOUNT)
    assert Right("", "configmaps", "patch", "toolpolicy-rules") in rights
    assert not [right for right in rights if "*" in (right.group, right.resource, right.verb)]
