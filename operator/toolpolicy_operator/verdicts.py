"""What follows from how the pods of a policy stand: True, False or Unknown, a reason, and a sentence that says what to
do. The first finding in this order is the reason: no sidecars to be expected, a pod that does not enforce, a way round,
a report that is wanting; else it is enforced. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from toolpolicy.policy.errors import Problem
from toolpolicy.policy.model import ClusterToolPolicy, Mode, Per, Policy
from toolpolicy_operator import names
from toolpolicy_operator.control.report import printable
from toolpolicy_operator.records import PodRecord
from toolpolicy_operator.standing import NOT_ENFORCED, PodState, Standing, not_intercepted

_NAMED = 5
_PROBLEM = 300

Truth = Literal["True", "False", "Unknown"]


class Reason(StrEnum):
    """The reasons of both conditions; they are an API."""

    ACCEPTED = "Accepted"
    INVALID = "Invalid"
    RULES_TOO_LARGE = "RulesTooLarge"
    PROGRAMMED = "Programmed"
    LIMITS_PER_POD = "LimitsPerPod"
    PARTIALLY_ENFORCED = "PartiallyEnforced"
    BYPASS_POSSIBLE = "BypassPossible"
    NAMESPACE_NOT_ENABLED = "NamespaceNotEnabled"
    OPTED_OUT = "OptedOut"
    NO_MATCHING_PODS = "NoMatchingPods"
    WAITING_FOR_REPORTS = "WaitingForReports"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition without its bookkeeping."""

    status: Truth
    reason: Reason
    message: str


def invalid(problems: Sequence[Problem]) -> str:
    said = [f"{problem.path}: {problem.message}" if problem.path else problem.message for problem in problems]
    return printable(f"the policy is invalid: {listed(said, '; ')}", 4000)


def accept(policy: Policy, too_large: str | None) -> Verdict:
    """Whether the policy can be had at all."""
    if too_large is not None:
        return Verdict("False", Reason.RULES_TOO_LARGE, too_large)
    rules = len(policy.spec.rules)
    return Verdict("True", Reason.ACCEPTED, f"the policy is valid: {_count(rules, 'rule')}")


def judge(standing: Standing) -> Verdict:
    """Whether the policy is enforced, by what is known."""
    situation, needed = standing.situation, standing.needed
    verdict = _without_sidecars(standing, needed)
    if verdict is not None:
        return verdict
    failing = standing.pods(*NOT_ENFORCED)
    current = standing.pods(PodState.CURRENT)
    if failing or situation.too_large is not None:
        why = "; ".join([*([situation.too_large] if situation.too_large else []), *_failures(standing)])
        return Verdict("False", Reason.PARTIALLY_ENFORCED, f"in force in {len(current)} of {_pods(needed)}: {why}")
    bypasses = [*situation.bypasses, *_foreign(standing)]
    if bypasses:
        return Verdict(
            "False",
            Reason.BYPASS_POSSIBLE,
            f"in force in {len(current)} of {_pods(needed)}, but calls may go round the sidecar: {listed(bypasses)}",
        )
    waiting = standing.pods(PodState.WAITING)
    if waiting:
        return Verdict(
            "Unknown",
            Reason.WAITING_FOR_REPORTS,
            f"in force in {len(current)} of {_pods(needed)}; no report of generation {situation.policy.generation} "
            f"yet from {_named(waiting, situation.policy.policy)}. If it stays so, see the logs of their container "
            f"{names.SIDECAR_CONTAINER}",
        )
    return _enforced(standing, current)


def _without_sidecars(standing: Standing, needed: Sequence[PodRecord]) -> Verdict | None:
    """The verdict where sidecars are not to be expected: namespaces not enabled, pods that opted out, no pods."""
    situation, outside = standing.situation, standing.pods(PodState.NOT_ENABLED)
    namespace = situation.policy.namespace
    closed = [namespace] if namespace is not None else sorted({pod.namespace for pod in outside} if not needed else ())
    closed = [name for name in closed if not situation.enabled.get(name)]
    if closed:
        current = len(standing.pods(PodState.CURRENT))
        running = f" (it is in force in {current} of {_pods(needed)} that run already)" if current else ""
        return Verdict(
            "False",
            Reason.NAMESPACE_NOT_ENABLED,
            f"pods of {listed(closed)} get no sidecar{running}: run 'kubectl label namespace "
            f"{closed[0]} {names.INJECTION_LABEL}={names.ENABLED} --overwrite', then restart the pods",
        )
    if not standing.selected:
        message = "no running pod matches the selector; the policy takes effect with the first that does"
        return Verdict("Unknown", Reason.NO_MATCHING_PODS, message)
    if not needed:
        opted = standing.pods(PodState.OPTED_OUT)
        return Verdict(
            "False", Reason.OPTED_OUT, f"every selected pod has opted out: {_named(opted, situation.policy.policy)}"
        )
    return None


