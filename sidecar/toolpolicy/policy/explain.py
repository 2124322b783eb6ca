"""Why a call is decided as it is: every tier, policy and rule, asked the same questions as the decision itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolpolicy.policy.cel import Failure
from toolpolicy.policy.compile import TIERS, PolicySet
from toolpolicy.policy.compiled import TOOLS_CALL, CompiledPolicy, CompiledRule
from toolpolicy.policy.decide import conclude, evaluate
from toolpolicy.policy.duration import format_duration
from toolpolicy.policy.evaluation import Evaluation
from toolpolicy.policy.model import Action
from toolpolicy.policy.reasons import subject
from toolpolicy.policy.types import Call, Catalogue, Counters, Decision, RuleRef, Shortage


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One restriction of a rule that applies. ``holds`` is None where nothing could be asked (no counters, no
    catalogue).
    """

    kind: str
    """``expression`` | ``schema`` | ``declared`` | ``limit`` | ``approval``."""
    what: str
    holds: bool | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RuleResult:
    """Whether a rule applies, and why or why not. ``error``: its ``when`` could not be evaluated, which denies."""

    rule: RuleRef
    action: Action
    audit: bool
    applies: bool
    why: str
    checks: tuple[CheckResult, ...] = ()
    error: bool = False


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """One policy. ``audit``: it changes no outcome."""

    policy: RuleRef
    audit: bool
    default_action: Action
    rules: tuple[RuleResult, ...]


