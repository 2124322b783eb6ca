"""JSON Schema of the manifests, for editors; and the form of it that the CRDs and the reference are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel

from toolpolicy.policy.duration import format_duration
from toolpolicy.policy.model import ClusterToolPolicy, ToolPolicy
from toolpolicy.policy.shapes import items, mapping

Kind = Literal["ToolPolicy", "ClusterToolPolicy"]
MODELS: dict[Kind, type[ToolPolicy] | type[ClusterToolPolicy]] = {
    "ToolPolicy": ToolPolicy,
    "ClusterToolPolicy": ClusterToolPolicy,
}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def editor_schema(kinds: Sequence[Kind] = ("ToolPolicy", "ClusterToolPolicy")) -> dict[str, Any]:
    """JSON Schema (2020-12) of a manifest of one of ``kinds``, as ``toolpolicy schema`` prints it."""
    definitions: dict[str, Any] = {}
    for kind in kinds:
        schema = _without_extensions(plain_schema(MODELS[kind]))
        definitions |= schema.pop("$defs")
        mapping(schema["properties"])["status"] = {"type": "object", "description": "Written by the operator."}
        definitions[kind] = schema
    references = [{"$ref": f"#/$defs/{kind}"} for kind in kinds]
    choice = references[0] if len(references) == 1 else {"oneOf": references}
    return {"$schema": DIALECT, "title": " or ".join(kinds), **choice, "$defs": dict(sorted(definitions.items()))}


def plain_schema(model: type[BaseModel]) -> dict[str, Any]:
    """pydantic's schema without what says nothing: titles, unions with null, defaults that mean absence.

    Keeps ``$defs`` and the ``x-kubernetes-`` extensions of the fields' types.
    """
    return _plain(model.model_json_schema(by_alias=True))


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(item) for item in items(cast("object", node))]
    if not isinstance(node, dict):
        return node
    held = dict(mapping(cast("object", node)))
    choices = items(held.get("anyOf"))
    if {"type": "null"} in choices:
        rest = [choice for choice in choices if choice != {"type": "null"}]
        held.pop("anyOf")
        held |= rest[0] if len(rest) == 1 else {"anyOf": rest}
    if isinstance(held.get("title"), str):
        held.pop("title")
    if held.get("default", 0) in (None, [], {}):
        held.pop("default")
    if "x-kubernetes-int-or-string" in held and isinstance(held.get("default"), float):
        held["default"] = format_duration(held["default"])
    plain = {name: _plain(value) for name, value in held.items() if name != "properties"}
    if "properties" in held:
        plain["properties"] = {name: _plain(value) for name, value in mapping(held["properties"]).items()}
    return plain


def _without_extensions(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_extensions(item) for item in items(cast("object", node))]
    if not isinstance(node, dict):
        return node
    held = mapping(cast("object", node))
    return {name: _without_extensions(value) for name, value in held.items() if not name.startswith("x-kubernetes-")}
