"""The reports that the writer keeps: the last of each pod, for one term, in bounded memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolpolicy_operator.control.report import parse_report
from toolpolicy_operator.control.reports import Reports

POD = {"namespace": "agents", "name": "mcp-0", "uid": "uid-0"}
REPORT: dict[str, Any] = {"pod": POD, "version": "0.1.0", "revision": "1-7", "epoch": 1}


def report(pod: str, tools: int = 0, **said: Any) -> Any:
    listed = [{"name": f"t{n}", "category": "Read", "risk": "Low"} for n in range(tools)]
    body = {**REPORT, "pod": {**POD, "name": pod, "uid": f"uid-{pod}"}, "tools": listed, **said}
    return parse_report(json.dumps(body).encode())


def test_a_listener_hears_what_is_new_and_not_that_a_call_was_audited() -> None:
    heard: list[str | None] = []
    reports = Reports()
    reports.subscribe(lambda r: heard.append(r.revision))
    changes: list[dict[str, Any]] = [{}, {}, {"audit": {"head": "5:ab"}}, {"revision": "1-8"}, {"problems": ["x"]}]
    for said in changes:
        reports.put(report("a", **said))
    assert heard == ["1-7", "1-8", "1-7"]


def test_a_new_term_begins_with_no_reports() -> None:
    now = [100.0]
    reports = Reports(lambda: now[0])
    reports.put(report("a", 3))
    since = reports.known_since("policy", 4)
    now[0] = 200.0
    assert reports.known_since("policy", 4) == since == 100.0
    assert reports.known_since("policy", 5) == 200.0
    reports.begin()
    assert (len(reports), reports.held_since) == (0, 200.0)
    assert reports.known_since("policy", 5) == 200.0


def test_the_tools_of_a_workload_are_kept_once_and_forgotten_with_its_last_pod() -> None:
    reports = Reports()
    for pod in ("a", "b", "a"):
        reports.put(report(pod, 50))
    kept = {id(r.report.tools) for r in reports}
    assert len(kept) == 1
    assert reports._tools == 50  # pyright: ignore[reportPrivateUsage]
    reports.put(report("a", 2))
    reports.forget("uid-b")
    assert reports._tools == 2  # pyright: ignore[reportPrivateUsage]
    reports.prune((), ())
    assert (reports._tools, len(reports)) == (0, 0)  # pyright: ignore[reportPrivateUsage]


def test_catalogues_beyond_the_cap_are_left_out_and_the_report_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolpolicy_operator.control.reports.MAX_TOOLS", 100)
    reports = Reports()
    reports.put(report("a", 90))
    reports.put(report("b", 91))
    second = reports.get("uid-b")
    assert second is not None
    assert (second.report.tools, second.report.revision) == ((), "1-7")
