"""``toolpolicy schema`` prints what the models say, ready for editors, kubectl and the documentation."""

from __future__ import annotations

import json

import yaml
from click.testing import CliRunner

from toolpolicy.cli.schema import command
from toolpolicy.policy.crd import crd
from toolpolicy.policy.reference import reference
from toolpolicy.policy.schema import editor_schema


def schema(*arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0
    return result.stdout


def test_json_schema_is_the_default() -> None:
    assert json.loads(schema()) == editor_schema()
    assert json.loads(schema("--kind", "ToolPolicy")) == editor_schema(["ToolPolicy"])


def test_crds_are_yaml_for_kubectl_or_json() -> None:
    both = [crd("ToolPolicy"), crd("ClusterToolPolicy")]
    assert list(yaml.safe_load_all(schema("--format", "crd"))) == both
    assert json.loads(schema("--format", "crd", "-o", "json"))["items"] == both
    assert json.loads(schema("--format", "crd", "--kind", "ToolPolicy", "-o", "json")) == both[0]


def test_the_reference_is_markdown() -> None:
    assert schema("--format", "reference") == reference()


def test_an_unknown_kind_is_a_usage_error() -> None:
    assert CliRunner().invoke(command, ["--kind", "Pod"]).exit_code == 2
