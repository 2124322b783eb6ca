"""The generated CRDs: structural, bounded, in step with the models, and with the generated files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from cel_expr_python import cel  # pyright: ignore[reportMissingTypeStubs]

from toolpolicy.policy.crd import FILES, RULES, crd, crd_yaml, structural_schema
from toolpolicy.policy.load import load_text
from toolpolicy.policy.reference import reference
from toolpolicy.policy.schema import Kind, editor_schema
from toolpolicy.policy.shapes import items, mapping

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data" / "policies"
KINDS: tuple[Kind, ...] = ("ToolPolicy", "ClusterToolPolicy")
GROUND = {"type", "description", "default", "format", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum",
          "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "required", "properties", "items",
          "nullable", "additionalProperties", "anyOf", "allOf", "x-kubernetes-int-or-string", "x-kubernetes-list-type",
          "x-kubernetes-list-map-keys", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations"}  # fmt: skip
INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
Node = tuple[str, dict[str, Any]]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[Node]:
    yield path, schema
    for name, value in mapping(schema.get("properties")).items():
        yield from nodes(mapping(value), f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(mapping(schema[key]), f"{path}[]")


@pytest.fixture(params=KINDS)
def schema(request: pytest.FixtureRequest) -> dict[str, Any]:
    return structural_schema(request.param)


def test_only_keywords_of_structural_schemas_are_used(schema: dict[str, Any]) -> None:
    assert {keyword for _, node in nodes(schema) for keyword in node} <= GROUND


def test_every_place_has_exactly_one_type(schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        if node.get("x-kubernetes-int-or-string"):
            assert "type" not in node, path
            assert node["anyOf"] == INT_OR_STRING, path
        else:
            assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
            assert "anyOf" not in node, path


def test_nested_conditions_hold_only_validations_of_values(schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        for branch in items(node.get("allOf")):
            assert set(mapping(branch)) <= {"pattern", "minimum", "maximum", "minLength", "maxLength"}, path


def test_every_list_map_and_text_is_bounded(schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        kind = node.get("type")
        if kind == "array":
            assert node["maxItems"] > 0, path
        if kind == "string":
            assert "maxLength" in node or "enum" in node, path
        if "additionalProperties" in node:
            assert node["maxProperties"] > 0, path
            assert "properties" not in node, path
        if node.get("x-kubernetes-int-or-string"):
            assert {"maxLength", "maximum"} <= set(node), path


def test_unknown_fields_below_spec_reach_our_own_check(schema: dict[str, Any]) -> None:
    for path, node in nodes(mapping(schema["properties"])["spec"], ".spec"):
        if "properties" in node:
            assert node["x-kubernetes-preserve-unknown-fields"] is True, path


def test_what_has_no_value_below_spec_reaches_our_own_check(schema: dict[str, Any]) -> None:
    for path, node in nodes(mapping(schema["properties"])["spec"], ".spec"):
        for name, value in mapping(node.get("properties")).items():
            assert value.get("nullable", False) is (f"{path}.{name}" != ".spec.rules[].name"), path
        if "additionalProperties" in node:
            assert node["additionalProperties"]["nullable"] is True, path


def test_lists_merge_by_their_key_or_not_at_all(schema: dict[str, Any]) -> None:
    keyed: dict[str, list[str]] = {}
    for path, node in nodes(schema):
        if node.get("type") == "array":
            keys = items(node.get("x-kubernetes-list-map-keys"))
            assert node["x-kubernetes-list-type"] == ("map" if keys else "atomic"), path
            for key in keys:
                assert key in node["items"]["required"], path
                assert node["items"]["properties"][key]["type"] == "string", path
            keyed |= {path: keys} if keys else {}
    assert keyed == {".spec.rules": ["name"], ".status.conditions": ["type"]}


def test_only_what_columns_show_has_a_default(schema: dict[str, Any]) -> None:
    defaults = {path: node["default"] for path, node in nodes(schema) if "default" in node}
    assert defaults == {".spec.mode": "Enforce", ".spec.defaultAction": "Deny"}


def test_required_fields_exist(schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        assert set(items(node.get("required"))) <= set(mapping(node.get("properties"))), path


def test_every_rule_of_the_api_server_is_in_the_schema_and_names_a_field_there(schema: dict[str, Any]) -> None:
    found: set[str] = set()
    for path, node in nodes(schema):
        for rule in items(node.get("x-kubernetes-validations")):
            found.add(rule["rule"])
            assert rule["message"], path
            assert rule.get("fieldPath", ".").lstrip(".") in {"", *node["properties"]}, path
    assert found == {rule for rules in RULES.values() for rule, _, _ in rules}


@pytest.mark.parametrize("kind", KINDS)
def test_names_scope_and_columns(kind: Kind) -> None:
    spec = crd(kind)["spec"]
    cluster = kind == "ClusterToolPolicy"
    assert crd(kind)["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    assert spec["scope"] == ("Cluster" if cluster else "Namespaced")
    assert spec["names"]["shortNames"] == ["ctp" if cluster else "tp"]
    [version] = spec["versions"]
    assert version["subresources"] == {"status": {}}
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns == ["Mode", "Default", "Rules", "Pods", "Enforced", "Reason", "Age"]


GOOD = sorted((DATA / "good").glob("*.yaml")) + sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


def valid_manifests() -> list[Any]:
    policies = [policy for path in GOOD for policy in load_text(path.read_bytes(), path.name)[0]]
    return [pytest.param(json.loads(p.model_dump_json(by_alias=True)), id=p.metadata.name) for p in policies]


@pytest.mark.parametrize("manifest", valid_manifests())
def test_valid_manifests_satisfy_both_schemas(manifest: dict[str, Any]) -> None:
    openapi = json.loads(json.dumps(structural_schema(manifest["kind"])).replace('"exclusiveMinimum": true, ', ""))
    for node in (node for _, node in nodes(openapi)):
        node.pop("exclusiveMinimum", None)
    assert jsonschema_rs.Draft202012Validator(openapi).is_valid(manifest)
    assert jsonschema_rs.Draft202012Validator(editor_schema()).is_valid(manifest)
    assert jsonschema_rs.Draft202012Validator(editor_schema([manifest["kind"]])).is_valid(manifest)


MISTAKES: list[dict[str, Any]] = [
    {"rules": [{"name": "a"}]},
    {"rules": [{"name": "A", "action": "Deny"}]},
    {"mode": "Off"},
    {"selektor": {}},
    {"server": {"port": 0}},
    {"rules": [{"name": "a", "action": "Allow", "rateLimit": {"max": 1, "window": "0s"}}]},
    {"rules": [{"name": "a", "action": "Allow", "match": {"tools": []}}]},
]


@pytest.mark.parametrize("change", MISTAKES, ids=repr)
def test_an_editor_shows_mistakes(change: dict[str, Any]) -> None:
    manifest = {"apiVersion": "toolpolicy.dev/v1alpha1", "kind": "ToolPolicy", "metadata": {"name": "p"}}
    editor = jsonschema_rs.Draft202012Validator(editor_schema())
    assert editor.is_valid({**manifest, "spec": {"selector": {}}})
    assert not editor.is_valid({**manifest, "spec": {"selector": {}, **change}})


RULE = {"name": "a", "action": "Deny"}
LIMIT = {"max": 10.0, "window": "1s"}


@pytest.mark.parametrize(
    ("model", "accepted", "refused"),
    [
        ("Rule", {**RULE, "hide": True}, {**RULE, "action": "Allow", "hide": True}),
        ("Rule", {**RULE, "validations": []}, {**RULE, "validations": [{"expression": "true"}]}),
        ("Rule", {**RULE, "action": "Allow", "rateLimit": LIMIT}, {**RULE, "rateLimit": LIMIT}),
        ("Rule", {**RULE, "arguments": "Any"}, {**RULE, "arguments": "Declared"}),
        ("Rule", {**RULE, "action": "RequireApproval", "approval": {}}, {**RULE, "action": "Allow", "approval": {}}),
        ("Match", {"methods": ["tools/*"], "tools": ["x"]}, {"methods": ["resources/read"], "tools": ["x"]}),
        ("PrincipalMatch", {"groups": ["a"]}, {}),
        ("RateLimit", LIMIT, {**LIMIT, "max": 1.5}),
        ("RateLimit", {**LIMIT, "max": 20000.5, "cost": "1"}, {**LIMIT, "max": 10001.0}),
        ("RateLimit", {**LIMIT, "principalMax": 20.0}, {**LIMIT, "principalMax": 5.0}),
        ("RateLimit", {**LIMIT, "per": "Session", "principalMax": 20.0}, {**LIMIT, "per": "Tool", "principalMax": 20.}),
        ("Validation", {"expression": "true"}, {"expression": "true", "schema": {}}),
        ("Validation", {"schema": {}}, {"message": "x"}),
        ("LabelRequirement", {"operator": "In", "values": ["a"]}, {"operator": "NotIn"}),
        ("LabelRequirement", {"operator": "Exists"}, {"operator": "Exists", "values": ["a"]}),
        ("Server", {"passThrough": [{"path": "/a"}]}, {"passThrough": [{"path": "/mcp"}]}),
        ("Server", {"path": "/a", "passThrough": [{"path": "/mcp"}]}, {"path": "/a", "passThrough": [{"path": "/a"}]}),
        ("SessionSource", {"header": "x"}, {}),
        ("SessionSource", {"metaKey": "x"}, {"header": "x", "metaKey": "y"}),
        ("AuditConfig", {"arguments": "Full", "redact": ["/a"]}, {"redact": ["/a"]}),
    ],
)  # fmt: skip
def test_the_api_server_refuses_by_itself(model: str, accepted: dict[str, Any], refused: dict[str, Any]) -> None:
    """The rules themselves, evaluated by a CEL runtime. The API server adds types, which change no outcome here."""
    [rules] = [rules for owner, rules in RULES.items() if owner.__name__ == model]
    assert all(holds(rule, accepted) for rule, _, _ in rules)
    assert not all(holds(rule, refused) for rule, _, _ in rules)


def holds(rule: str, value: dict[str, Any]) -> bool:
    env = cel.NewEnv(variables={"self": cel.Type.DYN})
    return env.compile(rule).eval(env.Activation({"self": value})).value() is True


def test_the_files_are_as_generated() -> None:
    stale: list[str] = []
    for kind, name in FILES.items():
        if (ROOT / "manifests" / "crds" / name).read_text() != crd_yaml(kind):
            stale.append(f"toolpolicy schema --format crd --kind {kind} > manifests/crds/{name}")
    if (ROOT / "docs" / "reference" / "policy.md").read_text() != reference():
        stale.append("toolpolicy schema --format reference > docs/reference/policy.md")
    assert not stale, "run: " + "; ".join(stale)


def test_the_reference_has_every_field() -> None:
    page = reference()
    for kind in KINDS:
        for path, _ in nodes(structural_schema(kind)):
            name = path.removesuffix("[]").rpartition(".")[2].removesuffix("[]")
            assert not name or name in {"apiVersion", "kind", "metadata", "spec", "status"} or f"`{name}`" in page, path


@pytest.mark.parametrize("kind", KINDS)
def test_the_yaml_is_read_back_as_it_was_meant(kind: Kind) -> None:
    assert yaml.safe_load(crd_yaml(kind)) == crd(kind)
    assert not any(line.endswith((" ", "\t")) for line in crd_yaml(kind).splitlines())
