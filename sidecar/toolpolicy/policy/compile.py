"""Policies made ready to decide: checked, sorted, indexed, every expression and schema compiled.

Two tiers (ClusterToolPolicies, ToolPolicies), each with its enforced policies; and every Audit policy by itself. The
order in which policies and rules are given makes no difference: all is sorted by name here, once.

A :class:`Plan` is what is left to ask for one tool: the rules whose names, categories and risks match it. Plans are
cached by name; a caller chooses names, so the caches are bounded. """

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from toolpolicy.policy import settings
from toolpolicy.policy.bounded import Bounded
from toolpolicy.policy.cel import VARIABLES, Expect, Expression, ExpressionFault, compile_expression
from toolpolicy.policy.classify import Classification, classify, raise_by_annotations
from toolpolicy.policy.errors import PolicyError, Problem
from toolpolicy.policy.matching import NameIndex, glob_matches, ordinary
from toolpolicy.policy.model import (
    Action,
    AuditConfig,
    Category,
    ClusterToolPolicy,
    IdentityConfig,
    Mode,
    PassThrough,
    Per,
    Policy,
    PrincipalMatch,
    RateLimit,
    Rule,
    SessionSource,
)
from toolpolicy.policy.risk import DEFAULT_RISK
from toolpolicy.policy.schemas import SchemaFault, Validator, compile_schema
from toolpolicy.policy.types import Call, Catalogue, Demand, RuleRef

TOOLS_CALL = "tools/call"
CACHED_NAMES = 4096
CACHED_DEMANDS = 1024
_TIERS = ("ClusterToolPolicy", "ToolPolicy")


@dataclass(frozen=True, slots=True)
class Check:
    """One entry of ``validations``: exactly one of expression and schema."""

    expression: Expression | None
    schema: Validator | None
    message: str | None


class Principals:
    """``match.principals``: one of the lists must name the caller."""

    __slots__ = ("accounts", "groups", "ids")

    def __init__(self, match: PrincipalMatch) -> None:
        self.ids = frozenset(match.ids)
        self.groups = frozenset(match.groups)
        self.accounts = frozenset(match.service_accounts)

    def match(self, call: Call, every_identity: bool) -> bool:
        """Whether the caller is meant. For a Deny every identity of the call counts: a claimed one is free to
        change.
        """
        principal = call.principal
        return (
            principal.id in self.ids
            or (every_identity and not self.ids.isdisjoint(call.identities))
            or not self.groups.isdisjoint(principal.groups)
            or principal.service_account in self.accounts
        )


class Limit:
    """A ``rateLimit``, and the demands that a call makes of it."""

    __slots__ = ("_demands", "audit", "cost", "key", "max", "per", "principal_max", "ref", "window")

    def __init__(self, limit: RateLimit, ref: RuleRef, audit: bool, cost: Expression | None) -> None:
        owner = ref.uid or f"{ref.kind}/{ref.namespace or ''}/{ref.policy}"
        self.key = (*(("Audit",) if audit else ()), owner, ref.rule or "", limit.per.value)
        self.max = float(limit.max)
        self.window = float(limit.window)
        self.per = limit.per
        self.principal_max = float(limit.principal_max) if limit.principal_max is not None else 10 * self.max
        self.cost = cost
        self.ref = ref
        self.audit = audit
        self._demands: Bounded[tuple[object, ...], tuple[Demand, ...]] = Bounded(CACHED_DEMANDS)

    def demands(self, call: Call, cost: float) -> tuple[Demand, ...]:
        """One demand a bucket. ``Session`` draws from the pair (principal, session), and from every identity of the
        call at ``principalMax``; a call without a session from every identity, at ``max``. ``Tool`` is a tool of a
        server."""
        per = self.per
        if per is Per.SESSION or per is Per.PRINCIPAL:
            key = (call.session, call.principal.id, call.identities)
        else:
            key = (call.tool or call.method, call.server.get("namespace", ""), call.server.get("name", ""))
        if cost != 1.0:
            return self._build(call, key, cost)
        return self._demands.get(key) or self._demands.keep(key, self._build(call, key, cost))

    def _build(self, call: Call, key: tuple[object, ...], cost: float) -> tuple[Demand, ...]:
        if self.per is Per.TOOL:
            return (self._demand(self.max, cost, str(key[1]), str(key[2]), str(key[0])),)
        if self.per is Per.SERVER:
            return (self._demand(self.max, cost, str(key[1]), str(key[2])),)
        identities = tuple(dict.fromkeys((call.principal.id, *call.identities)))
        if self.per is Per.PRINCIPAL:
            return tuple(self._demand(self.max, cost, identity) for identity in identities)
        if call.session is None:
            return tuple(self._demand(self.max, cost, "principal", identity) for identity in identities)
        return (
            self._demand(self.max, cost, "session", call.principal.id, call.session),
            *(self._demand(self.principal_max, cost, "principal", identity) for identity in identities),
        )

    def _demand(self, maximum: float, cost: float, *values: str) -> Demand:
        return Demand((*self.key, *values), maximum, self.window, cost, self.ref, self.per, self.audit)


