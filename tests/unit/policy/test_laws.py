"""The laws of DESIGN section 2, over random policies and calls.

Merging is commutative, associative and idempotent; the order of rules and policies never matters; adding an enforced
policy never widens, except that its Allow may satisfy a Deny default of its own tier; adding or removing an Audit
policy never changes an outcome; and the call needs both tiers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from support import oracle
from support.policies import NOON, Tools, call, policy
from toolpolicy.policy.compile import compile_policies
from toolpolicy.policy.decide import decide, visible
from toolpolicy.policy.explain import as_json, explain, render
from toolpolicy.policy.model import Action, Mode, Policy
from toolpolicy.policy.types import Call, Catalogue, Code, Decision, Demand, Principal, Shortage

TOOLS = ["get_thing", "delete_thing", "update_thing", "run_thing", "odd name"]
CATALOGUE = Tools.named(*TOOLS)
RANK = {Action.DENY: 0, Action.REQUIRE_APPROVAL: 1, Action.ALLOW: 2}


def rarely(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), st.none(), strategy)


CONDITION = st.sampled_from(sorted(oracle.CONDITIONS))
MATCH = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.lists(st.sampled_from([*TOOLS, "*", "*_thing", "get_*", "delete*"]), min_size=1, max_size=2),
        "categories": st.lists(st.sampled_from(["Read", "Write", "Execute", "Destructive"]), min_size=1, max_size=2),
        "risks": st.lists(st.sampled_from(["Low", "Medium", "High", "Critical"]), min_size=1, max_size=3),
        "methods": st.lists(st.sampled_from(["tools/call", "resources/read", "prompts/*"]), min_size=1, max_size=2),
        "principals": st.sampled_from([{"ids": ["alice"]}, {"ids": ["10.0.0.1"]}, {"groups": ["nurses"]}]),
    },
).map(lambda match: dict(list(match.items())[-2:]))

EVERYTHING = st.just(dict[str, Any]())


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    action = draw(st.sampled_from(["Allow", "Allow", "Deny", "RequireApproval"]))
    rule: dict[str, Any] = {
        "match": draw(st.one_of(EVERYTHING, MATCH, MATCH)),
        "action": action,
        "mode": draw(st.sampled_from(["Enforce", "Enforce", "Audit"])),
    }
    when = draw(rarely(CONDITION))
    if when is not None:
        rule["when"] = when
    if action != "Deny":
        validations = draw(rarely(st.lists(CONDITION, min_size=1, max_size=2)))
        rule["validations"] = [{"expression": expression} for expression in validations or ()]
        per = draw(rarely(st.sampled_from(["Session", "Principal", "Tool", "Server"])))
        if per is not None:
            rule["rateLimit"] = {"max": 3.0, "window": "60s", "per": per}
    return rule


@st.composite
def one_policy(draw: st.DrawFn, name: str, mode: str | None = None) -> Policy:
    return policy(
        *draw(st.lists(rules(), max_size=4)),
        name=name,
        cluster=draw(st.booleans()),
        mode=mode or draw(st.sampled_from(["Enforce", "Enforce", "Audit"])),
        default=draw(st.sampled_from(["Deny", "Allow"])),
        categories=draw(st.sampled_from([{}, {}, {"run_thing": "Read", "get_thing": "Destructive"}])),
    )


@st.composite
def sets(draw: st.DrawFn, most: int = 3) -> list[Policy]:
    return [draw(one_policy(f"p{index}")) for index in range(draw(st.integers(0, most)))]


@st.composite
def calls(draw: st.DrawFn) -> Call:
    who = draw(st.sampled_from(["alice", "bob"]))
    principal = Principal(who, groups=("nurses",) if draw(st.booleans()) else ())
    method = draw(st.sampled_from([None, None, None, "resources/read", "prompts/get", "tools/unknown"]))
    return call(
        draw(st.sampled_from(TOOLS)),
        draw(st.sampled_from([{}, {"n": 1}, {"n": 2}, {"n": 3}])),
        method=method,
        principal=principal,
        identities=(who, "10.0.0.1") if draw(st.booleans()) else (who,),
        session=draw(st.sampled_from([None, "s1"])),
        now=NOON.replace(hour=draw(st.sampled_from([3, 13]))),
    )


class Short:
    """Counters in which the limits of some rules have no room."""

    def __init__(self, short: frozenset[tuple[str, str]]) -> None:
        self.short = short

    def shortages(self, demands: Sequence[Demand], now: float) -> list[Shortage]:
        return [Shortage(d, 5.0) for d in demands if (d.rule.policy, d.rule.rule) in self.short]


SHORT = st.frozensets(st.sampled_from(list(product(["p0", "p1", "p2", "new"], ["r1", "r2"]))), max_size=3)


def decided(
    policies: Sequence[Policy],
    asked: Call,
    short: frozenset[tuple[str, str]] = frozenset(),
    known: Catalogue = CATALOGUE,
) -> Decision:
    return decide(compile_policies(policies), asked, known, Short(short), 0.0)


def outcome(decision: Decision) -> Decision:
    """A decision without what is only recorded."""
    return replace(decision, would_deny=(), demands=tuple(demand for demand in decision.demands if not demand.audit))


law = settings(max_examples=int(os.environ.get("TOOLPOLICY_EXAMPLES", "20")), deadline=None)
"""More of them find more: `TOOLPOLICY_EXAMPLES=2000 pytest tests/unit/policy/test_laws.py`."""


@law
@given(sets(4), calls(), SHORT)
def test_the_engine_decides_as_the_design_says(
    policies: list[Policy], asked: Call, short: frozenset[tuple[str, str]]
) -> None:
    decision = decided(policies, asked, short)
    action, code = oracle.outcome(policies, asked, short)
    assert decision.action.value == action
    if code == "Invalid":
        assert decision.code in {Code.VALIDATION_FAILED, Code.EXPRESSION_ERROR}
    else:
        assert decision.code == code
    assert bool(decision.reason) == (decision.action is not Action.ALLOW)


@law
@given(sets(), calls(), SHORT, st.randoms(use_true_random=False))
def test_order_never_matters(
    policies: list[Policy], asked: Call, short: frozenset[tuple[str, str]], random: Any
) -> None:
    shuffled = [_shuffled(p, random) for p in policies]
    random.shuffle(shuffled)
    assert decided(shuffled, asked, short) == decided(policies, asked, short)


def _shuffled(p: Policy, random: Any) -> Policy:
    reordered = list(p.spec.rules)
    random.shuffle(reordered)
    return p.model_copy(update={"spec": p.spec.model_copy(update={"rules": tuple(reordered)})})


@law
@given(sets(), sets(), calls())
def test_merging_is_commutative_and_idempotent(some: list[Policy], other: list[Policy], asked: Call) -> None:
    renamed = [
        p.model_copy(update={"metadata": p.metadata.model_copy(update={"name": f"q-{p.metadata.name}"})}) for p in other
    ]
    together = decided([*some, *renamed], asked)
    assert decided([*renamed, *some], asked) == together
    assert decided([*some, *renamed, *some], asked) == together


@law
@given(sets(), one_policy("new", "Enforce"), calls(), SHORT)
def test_an_enforced_policy_never_widens_but_by_satisfying_a_default_of_its_tier(
    policies: list[Policy], new: Policy, asked: Call, short: frozenset[tuple[str, str]]
) -> None:
    before, after = decided(policies, asked, short), decided([*policies, new], asked, short)
    if RANK[after.action] > RANK[before.action]:
        assert before.code == Code.DENIED_BY_DEFAULT
        assert {ref.kind for ref in before.rules} == {new.kind}
        assert any(rule.action is not Action.DENY for rule in new.spec.rules)
    without = new.model_copy(
        update={
            "spec": new.spec.model_copy(
                update={"rules": tuple(rule for rule in new.spec.rules if rule.action is Action.DENY)}
            )
        }
    )
    assert RANK[decided([*policies, without], asked, short).action] <= RANK[before.action]


@law
@given(sets(), one_policy("new", "Audit"), calls(), SHORT, st.sampled_from([CATALOGUE, Tools()]))
def test_an_audit_policy_never_changes_an_outcome(
    policies: list[Policy], new: Policy, asked: Call, short: frozenset[tuple[str, str]], known: Tools
) -> None:
    before, after = decided(policies, asked, short, known), decided([*policies, new], asked, short, known)
    assert outcome(after) == outcome(before)
    together, alone = compile_policies([*policies, new]), compile_policies(policies)
    for tool in TOOLS:
        assert visible(together, asked, tool, known) == visible(alone, asked, tool, known)


@law
@given(sets(), one_policy("new", "Audit"), calls(), SHORT)
def test_what_an_audit_policy_would_deny_is_what_enforcing_it_denies(
    policies: list[Policy], new: Policy, asked: Call, short: frozenset[tuple[str, str]]
) -> None:
    plain = tuple(rule.model_copy(update={"mode": Mode.ENFORCE}) for rule in new.spec.rules)
    audited, enforced = (
        new.model_copy(update={"spec": new.spec.model_copy(update={"mode": mode, "rules": plain})})
        for mode in (Mode.AUDIT, Mode.ENFORCE)
    )
    before, after = decided(policies, asked, short), decided([*policies, enforced], asked, short)
    recorded = decided([*policies, audited], asked, short).would_deny
    actions = {would.action for would in recorded if would.rule.policy == "new"}
    if RANK[after.action] < RANK[before.action]:
        assert after.action in actions
    if after.action is Action.ALLOW:
        assert not actions


@law
@given(sets(4), calls(), SHORT)
def test_a_call_needs_both_tiers(policies: list[Policy], asked: Call, short: frozenset[tuple[str, str]]) -> None:
    alone = [
        decided([p for p in policies if p.kind == kind], asked, short) for kind in ("ClusterToolPolicy", "ToolPolicy")
    ]
    assert RANK[decided(policies, asked, short).action] == min(RANK[decision.action] for decision in alone)


@law
@given(sets(), calls())
def test_an_audit_rule_keeps_what_it_grants_and_nothing_else(policies: list[Policy], asked: Call) -> None:
    """Taking away every audited Deny and every restriction of an audited grant changes no outcome."""
    bare = [
        p.model_copy(
            update={
                "spec": p.spec.model_copy(
                    update={
                        "rules": tuple(
                            rule.model_copy(update={"action": Action.ALLOW, "validations": (), "rate_limit": None})
                            if rule.mode is Mode.AUDIT
                            else rule
                            for rule in p.spec.rules
                            if rule.mode is Mode.ENFORCE or rule.action is not Action.DENY
                        )
                    }
                )
            }
        )
        for p in policies
    ]
    assert outcome(decided(bare, asked)) == outcome(decided(policies, asked))


@law
@given(sets(), calls())
def test_a_hidden_tool_can_not_be_called_without_arguments_deciding(policies: list[Policy], asked: Call) -> None:
    """What the list leaves out is denied whatever the arguments are; what any arguments could call is listed."""
    compiled = compile_policies(policies)
    for tool in TOOLS:
        shown = visible(compiled, asked, tool, CATALOGUE)
        possible = [
            decide(
                compiled,
                replace(asked, method="tools/call", tool=tool, arguments=arguments),
                CATALOGUE,
                Short(frozenset()),
                0.0,
            )
            for arguments in ({}, {"n": 1}, {"n": 2}, {"n": 3})
        ]
        if any(decision.action is not Action.DENY for decision in possible):
            assert shown


@law
@given(sets(), calls(), SHORT, st.sampled_from([CATALOGUE, Tools()]))
def test_an_explanation_holds_the_decision_and_can_always_be_shown(
    policies: list[Policy], asked: Call, short: frozenset[tuple[str, str]], known: Tools
) -> None:
    explanation = explain(compile_policies(policies), asked, known, Short(short), 0.0)
    assert explanation.decision == decided(policies, asked, short, known)
    assert explanation.decision.code in render(explanation)
    assert as_json(explanation)["decision"]["action"] == explanation.decision.action.value
    applied = {
        (rule.rule.policy, rule.rule.rule)
        for tier in explanation.tiers
        for p in tier.policies
        if not p.audit
        for rule in p.rules
        if rule.applies
    }
    if explanation.decision.code in {Code.ALLOWED, Code.DENIED_BY_RULE}:
        assert {(ref.policy, ref.rule) for ref in explanation.decision.rules if ref.rule} <= applied


@law
@given(sets(), calls())
def test_an_unknown_catalogue_never_widens(policies: list[Policy], asked: Call) -> None:
    assert RANK[decided(policies, asked, known=Tools()).action] <= RANK[decided(policies, asked).action]
