"""CustomResourceDefinitions out of the models.

A CRD's schema must be *structural* (kubernetes.io, "Specifying a structural schema"): no references, a type everywhere,
no types inside of ``anyOf``. Two more things are asked of ours. Every list, map and text is bounded, because the API
server estimates the cost of a validation rule from the bounds (and refuses the CRD above its budget). And nothing is
dropped in silence before our own check has seen it: the top and the objects below ``spec`` preserve unknown fields, and
what has no value (``match:`` and nothing after it, which would come to mean every call) is kept as null.

No field has a default in the schema except ``mode`` and ``defaultAction``, which columns print: what several policies
state is merged by what they state, and a default written into every object would be a statement.

Columns and ``kubectl get --field-selector`` (KEP-4358; Kubernetes 1.30 drops the list in silence) show the same two.
"""

from __future__ import annotations

from typing import Any

import yaml

from toolpolicy.policy.model import (
    AuditConfig,
    LabelRequirement,
    Match,
    Model,
    PrincipalMatch,
    RateLimit,
    Rule,
    Server,
    SessionSource,
    Validation,
)
from toolpolicy.policy.schema import MODELS, Kind, plain_schema
from toolpolicy.policy.shapes import items, mapping
from toolpolicy.policy.status import Status

GROUP = "toolpolicy.dev"
VERSION = "v1alpha1"
FILES: dict[Kind, str] = {
    "ToolPolicy": f"{GROUP}_toolpolicies.yaml",
    "ClusterToolPolicy": f"{GROUP}_clustertoolpolicies.yaml",
}
_HEADER = "# Generated from the models of toolpolicy.policy by `toolpolicy schema --format crd`: change those.\n"
_DENY = "a Deny rule refuses every call that it matches: "

RULES: dict[type[Model], tuple[tuple[str, str, str], ...]] = {
    Rule: (
        ("!has(self.hide) || !self.hide || self.action == 'Deny'", "only a Deny rule can hide a tool", ".hide"),
        (
            "self.action != 'Deny' || !has(self.validations) || size(self.validations) == 0",
            _DENY + "remove validations",
            ".validations",
        ),
        ("self.action != 'Deny' || !has(self.rateLimit)", _DENY + "remove rateLimit", ".rateLimit"),
        (
            "self.action != 'Deny' || !has(self.arguments) || self.arguments == 'Any'",
            _DENY + "remove arguments",
            ".arguments",
        ),
        (
            "!has(self.approval) || self.action == 'RequireApproval'",
            "approval needs action: RequireApproval",
            ".approval",
        ),
    ),
    Match: (
        (
            "!has(self.methods) || !(has(self.tools) || has(self.categories) || has(self.risks)) || "
            "self.methods.exists(m, m == 'tools/call' || m.contains('*'))",
            "tools, categories and risks match tool calls only, and methods leaves those out",
            ".methods",
        ),
    ),
    PrincipalMatch: (
        (
            "has(self.ids) || has(self.groups) || has(self.serviceAccounts)",
            "names nobody: give ids, groups or serviceAccounts",
            "",
        ),
    ),
    RateLimit: (
        (
            "has(self.cost) || (self.max <= 10000.0 && double(int(self.max)) == self.max)",
            "without cost, max is a whole number of calls, at most 10000",
            ".max",
        ),
        (
            "!has(self.principalMax) || !has(self.per) || self.per == 'Session'",
            "principalMax needs per: Session",
            ".principalMax",
        ),
        ("!has(self.principalMax) || self.principalMax >= self.max", "principalMax is below max", ".principalMax"),
    ),
    Validation: (("has(self.expression) != has(self.schema)", "expected exactly one of expression and schema", ""),),
    LabelRequirement: (
        (
            "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : "
            "!has(self.values) || size(self.values) == 0",
            "In and NotIn need values; Exists and DoesNotExist take none",
            ".values",
        ),
    ),
    Server: (
        (
            "!has(self.passThrough) || self.passThrough.all(p, p.path != (has(self.path) ? self.path : '/mcp'))",
            "the MCP path is always judged and can't pass through",
            ".passThrough",
        ),
    ),
    SessionSource: (("has(self.header) != has(self.metaKey)", "expected exactly one of header and metaKey", ""),),
    AuditConfig: (
        (
            "!has(self.redact) || size(self.redact) == 0 || (has(self.arguments) && self.arguments == 'Full')",
            "redact needs arguments: Full",
            ".redact",
        ),
    ),
}
"""What the API server refuses by itself: (CEL, message, field)."""

