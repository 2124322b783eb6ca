"""An explanation says for each rule why it did or did not apply, as a tree, as text and as JSON."""

from __future__ import annotations

import json

from support.policies import Tools, allow, call, compiled, deny, policy
from toolpolicy.policy.explain import Explanation, as_json, explain, render
from toolpolicy.policy.limits import MemoryCounters
from toolpolicy.policy.model import Action

TOOLS = Tools.named("get_thing", "start_export", "odd name")

RULES = compiled(
    policy(
        {"match": {"categories": ["Read"]}, "action": "Allow", "name": "read"},
        allow("start_export", name="export", validations=[{"expression": 'args.uri == "ok"', "message": "only ok"}],
              rateLimit={"max": 1, "window": "60s", "per": "Principal"}, arguments="Declared"),
        deny("start_*", name="night", when="now.getHours() < 6"),
        deny(name="broken", when="args.missing == 1"),
        {"match": {"methods": ["prompts/get"]}, "action": "Allow", "name": "prompts"},
        {"match": {"principals": {"ids": ["bob"]}}, "action": "Deny", "name": "not-bob"},
        {"match": {"risks": ["Critical"]}, "action": "RequireApproval", "name": "risky"},
        {"match": {"tools": ["start_export"]}, "action": "RequireApproval", "name": "human", "approval": {"ttl": 90}},
    ),
    policy(name="base", cluster=True, default="Allow"),
    policy(deny("start_export", name="no"), name="tryout", mode="Audit"),
)  # fmt: skip


def whys(explanation: Explanation) -> dict[str, tuple[bool, str]]:
    return {
        str(rule.rule.rule): (rule.applies, rule.why)
        for tier in explanation.tiers
        for p in tier.policies
        for rule in p.rules
    }


def test_each_rule_says_why() -> None:
    said = whys(explain(RULES, call("start_export", {"uri": "ok"}), TOOLS))
    assert said["read"] == (False, "the tool's category is Execute, and it matches Read")
    assert said["export"] == (True, "it matches the call")
    assert said["night"] == (False, "its condition is false: now.getHours() < 6")
    assert said["broken"][0] is False
    assert "could not be evaluated" in said["broken"][1]
    assert said["prompts"] == (False, "it matches methods prompts/get, not tools/call")
    assert said["not-bob"] == (False, "the caller alice is not one of its principals")
    assert said["risky"][1].startswith("the tool's risk is ")
    assert said["no"] == (True, "it matches the call")


def test_checks_are_answered_one_by_one() -> None:
    counters = MemoryCounters()
    explanation = explain(RULES, call("start_export", {"uri": "no"}), TOOLS, counters, 0.0)
    (checks,) = [r.checks for t in explanation.tiers for p in t.policies for r in p.rules if r.rule.rule == "export"]
    assert [(check.kind, check.holds) for check in checks] == [
        ("expression", False),
        ("declared", False),
        ("limit", True),
    ]
    assert "only ok" in checks[0].detail
    assert (
        explain(RULES, call("start_export", {"uri": "no"}), TOOLS).tiers[1].policies[0].rules[1].checks[-1].holds
        is None
    )


def test_a_used_up_limit_says_for_how_long() -> None:
    set_ = compiled(policy(allow(rateLimit={"max": 1, "window": "60s", "per": "Principal"})))
    counters = MemoryCounters()
    decision = explain(set_, call(), TOOLS, counters, 0.0).decision
    counters.reserve(decision.demands, 0.0)
    explanation = explain(set_, call(), TOOLS, counters, 10.0)
    assert explanation.decision.action is Action.DENY
    assert explanation.tiers[0].policies[0].rules[0].checks[0].detail == "no room for another 50.0 s"


def test_text_names_everything_and_json_is_json() -> None:
    explanation = explain(RULES, call("start_export", {"uri": "ok"}), TOOLS)
    text = render(explanation)
    for expected in (
        "Deny (ExpressionError)",
        "ClusterToolPolicy",
        "base (default Allow)",
        "agents/tryout (default Deny, Audit)",
        "export (Allow) applies",
        "broken (Deny) ERROR",
        "recorded only (Audit)",
        "agents/tryout:no would deny",
    ):
        assert expected in text
    document = json.loads(json.dumps(as_json(explanation)))
    assert document["decision"]["code"] == "ExpressionError"
    assert [tier["kind"] for tier in document["tiers"]] == ["ClusterToolPolicy", "ToolPolicy"]
    assert document["decision"]["wouldDeny"][0]["rule"] == "agents/tryout:no"


def test_without_policy_and_for_unusual_names() -> None:
    assert "no policy applies" in render(explain(compiled(), call(), None))
    odd = explain(compiled(policy(allow())), call("odd name"), TOOLS)
    assert "does not grant it" in render(odd)
    unknown = explain(compiled(policy({"match": {"categories": ["Read"]}, "action": "Allow"})), call(), None)
    assert "what the server says of the tool is not known" in render(unknown)
