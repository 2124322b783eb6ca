"""What is left to ask of a call once its tool is known: the rules whose names, categories and risks match it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from toolpolicy.policy.cel import Reader
from toolpolicy.policy.classify import Classification, raise_by_annotations
from toolpolicy.policy.compiled import CompiledRule
from toolpolicy.policy.types import RuleRef, ToolInfo


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
class Straight:
    """What allows a call where every rule that may apply is :attr:`~.compiled.CompiledRule.plain`."""

    kept: tuple[CompiledRule, ...]
    """Those that restrict."""
    rules: tuple[RuleRef, ...]
    """What lets the call pass then."""


@dataclass(frozen=True, slots=True)
class Plan:
    tool: str | None
    tiers: tuple[TierPlan, ...]
    audits: tuple[AuditPlan, ...]
    readers: tuple[Reader, ...]
    """Of what the expressions of these rules read."""
    classification: Classification | None
    usual: bool = True
    """False: only a rule that names this exact string may grant it."""
    audits_anything: bool = False
    """Whether there is an Audit policy, or a rule of ``mode: Audit``."""
    needs_catalogue: bool = False
    """Which rules match depends on annotations that are not known; these are the ones that match whatever they say."""
    straight: Straight | None = None
    """The short way to an Allow, where there is one; it never says why not."""

    def grants(self, rule: CompiledRule) -> bool:
        """Whether a rule that applies grants."""
        return rule.grants and (self.usual or self.tool in rule.named)


def straight(tool: str | None, tiers: Sequence[TierPlan]) -> Straight | None:
    """The short way through these tiers, of a plan that audits nothing and is of a usual name."""
    for tier in tiers:
        if not tier.rules and tier.default_deny:
            return None
        for rule in tier.rules:
            if not rule.plain or (rule.reads_class and tool in rule.overrides):
                return None
    if not tiers:
        return None
    return Straight(
        tuple(rule for tier in tiers for rule in tier.rules if rule.restricts),
        tuple(ref for tier in tiers for ref in ([rule.ref for rule in tier.rules] or tier.defaults)),
    )


class NamePlans:
    """The plans of one tool name: one for each class that annotations may raise it to, one for when they are
    unknown.

    """

    __slots__ = ("base", "by_class", "last", "last_info", "unknown")

    def __init__(self, base: Classification) -> None:
        self.base = base
        self.last: Plan | None = None
        """The plan of ``last_info``: a catalogue answers with the same object until it is listed again."""
        self.last_info: ToolInfo | None = None
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
