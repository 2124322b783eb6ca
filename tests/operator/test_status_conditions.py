"""A policy's status as a table: what is known of its pods, and what the conditions then say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from toolpolicy.policy.status import Status
from toolpolicy_operator import names
from toolpolicy_operator.control.report import Report, parse_report
from toolpolicy_operator.control.reports import Received
from toolpolicy_operator.records import Kind, PodRecord, PolicyRecord, pod_record, policy_record
from toolpolicy_operator.standing import ARRIVAL, STALE, Situation
from toolpolicy_operator.status import TAKEOVER, Assessment, assess
from toolpolicy_operator.verdicts import Reason

ROOT = Path(__file__).parents[2]
NOW = 10_000.0
LONG_AGO = NOW - 3600
GENERATION = 4


def policy(
    kind: Kind = Kind.TOOL_POLICY, rules: Sequence[dict[str, Any]] = (), status: Any = None, **spec: Any
) -> PolicyRecord:
    meta: dict[str, Any] = {"name": "imaging", "uid": "uid-imaging", "generation": GENERATION, "resourceVersion": "9"}
    if kind is Kind.TOOL_POLICY:
        meta["namespace"] = "agents"
    one = {"name": "one", "match": {"tools": ["search"]}, "action": "Allow"}
    spec = {"selector": {}, "rules": list(rules) or [one], **spec}
    return policy_record(kind, {"metadata": meta, "spec": spec, "status": status})


def limited(per: str) -> dict[str, Any]:
    return {"name": "few", "action": "Allow", "rateLimit": {"max": 5, "window": "60s", "per": per}}


def pod(name: str, namespace: str = "agents", phase: str = "Running", owner: str = "rs-1", **changes: Any) -> PodRecord:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{name}",
        "resourceVersion": "5",
        "ownerReferences": [{"kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}],
        "annotations": changes.get("annotations", {}),
        "labels": changes.get("labels", {}),
        **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if changes.get("deleting") else {}),
    }
    containers = [{"name": names.SIDECAR_CONTAINER}] if changes.get("injected", True) else []
    return pod_record({"metadata": metadata, "spec": {"initContainers": containers}, "status": {"phase": phase}})


def serving(ports: str, interception: str = "Redirect") -> dict[str, str]:
    return {names.SERVERS_ANNOTATION: ports, names.INTERCEPTION_ANNOTATION: interception}


def bare(name: str, **changes: Any) -> PodRecord:
    return pod(name, injected=False, **changes)


def report(name: str, generation: int | None = GENERATION, namespace: str = "agents", **said: Any) -> Report:
    loaded = {"kind": "ToolPolicy", "namespace": "agents", "name": "imaging", "uid": "uid-imaging"}
    body = {
        "pod": {"namespace": namespace, "name": name, "uid": f"uid-{name}"},
        "version": "0.1.0",
        "revision": "1-7",
        "policies": [] if generation is None else [{**loaded, "generation": generation}],
        **said,
    }
    return parse_report(json.dumps(body).encode())


def heard(*reports: Report, at: float = NOW - 5) -> dict[str, Received]:
    return {r.pod.uid: Received(r, at) for r in reports}


def situation(
    pods: Sequence[PodRecord] = (),
    reports: dict[str, Received] | None = None,
    of: PolicyRecord | None = None,
    **changes: Any,
) -> Situation:
    values: dict[str, Any] = {
        "policy": of or policy(),
        "pods": pods,
        "reports": reports or {},
        "enabled": {"agents": True, "tools": True},
        "held_since": LONG_AGO,
        "known_since": LONG_AGO,
        "now": NOW,
        "at": "2026-11-22T20:00:00Z",
    }
    return Situation(**{**values, **changes})


def enforced(found: Assessment | Status) -> tuple[str, str, str]:
    status = found.status if isinstance(found, Assessment) else found
    condition = next(c for c in status.conditions if c.type == "Enforced")
    return condition.status, condition.reason, condition.message


BASELINE = policy(Kind.CLUSTER_TOOL_POLICY)
BASELINE_LOADED: dict[str, Any] = {
    "policies": [{"kind": "ClusterToolPolicy", "name": "imaging", "uid": "uid-imaging", "generation": 4}]
}


@dataclass(frozen=True)
class Case:
    id: str
    given: Situation
    status: str
    reason: str
    says: Sequence[str] = ()
    counts: tuple[int, int, int, int] | None = None
    """Selected, injected, current, opted out."""
    restart: Sequence[str] = field(default=())


OTHER_UID: dict[str, Any] = {
    "policies": [{"kind": "ToolPolicy", "namespace": "agents", "name": "imaging", "uid": "x", "generation": 4}]
}
LISTENS: dict[str, Any] = {"listeners": [{"address": "0.0.0.0", "port": 9090}, {"address": "fd00::1", "port": 22}]}
FEW = policy(rules=[limited("Server")])
TWO = (pod("a"), pod("b"))
BOTH = heard(report("a"), report("b"))
CASES = [
    Case("no pods", situation(), "Unknown", "NoMatchingPods", ["first"], (0, 0, 0, 0)),
    Case(
        "pods that do not run are no pods",
        situation([pod("a", phase="Pending"), pod("b", phase="Succeeded"), pod("c", deleting=True)]),
        "Unknown", "NoMatchingPods", [], (0, 0, 0, 0),
    ),
    Case("all reported", situation(TWO, BOTH), "True", "Programmed", ["generation 4", "2 pods"], (2, 2, 2, 0)),
    Case(
        "one silent", situation(TWO, heard(report("a"))),
        "Unknown", "WaitingForReports", ["1 of 2", " b"], (2, 2, 1, 0),
    ),
    Case(
        "a report gone stale", situation(TWO, {**BOTH, "uid-b": Received(report("b"), NOW - STALE - 1)}),
        "Unknown", "WaitingForReports", [" b"], (2, 2, 1, 0),
    ),
    Case(
        "reports from before the edit",
        situation(TWO, heard(report("a", 3), report("b", 3), at=NOW - 20), known_since=NOW - 10),
        "Unknown", "WaitingForReports", ["generation 4"], (2, 2, 0, 0),
    ),
    Case(
        "an old generation in the moment of the edit",
        situation([pod("a")], heard(report("a", 3), at=NOW - 1), known_since=NOW - ARRIVAL),
        "Unknown", "WaitingForReports", [], (1, 1, 0, 0),
    ),
    Case(
        "an old generation long after the edit",
        situation(TWO, heard(report("a"), report("b", 3), at=NOW - 1), known_since=NOW - ARRIVAL - 5),
        "False", "PartiallyEnforced", ["1 of 2", "b did not load generation 4"], (2, 2, 1, 0),
    ),
    Case(
        "a policy of the same name that is another", situation([pod("a")], heard(report("a", **OTHER_UID))),
        "False", "PartiallyEnforced", ["a did not load"], (1, 1, 0, 0),
    ),
    Case(
        "nothing loaded", situation([pod("a")], heard(report("a", None))),
        "False", "PartiallyEnforced", ["0 of 1 pod"], (1, 1, 0, 0),
    ),
    Case(
        "rules refused, although this generation is in force",
        situation(TWO, heard(report("a"), report("b", problems=["epoch 1 is lower than 3\x1b[2J"]))),
        "False", "PartiallyEnforced", ["b refused the newest rules", "epoch 1 is lower than 3 [2J"], (2, 2, 1, 0),
    ),
    Case(
        "rules refused before the edit that mends them",
        situation([pod("a")], heard(report("a", 3, problems=["bad"])), known_since=NOW - 1),
        "Unknown", "WaitingForReports", [], (1, 1, 0, 0),
    ),
    Case(
        "a pod older than the policy", situation([pod("a"), bare("b")], BOTH),
        "False", "PartiallyEnforced", ["b run without a sidecar: restart"], (2, 1, 1, 0), ["b"],
    ),
    Case(
        "a port that only one of the pods was admitted for",
        situation(
            [pod("a", annotations=serving("8000")), pod("b", annotations=serving("8000,9000"))], BOTH,
            policy(server={"port": 9000}),
        ),
        "False", "PartiallyEnforced", ["1 of 2", ": a do not intercept port 9000", "restart them"], (2, 2, 1, 0), ["a"],
    ),
    Case(
        "a port of which no pod's admission says anything", situation([pod("a")], BOTH, policy(server={"port": 9000})),
        "False", "PartiallyEnforced", ["port 9000"], (1, 1, 0, 0), ["a"],
    ),
    Case(
        "a port that all were admitted for",
        situation([pod("a", annotations=serving("8000"))], BOTH, policy(server={"port": 8000})), "True", "Programmed",
    ),
    Case(
        "redirection is asked of a pod whose port's name was taken over",
        situation([pod("a", annotations=serving("8000", "Port"))], BOTH, policy(interception="Redirect")),
        "False", "PartiallyEnforced", ["interception: Redirect"], (1, 1, 0, 0), ["a"],
    ),
    Case(
        "redirected, where the name alone would do",
        situation([pod("a", annotations=serving("8000"))], BOTH, policy(interception="Port")), "True", "Programmed",
    ),
    Case(
        "a pod that can't be protected",
        situation([pod("a"), bare("b", annotations={names.INELIGIBLE_ANNOTATION: "HostNetwork"})], BOTH),
        "False", "PartiallyEnforced", ["b can't be protected: HostNetwork"], (2, 1, 1, 0),
    ),
    Case(
        "a pod let in without protection that has a container of the sidecar's name, and reports",
        situation([pod("a"), pod("b", annotations={names.INELIGIBLE_ANNOTATION: "NameTaken"})], BOTH),
        "False", "PartiallyEnforced", ["b can't be protected: NameTaken"], (2, 1, 1, 0),
    ),
    Case(
        "a pod opted out beside one that did not",
        situation([pod("a"), bare("b", labels={names.INJECTION_LABEL: names.DISABLED})], BOTH),
        "True", "Programmed", ["1 pod;", "1 pod opted out: b"], (2, 1, 1, 1),
    ),
    Case(
        "all opted out", situation([bare("b", labels={names.INJECTION_LABEL: names.DISABLED})]),
        "False", "OptedOut", [" b"], (1, 0, 0, 1),
    ),
    Case(
        "a listener beside the sidecar", situation(TWO, heard(report("a"), report("b", **LISTENS))),
        "False", "BypassPossible", ["b also listens on 0.0.0.0:9090", "[fd00::1]:22", "2 of 2"], (2, 2, 2, 0),
    ),
    Case(
        "a way round outside the pod", situation([pod("a")], heard(report("a")), bypasses=["Service x targets 8000"]),
        "False", "BypassPossible", ["Service x targets 8000"],
    ),
    Case(
        "a finding outweighs a way round", situation([pod("a"), bare("b")], heard(report("a", **LISTENS))),
        "False", "PartiallyEnforced", [], None, ["b"],
    ),
    Case(
        "the namespace is not enabled", situation([bare("a")], enabled={"agents": False}),
        "False", "NamespaceNotEnabled",
        ["kubectl label namespace agents toolpolicy.dev/injection=enabled"], (1, 0, 0, 0),
    ),
    Case(
        "not enabled, no pods", situation(enabled={"agents": False}),
        "False", "NamespaceNotEnabled", ["kubectl label namespace agents"], (0, 0, 0, 0),
    ),
    Case(
        "enabled no more, pods still enforce", situation(TWO, BOTH, enabled={"agents": False}),
        "False", "NamespaceNotEnabled", ["in force in 2 of 2 pods"], (2, 2, 2, 0),
    ),
    Case(
        "limits per principal, two pods", situation(TWO, BOTH, policy(rules=[limited("Principal")])),
        "True", "LimitsPerPod", ["2 times"], (2, 2, 2, 0),
    ),
    Case(
        "limits with shared state",
        situation(TWO, heard(report("a", state="redis"), report("b", state="redis")), FEW),
        "True", "Programmed",
    ),
    Case("limits, one pod", situation(TWO[:1], BOTH, policy(rules=[limited("Session")])), "True", "Programmed"),
    Case(
        "limits per server, a pod of each of two", situation(
            [pod("a", owner="x"), pod("b", owner="y")], BOTH, policy(rules=[limited("Server")])
        ), "True", "Programmed",
    ),
    Case(
        "limits per server, two pods of one", situation(TWO, BOTH, policy(rules=[limited("Server")])),
        "True", "LimitsPerPod",
    ),
    Case(
        "in Audit", situation(TWO, BOTH, policy(mode="Audit")), "True", "Programmed", ["Audit: nothing is denied"],
    ),
    Case(
        "a baseline counts enabled namespaces alone",
        situation(
            [pod("a", "tools"), bare("z", namespace="plain")],
            heard(report("a", namespace="tools", **BASELINE_LOADED)), BASELINE, enabled={"tools": True, "plain": False},
        ),
        "True", "Programmed", [], (1, 1, 1, 0),
    ),
    Case(
        "a baseline names pods with their namespace",
        situation([bare("b", namespace="tools")], {}, BASELINE),
        "False", "PartiallyEnforced", ["tools/b run without"], (1, 0, 0, 0), ["tools/b"],
    ),
    Case(
        "a baseline whose pods are all in namespaces that are not enabled",
        situation([bare("z", namespace="plain")], {}, BASELINE, enabled={"plain": False}),
        "False", "NamespaceNotEnabled", ["kubectl label namespace plain"], (0, 0, 0, 0),
    ),
    Case(
        "rules that do not fit", situation([pod("a")], heard(report("a")), too_large="907 KiB of 900"),
        "False", "PartiallyEnforced", ["907 KiB of 900"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_enforced(case: Case) -> None:
    status = assess(case.given).status
    condition, reason, message = enforced(status)
    assert (condition, reason) == (case.status, case.reason), message
    assert not [text for text in case.says if text not in message], message
    assert status.pods is not None
    counts = (status.pods.selected, status.pods.injected, status.pods.current, status.pods.opted_out)
    assert case.counts is None or counts == case.counts
    assert list(status.pods_needing_restart) == list(case.restart)
    assert all(c.observed_generation == GENERATION for c in status.conditions)
    assert Status.model_validate(status.model_dump(by_alias=True, mode="json")) == status


def test_an_invalid_policy_is_neither_accepted_nor_enforced_and_its_problems_are_shown() -> None:
    status = assess(situation(TWO, BOTH, policy(rules=[{"name": "x", "match": {}, "action": "Perhaps"}]))).status
    accepted = status.conditions[0]
    assert (accepted.type, accepted.status, accepted.reason) == ("Accepted", "False", "Invalid")
    assert "spec.rules[0].action" in accepted.message
    assert enforced(status)[:2] == ("False", "Invalid")


def test_a_valid_policy_is_accepted() -> None:
    accepted = assess(situation()).status.conditions[0]
    assert (accepted.type, accepted.status, accepted.reason) == ("Accepted", "True", "Accepted")


def as_stored(found: Assessment) -> dict[str, Any]:
    return found.status.model_dump(by_alias=True, mode="json")


BEFORE: dict[str, Any] = as_stored(assess(situation(TWO, BOTH)))


def taken_over(
    seconds_ago: float, pods: Sequence[PodRecord] = TWO, heard_of: Any = None, before: Any = None
) -> Situation:
    since = NOW - seconds_ago
    of = policy(status=BEFORE if before is None else before)
    return situation(pods, heard_of or {}, of, held_since=since, known_since=since, at="2026-11-22T21:00:00Z")


def test_after_a_takeover_the_stored_status_stands_until_sidecars_have_reported() -> None:
    found = assess(taken_over(1.0))
    assert as_stored(found) == BEFORE
    assert found.again == TAKEOVER - 1.0


def test_a_takeover_that_sidecars_do_not_answer_ends_in_unknown() -> None:
    found = assess(taken_over(TAKEOVER + 1))
    assert enforced(found)[:2] == ("Unknown", "WaitingForReports")


def test_a_stored_status_of_another_generation_does_not_stand() -> None:
    old = json.loads(json.dumps(BEFORE).replace('"observedGeneration": 4', '"observedGeneration": 3'))
    assert enforced(assess(taken_over(1.0, before=old)))[:2] == ("Unknown", "WaitingForReports")


def test_a_stored_status_does_not_stand_for_a_pod_that_came_since() -> None:
    assert enforced(assess(taken_over(1.0, [*TWO, pod("c")])))[:2] == ("Unknown", "WaitingForReports")


def test_a_stored_unknown_does_not_stand_in_the_way_of_what_is_heard() -> None:
    unknown = as_stored(assess(situation(TWO)))
    found = assess(taken_over(1.0, TWO, heard(report("a"), at=NOW), unknown)).status
    assert found.pods is not None
    assert found.pods.current == 1


def test_a_finding_after_a_takeover_does_not_wait() -> None:
    assert enforced(assess(taken_over(1.0, [TWO[0], bare("b")])))[:2] == ("False", "PartiallyEnforced")


@pytest.mark.parametrize("seconds", [0.0, 1.0, TAKEOVER - 1, TAKEOVER + 1, STALE * 3])
@pytest.mark.parametrize("reported", [(), ("a",), ("b",)])
@pytest.mark.parametrize("before", [None, BEFORE])
def test_never_false_for_want_of_a_report(seconds: float, reported: Sequence[str], before: Any) -> None:
    at = NOW - seconds / 2
    of = policy(status=before or {})
    known = heard(*(report(name) for name in reported), at=at)
    found = assess(situation(TWO, known, of, held_since=NOW - seconds, known_since=NOW - seconds))
    assert enforced(found)[0] in ("True", "Unknown")


def test_true_only_when_every_pod_has_reported() -> None:
    """Whatever one pod lacks, and whatever the others say."""
    lacking = [{}, heard(report("b", 3)), heard(report("b", problems=["x"])), heard(report("b", None))]
    for wrong in lacking:
        found = assess(situation(TWO, {**heard(report("a")), **wrong}))
        assert enforced(found)[0] != "True"


def test_the_time_of_a_condition_is_that_of_its_last_change() -> None:
    first = assess(situation(TWO, BOTH))
    later = replace(situation(TWO, BOTH, policy(status=as_stored(first))), at="2026-11-22T22:00:00Z")
    assert as_stored(assess(later)) == as_stored(first)
    lost = assess(replace(later, pods=[*TWO, bare("c")]))
    times = {c.type: c.last_transition_time for c in lost.status.conditions}
    assert times == {"Accepted": "2026-11-22T20:00:00Z", "Enforced": "2026-11-22T22:00:00Z"}


@pytest.mark.parametrize(
    "junk", [{"conditions": 5}, {"conditions": [{"type": "Enforced"}]}, {"pods": {"selected": -1}}]
)
def test_a_status_that_someone_else_wrote_is_written_over(junk: dict[str, Any]) -> None:
    assert enforced(assess(situation(TWO, BOTH, policy(status=junk))))[0] == "True"


def test_a_status_is_looked_at_again_before_a_report_goes_stale() -> None:
    assert assess(situation(TWO, BOTH)).again == STALE - 5 + 1
    waiting = assess(situation(TWO, heard(report("a", 3), at=NOW - 1), known_since=NOW - 2)).again
    assert waiting is not None and waiting <= 60


def test_a_hundred_pods_are_counted_and_few_are_named() -> None:
    pods = [bare(f"p-{n:03}") for n in range(150)]
    status = assess(situation(pods)).status
    assert len(status.pods_needing_restart) == 100
    assert "p-000, p-001, p-002, p-003, p-004 and 145 more" in enforced(status)[2]


def test_every_reason_is_explained() -> None:
    page = (ROOT / "docs" / "reference" / "conditions.md").read_text()
    assert not [reason for reason in Reason if f"| `{reason.value}` |" not in page]
