"""``docs/reference/policy.md`` out of the models."""

from __future__ import annotations

from typing import Any

from toolpolicy.policy.crd import RULES
from toolpolicy.policy.explained import show
from toolpolicy.policy.fields import MAX_EXPRESSION, MAX_RULES
from toolpolicy.policy.load import MAX_POLICY
from toolpolicy.policy.model import ClusterToolPolicy, ToolPolicy
from toolpolicy.policy.schema import plain_schema
from toolpolicy.policy.shapes import items, mapping
from toolpolicy.policy.status import Status

_INTRODUCTION = f"""\
# ToolPolicy and ClusterToolPolicy

<!-- Generated from the models of toolpolicy.policy by `toolpolicy schema --format reference`: change those. -->

`apiVersion: toolpolicy.dev/v1alpha1`. A ToolPolicy protects pods of its own namespace. A ClusterToolPolicy is the same
plus `namespaceSelector`, for the platform team's baseline: a call needs both tiers, so a namespace can tighten the
baseline and never open it.

`toolpolicy check FILE` says everything that is wrong with a manifest, with file, line and column. `toolpolicy schema`
prints a JSON Schema for editors.

- A policy has at most {MAX_RULES} rules and {MAX_POLICY // 1024} KiB as JSON, an expression at most {MAX_EXPRESSION}
  code points.
- **Durations** are spelt `250ms`, `60s`, `10m`, `1h30m` (GEP-2257), or are a bare whole number of seconds
  (`window: 60`).
- **Globs**: `*` stands for any text, also for none; everything else stands for itself; case matters; the whole name
  must match. Text without `*` is a name.
- **Expressions** are CEL. Variables: `args`, `tool.name`, `tool.category`, `tool.risk`, `principal.id`, `.kind`,
  `.verified`, `.groups`, `.claims`, `session`, `client.name`, `.version`, `server.name`, `.namespace`, `now`. An
  argument that may be missing is guarded: `has(args.x) && args.x > 3`, or `args.?x.orValue(0) > 3`. A `now.getHours()`
  without a time zone is UTC.
- **Regular expressions** are RE2's, in CEL's `matches()` and in JSON Schema's `pattern`.
- YAML is read so that it means the same to every reader: no anchors, tags, merge keys or double keys, and words like
  `yes`, `on` or `0777` are quoted.
"""

_SETTINGS = """\
## Settings of several policies for one pod

Rules are merged by deciding: all matching rules of a tier count together. Settings are merged field by field. A policy
in `Audit` settles nothing, except where the table says so.

| field | several policies come to |
|---|---|
"""
_FIRST_TIER = "of the cluster tier if it states any, else of the namespace tier"
_MERGED = (
    ("`server.port`", "every port that one of them names"),
    ("`server.path`", "every path that one of them names, policies in `Audit` included"),
    ("`server.name`", f"{_FIRST_TIER}; of several the first by alphabet"),
    (
        "`server.passThrough`",
        "the union, methods of the same path joined; what is an MCP path of any policy stays judged",
    ),
    ("`mode`", "each policy's own"),
    ("`defaultAction`", "per tier: `Deny` if one enforced policy of the tier says so"),
    ("`categories`", "each policy's own, for its own rules"),
    (
        "`identity.jwt`",
        f"{_FIRST_TIER}. Within a tier, an issuer keeps the audiences that all its entries share; "
        "entries that disagree on `jwks`, `groupsClaim` or `principalPrefix` verify nothing. Tokens of different "
        "issuers with the same prefix are refused (403) until one has another",
    ),
    ("`identity.clientCA`, `identity.session`", f"{_FIRST_TIER}; two different ones are none"),
    ("`identity.trustedProxies`", f"{_FIRST_TIER}; only networks that all of them state"),
    (
        "`audit.arguments`",
        "`Full` only if a policy states it and none states `Digest`; policies in `Audit` count",
    ),
    ("`audit.redact`", "everything that any of them redacts"),
    ("`onStateFailure`", "`Deny` before `Local` before `Allow`"),
    ("`onAuditFailure`", "`Deny` before `Continue`"),
    ("`interception`", "`Redirect` before `Port` before `Auto`; policies in `Audit` count"),
    ("`ineligible`", "`Refuse` before `Warn`"),
    ("`rollout`", "each policy's own, for the pods that it selects"),
    ("`optOut`", "`Forbidden` if one enforced ClusterToolPolicy says so"),
    ("`rules[].rateLimit`", "every matching limit must have room; each has a bucket of its own"),
    ("`rules[].validations`, `rules[].arguments`", "those of all matching rules must hold"),
    ("`rules[].approval`", "one approval, which stands for the shortest `ttl`"),
    ("`rules[].hide`", "a tool is left out if one matching `Deny` hides it"),
)


