"""Findings about valid policies: what can never apply, and what probably means something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolpolicy.policy.check import findings, warnings
from toolpolicy.policy.explained import spell
from toolpolicy.policy.load import require
from toolpolicy.policy.matching import glob_matches
from toolpolicy.policy.model import Policy
from toolpolicy.policy.overlap import glob_contains

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"


def policy(*rules: dict[str, Any], **spec: Any) -> Policy:
    named = [{"name": f"r{index}", **rule} for index, rule in enumerate(rules)]
    manifest: dict[str, Any] = {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": "p"},
        "spec": {"selector": {}, "rules": named, **spec},
    }
    return require(json.dumps(manifest), "p.json")[0]


def found(policy: Policy, *tools: str) -> dict[str, str]:
    """Path to code, of the warnings."""
    return {spell(f.path): f.code for f in findings(policy, tools or None) if f.severity == "warning"}


ALLOW: dict[str, Any] = {"action": "Allow"}
DENY: dict[str, Any] = {"action": "Deny"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid_and_without_a_warning(path: Path) -> None:
    found = warnings(require(path.read_bytes(), path.name), None)
    assert [problem for problem in found if problem.severity != "note"] == []


@pytest.mark.parametrize(
    ("grant", "deny"),
    [
        ({"tools": ["delete_x"]}, {"tools": ["delete_*"]}),
        ({"tools": ["delete_a*"]}, {"tools": ["delete_*"]}),
        ({"tools": ["a", "b"]}, {"tools": ["b", "c", "a"]}),
        ({"tools": ["a"]}, {}),
        ({}, {}),
        ({"methods": ["resources/read"]}, {"methods": ["resources/*"]}),
        ({"methods": ["resources/read"]}, {}),
        ({"tools": ["a"]}, {"methods": ["tools/call"]}),
        ({"categories": ["Write"]}, {"categories": ["Write", "Execute"]}),
        ({"categories": ["Write"]}, {"tools": ["*"]}),
        ({"categories": ["Write"], "risks": ["Low"]}, {"risks": ["Low", "High"]}),
        ({"tools": ["delete_store"]}, {"categories": ["Destructive"]}),
        ({"tools": ["x"], "principals": {"ids": ["a"]}}, {"tools": ["*"]}),
        ({"tools": ["x"], "principals": {"ids": ["a"]}}, {"tools": ["*"], "principals": {"ids": ["a"]}}),
    ],
)
def test_a_grant_inside_an_unconditional_deny_never_applies(grant: dict[str, Any], deny: dict[str, Any]) -> None:
    assert found(policy({**ALLOW, "match": grant}, {**DENY, "match": deny}))["spec.rules[0]"] == "shadowed"


@pytest.mark.parametrize(
    ("grant", "deny"),
    [
        ({"tools": ["delete_*"]}, {"tools": ["delete_x"]}),
        ({"tools": ["*_x"]}, {"tools": ["delete_*"]}),
        ({}, {"tools": ["*"]}),  # the grant is for resources and prompts too
        ({"tools": ["a"]}, {"methods": ["resources/read"]}),
        ({"tools": ["get_x"]}, {"categories": ["Destructive"]}),  # annotations may make it so, or not
        ({"tools": ["get_x"]}, {"categories": ["Read"]}),
        ({"categories": ["Write"]}, {"categories": ["Execute"]}),
        ({"tools": ["x"]}, {"tools": ["x"], "principals": {"ids": ["a"]}}),
        ({"categories": ["Write"]}, {"tools": ["*"], "risks": ["Low"]}),
        ({"categories": ["Write"]}, {"tools": ["x"]}),
        ({}, {"methods": ["resources/read"]}),
    ],
)
def test_a_grant_that_may_still_apply_is_not_called_shadowed(grant: dict[str, Any], deny: dict[str, Any]) -> None:
    assert found(policy({**ALLOW, "match": grant}, {**DENY, "match": deny})) == {}


@pytest.mark.parametrize("condition", [{"when": "args.x == 1"}, {"mode": "Audit"}])
def test_a_deny_that_does_not_always_deny_shadows_nothing(condition: dict[str, Any]) -> None:
    assert found(policy({**ALLOW, "match": {"tools": ["a"]}}, {**DENY, **condition})) == {}


def test_of_a_list_the_shadowed_names_are_told_one_by_one() -> None:
    rules = ({**ALLOW, "match": {"tools": ["get_x", "delete_x"]}}, {**DENY, "match": {"tools": ["delete_*"]}})
    assert found(policy(*rules)) == {"spec.rules[0].match.tools[1]": "shadowed"}


def test_the_policys_own_categories_count() -> None:
    rules = ({**ALLOW, "match": {"tools": ["get_x"]}}, {**DENY, "match": {"categories": ["Destructive"]}})
    assert found(policy(*rules, categories={"get_x": "Destructive"}))["spec.rules[0]"] == "shadowed"


@given(st.text("ab*", max_size=6), st.text("ab*", max_size=6), st.text("ab", max_size=6))
def test_a_glob_inside_another_matches_nothing_else(outer: str, inner: str, name: str) -> None:
    if glob_contains(outer, inner) and glob_matches(inner, name):
        assert glob_matches(outer, name)


def test_names_and_globs_are_compared_with_the_tools_of_the_server() -> None:
    rules = {**ALLOW, "match": {"tools": ["get_thing", "get_*", "set_*", "get_thong"]}}
    tools = ("get_thing", "list_things")
    checked = policy(rules, categories={"missing": "Read"})
    assert found(checked, *tools) == {
        "spec.rules[0].match.tools[2]": "no-such-tool",
        "spec.rules[0].match.tools[3]": "no-such-tool",
        "spec.categories.missing": "no-such-tool",
    }
    assert found(checked) == {}
    assert any("did you mean get_thing?" in finding.message for finding in findings(checked, tools))


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    [
        ({**ALLOW, "when": "now.getHours() > 8"}, "spec.rules[0].when", "no-time-zone"),
        ({**ALLOW, "validations": [{"expression": "now.getDayOfWeek( ) < 6"}]},
         "spec.rules[0].validations[0].expression", "no-time-zone"),
        ({**ALLOW, "when": "false"}, "spec.rules[0].when", "constant"),
        ({**ALLOW, "reason": "because"}, "spec.rules[0].reason", "reason-unused"),
        ({**DENY, "hide": True, "mode": "Audit"}, "spec.rules[0].hide", "audit-only"),
        ({**ALLOW, "match": {"methods": ["resource/read"]}}, "spec.rules[0].match.methods[0]", "unknown-method"),
        ({**ALLOW, "match": {"tools": ["^get_x$"]}}, "spec.rules[0].match.tools[0]", "regex-like"),
        ({**ALLOW, "match": {"tools": ["get_.*"]}}, "spec.rules[0].match.tools[0]", "regex-like"),
        ({**ALLOW, "match": {"tools": ["delete_x"], "categories": ["Read"]}}, "spec.rules[0].match", "never-applies"),
    ],
)  # fmt: skip
def test_what_probably_means_something_else_is_told(rule: dict[str, Any], path: str, code: str) -> None:
    assert found(policy(rule, ALLOW)) == {path: code}


@pytest.mark.parametrize(
    "rule",
    [
        {**ALLOW, "when": 'now.getHours("Europe/Zurich") > 8'},
        {**ALLOW, "when": 'args.text != "now.getHours()"'},
        {**DENY, "reason": "because", "hide": True, "match": {"tools": ["x"]}},
        {**ALLOW, "match": {"methods": ["vendor/thing"]}},
        {**ALLOW, "match": {"tools": ["get_x"], "categories": ["Write"]}},  # annotations may raise it
    ],
)
def test_what_is_meant_so_is_left_alone(rule: dict[str, Any]) -> None:
    assert found(policy(rule, ALLOW)) == {}


def test_a_policy_that_grants_nothing_is_told_so() -> None:
    assert found(policy(DENY)) == {"spec.rules": "grants-nothing"}
    assert found(policy(DENY, defaultAction="Allow")) == {}


def test_notes_say_what_a_policy_does_without_finding_fault() -> None:
    checked = policy({"action": "RequireApproval"}, mode="Audit", defaultAction="Allow")
    notes = {f.code for f in findings(checked, None) if f.severity == "note"}
    assert notes == {"audit-only", "allow-default", "approval"}
    assert found(checked) == {}
