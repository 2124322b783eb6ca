"""Policies made ready to decide: checked, sorted, indexed, every expression and schema compiled.

Two tiers (ClusterToolPolicies, ToolPolicies), each with its enforced policies; and every Audit policy by itself. The
order in which policies and rules are given makes no difference: all is sorted by name here, once.

A :class:`Plan` is what is left to ask for one tool: the rules whose names, categories and risks match it. Plans are
cached by name; a caller chooses names, so the caches are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from toolpolicy.policy import settings
from toolpolicy.policy.bounded import Bounded
from toolpolicy.policy.cel import readers
from toolpolicy.policy.classify import Classification, classify, raise_by_annotations
from toolpolicy.policy.compiled import TOOLS_CALL, CompiledPolicy, CompiledRule, tier_of
from toolpolicy.policy.errors import PolicyError, Problem
from toolpolicy.policy.matching import NameIndex, ordinary
from toolpolicy.policy.model import (
    AuditConfig,
    IdentityConfig,
    Mode,
    PassThrough,
    Policy,
    SessionSource,
)
from toolpolicy.policy.plan import AuditPlan, NamePlans, Plan, TierPlan, possible_classes, straight
from toolpolicy.policy.types import Call, Catalogue

CACHED_NAMES = 4096
TIERS = ("ClusterToolPolicy", "ToolPolicy")


class PolicySet:
    """The compiled policies of one server. Nothing in it changes but bounded caches.

    ``identity``, ``session_source``, ``paths``, ``pass_through``, ``server_name``, ``on_state_failure``,
    ``on_audit_failure`` and ``audit`` are the policies' settings, merged as :mod:`toolpolicy.policy.settings` says.
    """

    __slots__ = (
        "_index", "_methods", "_names", "_open", "audit", "audit_policies", "empty", "enforced", "identity",
        "needs_args", "on_audit_failure", "on_state_failure", "pass_through", "paths", "policies", "reads_now", "rules",
        "server_name", "session_source",
    )  # fmt: skip

    def __init__(self, policies: Sequence[CompiledPolicy]) -> None:
        self.policies = tuple(policies)
        self.enforced = tuple(policy for policy in policies if not policy.audit)
        self.audit_policies = tuple(policy for policy in policies if policy.audit)
        self.empty = not policies
        self.rules = tuple(rule for policy in policies for rule in policy.rules)
        self._index: NameIndex[CompiledRule] = NameIndex()
        self._open: list[CompiledRule] = []
        for order, rule in enumerate(self.rules):
            rule.order = order
            if not rule.tools:
                self._open.append(rule)
            for pattern in rule.tools:
                self._index.add(pattern, rule)
        self._names: Bounded[str, NamePlans] = Bounded(CACHED_NAMES)
        self._methods: Bounded[str, Plan] = Bounded(CACHED_NAMES)
        expressions = [expression for rule in self.rules for expression in rule.expressions()]
        self.needs_args = any(expression.reads_args for expression in expressions)
        self.reads_now = any(expression.reads_now for expression in expressions)
        sources = [policy.source for policy in self.policies]
        self.identity: IdentityConfig | None = settings.identity(sources)
        self.session_source: SessionSource | None = self.identity.session if self.identity else None
        self.paths: tuple[str, ...] = settings.paths(sources)
        self.pass_through: tuple[PassThrough, ...] = settings.pass_through(sources)
        self.server_name: str | None = settings.server_name(sources)
        self.on_state_failure: Literal["Deny", "Local", "Allow"] = settings.on_state_failure(sources)
        self.on_audit_failure: Literal["Deny", "Continue"] = settings.on_audit_failure(sources)
        self.audit: AuditConfig = settings.audit(sources)

    def plan(self, call: Call, catalogue: Catalogue | None) -> Plan:
        """The rules that may apply to a call."""
        if call.method != TOOLS_CALL:
            return self._methods.get(call.method) or self._methods.keep(call.method, self._method_plan(call.method))
        tool = call.tool or ""  # a call of no tool is one of an unusual name
        plans = self._names.get(tool) or self._names.keep(tool, NamePlans(classify(tool)))
        info = catalogue.get(tool) if catalogue is not None else None
        if info is not None and plans.last is not None and plans.last_info is info:
            return plans.last
        if info is None:
            if plans.unknown is None:
                plans.unknown = self._unknown_plan(tool, plans)
            return plans.unknown
        found = raise_by_annotations(plans.base, info.annotations)
        plans.last = plans.by_class.get(found) or self._class_plan(tool, plans, found)
        plans.last_info = info
        return plans.last

    def _class_plan(self, tool: str, plans: NamePlans, found: Classification) -> Plan:
        rules = [rule for rule in self._candidates(tool) if rule.matches_class(tool, found)]
        plans.by_class[found] = plan = self._build(tool, rules, found)
        return plan

    def _unknown_plan(self, tool: str, plans: NamePlans) -> Plan:
        """The plan while annotations are unknown: the same as any, if they make no difference."""
        possible = possible_classes(plans.base)
        candidates = self._candidates(tool)
        depends = False
        certain: list[CompiledRule] = []
        for rule in candidates:
            verdicts = {rule.matches_class(tool, found) for found in possible}
            matters = len(verdicts) > 1 or (
                verdicts == {True} and len(possible) > 1 and rule.reads_class and tool not in rule.overrides
            )
            # what an audited rule only records must not ask for a catalogue; it goes by the name alone
            if matters and rule.group < 2 and (rule.grants or not rule.rule_audit):
                depends = True
            elif rule.matches_class(tool, plans.base):
                certain.append(rule)
        if not depends:
            return plans.by_class.get(plans.base) or self._class_plan(tool, plans, plans.base)
        return replace(self._build(tool, certain, plans.base), needs_catalogue=True, straight=None)

    def _candidates(self, tool: str) -> list[CompiledRule]:
        rules = {rule.order: rule for rule in (*self._index.find(tool), *self._open)}
        return [rules[order] for order in sorted(rules) if rules[order].matches_method(TOOLS_CALL)]

    def _method_plan(self, method: str) -> Plan:
        return self._build(None, [rule for rule in self.rules if rule.matches_method(method)], None)

    def _build(self, tool: str | None, rules: Sequence[CompiledRule], found: Classification | None) -> Plan:
        usual = tool is None or ordinary(tool)
        groups: dict[int, list[CompiledRule]] = {}
        for rule in rules:
            groups.setdefault(rule.group, []).append(rule)
        tiers: list[TierPlan] = []
        position: dict[int, int] = {}
        for tier in range(len(TIERS)):
            members = [policy for policy in self.enforced if policy.tier == tier]
            if not members:
                continue
            denying = tuple(policy.ref for policy in members if policy.default_deny)
            position[tier] = len(tiers)
            defaults = denying or tuple(policy.ref for policy in members)
            tiers.append(TierPlan(tuple(groups.get(tier, ())), bool(denying) or not usual, defaults))
        audits = tuple(
            AuditPlan(
                policy.ref,
                tuple(groups.get(policy.group, ())),
                policy.default_deny or not usual,
                position.get(policy.tier),
            )
            for policy in self.audit_policies
        )
        read = frozenset[str]().union(*(expression.variables for rule in rules for expression in rule.expressions()))
        records = bool(audits) or any(rule.rule_audit for rule in rules)
        short = straight(tool, tiers) if usual and not records else None
        return Plan(tool, tuple(tiers), audits, readers(read), found, usual, records, straight=short)


def compile_policies(policies: Sequence[Policy]) -> PolicySet:
    """Make policies ready. Equal ones count once. Raises :class:`PolicyError` with every problem found."""
    problems: list[Problem] = []
    unique: dict[tuple[int, str, str], Policy] = {}
    for policy in policies:
        key = (tier_of(policy), policy.metadata.namespace or "", policy.metadata.name)
        if unique.setdefault(key, policy) != policy:
            where = f"{policy.kind} {key[1]}/{key[2]}" if key[1] else f"{policy.kind} {key[2]}"
            problems.append(
                Problem(where, 0, 0, "metadata.name", "two different policies have this name", code="duplicate-policy")
            )
    compiled: list[CompiledPolicy] = []
    audits = 0
    for _, policy in sorted(unique.items(), key=lambda item: item[0]):
        audit = policy.spec.mode is Mode.AUDIT
        compiled.append(CompiledPolicy(policy, 2 + audits if audit else tier_of(policy), problems))
        audits += audit
    if problems:
        raise PolicyError(problems)
    return PolicySet(compiled)
