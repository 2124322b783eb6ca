"""What the agent is told: what was refused, by which rule, and what would be accepted.

A reason names rules and limits of the policies that judge this caller, and repeats nothing of another caller; what the
caller sent is repeated only as far as it names the tool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from toolpolicy.policy.duration import format_duration
from toolpolicy.policy.model import Action, Per
from toolpolicy.policy.types import Call, Code, RuleRef, Shortage, WouldDeny

if TYPE_CHECKING:
    from toolpolicy.policy.cel import Failure
    from toolpolicy.policy.compiled import Check, CompiledRule


@dataclass(frozen=True, slots=True)
class Refusal:
    """A Deny before it becomes a decision."""

    code: str
    reason: str
    rules: tuple[RuleRef, ...]
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needs_catalogue: bool = False


def subject(call: Call) -> str:
    """What was called, shortened and printable."""
    kind, name = ("tool", call.tool) if call.tool is not None else ("method", call.method)
    shown = name if name.isprintable() and name.isascii() else ascii(name)[1:-1]
    return f"{kind} {shown if len(shown) <= 128 else shown[:127] + '…'}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else text + "."


def denied(call: Call, rules: Sequence[CompiledRule]) -> Refusal:
    """Step 2."""
    refs = tuple(rule.ref for rule in rules)
    told = next((rule for rule in rules if rule.reason), rules[0])
    because = f": {told.reason}" if told.reason else ""
    text = _sentence(f"The {subject(call)} is denied by rule {told.ref}{because}")
    return Refusal(Code.DENIED_BY_RULE, text, refs)


def defaulted(call: Call, defaults: Sequence[RuleRef], usual: bool) -> Refusal:
    """Step 3."""
    who = " and ".join(str(ref) for ref in defaults)
    if not usual:
        text = (
            f"The {subject(call)} is denied: only a rule that names it exactly can allow a tool name like this, and "
            f"no rule of {who} does. Usual names have up to 128 letters, digits and the characters _ . / -"
        )
    else:
        text = f"The {subject(call)} is denied: no rule of {who} allows it, and the default there is Deny."
    return Refusal(Code.DENIED_BY_DEFAULT, text, tuple(defaults))


def failed(call: Call, rule: CompiledRule, failure: Failure) -> Refusal:
    """An expression that could not be evaluated."""
    text = f"The {subject(call)} is denied because rule {rule.ref} could not be decided: {failure}"
    details = {"expression": failure.expression, "problem": failure.problem, "cure": failure.cure}
    return Refusal(Code.EXPRESSION_ERROR, text, (rule.ref,), details)


def unknown_tool(call: Call, rule: CompiledRule | None = None) -> Refusal:
    """The decision depends on the server's tool catalogue, which does not know the tool."""
    text = (
        f"The {subject(call)} is denied: the server does not list a tool of this name, and the policy decides by "
        "what the server says of it. Call one of the listed tools."
    )
    return Refusal(Code.CATALOGUE_UNKNOWN, text, () if rule is None else (rule.ref,), needs_catalogue=True)


def invalid(call: Call, rule: CompiledRule, check: Check) -> Refusal:
    """A validation's expression that is false."""
    source = check.expression.source if check.expression is not None else ""
    wanted = check.message or f"the call must satisfy `{source}`"
    text = _sentence(f"The {subject(call)} is refused by rule {rule.ref}: {wanted}")
    details = {"expression": source, **({"message": check.message} if check.message else {})}
    return Refusal(Code.VALIDATION_FAILED, text, (rule.ref,), details)


def nonconforming(call: Call, rule: CompiledRule, path: str, expected: str, message: str | None = None) -> Refusal:
    """Arguments that a schema refuses. ``path``: a JSON pointer into them."""
    lead = f"{message}. " if message else ""
    place = path if path else "the top level of the arguments"
    text = f"The {subject(call)} is refused by rule {rule.ref}: {lead}At {place}, expected {_sentence(expected)}"
    details = {"path": path, "expected": expected, **({"message": message} if message else {})}
    return Refusal(Code.SCHEMA_FAILED, text, (rule.ref,), details)


def unusable_schema(call: Call, rule: CompiledRule, problem: str) -> Refusal:
    """The server's own schema can't be checked against."""
    text = (
        f"The {subject(call)} is refused by rule {rule.ref}, which checks arguments against the schema that the server "
        f"declares: {_sentence(problem)} This is the server's fault; other arguments will not help."
    )
    return Refusal(Code.SCHEMA_FAILED, text, (rule.ref,), {"problem": problem})


def limited(call: Call, shortages: Sequence[Shortage]) -> tuple[Refusal, float | None]:
    """Step 5: the refusal, and when all of it has room (None: never)."""
    never = [shortage for shortage in shortages if shortage.retry_after is None]
    worst = never[0] if never else max(shortages, key=lambda s: s.retry_after or 0.0)
    retry_after = worst.retry_after
    demand = worst.demand
    text = f"The {subject(call)} is refused by rule {demand.rule}: {_limit_text(worst)}"
    limit = {
        "max": int(demand.max) if demand.max == int(demand.max) else demand.max,
        "window": format_duration(demand.window),
        "per": demand.per.value,
    }
    details: dict[str, Any] = {"limit": limit}
    if retry_after is not None:
        details["retryAfterSeconds"] = math.ceil(retry_after)
    refs = tuple(dict.fromkeys(shortage.demand.rule for shortage in shortages))
    return Refusal(Code.RATE_LIMITED, text, refs, details), retry_after


_PER = {Per.SESSION: "a session", Per.PRINCIPAL: "a principal", Per.TOOL: "a tool", Per.SERVER: "a server"}


def _limit_text(shortage: Shortage) -> str:
    demand = shortage.demand
    per = "a principal" if demand.per is Per.SESSION and "principal" in demand.bucket[-2:-1] else _PER[demand.per]
    window = format_duration(demand.window)
    if shortage.retry_after is None:
        cost, maximum = _number(demand.cost), _number(demand.max)
        return f"this call alone costs {cost}, more than the {maximum} in {window} allowed for {per}."
    seconds = math.ceil(shortage.retry_after)
    return (
        f"the limit of {_number(demand.max)} in {window} for {per} is used up. "
        f"Retry in {seconds} second{'' if seconds == 1 else 's'}."
    )


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def would_limit(shortage: Shortage) -> WouldDeny:
    """An audited limit without room."""
    return WouldDeny(shortage.demand.rule, Action.DENY, _limit_text(shortage)[:1].upper() + _limit_text(shortage)[1:])


def approval(call: Call, rules: Sequence[CompiledRule]) -> str:
    """Step 6."""
    told = next((rule for rule in rules if rule.reason), rules[0])
    because = f": {told.reason}" if told.reason else ""
    return _sentence(f"The {subject(call)} needs a human's approval, by rule {told.ref}{because}")


def approval_unavailable(call: Call, rules: Sequence[RuleRef]) -> str:
    """Where nobody can approve."""
    who = ", ".join(str(ref) for ref in rules)
    return f"The {subject(call)} needs a human's approval, by rule {who}, and approval is not available here."
