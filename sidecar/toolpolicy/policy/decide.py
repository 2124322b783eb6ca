"""How a call is decided: DESIGN section 2, step by step, as a pure function of its inputs.

Each tier with an enforced policy (ClusterToolPolicies, ToolPolicies) decides by itself, and the call needs them all:

1. Gather the tier's matching rules.
2. Any ``Deny`` denies.
3. No ``Allow`` or ``RequireApproval``: the strictest ``defaultAction`` decides.
4. Every validation of the matching rules must hold.
5. Every matching limit must have room: :func:`evaluate` names the demands, :func:`conclude` takes what was short.
6. Any ``RequireApproval`` needs an approval.

An error in an expression of a matching enforced rule denies, whatever else allows. What Audit policies and Audit rules
would have done is only recorded (:mod:`toolpolicy.policy.audited`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from toolpolicy.policy import reasons
from toolpolicy.policy.audited import audited
from toolpolicy.policy.cel import Failure, Scope
from toolpolicy.policy.compile import PolicySet
from toolpolicy.policy.compiled import TOOLS_CALL
from toolpolicy.policy.evaluation import Evaluation, Gathered, Tally, nonconformity
from toolpolicy.policy.model import Action
from toolpolicy.policy.plan import Plan, Straight, TierPlan
from toolpolicy.policy.reasons import Refusal
from toolpolicy.policy.types import Call, Catalogue, Code, Counters, Decision, Demand, RuleRef, Shortage, WouldDeny


def decide(policies: PolicySet, call: Call, catalogue: Catalogue | None, counters: Counters, now: float) -> Decision:
    """The outcome for a call, with the limits as they stand. Reserves nothing. ``now``: monotonic seconds."""
    decision = evaluate(policies, call, catalogue)
    if not decision.demands:
        return decision
    return conclude(policies, call, decision, counters.shortages(decision.demands, now))


def evaluate(policies: PolicySet, call: Call, catalogue: Catalogue | None) -> Decision:
    """Steps 1 to 4 and 6. ``demands`` says what has to be reserved before the call goes on (step 5)."""
    plan = policies.plan(call, catalogue)
    if plan.straight is not None:
        allowed = _straight(plan, plan.straight, call)
        if allowed is not None:
            return allowed
    evaluation = Evaluation(plan, call, catalogue)
    gathered = [evaluation.gather(tier.rules) for tier in plan.tiers]  # step 1
    refusal = _judge_rules(evaluation, gathered)  # steps 2 and 3
    tally = Tally()
    if refusal is None:
        for found in gathered:  # step 4, and what steps 5 and 6 will ask
            refusal = evaluation.restrict(found.kept, tally)
            if refusal is not None:
                break
    would_deny: tuple[WouldDeny, ...] = ()
    audit_demands: tuple[Demand, ...] = ()
    if plan.audits_anything:
        would_deny, audit_demands = audited(evaluation, gathered, refusal)
    category, risk = evaluation.category, evaluation.risk
    if refusal is not None:
        return Decision(
            Action.DENY, refusal.code, refusal.reason, refusal.rules, (), would_deny, category, risk, None,
            refusal.needs_catalogue, refusal.details,
        )  # fmt: skip
    if not plan.tiers:
        return Decision(
            Action.ALLOW, Code.NO_POLICY, demands=audit_demands, would_deny=would_deny, category=category, risk=risk
        )
    rules = _deciding(gathered, plan.tiers)
    demands = (*tally.demands, *audit_demands) if audit_demands else tuple(tally.demands)
    if tally.approvals:  # step 6
        return Decision(
            Action.REQUIRE_APPROVAL,
            Code.APPROVAL_REQUIRED,
            reasons.approval(call, tally.approvals),
            tuple(rule.ref for rule in tally.approvals),
            demands,
            would_deny,
            category,
            risk,
            approval_ttl=min(rule.approval_ttl or 0.0 for rule in tally.approvals),
        )
    return Decision(Action.ALLOW, Code.ALLOWED, "", rules, demands, would_deny, category, risk)


def _straight(plan: Plan, straight: Straight, call: Call) -> Decision | None:
    """Steps 1 to 4 at once where only unconditional Allow rules match, as for most tools: the Allow that they come to,
    or None, and then the long way finds out why not. It asks the same questions in the same order.
    """
    known = plan.classification
    category, risk = (None, None) if known is None else (known.category, known.risk)
    scope: Scope | None = None
    demands: tuple[Demand, ...] = ()
    for rule in straight.kept:
        limit = rule.limit
        if scope is None and (rule.holds is not None or (limit is not None and limit.cost is not None)):
            scope = Scope(plan.readers, call, category or "", risk or "")
        if rule.holds is not None and scope is not None and rule.holds.test(scope) is not True:
            return None
        for schema in rule.schemas:
            if nonconformity(schema, call) is not None:
                return None
        if limit is not None:
            cost = 1.0 if limit.cost is None or scope is None else limit.cost.number(scope)
            if isinstance(cost, Failure):
                return None
            demands = (*demands, *limit.demands(call, cost)) if demands else limit.demands(call, cost)
    return Decision(
        Action.ALLOW, Code.ALLOWED, "", straight.rules, demands, (), category, risk, None, False, _NO_DETAILS
    )


_NO_DETAILS: Mapping[str, Any] = MappingProxyType({})


def _judge_rules(evaluation: Evaluation, gathered: Sequence[Gathered]) -> Refusal | None:
    """Steps 2 and 3, of every tier; the cluster's first."""
    plan = evaluation.plan
    for found in gathered:
        if found.denies:  # step 2
            return reasons.denied(evaluation.call, [rule for found in gathered for rule in found.denies])
    for found in gathered:
        if found.failures:
            return reasons.failed(evaluation.call, *found.failures[0])
    if plan.needs_catalogue:
        return reasons.unknown_tool(evaluation.call)
    for tier, found in zip(plan.tiers, gathered, strict=True):
        if not found.grants and tier.default_deny:  # step 3
            return reasons.defaulted(evaluation.call, tier.defaults, plan.usual)
    return None