class CompiledRule:
    """A rule of which nothing has to be prepared any more. ``audit``: it, or its policy, is in Audit."""

    __slots__ = (
        "action", "approval_ttl", "audit", "categories", "checks", "conditional", "declared", "grants", "group", "hide",
        "limit", "methods", "named", "order", "overrides", "principals", "reads_class", "reason", "ref", "restricts", "risks",
        "rule_audit", "tools", "when",
    )  # fmt: skip

    def __init__(self, rule: Rule, ref: RuleRef, policy: CompiledPolicy, parts: _Parts) -> None:
        self.ref = ref
        self.group = policy.group
        self.order = 0
        self.action = rule.action
        self.grants = rule.action is not Action.DENY
        self.reason = rule.reason
        self.hide = rule.hide and rule.action is Action.DENY
        self.rule_audit = rule.mode is Mode.AUDIT
        self.audit = self.rule_audit or policy.audit
        self.tools = rule.match.tools
        self.named = frozenset(tool for tool in rule.match.tools if "*" not in tool)
        self.methods = rule.match.methods
        self.categories = frozenset(rule.match.categories)
        self.risks = frozenset(rule.match.risks)
        self.principals = None if rule.match.principals is None else Principals(rule.match.principals)
        self.overrides = policy.overrides
        self.when = parts.when
        self.conditional = self.principals is not None or self.when is not None
        self.checks = parts.checks
        self.declared = rule.arguments == "Declared"
        self.limit = Limit(rule.rate_limit, ref, self.audit, parts.cost) if rule.rate_limit is not None else None
        self.approval_ttl = (
            (rule.approval.ttl if rule.approval else 600.0) if rule.action is Action.REQUIRE_APPROVAL else None
        )
        self.restricts = bool(self.checks or self.declared or self.limit or self.approval_ttl is not None)
        self.reads_class = any(expression.reads_class for expression in self.expressions())

    def expressions(self) -> Iterable[Expression]:
        if self.when is not None:
            yield self.when
        for check in self.checks:
            if check.expression is not None:
                yield check.expression
        if self.limit is not None and self.limit.cost is not None:
            yield self.limit.cost

    def class_for(self, tool: str, found: Classification) -> Classification:
        """The class that this rule's policy gives a tool: ``spec.categories`` counts for the policy that states it
        alone.
        """
        stated = self.overrides.get(tool)
        return found if stated is None else Classification(stated, DEFAULT_RISK[stated])

    def matches_class(self, tool: str, found: Classification) -> bool:
        if not self.categories and not self.risks:
            return True
        known = self.class_for(tool, found)
        return (not self.categories or known.category in self.categories) and (
            not self.risks or known.risk in self.risks
        )

    def matches_method(self, method: str) -> bool:
        """Of any judged call but a tool call, ``tools``, ``categories`` and ``risks`` match none."""
        if method != TOOLS_CALL and (self.tools or self.categories or self.risks):
            return False
        return not self.methods or any(glob_matches(pattern, method) for pattern in self.methods)

    def matches_tool(self, tool: str) -> bool:
        return not self.tools or any(glob_matches(pattern, tool) for pattern in self.tools)


@dataclass(frozen=True, slots=True)
class _Parts:
    when: Expression | None
    cost: Expression | None
    checks: tuple[Check, ...]


class CompiledPolicy:
    """One policy. ``group``: 0 and 1 are the tiers' enforced policies, from 2 on each Audit policy has its own."""

    __slots__ = ("audit", "default_deny", "group", "overrides", "ref", "rules", "source", "tier")

    def __init__(self, policy: Policy, group: int, problems: list[Problem]) -> None:
        spec, meta = policy.spec, policy.metadata
        self.source = policy
        self.ref = RuleRef(policy.kind, meta.namespace, meta.name, None, meta.uid, meta.generation)
        self.tier = tier_of(policy)
        self.audit = spec.mode is Mode.AUDIT
        self.group = group
        self.default_deny = spec.default_action is Action.DENY
        self.overrides: Mapping[str, Category] = dict(spec.categories)
        self.rules: tuple[CompiledRule, ...] = tuple(
            CompiledRule(
                rule, replace(self.ref, rule=rule.name), self, _parts(rule, f"{self.ref}:{rule.name}", problems)
            )
            for rule in sorted(spec.rules, key=lambda rule: rule.name)
        )
        for name, count in sorted(Counter(rule.name for rule in spec.rules).items()):
            if count > 1:
                message = f"{count} rules are named `{name}`"
                problems.append(Problem(str(self.ref), 0, 0, "spec.rules", message, code="duplicate-rule"))


def tier_of(policy: Policy) -> int:
    return 0 if isinstance(policy, ClusterToolPolicy) else 1


