"""What is said of a value that is none of the accepted ones."""

from __future__ import annotations

from typing import Any

import pytest

from toolpolicy.policy.load import load_text

POLICY = """
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {{name: p, namespace: agents}}
spec:
  selector: {{}}
  mode: {mode}
  rules:
  - name: a
    match: {{categories: [{category}]}}
    action: {action}
    rateLimit: {{max: 1, window: 60s, per: {per}}}
"""
FINE: dict[str, Any] = {"mode": "Enforce", "category": "Read", "action": "Allow", "per": "Session"}


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        ("per", "User", "Principal"),
        ("per", "client", "Principal"),
        ("per", "Pod", "Server"),
        ("per", "principle", "Principal"),
        ("per", "Sesion", "Session"),
        ("action", "Block", "Deny"),
        ("action", "permit", "Allow"),
        ("action", "Approve", "RequireApproval"),
        ("mode", "DryRun", "Audit"),
        ("category", "Reed", "Read"),
    ],
)
def test_the_value_that_was_meant_is_named(field: str, value: str, meant: str) -> None:
    _, problems = load_text(POLICY.format(**{**FINE, field: value}).encode(), "p.yaml")
    assert [problem.message for problem in problems if f"did you mean {meant}?" in problem.message]


@pytest.mark.parametrize(("field", "value"), [("per", "Moon"), ("action", "User"), ("mode", "Block")])
def test_a_word_of_another_field_is_no_guess(field: str, value: str) -> None:
    _, problems = load_text(POLICY.format(**{**FINE, field: value}).encode(), "p.yaml")
    assert problems
    assert not [problem for problem in problems if "did you mean" in problem.message]
