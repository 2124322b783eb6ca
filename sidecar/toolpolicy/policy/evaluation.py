"""One call against one plan: which rules apply, and whether their restrictions hold.

Deciding, recording what is audited, listing and explaining all ask these same questions here.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolpolicy.policy import reasons
from toolpolicy.policy.cel import Failure, Scope
from toolpolicy.policy.compiled import Check, CompiledRule
from toolpolicy.policy.declared import DeclaredSchemas
from toolpolicy.policy.hazards import twins
from toolpolicy.policy.model import Category, Risk
from toolpolicy.policy.plan import Plan
from toolpolicy.policy.reasons import Refusal
from toolpolicy.policy.schemas import SchemaFault, Validator, clip
from toolpolicy.policy.types import Call, Catalogue, Demand

_DECLARED = DeclaredSchemas()


class Gathered:
    """Step 1 for one group of rules: those that apply, by what they do."""

    __slots__ = ("audited", "audited_failures", "denies", "failures", "grants", "kept")

    def __init__(self) -> None:
        self.denies: list[CompiledRule] = []
        self.grants: list[CompiledRule] = []
        self.kept: list[CompiledRule] = []
        """With validations, a limit or an approval that must hold."""
        self.failures: list[tuple[CompiledRule, Failure]] = []
        """Whose ``when`` could not be evaluated."""
        self.audited: list[CompiledRule] = []
        """Rules of their own ``mode: Audit``, whose Deny or restrictions are only recorded."""
        self.audited_failures: list[tuple[CompiledRule, Failure]] = []


class Tally:
    """What steps 5 and 6 will ask of a call that passed step 4."""

    __slots__ = ("approvals", "demands")

    def __init__(self) -> None:
        self.demands: list[Demand] = []
        self.approvals: list[CompiledRule] = []


class Evaluation:
    """Holds what is found out once for a call: the values that expressions read, converted when the first is needed."""

    __slots__ = ("_overridden", "_scope", "call", "catalogue", "category", "plan", "risk")

    def __init__(self, plan: Plan, call: Call, catalogue: Catalogue | None) -> None:
        self.plan = plan
        self.call = call
        self.catalogue = catalogue
        known = plan.classification
        self.category: Category | None = known.category if known is not None else None
        self.risk: Risk | None = known.risk if known is not None else None
        self._scope: Scope | None = None
        self._overridden: dict[Category, Scope] | None = None

    def scope(self, rule: CompiledRule) -> Scope:
        """The values for the expressions of a rule: one for all, but where its policy overrides the tool's category."""
        if rule.reads_class and self.plan.tool is not None and self.plan.tool in rule.overrides:
            return self._overriding(rule, self.plan.tool)
        scope = self._scope
        if scope is None:
            scope = self._scope = Scope(self.plan.readers, self.call, self.category or "", self.risk or "")
        return scope

    def _overriding(self, rule: CompiledRule, tool: str) -> Scope:
        assert self.plan.classification is not None
        known = rule.class_for(tool, self.plan.classification)
        if self._overridden is None:
            self._overridden = {}
        found = self._overridden.get(known.category)
        if found is None:
            found = Scope(self.plan.readers, self.call, known.category, known.risk)
            self._overridden[known.category] = found
        return found

    def applies(self, rule: CompiledRule) -> bool | Failure:
        """Whether a rule of the plan applies: the plan has matched all but the principal and ``when``."""
        if rule.principals is not None and not rule.principals.match(self.call, not rule.grants):
            return False
        return rule.when is None or rule.when.test(self.scope(rule))

    def gather(self, rules: Sequence[CompiledRule]) -> Gathered:
        """Step 1."""
        found = Gathered()
        for rule in rules:
            if rule.conditional:
                applies = self.applies(rule)
                if applies is False:
                    continue
                if applies is not True:
                    (found.audited_failures if rule.rule_audit else found.failures).append((rule, applies))
                    continue
            if rule.grants:
                if self.plan.usual or self.plan.tool in rule.named:
                    found.grants.append(rule)
                if rule.restricts:
                    (found.audited if rule.rule_audit else found.kept).append(rule)
            else:
                (found.audited if rule.rule_audit else found.denies).append(rule)
        return found

    def restrict(self, rules: Sequence[CompiledRule], tally: Tally) -> Refusal | None:
        """Step 4 for rules that apply, and what they will ask in steps 5 and 6.

        An answer that only lacks the catalogue comes last: another rule may refuse without it.

        """
        unknown: Refusal | None = None
        for rule in rules:
            refusal = self.validate(rule)
            if refusal is None and rule.limit is not None:
                refusal = self._draw(rule, tally.demands)
            if refusal is not None:
                if not refusal.needs_catalogue:
                    return refusal
                unknown = unknown or refusal
            if rule.approval_ttl is not None:
                tally.approvals.append(rule)
        return unknown

    def validate(self, rule: CompiledRule) -> Refusal | None:
        """Every validation of one rule that applies."""
        for check in rule.checks:
            refusal = self.check(rule, check)
            if refusal is not None:
                return refusal
        if rule.declared and self.call.tool is not None:
            return self.declared(rule, self.call.tool)
        return None

    def check(self, rule: CompiledRule, check: Check) -> Refusal | None:
        """One entry of ``validations``."""
        if check.expression is not None:
            holds = check.expression.test(self.scope(rule))
            if holds is True:
                return None
            return reasons.invalid(self.call, rule, check) if holds is False else reasons.failed(self.call, rule, holds)
        if check.schema is not None:
            error = nonconformity(check.schema, self.call)
            if error is not None:
                return reasons.nonconforming(self.call, rule, *error, check.message)
        return None

    def declared(self, rule: CompiledRule, tool: str) -> Refusal | None:
        """``arguments: Declared``."""
        info = self.catalogue.get(tool) if self.catalogue is not None else None
        if info is None:
            return reasons.unknown_tool(self.call, rule)
        if info.input_schema is None:
            return reasons.unusable_schema(self.call, rule, "it declares none for this tool")
        validator = _DECLARED.validator(info.input_schema)
        if isinstance(validator, SchemaFault):
            return reasons.unusable_schema(self.call, rule, f"that schema is invalid ({validator.message})")
        error = nonconformity(validator, self.call)
        return None if error is None else reasons.nonconforming(self.call, rule, *error)

    def _draw(self, rule: CompiledRule, demands: list[Demand]) -> Refusal | None:
        assert rule.limit is not None
        cost = self.cost(rule)
        if isinstance(cost, Failure):
            return reasons.failed(self.call, rule, cost)
        demands += rule.limit.demands(self.call, cost)
        return None

    def cost(self, rule: CompiledRule) -> float | Failure:
        """What the call costs in the limit of a rule."""
        if rule.limit is None or rule.limit.cost is None:
            return 1.0
        return rule.limit.cost.number(self.scope(rule))

    def applies_without_args(self, rule: CompiledRule) -> bool | Failure | None:
        """As :meth:`applies`; None where only the arguments can tell."""
        if rule.principals is not None and not rule.principals.match(self.call, not rule.grants):
            return False
        if rule.when is None:
            return True
        return None if rule.when.reads_args else rule.when.test(self.scope(rule))

    def holds_without_args(self, rule: CompiledRule) -> bool:
        """Whether the validations of a rule may hold: False where one fails whatever the arguments are."""
        return all(
            check.expression is None or check.expression.reads_args or check.expression.test(self.scope(rule)) is True
            for check in rule.checks
        )


def nonconformity(schema: Validator, call: Call) -> tuple[str, str] | None:
    """Where arguments do not conform to a schema: a JSON pointer into them, and what is expected there.

    Of two keys that differ only by case a schema may describe the one, and the server obey the other.
    """
    pair = twins(call.arguments)
    if pair is None:
        return schema.first_error(call.arguments)
    one, other = pair
    return "", (
        f"no two keys in one object that differ only by case, as `{clip(one, 60)}` and `{clip(other, 60)}` do: servers "
        "disagree on which of them counts, so send only one"
    )
