"""What would have been decided, had an Audit policy or an Audit rule been enforced. It never changes an outcome."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from toolpolicy.policy import reasons
from toolpolicy.policy.compiled import CompiledRule
from toolpolicy.policy.evaluation import Evaluation, Gathered, Tally
from toolpolicy.policy.model import Action
from toolpolicy.policy.plan import AuditPlan
from toolpolicy.policy.reasons import Refusal
from toolpolicy.policy.types import Code, Demand, WouldDeny

_LATE = frozenset({Code.VALIDATION_FAILED, Code.SCHEMA_FAILED})


class _Record:
    """Collects for one call. An audited demand is made only of a call that nothing before step 5 refuses."""

    __slots__ = ("demands", "evaluation", "would_deny")

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.would_deny: list[WouldDeny] = []
        self.demands: list[Demand] = []

    def refuse(self, refusal: Refusal) -> None:
        self.would_deny += [WouldDeny(ref, Action.DENY, refusal.reason) for ref in refusal.rules]

    def deny(self, rules: Iterable[CompiledRule]) -> None:
        for rule in rules:
            self.refuse(reasons.denied(self.evaluation.call, [rule]))

    def restrict(self, rules: Sequence[CompiledRule], refused: bool) -> None:
        """Validations, approvals and limits, rule by rule. ``refused``: limits are never reached."""
        for rule in rules:
            tally = Tally()
            refusal = self.evaluation.restrict([rule], tally)
            if refusal is not None:
                self.refuse(refusal)
            if tally.approvals:
                reason = reasons.approval(self.evaluation.call, [rule])
                self.would_deny.append(WouldDeny(rule.ref, Action.REQUIRE_APPROVAL, reason))
            if refusal is None and not refused:
                self.demands += tally.demands


def audited(
    evaluation: Evaluation, gathered: Sequence[Gathered], refusal: Refusal | None
) -> tuple[tuple[WouldDeny, ...], tuple[Demand, ...]]:
    """The records of a call, and the demands on the counters that audited limits have of their own.

    ``gathered`` are the enforced tiers, ``refusal`` what they decided. What is refused by a rule or a default (steps 2
    and 3) never reaches the validations and limits of another rule: then only what would refuse as early is recorded.

    """
    record = _Record(evaluation)
    early = refusal is not None and refusal.code not in _LATE
    for found in gathered:
        _rules(record, found, early, refusal is not None)
    for plan in evaluation.plan.audits:
        _policy(record, plan, gathered, early, refusal is not None)
    return tuple(record.would_deny), tuple(record.demands)


def _rules(record: _Record, found: Gathered, early: bool, refused: bool) -> None:
    """Rules of ``mode: Audit``."""
    record.deny(rule for rule in found.audited if not rule.grants)
    for rule, failure in found.audited_failures:
        record.refuse(reasons.failed(record.evaluation.call, rule, failure))
    if not early:
        record.restrict([rule for rule in found.audited if rule.grants], refused)


def _policy(record: _Record, plan: AuditPlan, gathered: Sequence[Gathered], early: bool, refused: bool) -> None:
    """A policy of ``mode: Audit``, as if it joined the enforced ones of its tier."""
    evaluation = record.evaluation
    found = evaluation.gather(plan.rules)
    _rules(record, found, early, refused)
    record.deny(found.denies)
    for rule, failure in found.failures:
        record.refuse(reasons.failed(evaluation.call, rule, failure))
    if found.denies or found.failures:
        return
    alone = plan.tier is None
    granted = bool(found.grants) or (plan.tier is not None and bool(gathered[plan.tier].grants))
    decided = plan.tier is not None and evaluation.plan.tiers[plan.tier].default_deny
    if not granted and plan.default_deny and (alone or not decided):
        record.refuse(reasons.defaulted(evaluation.call, (plan.ref,), evaluation.plan.usual))
        return
    if not early:
        record.restrict(found.kept, refused)