def reference() -> str:
    """The whole page, as Markdown."""
    policy = plain_schema(ToolPolicy)
    cluster = plain_schema(ClusterToolPolicy)
    status = plain_schema(Status)
    definitions = {**mapping(cluster["$defs"]), **mapping(policy["$defs"]), **mapping(status["$defs"])}
    order = _reached("Spec", definitions)
    parts = [_INTRODUCTION, _section("spec", mapping(definitions["Spec"]), definitions)]
    parts.append(_only_cluster(mapping(definitions["ClusterSpec"]), definitions))
    parts += [_section(name, mapping(definitions[name]), definitions) for name in order]
    parts.append(_SETTINGS + "".join(f"| {field} | {merged} |\n" for field, merged in _MERGED))
    parts += [_section("status", status, definitions, heading="## status")]
    parts += [_section(name, mapping(definitions[name]), definitions) for name in ("Condition", "Pods")]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _only_cluster(spec: dict[str, Any], definitions: dict[str, Any]) -> str:
    properties = mapping(spec["properties"])
    rows = [_row(name, mapping(properties[name]), set(), definitions) for name in ("namespaceSelector", "optOut")]
    return "A ClusterToolPolicy also has:\n\n" + _HEAD + "".join(rows)


def _reached(root: str, definitions: dict[str, Any]) -> list[str]:
    """Names of the objects below ``root``, in the order in which a reader meets them."""
    found: list[str] = []
    waiting = [root]
    while waiting:
        for value in mapping(mapping(definitions[waiting.pop(0)]).get("properties")).values():
            name = _reference(mapping(value), definitions)
            if name and name not in found:
                found.append(name)
                waiting.append(name)
    return found


def _reference(value: dict[str, Any], definitions: dict[str, Any]) -> str | None:
    """The object that a field holds, or a list of which it holds."""
    name = str(value.get("$ref", mapping(value.get("items")).get("$ref", ""))).rpartition("/")[2]
    return name if mapping(definitions.get(name)).get("properties") else None


_HEAD = "| field | type | default | meaning |\n|---|---|---|---|\n"


def _section(name: str, schema: dict[str, Any], definitions: dict[str, Any], heading: str = "") -> str:
    required = set(items(schema.get("required")))
    title = heading or (f"## {name}" if name == "spec" else f"### {name}")
    text = f"{title}\n\n{schema['description']}\n\n{_HEAD}"
    for field, value in mapping(schema["properties"]).items():
        text += _row(field, mapping(value), required, definitions)
    rules = next((rules for model, rules in RULES.items() if model.__name__ == name), ())
    if rules:
        text += "\nRefused by the API server itself: " + "; ".join(message for _, message, _ in rules) + ".\n"
    return text


def _row(field: str, value: dict[str, Any], required: set[Any], definitions: dict[str, Any]) -> str:
    default = "required" if field in required else _default(value)
    kind = _type(value, definitions)
    return f"| `{field}` | {kind} | {default} | {value.get('description', '')}{_limits(value)} |\n"


def _default(value: dict[str, Any]) -> str:
    if "default" not in value:
        return ""
    default = value["default"]
    several = items(default)
    return f"`[{', '.join(several)}]`" if several else f"`{show(default).strip(chr(39))}`"


def _type(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    name = str(value.get("$ref", "")).rpartition("/")[2]
    if name:
        target = mapping(definitions[name])
        return f"[{name}](#{name.lower()})" if "properties" in target else _type(target, definitions)
    if "x-kubernetes-int-or-string" in value:
        pattern = any("(h|m|s|ms)" in str(mapping(side).get("pattern")) for side in items(value["anyOf"]))
        return "duration" if pattern else "number or text"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{choice}`" for choice in items(value.get("enum")) or [value["const"]])
    if value.get("type") == "array":
        return "list of " + _type(mapping(value["items"]), definitions)
    if value.get("type") == "object":
        held = mapping(value.get("additionalProperties"))
        held = held or mapping(next(iter(mapping(value.get("patternProperties")).values()), None))
        return "map of text to " + _type(held, definitions) if held else "object"
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}[value["type"]]


def _limits(value: dict[str, Any]) -> str:
    """The bounds that are worth a reader's time: how many, how long."""
    if "maxItems" in value:
        return f" At most {value['maxItems']}."
    if "maxProperties" in value:
        return f" At most {value['maxProperties']}."
    if "maxLength" in value and "enum" not in value:
        return f" At most {value['maxLength']} characters."
    return ""