@dataclass(frozen=True, slots=True)
class TierResult:
    """ClusterToolPolicies or ToolPolicies. ``enforced``: whether it has a say at all."""

    kind: str
    enforced: bool
    policies: tuple[PolicyResult, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision, and what led to it."""

    call: str
    decision: Decision
    tiers: tuple[TierResult, ...]


def explain(
    policies: PolicySet, call: Call, catalogue: Catalogue | None, counters: Counters | None = None, now: float = 0.0
) -> Explanation:
    """Decide and explain. Without ``counters`` every limit has room. ``now``: monotonic seconds, for the limits."""
    decision = evaluate(policies, call, catalogue)
    if counters is not None and decision.demands:
        decision = conclude(policies, call, decision, counters.shortages(decision.demands, now))
    evaluation = Evaluation(policies.plan(call, catalogue), call, catalogue)
    asked = _Asked(evaluation, counters, now)
    tiers = tuple(
        TierResult(
            kind,
            any(policy.tier == index for policy in policies.enforced),
            tuple(asked.policy(policy) for policy in policies.policies if policy.tier == index),
        )
        for index, kind in enumerate(TIERS)
    )
    return Explanation(subject(call), decision, tuple(tier for tier in tiers if tier.policies))


class _Asked:
    """Puts the questions to one evaluation."""

    def __init__(self, evaluation: Evaluation, counters: Counters | None, now: float) -> None:
        self.evaluation = evaluation
        self.counters = counters
        self.now = now
        plan = evaluation.plan
        self.planned = {rule.order for group in (*plan.tiers, *plan.audits) for rule in group.rules}

    def policy(self, policy: CompiledPolicy) -> PolicyResult:
        default = Action.DENY if policy.default_deny else Action.ALLOW
        return PolicyResult(policy.ref, policy.audit, default, tuple(map(self.rule, policy.rules)))

    def rule(self, rule: CompiledRule) -> RuleResult:
        def result(applies: bool, why: str, checks: tuple[CheckResult, ...] = (), error: bool = False) -> RuleResult:
            return RuleResult(rule.ref, rule.action, rule.rule_audit, applies, why, checks, error)

        if rule.order not in self.planned:
            return result(False, self._mismatch(rule))
        call = self.evaluation.call
        if rule.principals is not None and not rule.principals.match(call, not rule.grants):
            return result(False, f"the caller {call.principal.id} is not one of its principals")
        applies = self.evaluation.applies(rule)
        if isinstance(applies, Failure):
            return result(False, str(applies), error=True)
        if not applies:
            return result(False, f"its condition is false: {rule.when.source if rule.when else ''}")
        why = (
            "it matches the call"
            if rule.when is None
            else f"it matches the call, and its condition is true: {rule.when.source}"
        )
        if rule.grants and not self.evaluation.plan.grants(rule):
            why += "; but it does not name this unusual tool name exactly, so it does not grant it"
        return result(True, why, tuple(self._checks(rule)))

    def _mismatch(self, rule: CompiledRule) -> str:
        call, known = self.evaluation.call, self.evaluation.plan.classification
        if not rule.matches_method(call.method):
            wanted = f"methods {_list(rule.methods)}" if rule.methods else "tool calls only"
            return f"it matches {wanted}, not {call.method}"
        if call.tool is None or call.method != TOOLS_CALL or not rule.matches_tool(call.tool):
            return f"it matches the tools {_list(rule.tools)}"
        if self.evaluation.plan.needs_catalogue or known is None:
            return "it matches by category or risk, and what the server says of the tool is not known"
        own = rule.class_for(call.tool, known)
        if rule.categories and own.category not in rule.categories:
            return f"the tool's category is {own.category}, and it matches {_list(sorted(rule.categories))}"
        return f"the tool's risk is {own.risk}, and it matches {_list(sorted(rule.risks))}"

    def _checks(self, rule: CompiledRule) -> Iterator[CheckResult]:
        evaluation = self.evaluation
        for check in rule.checks:
            refusal = evaluation.check(rule, check)
            kind = "expression" if check.expression is not None else "schema"
            what = check.expression.source if check.expression is not None else check.message or "arguments"
            yield CheckResult(kind, what, refusal is None, "" if refusal is None else refusal.reason)
        if rule.declared and evaluation.call.tool is not None:
            refusal = evaluation.declared(rule, evaluation.call.tool)
            holds = None if refusal is not None and refusal.needs_catalogue else refusal is None
            yield CheckResult("declared", "the server's inputSchema", holds, "" if refusal is None else refusal.reason)
        if rule.limit is not None:
            yield self._limit(rule)
        if rule.approval_ttl is not None:
            yield CheckResult("approval", f"a human's approval, good for {format_duration(rule.approval_ttl)}", False)

    def _limit(self, rule: CompiledRule) -> CheckResult:
        limit = rule.limit
        assert limit is not None
        cost = self.evaluation.cost(rule)
        what = f"at most {limit.max:g} in {format_duration(limit.window)} per {limit.per.value}"
        if limit.cost is not None:
            what += f", at a cost of {limit.cost.source}"
        if isinstance(cost, Failure):
            return CheckResult("limit", what, False, str(cost))
        if self.counters is None:
            return CheckResult("limit", what, None, "no counters to ask")
        short = self.counters.shortages(limit.demands(self.evaluation.call, cost), self.now)
        return CheckResult("limit", what, not short, _retry(short))


def _retry(short: Sequence[Shortage]) -> str:
    if not short:
        return ""
    waits = [shortage.retry_after for shortage in short]
    if None in waits:
        return "this call alone costs more than the limit allows"
    return f"no room for another {max(wait for wait in waits if wait is not None):.1f} s"


def _list(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:8])
    return shown if len(items) <= 8 else f"{shown}, … ({len(items)} in all)"


_MARKS = {True: "ok", False: "NO", None: "??"}


def render(explanation: Explanation) -> str:
    """As text, a tree of two spaces a level."""
    decision = explanation.decision
    lines = [f"{explanation.call}: {decision.action} ({decision.code})"]
    if decision.reason:
        lines.append(f"  {decision.reason}")
    if decision.category is not None:
        lines.append(f"  category {decision.category}, risk {decision.risk}")
    lines += [f"  decided by {ref}" for ref in decision.rules]
    if not explanation.tiers:
        lines.append("  no policy applies to this server")
    for tier in explanation.tiers:
        lines.append(f"{tier.kind}{'' if tier.enforced else ' (nothing enforced)'}")
        for policy in tier.policies:
            audit = ", Audit" if policy.audit else ""
            lines.append(f"  {policy.policy} (default {policy.default_action}{audit})")
            for rule in policy.rules:
                lines += _render_rule(rule)
    if decision.would_deny:
        lines.append("recorded only (Audit)")
        lines += [f"  {would.rule} would {_WOULD[would.action]}: {would.reason}" for would in decision.would_deny]
    return "\n".join(lines)


_WOULD = {Action.DENY: "deny", Action.REQUIRE_APPROVAL: "require approval", Action.ALLOW: "allow"}


def _render_rule(rule: RuleResult) -> Iterator[str]:
    audit = ", Audit" if rule.audit else ""
    verdict = "applies" if rule.applies else "ERROR" if rule.error else "does not apply"
    yield f"    {rule.rule.rule} ({rule.action}{audit}) {verdict}: {rule.why}"
    for check in rule.checks:
        detail = f" — {check.detail}" if check.detail else ""
        yield f"      [{_MARKS[check.holds]}] {check.kind} {check.what}{detail}"


def as_json(explanation: Explanation) -> dict[str, Any]:
    """As JSON values, camelCase as in manifests."""
    decision = explanation.decision
    return {
        "call": explanation.call,
        "decision": decision_json(decision),
        "tiers": [
            {
                "kind": tier.kind,
                "enforced": tier.enforced,
                "policies": [
                    {
                        "policy": str(policy.policy),
                        "mode": "Audit" if policy.audit else "Enforce",
                        "defaultAction": policy.default_action.value,
                        "rules": [_rule_json(rule) for rule in policy.rules],
                    }
                    for policy in tier.policies
                ],
            }
            for tier in explanation.tiers
        ],
    }


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision as JSON values."""
    return {
        "action": decision.action.value,
        "code": decision.code,
        "reason": decision.reason,
        "rules": [str(ref) for ref in decision.rules],
        "category": decision.category.value if decision.category is not None else None,
        "risk": decision.risk.value if decision.risk is not None else None,
        "retryAfterSeconds": decision.retry_after,
        "needsCatalogue": decision.needs_catalogue,
        "details": dict(decision.details),
        "wouldDeny": [
            {"rule": str(would.rule), "action": would.action.value, "reason": would.reason}
            for would in decision.would_deny
        ],
    }


def _rule_json(rule: RuleResult) -> dict[str, Any]:
    return {
        "rule": rule.rule.rule,
        "action": rule.action.value,
        "mode": "Audit" if rule.audit else "Enforce",
        "applies": rule.applies,
        "error": rule.error,
        "why": rule.why,
        "checks": [
            {"kind": check.kind, "what": check.what, "holds": check.holds, "detail": check.detail}
            for check in rule.checks
        ],
    }