_DEFAULTS = frozenset({("spec", "mode"), ("spec", "defaultAction")})
_KEPT = (
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "allOf",
)
_COLUMNS = (
    ("Mode", "string", ".spec.mode", 0),
    ("Default", "string", ".spec.defaultAction", 0),
    ("Rules", "integer", ".status.rules", 0),
    ("Pods", "integer", ".status.pods.selected", 0),
    ("Enforced", "string", '.status.conditions[?(@.type=="Enforced")].status', 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Enforced")].reason', 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)
_SELECTABLE = (".spec.mode", ".spec.defaultAction")


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition (apiextensions.k8s.io/v1) of one kind."""
    plural, short = ("clustertoolpolicies", "ctp") if kind == "ClusterToolPolicy" else ("toolpolicies", "tp")
    columns = [
        {"name": name, "type": of, "jsonPath": path, **({"priority": priority} if priority else {})}
        for name, of, path, priority in _COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Cluster" if kind == "ClusterToolPolicy" else "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["mcp"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": structural_schema(kind)},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "selectableFields": [{"jsonPath": path} for path in _SELECTABLE],
                }
            ],
        },
    }


def crd_yaml(kind: Kind) -> str:
    """The file in ``manifests/crds``."""
    return _HEADER + yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """An equal list twice is written twice."""
        return True


def structural_schema(kind: Kind) -> dict[str, Any]:
    """The structural OpenAPI v3 schema of a manifest of ``kind``."""
    policy = plain_schema(MODELS[kind])
    status = plain_schema(Status)
    spec = _Structural(mapping(policy["$defs"]), preserve=True).object(policy["properties"]["spec"], ("spec",))
    spec["nullable"] = True
    return {
        "type": "object",
        "description": policy["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "maxLength": 64},
            "kind": {"type": "string", "maxLength": 64},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": _Structural(mapping(status["$defs"]), preserve=False).object(status, ("status",)),
        },
        "x-kubernetes-preserve-unknown-fields": True,
    }


class _Structural:
    """Turns plain JSON Schema into the structural kind, references put in place."""

    def __init__(self, definitions: dict[str, Any], *, preserve: bool) -> None:
        self._definitions = definitions
        self._preserve = preserve
        self._rules = {model.__name__: rules for model, rules in RULES.items()}

    def object(self, node: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        """One schema at ``path``; a description beside a reference outweighs the one it refers to."""
        name = str(node.get("$ref", "")).rpartition("/")[2]
        held = {**mapping(self._definitions[name]), **node} if name else node
        if held.get("x-kubernetes-int-or-string"):
            return self._int_or_string(held)
        out: dict[str, Any] = {key: held[key] for key in ("description", *_KEPT) if key in held}
        if "const" in held:
            out["enum"] = [held["const"]]
        if "exclusiveMinimum" in held:
            out |= {"minimum": held["exclusiveMinimum"], "exclusiveMinimum": True}
        if held.get("type") == "integer":
            out["format"] = "int64"
        if path in _DEFAULTS:
            out["default"] = held["default"]
        if held.get("type") == "array":
            out["items"] = self.object(mapping(held["items"]), (*path, "*"))
            out |= _list_type(path)
        if held.get("type") == "object":
            out |= self._members(held, path)
        if name in self._rules:
            out["x-kubernetes-validations"] = [_validation(*rule) for rule in self._rules[name]]
        return out

    def _members(self, held: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        if "properties" in held:
            out: dict[str, Any] = {"required": held["required"]} if held.get("required") else {}
            out["properties"] = {
                name: self.object(mapping(value), (*path, name)) for name, value in mapping(held["properties"]).items()
            }
            if not self._preserve:
                return out
            for name, value in out["properties"].items():
                if (*path, name) not in _MAP_KEYS:
                    value["nullable"] = True
            return {**out, "x-kubernetes-preserve-unknown-fields": True}
        value = mapping(held.get("additionalProperties"))
        if "patternProperties" in held:  # a CRD has no way to say what keys look like
            (value,) = mapping(held["patternProperties"]).values()
        if value:
            kept = {"nullable": True} if self._preserve else {}
            return {"additionalProperties": {**self.object(value, (*path, "*")), **kept}}
        return {"x-kubernetes-preserve-unknown-fields": True}

    @staticmethod
    def _int_or_string(held: dict[str, Any]) -> dict[str, Any]:
        """The one union that is allowed, with the limits of both sides beside it."""
        out: dict[str, Any] = {"description": held["description"]} if "description" in held else {}
        out |= {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
        for side in items(held["anyOf"]):
            out |= {key: value for key, value in mapping(side).items() if key != "type"}
        return out


_MAP_KEYS = frozenset({("spec", "rules", "*", "name")})
"""Server-side apply needs a value there."""


def _list_type(path: tuple[str, ...]) -> dict[str, Any]:
    if path == ("spec", "rules"):
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    if path == ("status", "conditions"):
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return {"x-kubernetes-list-type": "atomic"}


def _validation(rule: str, message: str, field: str) -> dict[str, str]:
    return {"rule": rule, "message": message, **({"fieldPath": field} if field else {})}