def _enforced(standing: Standing, current: Sequence[PodRecord]) -> Verdict:
    policy = standing.situation.policy.policy
    assert policy is not None
    message = f"generation {standing.situation.policy.generation} is in force in {_pods(current)}"
    if policy.spec.mode is Mode.AUDIT:
        message += ", in Audit: nothing is denied, what would be is recorded"
    opted = standing.pods(PodState.OPTED_OUT)
    if opted:
        message += f"; {_count(len(opted), 'pod')} opted out: {_named(opted, policy)}"
    alone = limits_per_pod(standing, current)
    if not alone:
        return Verdict("True", Reason.PROGRAMMED, message)
    message += (
        f"; rate limits are counted in each of {alone} pods alone, so up to {alone} times as much may pass: "
        "run one replica, or divide the limits by their number"
    )
    return Verdict("True", Reason.LIMITS_PER_POD, message)


def limits_per_pod(standing: Standing, current: Iterable[PodRecord]) -> int:
    """How many pods count the same limit each for itself; 0 where none does.

    A limit per Session or Principal spans all pods of the policy; one per Tool or Server those of a workload.
    """
    policy = standing.situation.policy.policy
    assert policy is not None
    kinds = {rule.rate_limit.per for rule in policy.spec.rules if rule.rate_limit is not None}
    alone = [pod for pod in current if standing.report(pod).report.state == "memory"]
    if not kinds or len(alone) < 2:
        return 0
    if kinds & {Per.SESSION, Per.PRINCIPAL}:
        return len(alone)
    workloads = Counter((pod.namespace, pod.owner.uid if pod.owner else pod.name) for pod in alone)
    most = max(workloads.values())
    return most if most > 1 else 0


def _failures(standing: Standing) -> list[str]:
    """Why pods do not enforce this generation, one sentence a state."""
    policy = standing.situation.policy.policy
    found: list[str] = []
    if pods := standing.pods(PodState.UNINJECTED):
        found.append(f"{_named(pods, policy)} run without a sidecar: restart them")
    outdated: dict[str, list[PodRecord]] = {}
    for pod in standing.pods(PodState.OUTDATED):
        outdated.setdefault(not_intercepted(pod, standing.situation.policy) or "", []).append(pod)
    for what, pods in outdated.items():
        found.append(f"{_named(pods, policy)} do not intercept {what}, having started before the edit: restart them")
    for pod in standing.pods(PodState.INELIGIBLE)[:_NAMED]:
        reason = printable(pod.annotations[names.INELIGIBLE_ANNOTATION], _PROBLEM)
        found.append(f"{pod_name(pod, policy)} can't be protected: {reason}")
    for pod in standing.pods(PodState.TROUBLED)[:_NAMED]:
        problem = printable(standing.report(pod).report.problems[0], _PROBLEM)
        found.append(f"{pod_name(pod, policy)} refused the newest rules and keeps older ones: {problem}")
    if pods := standing.pods(PodState.BEHIND):
        found.append(f"{_named(pods, policy)} did not load generation {standing.situation.policy.generation} in time")
    return found


def _foreign(standing: Standing) -> list[str]:
    """The listeners that sidecars do not stand before, one a pod and port."""
    policy = standing.situation.policy.policy
    found: list[str] = []
    for pod in standing.pods(PodState.CURRENT):
        for listener in standing.report(pod).report.listeners:
            where = f"[{listener.address}]" if ":" in listener.address else listener.address
            found.append(f"{pod_name(pod, policy)} also listens on {printable(where, 66)}:{listener.port}")
    return found


def pod_name(pod: PodRecord, policy: Policy | None) -> str:
    return f"{pod.namespace}/{pod.name}" if isinstance(policy, ClusterToolPolicy) else pod.name


def _named(pods: Sequence[PodRecord], policy: Policy | None) -> str:
    return listed([pod_name(pod, policy) for pod in pods])


def listed(texts: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return separator.join(texts[:_NAMED]) + more


def _pods(pods: Sequence[PodRecord]) -> str:
    return _count(len(pods), "pod")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
