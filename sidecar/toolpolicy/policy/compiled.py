"""One rule and one policy with nothing left to prepare: every expression and schema compiled, every name a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from toolpolicy.policy.bounded import Bounded
from toolpolicy.policy.cel import Expect, Expression, ExpressionFault, compile_expression, conjunction
from toolpolicy.policy.classify import Classification
from toolpolicy.policy.errors import Problem
from toolpolicy.policy.matching import glob_matches
from toolpolicy.policy.model import (
    Action,
    Category,
    ClusterToolPolicy,
    Mode,
    Per,
    Policy,
    PrincipalMatch,
    RateLimit,
    Rule,
)
from toolpolicy.policy.risk import DEFAULT_RISK
from toolpolicy.policy.schemas import SchemaFault, Validator, compile_schema
from toolpolicy.policy.types import Call, Demand, RuleRef

TOOLS_CALL = "tools/call"
_CACHED_DEMANDS = 1024


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
        self._demands: Bounded[tuple[object, ...], tuple[Demand, ...]] = Bounded(_CACHED_DEMANDS)

    def demands(self, call: Call, cost: float) -> tuple[Demand, ...]:
        """One demand a bucket. ``Session`` draws from the pair (principal, session), and from every identity of the
        call at ``principalMax``; a call without a session from every identity, at ``max``. ``Tool`` is a tool of a
        server."""
        per = self.per
        if per is Per.SESSION or per is Per.PRINCIPAL:
            key: tuple[object, ...] = (call.session, call.principal.id, call.identities)
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
        "holds", "limit", "methods", "named", "order", "overrides", "plain", "principals", "reads_class", "reason",
        "ref", "restricts", "risks", "rule_audit", "schemas", "tools", "when",
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
        stated = [check.expression for check in self.checks if check.expression is not None]
        self.schemas = tuple(check.schema for check in self.checks if check.schema is not None)
        self.holds = conjunction(stated)
        """True where every expression of ``checks`` is."""
        self.plain = (
            self.grants
            and not (self.conditional or self.rule_audit or self.declared)
            and self.approval_ttl is None
            and (self.holds is not None or not stated)
        )
        """It allows, and of the call only its ``holds``, ``schemas`` and limit have to be asked."""

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