def _deciding(gathered: Sequence[Gathered], tiers: Sequence[TierPlan]) -> tuple[RuleRef, ...]:
    """What let a call pass: of each tier the rules that grant it, else the policies whose default does."""
    if len(tiers) == 1:
        grants = gathered[0].grants
        return (grants[0].ref,) if len(grants) == 1 else tuple([rule.ref for rule in grants]) or tiers[0].defaults
    return tuple(
        ref
        for found, tier in zip(gathered, tiers, strict=True)
        for ref in ([rule.ref for rule in found.grants] or tier.defaults)
    )


def conclude(policies: PolicySet, call: Call, decision: Decision, shortages: Sequence[Shortage]) -> Decision:
    """Step 5: a decision, given the demands that had no room. An audited one is recorded, any other denies.

    ``policies`` is the set that made the decision: a limit needs no more of it than the demand carries.

    """
    if not shortages or decision.action is Action.DENY:
        return decision
    audit_short = [shortage for shortage in shortages if shortage.demand.audit]
    enforced = [shortage for shortage in shortages if not shortage.demand.audit]
    if audit_short:
        recorded = dict.fromkeys(reasons.would_limit(shortage) for shortage in audit_short)
        decision = replace(decision, would_deny=(*decision.would_deny, *recorded))
    if not enforced:
        return decision
    refusal, retry_after = reasons.limited(call, enforced)
    return replace(
        decision,
        action=Action.DENY,
        code=refusal.code,
        reason=refusal.reason,
        rules=refusal.rules,
        demands=(),
        retry_after=retry_after,
        details=refusal.details,
        approval_ttl=None,
    )


def without_approvals(call: Call, decision: Decision) -> Decision:
    """What becomes of a call that needs an approval where nobody can give one."""
    if decision.action is not Action.REQUIRE_APPROVAL:
        return decision
    return replace(
        decision,
        action=Action.DENY,
        code=Code.APPROVAL_UNAVAILABLE,
        reason=reasons.approval_unavailable(call, decision.rules),
        demands=(),
        approval_ttl=None,
    )


def visible(policies: PolicySet, call: Call, tool: str, catalogue: Catalogue | None) -> bool:
    """Whether ``tools/list`` shows a tool: not if the decision without knowledge of ``args`` is Deny.

    An expression that reads ``args`` may hold for a grant, may not for a Deny, and may for a Deny that says ``hide``.
    Limits and approvals hide nothing. Where the answer depends on a catalogue that does not know the tool, it is not
    shown.
    """
    if not policies.enforced:
        return True
    call = replace(call, method=TOOLS_CALL, tool=tool, arguments={})
    evaluation = Evaluation(policies.plan(call, catalogue), call, catalogue)
    plan = evaluation.plan
    if plan.needs_catalogue:
        return False
    for tier in plan.tiers:
        granted = not tier.default_deny
        for rule in tier.rules:
            known = evaluation.applies_without_args(rule)
            if known is False:
                continue
            if isinstance(known, Failure):
                if rule.rule_audit:
                    continue
                return False  # an error denies the call
            if rule.grants:
                granted = granted or plan.grants(rule)
                if known and not rule.rule_audit and not evaluation.holds_without_args(rule):
                    return False
            elif not rule.rule_audit and (known or rule.hide):
                return False
        if not granted:
            return False
    return True


def next_boundary(policies: PolicySet, now: datetime) -> float | None:
    """When the decisions of a set may next differ by time alone, as a POSIX timestamp; None: never.

    Expressions can ask for the hour in any zone, down to the minute: a set that reads ``now`` may change each minute.

    """
    if not policies.reads_now:
        return None
    return (now.timestamp() // 60 + 1) * 60
