"""What Prometheus is told, and that no caller decides how much that is."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from toolpolicy.policy.model import Action
from toolpolicy.policy.types import Code, Decision, RuleRef, WouldDeny
from toolpolicy.sidecar.metrics import Metrics

ALLOW = Decision(Action.ALLOW, Code.ALLOWED)
DENY = Decision(Action.DENY, Code.DENIED_BY_RULE)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    families = text_string_to_metric_families(body.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((f"toolpolicy_{name}", tuple(sorted(labels.items()))))


def test_decisions_are_counted_by_method_action_and_code() -> None:
    metrics = Metrics()
    for decision in (ALLOW, ALLOW, DENY):
        metrics.decided("tools/call", "search", decision)
    assert value(metrics, "decisions_total", method="tools/call", action="Allow", code="Allowed") == 2
    assert value(metrics, "decisions_total", method="tools/call", action="Deny", code="DeniedByRule") == 1


def test_no_caller_makes_a_label_of_its_own() -> None:
    metrics = Metrics(max_tools=3)
    metrics.follow({"a", "b", "c", "d"}.__contains__)
    before = len(samples(metrics))
    for n in range(1000):
        metrics.decided(f"method/{n}", f"tool-{n}", DENY)
    assert len(samples(metrics)) == before + 2
    assert value(metrics, "decisions_total", method="other", action="Deny", code="DeniedByRule") == 1000
    assert value(metrics, "tool_decisions_total", tool="other", action="Deny") == 1000
    for tool in "abcd":
        metrics.decided("tools/call", tool, ALLOW)
    assert [value(metrics, "tool_decisions_total", tool=t, action="Allow") for t in ("a", "c", "d", "other")] == [
        1,
        1,
        None,
        1,
    ]


def test_a_name_that_is_too_long_gets_no_label() -> None:
    metrics = Metrics()
    metrics.follow({"x" * 129}.__contains__)
    metrics.decided("tools/call", "x" * 129, ALLOW)
    assert value(metrics, "tool_decisions_total", tool="other", action="Allow") == 1


def test_hostile_tool_names_of_the_server_do_not_break_the_exposition() -> None:
    metrics = Metrics()
    name = 'a"b\\c\nd{}'
    metrics.follow({name}.__contains__)
    metrics.decided("tools/call", name, ALLOW)
    assert value(metrics, "tool_decisions_total", tool=name, action="Allow") == 1


def test_what_audit_rules_would_have_denied_is_counted_by_rule() -> None:
    metrics = Metrics()
    rule = RuleRef("ToolPolicy", "agents", "imaging", "night")
    would = (
        WouldDeny(rule, Action.DENY, "night"),
        WouldDeny(RuleRef("ClusterToolPolicy", None, "base", None), Action.DENY, ""),
    )
    metrics.decided("tools/call", "x", Decision(Action.ALLOW, Code.ALLOWED, would_deny=would))
    assert value(metrics, "would_deny_total", policy="agents/imaging", rule="night", action="Deny") == 1
    assert value(metrics, "would_deny_total", policy="base", rule="", action="Deny") == 1


def test_histograms_are_cumulative_and_hold_their_sum() -> None:
    metrics = Metrics()
    for seconds in (0.00001, 0.00002, 99.0):
        metrics.decision_seconds.observe(seconds)
    assert value(metrics, "decision_seconds_bucket", le="1e-05") == 1
    assert value(metrics, "decision_seconds_bucket", le="2.5e-05") == 2
    assert value(metrics, "decision_seconds_bucket", le="0.1") == 2
    assert value(metrics, "decision_seconds_bucket", le="+Inf") == 3
    assert value(metrics, "decision_seconds_count") == 3
    assert value(metrics, "decision_seconds_sum") == pytest.approx(99.00003)


def test_gauges_are_read_when_somebody_asks() -> None:
    metrics = Metrics()
    now = [1]
    metrics.gauge("sessions", "Sessions.", lambda: now[0])
    assert value(metrics, "sessions") == 1
    now[0] = 5
    assert value(metrics, "sessions") == 5


def test_other_failures_are_counted() -> None:
    metrics = Metrics()
    metrics.refused("body")
    metrics.upstream_error("connect")
    metrics.answered(200)
    assert value(metrics, "refused_requests_total", reason="body") == 1
    assert value(metrics, "upstream_errors_total", kind="connect") == 1
    assert value(metrics, "requests_total", status="200") == 1


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    metrics = Metrics()
    metrics.decided("tools/call", "x", ALLOW)
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_two_instances_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.decided("tools/call", "x", ALLOW)
    assert value(two, "decisions_total", method="tools/call", action="Allow", code="Allowed") is None
