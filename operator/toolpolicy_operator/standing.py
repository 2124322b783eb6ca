"""How every pod that a policy selects stands to it: what is known of it, and what its sidecar reported. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from toolpolicy_operator import names
from toolpolicy_operator.control.reports import Received
from toolpolicy_operator.records import PodRecord, PolicyRecord

STALE = 150.0
"""Seconds after which a report says nothing about now: sidecars report at least once a minute."""
ARRIVAL = 10.0
"""Seconds that an edit may take to a pod: a report of the old generation that comes sooner is no finding."""


class PodState(StrEnum):
    """How a running pod stands to one generation of one policy that selects it."""

    CURRENT = "Current"
    """Its sidecar reported that this generation is in force."""
    WAITING = "Waiting"
    """It has a sidecar that has said nothing yet that is about this generation."""
    BEHIND = "Behind"
    """Its sidecar had the time, and reports another generation, or none."""
    TROUBLED = "Troubled"
    """Its sidecar refused the newest rules and keeps older ones."""
    OUTDATED = "Outdated"
    """It was admitted for another port or interception than the policy states now: its sidecar has the rules, and calls
    to that port don't come to it."""
    UNINJECTED = "Uninjected"
    """It has no sidecar: it is older than the policy, or than the namespace's label."""
    INELIGIBLE = "Ineligible"
    """It was let in without a sidecar, because it can't be protected."""
    OPTED_OUT = "OptedOut"
    NOT_ENABLED = "NotEnabled"
    """It has no sidecar, and its namespace is not enabled."""


NEEDS_RESTART = (PodState.UNINJECTED, PodState.OUTDATED)
"""What only a new pod mends."""
NOT_ENFORCED = (*NEEDS_RESTART, PodState.INELIGIBLE, PodState.TROUBLED, PodState.BEHIND)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a status is made of. Times are of one monotonic clock, ``at`` is now in RFC 3339."""

    policy: PolicyRecord
    pods: Sequence[PodRecord]
    """Those that the policy selects, in whatever phase."""
    reports: Mapping[str, Received]
    """By pod UID."""
    enabled: Mapping[str, bool]
    """By namespace: whether its pods are injected. Holds the policy's own and those of ``pods``."""
    held_since: float
    """When this replica began to write."""
    known_since: float
    """When it first saw this generation."""
    now: float
    at: str
    bypasses: Sequence[str] = ()
    """Ways round the sidecar that were found outside of pods, each a sentence."""
    too_large: str | None = None
    """Why the policy does not fit into its namespace's rules, if it does not."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Every running pod of the policy by its state."""

    situation: Situation
    by_state: Mapping[PodState, Sequence[PodRecord]] = field(default_factory=dict[PodState, "Sequence[PodRecord]"])

    def pods(self, *states: PodState) -> list[PodRecord]:
        return [pod for state in states for pod in self.by_state.get(state, ())]

    @property
    def selected(self) -> list[PodRecord]:
        """Every pod that counts. A ClusterToolPolicy speaks only of namespaces that are enabled."""
        uncounted = {PodState.NOT_ENABLED} if self.situation.policy.namespace is None else set[PodState]()
        return self.pods(*(state for state in PodState if state not in uncounted))

    @property
    def needed(self) -> list[PodRecord]:
        """Of these, the pods that should enforce: those that did not opt out."""
        opted_out = {pod.uid for pod in self.pods(PodState.OPTED_OUT)}
        return [pod for pod in self.selected if pod.uid not in opted_out]

    def report(self, pod: PodRecord) -> Received:
        return self.situation.reports[pod.uid]


def stand(situation: Situation) -> Standing:
    """Every running pod, by its state; sorted by name."""
    by_state: dict[PodState, list[PodRecord]] = {}
    running = [pod for pod in situation.pods if pod.phase == "Running" and not pod.deleting]
    for pod in sorted(running, key=lambda p: (p.namespace, p.name)):
        by_state.setdefault(state_of(pod, situation), []).append(pod)
    return Standing(situation, by_state)


def state_of(pod: PodRecord, situation: Situation) -> PodState:
    """How a running pod stands to the policy."""
    if names.INELIGIBLE_ANNOTATION in pod.annotations:
        return PodState.INELIGIBLE  # whatever its containers are called
    if not pod.injected:
        if pod.opted_out:
            return PodState.OPTED_OUT
        return PodState.UNINJECTED if situation.enabled.get(pod.namespace) else PodState.NOT_ENABLED
    if not_intercepted(pod, situation.policy) is not None:
        return PodState.OUTDATED
    received = situation.reports.get(pod.uid)
    if received is None or situation.now - received.at > STALE:
        return PodState.WAITING
    if received.report.problems:
        return PodState.TROUBLED if received.at >= situation.known_since else PodState.WAITING
    if _loaded(received, situation.policy):
        return PodState.CURRENT
    return PodState.BEHIND if received.at >= situation.known_since + ARRIVAL else PodState.WAITING


def not_intercepted(pod: PodRecord, record: PolicyRecord) -> str | None:
    """What the policy states now and the pod, which has a sidecar, was not admitted for; None where that is nothing.

    What is intercepted is settled when a pod is admitted. A port that the policy names, or leaves to be found, is one
    of the pod's own and isn't looked at here.
    """
    if record.policy is None:
        return None
    port = record.policy.spec.server.port
    if isinstance(port, int) and str(port) not in pod.annotations.get(names.SERVERS_ANNOTATION, "").split(","):
        return f"port {port}"
    way = record.policy.spec.interception
    if way == "Redirect" and pod.annotations.get(names.INTERCEPTION_ANNOTATION) == "Port":
        return f"packets (interception: {way})"
    return None


def _loaded(received: Received, record: PolicyRecord) -> bool:
    """Whether the report has exactly this policy, by UID, in exactly this generation."""
    return any(
        (loaded.kind, loaded.namespace, loaded.name) == (record.kind, record.namespace, record.name)
        and loaded.uid == record.uid
        and loaded.generation == record.generation
        for loaded in received.report.policies
    )
