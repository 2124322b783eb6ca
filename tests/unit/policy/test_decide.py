"""How a call is decided, and what the agent is told."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from support.policies import NOON, Tools, allow, call, compiled, deny, policy
from toolpolicy.policy.compile import PolicySet
from toolpolicy.policy.decide import conclude, decide, evaluate, next_boundary, visible, without_approvals
from toolpolicy.policy.limits import MemoryCounters
from toolpolicy.policy.model import Action, Category, Risk
from toolpolicy.policy.types import Call, Code, Decision, Principal, ToolInfo

TOOLS = Tools.named("get_thing", "list_things", "update_thing", "delete_thing", "run_thing", "start_export", "pay")
EXPORT = allow(
    "start_export",
    validations=[
        {"expression": 'args.uri.startsWith("s3://exports/")', "message": "exports may only go to the exports bucket"}
    ],
)


def ask(policies: PolicySet, asked: Call, known: Tools | None = TOOLS) -> Decision:
    return evaluate(policies, asked, known)


def verdict(*rules: dict[str, Any], asked: Call, **about: Any) -> str:
    return ask(compiled(policy(*rules, **about)), asked).code


READ = {"match": {"categories": ["Read"]}, "action": "Allow"}
NEVER_DELETE = {"match": {"categories": ["Destructive"]}, "action": "Deny", "reason": "deleting is off for agents"}


def test_without_policies_everything_passes_and_says_so() -> None:
    decision = ask(compiled(), call("anything at all"))
    assert (decision.action, decision.code, decision.reason) == (Action.ALLOW, Code.NO_POLICY, "")


def test_a_policy_in_audit_alone_enforces_nothing() -> None:
    decision = ask(compiled(policy(deny(), mode="Audit")), call())
    assert (decision.action, decision.code) == (Action.ALLOW, Code.NO_POLICY)
    assert [str(would.rule) for would in decision.would_deny] == ["agents/p:r1"]


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ("get_thing", Code.ALLOWED),
        ("list_things", Code.ALLOWED),
        ("delete_thing", Code.DENIED_BY_RULE),
        ("update_thing", Code.DENIED_BY_DEFAULT),
    ],
)
def test_categories_come_from_the_name(tool: str, code: str) -> None:
    decision = ask(compiled(policy(READ, NEVER_DELETE)), call(tool))
    assert decision.code == code
    assert decision.category is not None


def test_a_deny_outweighs_every_allow_and_gives_its_reason() -> None:
    decision = ask(compiled(policy(allow(), deny("get_*"), NEVER_DELETE)), call("delete_thing"))
    assert decision.action is Action.DENY
    assert decision.reason == "The tool delete_thing is denied by rule agents/p:r3: deleting is off for agents."
    assert [str(ref) for ref in decision.rules] == ["agents/p:r3"]
    assert (decision.category, decision.risk is not None) == (Category.DESTRUCTIVE, True)


def test_the_default_is_named_with_its_policy() -> None:
    decision = ask(compiled(policy(allow("x")), policy(name="open", default="Allow")), call())
    assert decision.code == Code.DENIED_BY_DEFAULT
    assert (
        decision.reason == "The tool get_thing is denied: no rule of agents/p allows it, and the default there is Deny."
    )
    assert [str(ref) for ref in decision.rules] == ["agents/p"]


def test_a_default_of_allow_needs_every_policy_of_the_tier() -> None:
    assert ask(compiled(policy(default="Allow"), policy(name="q", default="Allow")), call()).code == Code.ALLOWED


def test_a_namespace_can_not_open_the_baseline() -> None:
    baseline = policy(READ, cluster=True, name="baseline")
    assert ask(compiled(baseline, policy(allow())), call("run_thing")).code == Code.DENIED_BY_DEFAULT
    assert ask(compiled(baseline, policy(allow())), call("get_thing")).code == Code.ALLOWED
    assert ask(compiled(baseline, policy(allow("x"))), call("get_thing")).code == Code.DENIED_BY_DEFAULT


def test_both_tiers_restrictions_are_kept() -> None:
    limit = {"rateLimit": {"max": 5, "window": "1m", "per": "Principal"}}
    set_ = compiled(policy(allow(**limit), cluster=True), policy({**EXPORT, **limit}))
    assert len(ask(set_, call("start_export", {"uri": "s3://exports/x"})).demands) == 2
    assert ask(set_, call("start_export", {"uri": "s3://other"})).code == Code.VALIDATION_FAILED


def test_a_failed_validation_tells_its_message() -> None:
    decision = ask(compiled(policy(EXPORT)), call("start_export", {"uri": "s3://evil/"}))
    assert decision.code == Code.VALIDATION_FAILED
    assert decision.reason == (
        "The tool start_export is refused by rule agents/p:r1: exports may only go to the exports bucket."
    )
    assert decision.details["expression"] == 'args.uri.startsWith("s3://exports/")'
    assert decision.demands == ()


def test_a_schema_does_not_judge_one_of_two_keys_that_differ_by_case() -> None:
    schema = {"properties": {"uri": {"pattern": "^s3://exports/"}}, "required": ["uri"]}
    set_ = compiled(policy(allow("start_export", validations=[{"schema": schema}])))
    good = {"uri": "s3://exports/x"}
    assert ask(set_, call("start_export", good)).code == Code.ALLOWED
    decision = ask(set_, call("start_export", {**good, "URI": "s3://evil/"}))
    assert decision.code == Code.SCHEMA_FAILED
    assert "`uri` and `URI`" in decision.reason
    assert "send only one" in decision.reason


def test_the_short_way_asks_every_rule_and_names_it() -> None:
    one = {**EXPORT, "name": "one", "rateLimit": {"max": 5, "window": "1m", "per": "Principal"}}
    two = allow("start_*", name="two", validations=[{"expression": "args.n < 5"}, {"expression": "args.n > 1"}])
    set_ = compiled(policy(one, two), policy(allow(name="base"), cluster=True, name="base"))
    good = {"uri": "s3://exports/x", "n": 2}
    asked = call("start_export", good)
    assert set_.plan(asked, TOOLS).straight is not None
    decision = ask(set_, asked)
    assert decision.code == Code.ALLOWED
    assert [str(ref) for ref in decision.rules] == ["base:base", "agents/p:one", "agents/p:two"]
    assert len(decision.demands) == 1
    for change, code in (
        ({"n": 5}, Code.VALIDATION_FAILED),
        ({"n": 1}, Code.VALIDATION_FAILED),
        ({"n": "2"}, Code.EXPRESSION_ERROR),
        ({"uri": "s3://other/"}, Code.VALIDATION_FAILED),
    ):
        assert ask(set_, call("start_export", {**good, **change})).code == code


def test_a_failed_schema_tells_path_and_expected_and_never_the_value() -> None:
    schema = {"properties": {"uri": {"pattern": "^s3://exports/"}}, "required": ["uri"]}
    set_ = compiled(policy(allow("start_export", validations=[{"schema": schema}])))
    decision = ask(set_, call("start_export", {"uri": "SECRET" * 500}))
    assert decision.code == Code.SCHEMA_FAILED
    assert decision.details == {"path": "/uri", "expected": 'text that matches "^s3://exports/"'}
    assert "SECRET" not in decision.reason
    assert "/uri" in decision.reason
    assert ask(set_, call("start_export", {})).reason.endswith(
        'At the top level of the arguments, expected the property "uri", which is missing.'
    )


@pytest.mark.parametrize(
    "broken",
    [
        allow("start_export", when="args.missing > 1"),
        deny("start_export", when="args.missing > 1"),
        allow("start_export", validations=[{"expression": "args.missing > 1"}]),
        allow("start_export", rateLimit={"max": 5.0, "window": "1m", "cost": "args.missing"}),
    ],
)
def test_an_error_in_any_matching_rule_denies_and_names_the_cure(broken: dict[str, Any]) -> None:
    decision = ask(compiled(policy(allow(), broken)), call("start_export"))
    assert decision.code == Code.EXPRESSION_ERROR
    assert "args.missing" in decision.reason
    assert "has(args.x)" in decision.reason
    assert ask(compiled(policy(allow(), broken)), call("get_thing")).code == Code.ALLOWED
    audited = ask(compiled(policy(allow(), {**broken, "mode": "Audit"})), call("start_export"))
    assert audited.code == Code.ALLOWED
    assert [would.action for would in audited.would_deny] == [Action.DENY]


def test_a_clear_deny_is_told_before_an_error() -> None:
    decision = ask(compiled(policy(allow(when="args.x > 1"), deny("get_thing"))), call())
    assert decision.code == Code.DENIED_BY_RULE


def test_a_nul_in_the_arguments_denies_where_an_expression_reads_them() -> None:
    decision = ask(compiled(policy(EXPORT)), call("start_export", {"uri": "s3://exports/\0"}))
    assert decision.code == Code.EXPRESSION_ERROR
    assert "U+0000" in decision.reason
    assert ask(compiled(policy(allow())), call("start_export", {"uri": "\0"})).code == Code.ALLOWED


@pytest.mark.parametrize(
    "name", ["Start_export", "start export", "start_export ", "ｓtart_export", "a" * 129, "x\n", ""]
)
def test_unusual_names_pass_only_where_a_rule_names_them_exactly(name: str) -> None:
    asked = call(name)
    usual = name == "Start_export"
    for rules, default in (
        ([allow("start_export")], "Deny"),
        ([allow("*")], "Allow"),
        ([allow()], "Allow"),
        ([], "Allow"),
    ):
        decision = ask(compiled(policy(*rules, default=default)), asked)
        assert decision.action is Action.DENY or (usual and default == "Allow")
    if name and not usual:
        named = policy(allow(name), name="named")
        assert ask(compiled(named), asked).code == Code.ALLOWED
        assert ask(compiled(named, policy(allow())), asked).code == Code.ALLOWED
        assert ask(compiled(named, policy(allow(), cluster=True)), asked).code == Code.DENIED_BY_DEFAULT
        assert "exactly" in ask(compiled(policy(allow())), asked).reason


@pytest.mark.parametrize(
    "method", ["resources/read", "resources/subscribe", "prompts/get", "completion/complete", "x/unknown"]
)
def test_other_methods_match_by_method_and_the_empty_match_alone(method: str) -> None:
    asked = call(method=method)
    for match in ({"tools": ["*"]}, {"categories": ["Read"]}, {"risks": ["Low"]}, {"methods": ["tools/call"]}):
        assert verdict({"match": match, "action": "Allow"}, asked=asked) == Code.DENIED_BY_DEFAULT
        assert verdict({"match": match, "action": "Deny"}, asked=asked, default="Allow") == Code.ALLOWED
    for match in ({}, {"methods": [method]}, {"methods": ["x", f"{method[:3]}*"]}):
        assert verdict({"match": match, "action": "Allow"}, asked=asked) == Code.ALLOWED
    assert verdict({"match": {"methods": [method]}, "action": "Allow"}, asked=call()) == Code.DENIED_BY_DEFAULT
    assert f"method {method}" in ask(compiled(policy()), asked).reason


def test_a_tool_call_without_a_tool_is_never_allowed() -> None:
    nameless = call(None)
    assert nameless.method == "tools/call"
    for rule in (allow("get_thing"), allow("*"), allow(), {"match": {"methods": ["tools/call"]}, "action": "Allow"}):
        assert ask(compiled(policy(rule, default="Allow")), nameless).code == Code.DENIED_BY_DEFAULT


def test_a_match_of_tools_and_methods_is_both() -> None:
    both = {"match": {"tools": ["get_thing"], "methods": ["tools/call"]}, "action": "Allow"}
    assert verdict(both, asked=call()) == Code.ALLOWED
    neither = {"match": {"tools": ["get_thing"], "methods": ["prompts/get"]}, "action": "Allow"}
    assert verdict(neither, asked=call()) == Code.DENIED_BY_DEFAULT


BOT = Principal("sub-1", "ServiceAccount", True, ("nurses",), "agents/bot")


@pytest.mark.parametrize(
    ("principals", "code"),
    [
        ({"ids": ["sub-1"]}, Code.ALLOWED),
        ({"ids": ["other", "sub-1"]}, Code.ALLOWED),
        ({"ids": ["SUB-1"]}, Code.DENIED_BY_DEFAULT),
        ({"groups": ["doctors", "nurses"]}, Code.ALLOWED),
        ({"groups": ["doctors"]}, Code.DENIED_BY_DEFAULT),
        ({"serviceAccounts": ["agents/bot"]}, Code.ALLOWED),
        ({"serviceAccounts": ["other/bot"]}, Code.DENIED_BY_DEFAULT),
        ({"ids": ["other"], "groups": ["nurses"]}, Code.ALLOWED),
    ],
)
def test_principals(principals: dict[str, Any], code: str) -> None:
    rule = {"match": {"principals": principals}, "action": "Allow"}
    assert verdict(rule, asked=call(principal=BOT)) == code
    assert verdict(rule, asked=call(principal=Principal("nobody"))) == Code.DENIED_BY_DEFAULT


def test_a_claimed_credential_does_not_shake_off_a_deny_of_the_address() -> None:
    asked = call(principal=Principal("credential:1", "Credential"), identities=["credential:1", "10.0.0.1"])
    by_address = {"match": {"principals": {"ids": ["10.0.0.1"]}}}
    assert verdict({**by_address, "action": "Deny"}, asked=asked, default="Allow") == Code.DENIED_BY_RULE
    assert verdict({**by_address, "action": "Allow"}, asked=asked) == Code.DENIED_BY_DEFAULT


def test_when_decides_whether_a_rule_applies() -> None:
    hours = 'now.getHours("Europe/Zurich") >= 8 && now.getHours("Europe/Zurich") < 18'
    set_ = compiled(policy(allow("update_*", when=hours)))
    assert ask(set_, call("update_thing")).code == Code.ALLOWED
    assert ask(set_, call("update_thing", now=NOON + timedelta(hours=5))).code == Code.DENIED_BY_DEFAULT


# ---- the catalogue


def annotated(**annotations: bool) -> Tools:
    return Tools(ToolInfo("get_thing", None, annotations))


def test_annotations_raise_and_never_lower() -> None:
    set_ = compiled(policy(READ, NEVER_DELETE))
    assert ask(set_, call(), annotated(readOnlyHint=True)).code == Code.ALLOWED
    assert ask(set_, call(), annotated(destructiveHint=True)).code == Code.DENIED_BY_RULE
    assert ask(set_, call(), annotated(readOnlyHint=False)).code == Code.DENIED_BY_DEFAULT
    lowered = Tools(ToolInfo("delete_thing", None, {"readOnlyHint": True, "destructiveHint": False}))
    assert ask(set_, call("delete_thing"), lowered).code == Code.DENIED_BY_RULE


@pytest.mark.parametrize("known", [None, Tools()])
def test_an_unknown_tool_is_asked_for_only_where_it_matters(known: Tools | None) -> None:
    decision = ask(compiled(policy(READ)), call(), known)
    assert (decision.action, decision.code, decision.needs_catalogue) == (Action.DENY, Code.CATALOGUE_UNKNOWN, True)
    assert "does not list" in decision.reason
    named = ask(compiled(policy(allow("get_thing"))), call(), known)
    assert (named.code, named.needs_catalogue) == (Code.ALLOWED, False)
    assert ask(compiled(policy(READ, deny("get_thing"))), call(), known).code == Code.DENIED_BY_RULE
    assert ask(compiled(policy(NEVER_DELETE)), call("delete_thing"), known).code == Code.DENIED_BY_RULE
    overridden = policy(READ, categories={"get_thing": "Read"})
    assert ask(compiled(overridden), call(), known).code == Code.ALLOWED
    reads_category = policy(allow("get_thing", when='tool.category == "Read"'))
    assert ask(compiled(reads_category), call(), known).needs_catalogue
    audited = policy({**NEVER_DELETE, "mode": "Audit"}, allow("get_thing"))
    assert ask(compiled(audited), call(), known).code == Code.ALLOWED


def test_an_override_counts_for_its_policy_alone() -> None:
    own = policy(READ, name="own", categories={"run_thing": "Read"})
    other = policy({"match": {"categories": ["Execute"]}, "action": "Deny"}, name="other", default="Allow")
    assert ask(compiled(own), call("run_thing"), annotated()).code == Code.ALLOWED
    assert ask(compiled(own, other), call("run_thing")).code == Code.DENIED_BY_RULE
    sees = policy(
        allow("run_thing", when='tool.category == "Read" && tool.risk == "Low"'), categories={"run_thing": "Read"}
    )
    does_not = policy(allow("run_thing", when='tool.category == "Execute"'), name="q", default="Allow")
    decision = ask(compiled(sees, does_not), call("run_thing"))
    assert [str(ref) for ref in decision.rules] == ["agents/p:r1", "agents/q:r1"]


DECLARED = allow("start_export", arguments="Declared")


def test_declared_arguments_are_checked_against_the_servers_schema() -> None:
    set_ = compiled(policy(DECLARED))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = Tools(ToolInfo("start_export", schema))
    assert ask(set_, call("start_export", {"n": 1}), tools).code == Code.ALLOWED
    decision = ask(set_, call("start_export", {"n": "1"}), tools)
    assert decision.code == Code.SCHEMA_FAILED
    assert decision.details == {"path": "/n", "expected": 'type "integer"'}
    assert ask(set_, call("start_export", {"n": 1}), Tools()).needs_catalogue
    for unusable in (None, {"type": "nonsense"}, {"$ref": "https://example.com/x"}):
        refused = ask(set_, call("start_export", {"n": 1}), Tools(ToolInfo("start_export", unusable)))
        assert refused.code == Code.SCHEMA_FAILED
        assert "server's fault" in refused.reason


def test_another_refusal_is_told_before_an_unknown_catalogue() -> None:
    set_ = compiled(policy(DECLARED, {**EXPORT, "name": "z"}))
    decision = ask(set_, call("start_export", {"uri": "bad"}), None)
    assert (decision.code, decision.needs_catalogue) == (Code.VALIDATION_FAILED, False)


# ---- limits


def limited(per: str, **limit: Any) -> PolicySet:
    rate = {"max": 10, "window": "60s", "per": per, **limit}
    return compiled(policy(allow(rateLimit=rate), uid="u-1"))


@pytest.mark.parametrize(
    ("per", "asked", "buckets"),
    [
        ("Session", call(), {("session", "alice", "s1"): 10, ("principal", "alice"): 100}),
        ("Session", call(session=None), {("principal", "alice"): 10}),
        (
            "Session",
            call(principal="h", identities=["h", "addr"]),
            {("session", "h", "s1"): 10, ("principal", "h"): 100, ("principal", "addr"): 100},
        ),
        ("Principal", call(principal="h", identities=["h", "addr", "h"]), {("h",): 10, ("addr",): 10}),
        ("Principal", call(principal="h", identities=[]), {("h",): 10}),
        ("Tool", call("get_thing"), {("agents", "imaging", "get_thing"): 10}),
        ("Tool", call(method="prompts/get"), {("agents", "imaging", "prompts/get"): 10}),
        ("Server", call("get_thing"), {("agents", "imaging"): 10}),
    ],
)
def test_buckets(per: str, asked: Call, buckets: dict[tuple[str, ...], float]) -> None:
    demands = ask(limited(per), asked).demands
    assert {demand.bucket: demand.max for demand in demands} == {
        ("u-1", "r1", per, *key): n for key, n in buckets.items()
    }
    assert {(demand.window, demand.cost, demand.audit) for demand in demands} == {(60.0, 1.0, False)}
    assert ask(limited(per), asked).demands == demands  # the same in another process


def test_a_policy_without_uid_is_named_in_the_bucket() -> None:
    set_ = compiled(policy(allow(rateLimit={"max": 1, "window": 1, "per": "Server"})))
    assert ask(set_, call()).demands[0].bucket[:2] == ("ToolPolicy/agents/p", "r1")


def test_a_session_limit_has_its_own_principal_max() -> None:
    demands = ask(limited("Session", principalMax=15), call()).demands
    assert [demand.max for demand in demands] == [10, 15]


def test_sessions_opened_at_will_do_not_get_around_a_session_limit() -> None:
    set_, counters = limited("Session", max=2, principalMax=5), MemoryCounters()
    passed = 0
    for index in range(20):
        decision = ask(set_, call(session=f"s{index}"))
        passed += not isinstance(counters.reserve(decision.demands, 0.0), list)
    assert passed == 5


def test_a_spend_limit_sums_the_cost() -> None:
    set_, counters = limited("Principal", max=100.0, cost="double(args.amount)"), MemoryCounters()

    def pay(amount: Any) -> Decision:
        decision = decide(set_, call("pay", {"amount": amount}), TOOLS, counters, 0.0)
        if decision.action is Action.ALLOW:
            assert not isinstance(counters.reserve(decision.demands, 0.0), list)
        return decision

    assert pay(60).code == Code.ALLOWED
    refused = pay(41)
    assert (refused.code, refused.retry_after) == (Code.RATE_LIMITED, 60.0)
    assert pay("40").code == Code.ALLOWED
    never = pay(101)
    assert (never.code, never.retry_after) == (Code.RATE_LIMITED, None)
    assert "this call alone costs 101" in never.reason
    for bad in (-1, "NaN", "x", None, 2**70):
        assert pay(bad).code == Code.EXPRESSION_ERROR


def test_a_used_up_limit_tells_when_to_retry() -> None:
    set_, counters = limited("Session"), MemoryCounters()
    for _ in range(10):
        counters.reserve(ask(set_, call()).demands, 0.0)
    decision = decide(set_, call(), TOOLS, counters, 25.5)
    assert decision.action is Action.DENY
    assert decision.code == Code.RATE_LIMITED
    assert decision.retry_after == 34.5
    assert decision.demands == ()
    assert decision.reason == (
        "The tool get_thing is refused by rule agents/p:r1: the limit of 10 in 1m for a session is used up. "
        "Retry in 35 seconds."
    )
    assert decision.details == {"limit": {"max": 10, "window": "1m", "per": "Session"}, "retryAfterSeconds": 35}
    assert decide(set_, call(session="other"), TOOLS, counters, 25.5).code == Code.ALLOWED


@pytest.mark.parametrize("per", ["Session", "Principal"])
def test_the_demands_of_another_caller_are_its_own(per: str) -> None:
    set_ = limited(per)
    callers = [
        (f"p{p}", session, address) for p in range(9) for session in ("s1", "s2", None) for address in ("a", "b")
    ]
    for _ in range(2):  # the second time from the cache
        for principal, session, address in callers:
            asked = call(principal=principal, session=session, identities=[principal, address])
            fresh = ask(limited(per), asked).demands
            assert ask(set_, asked).demands == fresh
            assert {demand.bucket[-1] for demand in fresh} >= {principal, address}


def test_more_sessions_than_are_remembered() -> None:
    set_ = limited("Session")
    seen = {ask(set_, call(session=f"s{i}")).demands[0].bucket for i in range(3000)}
    assert len(seen) == 3000


# ---- approvals


APPROVAL = {
    **allow("start_export"),
    "action": "RequireApproval",
    "approval": {"ttl": "5m"},
    "reason": "exports leave us",
}


def test_an_approval_is_asked_for_last() -> None:
    decision = ask(compiled(policy(APPROVAL, allow())), call("start_export"))
    assert (decision.action, decision.code, decision.approval_ttl) == (
        Action.REQUIRE_APPROVAL,
        Code.APPROVAL_REQUIRED,
        300.0,
    )
    assert "exports leave us" in decision.reason
    denied = without_approvals(call("start_export"), decision)
    assert (denied.action, denied.code) == (Action.DENY, Code.APPROVAL_UNAVAILABLE)
    assert "approval is not available here" in denied.reason
    assert ask(compiled(policy(APPROVAL, deny("start_export"))), call("start_export")).code == Code.DENIED_BY_RULE
    allowed = ask(compiled(policy(allow())), call())
    assert without_approvals(call(), allowed) is allowed


def test_a_limit_is_refused_before_an_approval_is_asked() -> None:
    set_, counters = compiled(policy({**APPROVAL, "rateLimit": {"max": 1, "window": 60}})), MemoryCounters()
    counters.reserve(ask(set_, call("start_export")).demands, 0.0)
    assert decide(set_, call("start_export"), TOOLS, counters, 1.0).code == Code.RATE_LIMITED


# ---- audit


def test_audited_rules_keep_their_grant_and_record_the_rest() -> None:
    rate = {"rateLimit": {"max": 1, "window": 60, "per": "Principal"}}
    audited = {**EXPORT, **rate, "action": "RequireApproval", "mode": "Audit"}
    set_, counters = compiled(policy(audited, deny("start_export", mode="Audit"))), MemoryCounters()
    decision = ask(set_, call("start_export", {"uri": "s3://exports/x"}))
    assert decision.action is Action.ALLOW
    assert [(str(w.rule), w.action) for w in decision.would_deny] == [
        ("agents/p:r2", Action.DENY),
        ("agents/p:r1", Action.REQUIRE_APPROVAL),
    ]
    assert [demand.bucket[0] for demand in decision.demands] == ["Audit"]
    assert all(demand.audit for demand in decision.demands)
    counters.reserve(decision.demands, 0.0)
    later = decide(set_, call("start_export", {"uri": "s3://exports/x"}), TOOLS, counters, 1.0)
    assert later.action is Action.ALLOW
    assert "used up" in later.would_deny[-1].reason
    invalid = ask(set_, call("start_export", {"uri": "s3://evil"}))
    assert invalid.action is Action.ALLOW
    assert any("exports bucket" in would.reason for would in invalid.would_deny)


def test_an_audit_policy_records_its_default_where_it_would_decide() -> None:
    assert ask(compiled(policy(allow("x"), mode="Audit")), call()).would_deny[0].reason.startswith("The tool get_thing")
    open_ = policy(name="open", default="Allow")
    assert ask(compiled(open_, policy(name="audit", mode="Audit")), call()).would_deny
    granting = policy(allow(), name="open")
    assert not ask(compiled(granting, policy(name="audit", mode="Audit")), call()).would_deny


def test_shortages_of_audited_limits_are_recorded_once_and_deny_nothing() -> None:
    set_ = compiled(policy(allow()), policy(allow(rateLimit={"max": 1, "window": 9}), name="q", mode="Audit"))
    counters, asked = MemoryCounters(), call()
    decision = ask(set_, asked)
    counters.reserve(decision.demands, 0.0)
    concluded = conclude(set_, asked, decision, counters.shortages(decision.demands, 1.0))
    assert concluded.action is Action.ALLOW
    assert [str(would.rule) for would in concluded.would_deny] == ["agents/q:r1"]
    assert conclude(set_, asked, decision, []) is decision


# ---- tools/list


@pytest.mark.parametrize(
    ("rules", "shown"),
    [
        ([allow("get_thing")], True),
        ([allow("other")], False),
        ([allow("get_thing", when="args.n > 1")], True),
        ([allow("get_thing", when='principal.id == "bob"')], False),
        ([allow("get_thing", when="principal.claims.missing == 1")], False),
        ([allow(), deny("get_thing")], False),
        ([allow(), deny("get_thing", when="args.n > 1")], True),
        ([allow(), deny("get_thing", when="args.n > 1", hide=True)], False),
        ([allow(), deny("get_thing", when='principal.id == "bob"', hide=True)], True),
        ([allow(), deny("get_thing", mode="Audit", hide=True)], True),
        ([allow(validations=[{"expression": 'principal.id == "bob"'}])], False),
        ([allow(validations=[{"expression": 'args.x == "bob"'}])], True),
        ([allow(validations=[{"schema": {"required": ["x"]}}])], True),
        ([allow(validations=[{"expression": 'principal.id == "bob"'}], mode="Audit")], True),
        ([allow(), deny(when="now.getHours() >= 12")], False),
        ([allow(rateLimit={"max": 1, "window": 60})], True),
        ([{**allow(), "action": "RequireApproval"}], True),
        ([READ], True),
        ([{"match": {"methods": ["tools/list"]}, "action": "Allow"}], False),
    ],
)
def test_what_a_list_shows(rules: list[dict[str, Any]], shown: bool) -> None:
    assert visible(compiled(policy(*rules)), call(None, method="tools/list"), "get_thing", TOOLS) is shown


def test_lists_without_policy_or_catalogue() -> None:
    assert visible(compiled(), call(), "odd name", None)
    assert visible(compiled(policy(mode="Audit")), call(), "odd name", None)
    assert not visible(compiled(policy(allow())), call(), "odd name", TOOLS)
    assert visible(compiled(policy(allow("odd name"))), call(), "odd name", TOOLS)
    assert not visible(compiled(policy(READ)), call(), "get_unlisted", Tools())
    assert visible(compiled(policy(allow("get_unlisted"))), call(), "get_unlisted", Tools())


def test_the_next_boundary_is_the_next_minute_where_time_is_read() -> None:
    assert next_boundary(compiled(policy(allow())), NOON) is None
    timed = compiled(policy(allow(when="now.getHours() > 1")))
    assert next_boundary(timed, NOON + timedelta(seconds=12.5)) == NOON.timestamp() + 60


def test_risks_match_and_are_reported() -> None:
    decision = ask(compiled(policy({"match": {"risks": ["Low"]}, "action": "Allow"})), call())
    assert (decision.code, decision.risk) == (Code.ALLOWED, Risk.LOW)


def test_hostile_names_are_shown_harmlessly() -> None:
    decision = ask(compiled(policy()), call("x\u202e\n<script>" + "y" * 500))
    assert decision.reason.isprintable()
    assert len(decision.reason) < 500
