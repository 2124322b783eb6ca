"""What a policy's ``status`` says: a pure function of the policy, its pods, and what their sidecars reported.

Enforced is True only when every running pod that the policy selects has *reported* this generation. False is a finding,
never the want of one: a pod that has said nothing, or nothing since the edit, makes Enforced Unknown. After a takeover
the new writer has heard no one yet: the stored condition stands until sidecars have had the time to report.

The reasons, and what to do for each, are explained in ``docs/reference/conditions.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from toolpolicy.policy.status import Condition, Pods, Status
from toolpolicy_operator.binding import in_place
from toolpolicy_operator.control.reports import Reports
from toolpolicy_operator.records import PolicyRecord
from toolpolicy_operator.standing import NEEDS_RESTART, STALE, PodState, Situation, Standing, stand
from toolpolicy_operator.store import Store
from toolpolicy_operator.verdicts import Reason, Verdict, accept, invalid, judge, pod_name

ACCEPTED = "Accepted"
ENFORCED = "Enforced"
TAKEOVER = 90.0
"""Seconds in which every sidecar reports to a new holder of the Lease, a failed attempt included."""
LOOK_AGAIN = 15.0
"""Seconds until a wait is looked at again: a report that says the same as before wakes no one."""
_NAMED = 100


@dataclass(frozen=True, slots=True)
class Assessment:
    """``again``: seconds until the status would change by the passing of time alone; None if it does not."""

    status: Status
    again: float | None = None


def gather(
    record: PolicyRecord,
    store: Store,
    reports: Reports,
    at: str,
    *,
    bypasses: Sequence[str] = (),
    too_large: str | None = None,
) -> Situation:
    """The situation of a policy as store and reports have it now; ``at`` in RFC 3339."""
    pods = store.selected(record)
    heard = {pod.uid: received for pod in pods if (received := reports.get(pod.uid)) is not None}
    spaces = {pod.namespace for pod in pods} | ({record.namespace} if record.namespace else set[str]())
    return Situation(
        policy=record,
        pods=pods,
        reports=heard,
        enabled={name: store.injection_enabled(store.namespace_labels(name)) for name in spaces},
        held_since=reports.held_since,
        known_since=reports.known_since(record.uid, record.generation),
        now=reports.now(),
        at=at,
        bypasses=bypasses,
        too_large=too_large,
    )


def assess(situation: Situation) -> Assessment:
    """The status that the situation deserves."""
    record = situation.policy
    before = stored(record.status)
    if record.policy is None:
        verdict = Verdict("False", Reason.INVALID, invalid(record.problems))
        why = f"the policy is invalid (see Accepted): {in_place(record.binding)} until it is corrected"
        conditions = (
            _condition(ACCEPTED, verdict, situation, before),
            _condition(ENFORCED, Verdict("False", Reason.INVALID, why), situation, before),
        )
        return Assessment(Status(observed_generation=record.generation, conditions=conditions))
    standing = stand(situation)
    enforced = judge(standing)
    pods = _counts(standing)
    until = _stands_until(standing, enforced, before)
    kept = _find(before, ENFORCED)
    if until is not None and before is not None and kept is not None and before.pods is not None:
        condition, pods, behind, again = kept, before.pods, before.pods_behind, until
    else:
        condition, again = _condition(ENFORCED, enforced, situation, before), _next_change(standing)
        late = standing.pods(PodState.WAITING, PodState.BEHIND, PodState.TROUBLED)
        behind = tuple(sorted(pod_name(pod, record.policy) for pod in late)[:_NAMED])
    restart = sorted(pod_name(pod, record.policy) for pod in standing.pods(*NEEDS_RESTART))
    accepted = accept(record.policy, situation.too_large)
    status = Status(
        observed_generation=record.generation,
        conditions=(_condition(ACCEPTED, accepted, situation, before), condition),
        rules=len(record.policy.spec.rules),
        pods=pods,
        pods_needing_restart=tuple(restart[:_NAMED]),
        pods_behind=behind,
    )
    return Assessment(status, again)


def _stands_until(standing: Standing, enforced: Verdict, before: Status | None) -> float | None:
    """For how many seconds the stored Enforced stands, although reports are wanting: after a takeover, if it is about
    this generation and as many pods. None if it does not.
    """
    situation = standing.situation
    kept = _find(before, ENFORCED)
    left = situation.held_since + TAKEOVER - situation.now
    if enforced.reason is not Reason.WAITING_FOR_REPORTS or before is None or kept is None or left <= 0:
        return None
    if kept.status == "Unknown":
        return None
    same = kept.observed_generation == situation.policy.generation and before.pods is not None
    if not same or before.pods is None or before.pods.selected != len(standing.selected):
        return None
    return left


def _next_change(standing: Standing) -> float | None:
    """Seconds until time alone may change something: a report goes stale, a wait becomes a finding."""
    situation = standing.situation
    ages = [situation.now - received.at for received in situation.reports.values()]
    left = [STALE - age + 1.0 for age in ages if age <= STALE]
    if standing.pods(PodState.WAITING):
        left.append(LOOK_AGAIN)
    return min(left, default=None)


def _counts(standing: Standing) -> Pods:
    injected = standing.pods(PodState.CURRENT, PodState.WAITING, PodState.BEHIND, PodState.TROUBLED, PodState.OUTDATED)
    return Pods(
        selected=len(standing.selected),
        injected=len(injected),
        current=len(standing.pods(PodState.CURRENT)),
        opted_out=len(standing.pods(PodState.OPTED_OUT)),
    )


def stored(raw: Mapping[str, Any]) -> Status | None:
    """The status that the policy carries; None if it has none that we could have written."""
    try:
        return Status.model_validate(dict(raw)) if raw else None
    except ValidationError:
        return None


def _find(status: Status | None, kind: str) -> Condition | None:
    return next((c for c in status.conditions if c.type == kind), None) if status is not None else None


def _condition(kind: str, verdict: Verdict, situation: Situation, before: Status | None) -> Condition:
    known = _find(before, kind)
    unchanged = known is not None and known.status == verdict.status
    return Condition(
        type=kind,
        status=verdict.status,
        observed_generation=situation.policy.generation,
        last_transition_time=known.last_transition_time if unchanged and known is not None else situation.at,
        reason=verdict.reason.value,
        message=verdict.message,
    )
