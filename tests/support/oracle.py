"""DESIGN section 2 once more, written for nothing but to be read: what the engine is compared with.

It shares no code with the engine. Conditions are named, and their outcome is a Python function of the call; ``None`` is
an error. Nothing is indexed, cached or sorted."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from toolpolicy.policy.classify import classify
from toolpolicy.policy.model import Action, Category, Mode, Policy, Rule
from toolpolicy.policy.risk import DEFAULT_RISK
from toolpolicy.policy.types import Call

Outcome = tuple[str, str]
"""(action, code)."""

CONDITIONS: dict[str, Callable[[Call, Category | None], bool | None]] = {
    "true": lambda call, category: True,
    "false": lambda call, category: False,
    "args.n > 1": lambda call, category: call.arguments["n"] > 1 if "n" in call.arguments else None,
    "has(args.n) && args.n == 2": lambda call, category: call.arguments.get("n") == 2,
    'principal.id == "alice"': lambda call, category: call.principal.id == "alice",
    'tool.category == "Destructive"': lambda call, category: category is Category.DESTRUCTIVE,
    'session != ""': lambda call, category: call.session is not None,
    "principal.claims.level > 1": lambda call, category: None,
    "now.getHours() >= 12": lambda call, category: call.now.hour >= 12,
}


def outcome(policies: Iterable[Policy], call: Call, short: Collection[tuple[str, str]] = ()) -> Outcome:
    """What the enforced policies decide. ``short``: (policy, rule) whose limit has no room; annotations: none."""
    tiers = [
        members
        for kind in ("ClusterToolPolicy", "ToolPolicy")
        if (members := [p for p in policies if p.kind == kind and p.spec.mode is Mode.ENFORCE])
    ]
    if not tiers:
        return "Allow", "NoPolicy"
    matching: list[tuple[Policy, Rule]] = []
    failed = denied = defaulted = False
    for members in tiers:
        granted = False
        for policy in members:
            for rule in policy.spec.rules:
                applies = _matches(policy, rule, call) and _holds(policy, rule.when or "true", call)
                if applies is None and rule.mode is Mode.ENFORCE:
                    failed = True
                if not applies:
                    continue
                if rule.action is not Action.DENY:
                    granted = granted or _ordinary(call) or call.tool in rule.match.tools
                elif rule.mode is Mode.ENFORCE:
                    denied = True
                if rule.mode is Mode.ENFORCE:
                    matching.append((policy, rule))
        if not granted and (any(p.spec.default_action is Action.DENY for p in members) or not _ordinary(call)):
            defaulted = True
    if denied:
        return "Deny", "DeniedByRule"
    if failed:
        return "Deny", "ExpressionError"
    if defaulted:
        return "Deny", "DeniedByDefault"
    results = {
        _holds(policy, validation.expression or "true", call)
        for policy, rule in matching
        for validation in rule.validations
    }
    if None in results or False in results:
        return "Deny", "Invalid"
    if any((policy.metadata.name, rule.name) in short for policy, rule in matching if rule.rate_limit is not None):
        return "Deny", "RateLimited"
    if any(rule.action is Action.REQUIRE_APPROVAL for _, rule in matching):
        return "RequireApproval", "ApprovalRequired"
    return "Allow", "Allowed"


def _ordinary(call: Call) -> bool:
    return call.tool is None or re.fullmatch(r"[A-Za-z0-9_./-]{1,128}", call.tool) is not None


def _category(policy: Policy, call: Call) -> Category | None:
    if call.tool is None:
        return None
    return policy.spec.categories.get(call.tool, classify(call.tool).category)


def _holds(policy: Policy, condition: str, call: Call) -> bool | None:
    return CONDITIONS[condition](call, _category(policy, call))


def _glob(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None


def _matches(policy: Policy, rule: Rule, call: Call) -> bool:
    match = rule.match
    if match.methods and not any(_glob(pattern, call.method) for pattern in match.methods):
        return False
    if match.tools and not (call.tool is not None and any(_glob(pattern, call.tool) for pattern in match.tools)):
        return False
    category = _category(policy, call)
    if match.categories and category not in match.categories:
        return False
    if match.risks:
        if call.tool is None:
            return False
        overridden = policy.spec.categories.get(call.tool)
        risk = DEFAULT_RISK[overridden] if overridden is not None else classify(call.tool).risk
        if risk not in match.risks:
            return False
    return match.principals is None or _is_meant(match.principals, rule, call)


def _is_meant(principals: Any, rule: Rule, call: Call) -> bool:
    ids = {call.principal.id, *(call.identities if rule.action is Action.DENY else ())}
    return (
        bool(ids & set(principals.ids))
        or bool(set(call.principal.groups) & set(principals.groups))
        or call.principal.service_account in principals.service_accounts
    )
