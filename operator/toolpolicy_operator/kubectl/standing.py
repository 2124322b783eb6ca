"""How policies and their pods stand, out of what the operator wrote into status and onto pods. Pure.

The states of pods are the operator's own words (``toolpolicy_operator.standing``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolpolicy.policy.rulesindex import Entry
from toolpolicy.policy.shapes import items, mapping, texts
from toolpolicy_operator import names
from toolpolicy_operator.configmap import written
from toolpolicy_operator.kube import Object
from toolpolicy_operator.records import Kind, PodRecord, PolicyRecord
from toolpolicy_operator.standing import PodState, not_intercepted
from toolpolicy_operator.store import Store
from toolpolicy_operator.verdicts import Reason

NOT_RUNNING = "NotRunning"
_TERMINATING = "Terminating"
UNTOLD = "Unknown"
"""Of a pod with a sidecar, while the operator has said nothing about this generation."""


@dataclass(frozen=True, slots=True)
class PodLine:
    """A pod that a policy selects. ``rules`` is the revision that the operator announced to it last: none since it
    started is ``-``.
    """

    namespace: str
    name: str
    phase: str
    sidecar: str
    rules: str
    state: str

    @property
    def present(self) -> bool:
        """It runs, or is to run: it is not on its way out."""
        return self.phase != _TERMINATING


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """A policy as ``status`` shows it. ``programmed`` is its generation in the rules of its namespace: None if it is
    not there, ``unknown`` where that can't be read.
    """

    kind: str
    namespace: str | None
    name: str
    mode: str
    default: str
    rules: int
    generation: int
    observed: int | None
    programmed: Mapping[str, int | None]
    accepted: Object
    enforced: Object
    counts: Object
    pods: tuple[PodLine, ...]
    warnings: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"

    @property
    def current(self) -> bool:
        """The status is about the policy as it is now."""
        return self.observed == self.generation

    @property
    def good(self) -> bool:
        """It is in force wherever it has pods, and none of them is still to come."""
        return self.current and not self.pending and (self.enforced.get("status") == "True" or self.idle)

    @property
    def idle(self) -> bool:
        """It has no pods: nothing is enforced, and nothing is wanting."""
        return self.enforced.get("reason") == Reason.NO_MATCHING_PODS and not any(p.present for p in self.pods)

    @property
    def pending(self) -> tuple[PodLine, ...]:
        """Pods that do not run yet: nothing is known of what will judge their calls."""
        return tuple(p for p in self.pods if p.present and p.state == NOT_RUNNING)


def policy_line(policy: Object, store: Store) -> PolicyLine | None:
    """A policy of the store; ``policy`` as the API sends it."""
    metadata, spec, status = mapping(policy["metadata"]), mapping(policy.get("spec")), mapping(policy.get("status"))
    record = store.policy(policy["kind"], metadata.get("namespace"), metadata["name"])
    if record is None:
        return None
    conditions = {c.get("type"): c for c in map(mapping, items(status.get("conditions")))}
    pods = sorted(store.selected(record), key=lambda pod: (pod.namespace, pod.name))
    return PolicyLine(
        kind=record.kind,
        namespace=record.namespace,
        name=record.name,
        mode=str(spec.get("mode", "Enforce")),
        default=str(spec.get("defaultAction", "Deny")),
        rules=len(items(spec.get("rules"))),
        generation=record.generation,
        observed=status.get("observedGeneration"),
        programmed=_programmed(record, store),
        accepted=mapping(conditions.get("Accepted")),
        enforced=mapping(conditions.get("Enforced")),
        counts=mapping(status.get("pods")),
        pods=tuple(pod_line(pod, record, status, store) for pod in pods if not pod.ended),
    )


def pod_line(pod: PodRecord, policy: PolicyRecord, status: Object, store: Store) -> PodLine:
    return PodLine(
        namespace=pod.namespace,
        name=pod.name,
        phase=_TERMINATING if pod.deleting else pod.phase,
        sidecar=pod.annotations.get(names.INJECTED_ANNOTATION, "yes") if pod.injected else "none",
        rules=pod.annotations.get(names.RULES_ANNOTATION, "-") if pod.injected else "-",
        state=pod_state(pod, policy, status, store),
    )


def pod_state(pod: PodRecord, policy: PolicyRecord, status: Object, store: Store) -> str:
    """The operator's word for how the pod stands to the policy's generation."""
    if pod.deleting or pod.phase != "Running":
        return NOT_RUNNING
    if not pod.injected:
        return _without_sidecar(pod, store)
    if not_intercepted(pod, policy) is not None:
        return PodState.OUTDATED
    known = pod.name if policy.namespace is not None else f"{pod.namespace}/{pod.name}"
    if status.get("observedGeneration") != policy.generation:
        return PodState.WAITING
    if known in texts(status.get("podsBehind")):
        return PodState.WAITING if _waiting(status) else PodState.BEHIND
    counts = mapping(status.get("pods"))
    if "current" not in counts or len(texts(status.get("podsBehind"))) >= 100:
        return UNTOLD
    return PodState.CURRENT


def _waiting(status: Object) -> bool:
    """No pod is known to lag: a report that is wanting is all there is."""
    conditions = map(mapping, items(status.get("conditions")))
    return any((c.get("type"), c.get("reason")) == ("Enforced", Reason.WAITING_FOR_REPORTS) for c in conditions)


def _without_sidecar(pod: PodRecord, store: Store) -> str:
    if names.INELIGIBLE_ANNOTATION in pod.annotations:
        return PodState.INELIGIBLE
    if pod.opted_out:
        return PodState.OPTED_OUT
    space = store.namespace(pod.namespace)
    return PodState.UNINJECTED if space is None or store.injection_enabled(space.labels) else PodState.NOT_ENABLED


def index_entries(store: Store, namespace: str) -> tuple[str | None, list[Entry]]:
    """Revision and entries of the rules that are written in a namespace; (None, []) where there are none."""
    found = written(store.rules(namespace))
    return found.revision, list(found.index.entries) if found.index is not None else []


def _programmed(record: PolicyRecord, store: Store) -> dict[str, int | None]:
    """By namespace with rules: the generation of the policy in them."""
    found: dict[str, int | None] = {}
    for rules in store.all_rules():
        if record.kind == Kind.TOOL_POLICY and rules.namespace != record.namespace:
            continue
        _, entries = index_entries(store, rules.namespace)
        me = (record.kind, record.namespace, record.name)
        mine = [e.generation for e in entries if (e.kind, e.namespace, e.name) == me]
        if mine or record.namespace is not None:
            found[rules.namespace] = mine[0] if mine else None
    return found


def as_json(line: PolicyLine) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "namespace": line.namespace,
        "name": line.name,
        "mode": line.mode,
        "defaultAction": line.default,
        "rules": line.rules,
        "generation": line.generation,
        "observedGeneration": line.observed,
        "programmed": dict(line.programmed),
        "accepted": line.accepted,
        "enforced": line.enforced,
        "pods": [
            {
                "namespace": pod.namespace,
                "name": pod.name,
                "phase": pod.phase,
                "sidecar": pod.sidecar,
                "rules": pod.rules,
                "state": pod.state,
            }
            for pod in line.pods
        ],
        "good": line.good,
    }
