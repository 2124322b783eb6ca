"""What fields of a policy mean together: rules that contradict themselves, expressions, schemas.

Works on the plain values of a manifest, not on the models, so that a field that is wrong hides nothing about the
others: a check applies where the values it looks at are of the right kind, and leaves the rest to the models' errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toolpolicy.policy import methods
from toolpolicy.policy.configuration import check_audit, check_identity, check_server
from toolpolicy.policy.documents import Path
from toolpolicy.policy.explained import Explained
from toolpolicy.policy.fields import MAX_CALLS, MAX_EXPRESSION, MAX_RULES
from toolpolicy.policy.matching import glob_matches, valid_glob
from toolpolicy.policy.selectors import check_selector
from toolpolicy.policy.shapes import items, mapping, texts

TOOLS_CALL = "tools/call"
PASSING = (*sorted(methods.PASSING), "notifications/*")
"""Methods that are never judged; a rule about them would be without effect."""


def check_spec(manifest: dict[str, Any]) -> list[Explained]:
    """Every error that lies in the combination of fields, in no particular order."""
    return list(_check_manifest(manifest))


def _check_manifest(manifest: dict[str, Any]) -> Iterator[Explained]:
    spec = mapping(manifest.get("spec"))
    if manifest.get("kind") == "ClusterToolPolicy" and mapping(manifest.get("metadata")).get("namespace") is not None:
        message = (
            "a ClusterToolPolicy belongs to no namespace: leave it out, and select namespaces with namespaceSelector"
        )
        yield Explained(("metadata", "namespace"), message, "namespace", at_key=True)
    for name in ("selector", "namespaceSelector"):
        yield from check_selector(spec.get(name), ("spec", name))
    yield from check_server(mapping(spec.get("server")), ("spec", "server"))
    yield from check_identity(mapping(spec.get("identity")), ("spec", "identity"))
    yield from check_audit(mapping(spec.get("audit")), ("spec", "audit"))
    for tool in mapping(spec.get("categories")):
        if "*" in tool:
            message = "categories are given to tools by their exact name, not by a glob"
            yield Explained(("spec", "categories", tool), message, "glob", at_key=True)
    yield from _check_rules(items(spec.get("rules")))


def _check_rules(rules: list[Any]) -> Iterator[Explained]:
    names: dict[str, int] = {}
    for index, value in enumerate(rules[:MAX_RULES]):
        rule, path = mapping(value), ("spec", "rules", index)
        name = rule.get("name")
        if isinstance(name, str):
            if name in names:
                message = f"the name {name[:80]!r} is also that of rules[{names[name]}]: names are unique in a policy"
                yield Explained((*path, "name"), message, "duplicate-rule")
            names.setdefault(name, index)
        yield from _check_action(rule, path)
        yield from _check_match(mapping(rule.get("match")), (*path, "match"))
        yield from _check_expression(rule.get("when"), "bool", (*path, "when"))
        yield from _check_limit(mapping(rule.get("rateLimit")), (*path, "rateLimit"))
        for position, validation in enumerate(items(rule.get("validations"))):
            yield from _check_validation(validation, (*path, "validations", position))


def _check_action(rule: dict[str, Any], path: Path) -> Iterator[Explained]:
    action = rule.get("action")
    if action == "Deny":
        held = [name for name in ("validations", "rateLimit", "approval") if rule.get(name)]
        held += ["arguments"] if rule.get("arguments") == "Declared" else []
        for name in held:
            message = (
                f"a Deny rule refuses every call it matches, so {name} has no meaning here: remove it, or use Allow"
            )
            yield Explained((*path, name), message, "deny-restricts", at_key=True)
    elif action in ("Allow", "RequireApproval"):
        if rule.get("hide") is True:
            yield Explained(
                (*path, "hide"), f"only a Deny rule can hide a tool; the action is {action}", "hide", at_key=True
            )
        if action == "Allow" and "approval" in rule:
            message = "only with action RequireApproval; with Allow nobody is asked"
            yield Explained((*path, "approval"), message, "approval", at_key=True)


def _check_match(match: dict[str, Any], path: Path) -> Iterator[Explained]:
    for index, tool in enumerate(items(match.get("tools"))):
        if isinstance(tool, str) and tool and not valid_glob(tool):
            yield Explained((*path, "tools", index), _about_glob(tool), "glob")
    methods = texts(match.get("methods"))
    for index, method in enumerate(items(match.get("methods"))):
        if isinstance(method, str) and any(glob_matches(passing, method) for passing in PASSING):
            message = f"{method} always passes and is never judged: no rule can match it"
            yield Explained((*path, "methods", index), message, "method-passes")
    about_tools = [name for name in ("tools", "categories", "risks") if match.get(name)]
    if about_tools and methods and not any(glob_matches(method, TOOLS_CALL) for method in methods):
        message = f"{about_tools[0]} matches tool calls only and methods leaves those out: together they match nothing"
        yield Explained((*path, "methods"), message, "never-matches", at_key=True)
    principals = match.get("principals")
    if isinstance(principals, dict) and not principals:
        message = "names nobody: give ids, groups or serviceAccounts, or leave it out to match every caller"
        yield Explained((*path, "principals"), message, "never-matches", at_key=True)


def _about_glob(tool: str) -> str:
    if "*" in tool:
        return "in a glob, `*` stands for any text and all else must be a letter, a digit or one of _ . / -"
    return "a tool's name has only printable characters, at most 256"


def _check_expression(source: object, expect: str, path: Path) -> Iterator[Explained]:
    if not isinstance(source, str) or not source or len(source) > MAX_EXPRESSION:
        return
    from toolpolicy.policy.cel import check_expression  # noqa: PLC0415  (the runtime costs 20 MiB)

    fault = check_expression(source, "number" if expect == "number" else "bool")
    if fault is not None:
        yield Explained(
            path,
            f"not a CEL expression that can be used here: {fault.message}",
            "cel",
            offset=(fault.line, fault.column),
        )


def _check_limit(limit: dict[str, Any], path: Path) -> Iterator[Explained]:
    yield from _check_expression(limit.get("cost"), "number", (*path, "cost"))
    if "cost" not in limit:
        for name in ("max", "principalMax"):
            value = limit.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                continue
            if value > MAX_CALLS or value != int(value):
                message = f"without cost calls are counted: expected a whole number, at most {MAX_CALLS}, not {value}"
                yield Explained((*path, name), message, "limit")
    principal, most = limit.get("principalMax"), limit.get("max")
    if principal is None:
        return
    if limit.get("per") in ("Principal", "Tool", "Server"):
        message = f"only with per: Session; with per: {limit['per']} there is no second limit"
        yield Explained((*path, "principalMax"), message, "limit", at_key=True)
    elif isinstance(principal, int | float) and isinstance(most, int | float) and principal < most:
        message = f"below max ({most}): one session alone could never reach max"
        yield Explained((*path, "principalMax"), message, "limit")


def _check_validation(value: Any, path: Path) -> Iterator[Explained]:
    validation = mapping(value)
    given = [name for name in ("expression", "schema") if name in validation]
    if isinstance(value, dict) and len(given) != 1:
        said = "both are given: make two validations of them" if given else "neither is given"
        yield Explained(path, f"expected exactly one of expression and schema; {said}", "validation")
    yield from _check_expression(validation.get("expression"), "bool", (*path, "expression"))
    schema = validation.get("schema")
    if isinstance(schema, dict):
        yield from _check_schema(mapping(validation.get("schema")), (*path, "schema"))


_SCHEMA_TYPES = "expected a type: array, boolean, integer, null, number, object or string"


def _check_schema(schema: dict[str, Any], path: Path) -> Iterator[Explained]:
    from toolpolicy.policy.schemas import SchemaFault, compile_schema  # noqa: PLC0415  (only where a schema is used)

    try:
        compile_schema(schema)
    except SchemaFault as fault:
        where: list[str | int] = list(path)
        inside: object = schema
        for part in fault.path.split("/")[1:]:
            step, inside = _step(inside, part.replace("~1", "/").replace("~0", "~"))
            where.append(step)
        said = _SCHEMA_TYPES if where[-1] == "type" else fault.message
        yield Explained(tuple(where), f"not a usable JSON Schema (2020-12): {said}", "json-schema")


def _step(value: object, part: str) -> tuple[str | int, object]:
    held = items(value)
    if part.isdecimal() and len(part) < 6 and int(part) < len(held):
        return int(part), held[int(part)]
    return part, mapping(value).get(part)