def _parts(rule: Rule, where: str, problems: list[Problem]) -> _Parts:
    def expression(source: str | None, expect: Expect, path: str) -> Expression | None:
        if source is None:
            return None
        try:
            return compile_expression(source, expect)
        except ExpressionFault as fault:
            problems.append(Problem(where, fault.line, fault.column, path, fault.message, code="expression"))
            return None

    checks: list[Check] = []
    for index, validation in enumerate(rule.validations):
        schema: Validator | None = None
        if validation.json_schema is not None:
            try:
                schema = compile_schema(validation.json_schema)
            except SchemaFault as fault:
                path = f"validations[{index}].schema"
                problems.append(Problem(where, 0, 0, path, f"{fault.path}: {fault.message}", code="schema"))
        checks.append(
            Check(expression(validation.expression, "bool", f"validations[{index}]"), schema, validation.message)
        )
    cost = rule.rate_limit.cost if rule.rate_limit is not None else None
    return _Parts(expression(rule.when, "bool", "when"), expression(cost, "number", "rateLimit.cost"), tuple(checks))


@dataclass(frozen=True, slots=True)
class TierPlan:
    """The enforced policies of one tier, for one name."""

    rules: tuple[CompiledRule, ...]
    default_deny: bool
    """An unusual name is never allowed by default."""
    defaults: tuple[RuleRef, ...]
    """The policies whose default decides: those that deny, if any does."""


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """One Audit policy, for one name. ``tier`` is the index in :attr:`Plan.tiers` of the tier it would join, or
    None.
    """

    ref: RuleRef
    rules: tuple[CompiledRule, ...]
    default_deny: bool
    tier: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    tool: str | None
    tiers: tuple[TierPlan, ...]
    audits: tuple[AuditPlan, ...]
    variables: tuple[str, ...]
    """What the expressions of these rules read."""
    classification: Classification | None
    usual: bool = True
    """False: only a rule that names this exact string may grant it."""
    needs_catalogue: bool = False
    """Which rules match depends on annotations that are not known; these are the ones that match whatever they say."""

    def grants(self, rule: CompiledRule) -> bool:
        """Whether a rule that applies grants."""
        return rule.grants and (self.usual or self.tool in rule.named)


class _NamePlans:
    """The plans of one tool name: one for each class that annotations may raise it to, one for when they are
    unknown.
    """

    __slots__ = ("base", "by_class", "unknown")

    def __init__(self, base: Classification) -> None:
        self.base = base
        self.by_class: dict[Classification, Plan] = {}
        self.unknown: Plan | None = None


_ANNOTATIONS = [
    {
        name: value
        for name, value in zip(("readOnlyHint", "destructiveHint", "openWorldHint"), values, strict=True)
        if value is not None
    }
    for values in product((None, True, False), repeat=3)
]
_POSSIBLE: dict[Classification, frozenset[Classification]] = {}


def possible_classes(base: Classification) -> frozenset[Classification]:
    """What a tool may be, once the server's annotations are known."""
    if base not in _POSSIBLE:
        _POSSIBLE[base] = frozenset(raise_by_annotations(base, annotations) for annotations in _ANNOTATIONS)
    return _POSSIBLE[base]


class PolicySet:
    """The compiled policies of one server. Nothing in it changes but bounded caches.

    ``identity``, ``session_source``, ``paths``, ``pass_through``, ``server_name``, ``on_state_failure``,
    ``on_audit_failure`` and ``audit`` are the policies' settings, merged as :mod:`toolpolicy.policy.settings` says. """

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
        self._names: Bounded[str, _NamePlans] = Bounded(CACHED_NAMES)
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
        if call.method != TOOLS_CALL or call.tool is None:
            return self._methods.get(call.method) or self._methods.keep(call.method, self._method_plan(call.method))
        tool = call.tool
        plans = self._names.get(tool) or self._names.keep(tool, _NamePlans(classify(tool)))
        info = catalogue.get(tool) if catalogue is not None else None
        if info is None:
            if plans.unknown is None:
                plans.unknown = self._unknown_plan(tool, plans)
            return plans.unknown
        found = raise_by_annotations(plans.base, info.annotations)
        return plans.by_class.get(found) or self._class_plan(tool, plans, found)

    def _class_plan(self, tool: str, plans: _NamePlans, found: Classification) -> Plan:
        rules = [rule for rule in self._candidates(tool) if rule.matches_class(tool, found)]
        plans.by_class[found] = plan = self._build(tool, rules, found)
        return plan

    def _unknown_plan(self, tool: str, plans: _NamePlans) -> Plan:
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
        return replace(self._build(tool, certain, plans.base), needs_catalogue=True)

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
        for tier in range(len(_TIERS)):
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
        return Plan(tool, tuple(tiers), audits, tuple(name for name in VARIABLES if name in read), found, usual)


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
