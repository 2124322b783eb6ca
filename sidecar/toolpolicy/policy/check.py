"""Findings about policies that are valid: what can never apply, and what probably means something else.

A warning is something to change; a note only says what the policy does. Neither keeps a policy from being enforced.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from toolpolicy.policy.documents import Path
from toolpolicy.policy.errors import Problem
from toolpolicy.policy.explained import nearest, spell
from toolpolicy.policy.matching import glob_matches
from toolpolicy.policy.model import Action, Mode, Policy, Rule
from toolpolicy.policy.overlap import cannot_apply, covered_tools, covers

JUDGED = ("tools/call", "resources/read", "resources/subscribe", "prompts/get", "completion/complete")
_STRING = re.compile(r"\"[^\"\\]*(?:\\.[^\"\\]*)*\"|'[^'\\]*(?:\\.[^'\\]*)*'")
_NO_ZONE = re.compile(
    r"\b(get(?:Hours|Date|DayOfMonth|DayOfWeek|DayOfYear|FullYear|Minutes|Month))\s*\(\s*\)",
)
_REGEX_LIKE = re.compile(r"[\^$()\[\]|+?\\{}]|\.\*")


@dataclass(frozen=True, slots=True)
class Finding:
    path: Path
    message: str
    code: str
    severity: str = "warning"


def warnings(policies: Sequence[Policy], tools: Collection[str] | None) -> list[Problem]:
    """Every finding about ``policies``; ``tools`` are the names that the server lists, None if that is not known.

    The problems name the policy instead of a file; :func:`findings` is for callers that know places.
    """
    return [
        Problem(f"{policy.kind} {policy.metadata.name}", 0, 0, spell(f.path), f.message, f.severity, f.code)
        for policy in policies
        for f in findings(policy, tools)
    ]


def findings(policy: Policy, tools: Collection[str] | None) -> list[Finding]:
    """Every finding about one policy."""
    found = [*_about_policy(policy)]
    for index, rule in enumerate(policy.spec.rules):
        path: Path = ("spec", "rules", index)
        found += _about_rule(rule, path)
        found += _about_names(rule, (*path, "match", "tools"), tools)
        found += _shadowed(policy, rule, path)
    if tools is not None:
        for tool in policy.spec.categories:
            if tool not in tools:
                message = f"the server has no tool of this name{_meant(tool, tools)}"
                found.append(Finding(("spec", "categories", tool), message, "no-such-tool"))
    return found


def _about_policy(policy: Policy) -> Iterator[Finding]:
    spec = policy.spec
    if spec.mode is Mode.AUDIT:
        yield Finding(("spec", "mode"), "Audit: nothing is refused, only recorded", "audit-only", "note")
    if spec.default_action is Action.ALLOW:
        message = "every call that no rule matches is allowed, of tools that the server adds later too"
        yield Finding(("spec", "defaultAction"), message, "allow-default", "note")
    elif not any(rule.action is not Action.DENY for rule in spec.rules):
        message = (
            "no rule grants anything and the default is Deny: every call is denied unless another policy grants it"
        )
        yield Finding(("spec", "rules"), message, "grants-nothing")


def _about_rule(rule: Rule, path: Path) -> Iterator[Finding]:
    for position, expression in _expressions(rule):
        bare = _STRING.sub('""', expression)
        if without_zone := _NO_ZONE.search(bare):
            message = f'{without_zone[1]}() without a time zone is UTC: write {without_zone[1]}("Europe/Zurich"), say'
            yield Finding((*path, *position), message, "no-time-zone")
    if rule.when is not None and rule.when.strip() in ("true", "false"):
        does = "always holds: leave it out" if rule.when.strip() == "true" else "never holds: the rule never applies"
        yield Finding((*path, "when"), f"the condition {does}", "constant")
    if rule.reason is not None and rule.action is Action.ALLOW:
        message = "nobody is told the reason of an Allow; a refused validation is explained by its message"
        yield Finding((*path, "reason"), message, "reason-unused")
    if rule.hide and rule.mode is Mode.AUDIT:
        yield Finding((*path, "hide"), "a rule in Audit hides nothing", "audit-only")
    if rule.action is Action.REQUIRE_APPROVAL:
        message = "where no approvals can be given (outside of a cluster), these calls are denied"
        yield Finding((*path, "action"), message, "approval", "note")
    if never := cannot_apply(rule):
        yield Finding((*path, "match"), never, "never-applies")
    for index, method in enumerate(rule.match.methods):
        if method not in JUDGED and "*" not in method and (meant := nearest(method, JUDGED)):
            message = f"not a method of MCP: did you mean {meant}? The rule applies to exactly this name"
            yield Finding((*path, "match", "methods", index), message, "unknown-method")


def _expressions(rule: Rule) -> Iterator[tuple[Path, str]]:
    if rule.when is not None:
        yield ("when",), rule.when
    for index, validation in enumerate(rule.validations):
        if validation.expression is not None:
            yield ("validations", index, "expression"), validation.expression
    if rule.rate_limit is not None and rule.rate_limit.cost is not None:
        yield ("rateLimit", "cost"), rule.rate_limit.cost


def _about_names(rule: Rule, path: Path, tools: Collection[str] | None) -> Iterator[Finding]:
    for index, pattern in enumerate(rule.match.tools):
        if _REGEX_LIKE.search(pattern):
            message = "looks like a regular expression, but only `*` has a meaning here: it stands for any text"
            yield Finding((*path, index), message, "regex-like")
        elif tools is not None and not any(glob_matches(pattern, tool) for tool in tools):
            what = "glob matches no tool" if "*" in pattern else "name is that of no tool"
            yield Finding((*path, index), f"the {what} of the server{_meant(pattern, tools)}", "no-such-tool")


def _meant(name: str, tools: Collection[str]) -> str:
    guess = None if "*" in name else nearest(name, tools)
    return f": did you mean {guess}?" if guess else ""


def _shadowed(policy: Policy, rule: Rule, path: Path) -> Iterator[Finding]:
    """Grants that an unconditional Deny of the same policy takes back altogether."""
    if rule.action is Action.DENY:
        return
    overrides = policy.spec.categories
    for other in policy.spec.rules:
        if other.action is not Action.DENY or other.when is not None or other.mode is Mode.AUDIT:
            continue
        if covers(other.match, rule.match, overrides):
            message = f"the rule never grants anything: the rule {other.name} denies every call that it matches"
            yield Finding(path, message, "shadowed")
            return
        for index in covered_tools(other.match, rule.match, overrides):
            tool = rule.match.tools[index]
            message = f"never granted: the rule {other.name} denies every call of {tool}"
            yield Finding((*path, "match", "tools", index), message, "shadowed")
