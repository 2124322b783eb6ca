"""The models: one form in Python, one in the manifest, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from toolpolicy.policy.load import load_text, require
from toolpolicy.policy.model import Action, Approval, AuditConfig, Match, Model, Per, RateLimit, Rule, Spec

DATA = Path(__file__).parents[2] / "data" / "policies"
GOOD = sorted((DATA / "good").iterdir())


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_a_dump_is_a_valid_manifest_of_the_same_policy(path: Path) -> None:
    for policy in require(path.read_bytes(), path.name):
        dumped = policy.model_dump(by_alias=True)
        assert require(json.dumps(dumped), "dump.json") == [policy]
        assert require(policy.model_dump_json(by_alias=True), "dump.json") == [policy]


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_a_dump_says_no_more_than_the_manifest(path: Path) -> None:
    for policy in require(path.read_bytes(), path.name):
        assert "null" not in policy.spec.model_dump_json(by_alias=True).replace('"const":null', "")
        again = type(policy).model_validate(policy.model_dump(by_alias=True))
        assert again.spec.audit.model_fields_set == policy.spec.audit.model_fields_set


def test_durations_are_seconds_in_python_and_spelt_in_the_manifest() -> None:
    limit = RateLimit(max=10, window=90, per=Per.SESSION)
    assert limit.window == 90.0
    assert limit.model_dump(by_alias=True) == {"max": 10, "window": "1m30s", "per": "Session"}


def test_whether_a_field_was_stated_survives_a_dump() -> None:
    assert AuditConfig().model_dump(by_alias=True) == {}
    assert AuditConfig(arguments="Digest").model_dump(by_alias=True) == {"arguments": "Digest"}


def test_an_empty_schema_is_not_the_absence_of_one() -> None:
    rule = Rule.model_validate({"name": "a", "action": "Allow", "validations": [{"schema": {}}]})
    assert rule.model_dump(by_alias=True)["validations"] == ({"schema": {}},)


def test_defaults_are_the_strict_choice() -> None:
    spec = Spec.model_validate({"selector": {}})
    assert (spec.default_action, spec.on_state_failure, spec.on_audit_failure) == (Action.DENY, "Deny", "Deny")
    assert Approval().ttl == 600
    assert RateLimit(max=1, window=1).per is Per.SESSION


def test_models_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Match(tools=("a",)).tools = ()  # pyright: ignore[reportAttributeAccessIssue]


def bounded(count: int) -> dict[str, Any]:
    rules = [{"name": f"r{i}", "action": "Deny"} for i in range(count)]
    kind = {"apiVersion": "toolpolicy.dev/v1alpha1", "kind": "ToolPolicy"}
    return {**kind, "metadata": {"name": "many"}, "spec": {"selector": {}, "rules": rules}}


def test_five_hundred_rules_are_accepted_and_one_more_is_not() -> None:
    assert load_text(json.dumps(bounded(500)), "f")[1] == []
    [problem] = load_text(json.dumps(bounded(501)), "f")[1]
    assert (problem.path, problem.message) == ("spec.rules", "has 501 items, at most 500 are accepted")


def models(of: type[Model] = Model) -> list[type[Model]]:
    """Of the policy language; the command line's file formats build on the same base."""
    own = [found for found in of.__subclasses__() if found.__module__.startswith("toolpolicy.policy.")]
    return [each for found in own for each in (found, *models(found))]


def test_every_field_has_its_meaning_written_at_it() -> None:
    envelope = {"api_version", "kind", "metadata", "spec"}
    bare = [
        f"{model.__name__}.{name}"
        for model in models()
        for name, field in model.model_fields.items()
        if not field.description and name not in envelope
    ]
    assert bare == []
