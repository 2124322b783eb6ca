"""Why a pod has the sidecar or not: the operator's truth table, asked about a pod that exists. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import toolpolicy
from toolpolicy.policy.model import ClusterToolPolicy, LabelSelector, Policy
from toolpolicy.policy.rulesindex import Entry
from toolpolicy.policy.selection import matches
from toolpolicy.policy.shapes import mapping
from toolpolicy_operator import names
from toolpolicy_operator.binding import in_place
from toolpolicy_operator.injection.eligibility import Eligibility, Reason, decide
from toolpolicy_operator.injection.plan import Defaults, make_plan
from toolpolicy_operator.injection.pod import restore
from toolpolicy_operator.kube import Object
from toolpolicy_operator.kubectl.standing import index_entries, pod_state
from toolpolicy_operator.records import PodRecord, PolicyRecord, pod_record
from toolpolicy_operator.store import Store, covers
from toolpolicy_operator.store import selects as selects_pod
from toolpolicy_operator.workloads import count, restart_commands


@dataclass(frozen=True, slots=True)
class PodStory:
    namespace: str
    name: str
    injected: bool
    reason: str
    message: str
    lines: tuple[str, ...]
    selecting: tuple[str, ...]
    missing: tuple[str, ...]
    """Policies of the namespace that do not select it, and by which label."""

    def as_json(self) -> dict[str, Any]:
        return {
            "namespace": self.namespace,
            "name": self.name,
            "injected": self.injected,
            "reason": self.reason,
            "message": self.message,
            "details": list(self.lines),
            "policies": list(self.selecting),
            "notSelectedBy": list(self.missing),
        }


def tell(pod: Object, store: Store) -> PodStory:
    """The story of a pod, with the policies and namespace of ``store``."""
    record = pod_record(pod)
    space = store.namespace(record.namespace)
    selecting = [r for r in store.policies_of(record.namespace) if selects_pod(r.binding.policy, record)]
    verdict = _verdict(pod, record, store)
    lines = tuple(_lines(record, verdict, store, known=space is not None))
    others = [r for r in (*store.policies_in(record.namespace), *store.cluster_policies()) if r not in selecting]
    reason = Reason.INJECTED if record.injected else verdict.reason
    return PodStory(
        record.namespace,
        record.name,
        record.injected,
        reason.value,
        verdict.message,
        lines,
        tuple(_policy(r, record, store) for r in selecting),
        tuple(_missed(r, record, store) for r in sorted(others, key=lambda r: (r.kind, r.name))[:20]),
    )


def _verdict(pod: Object, record: PodRecord, store: Store) -> Eligibility:
    """What admission would say of the pod as it was, before any injection. Where the namespace can't be read it is
    taken to be enabled.
    """
    space = store.namespace(record.namespace)
    labels = space.labels if space is not None else {names.INJECTION_LABEL: names.ENABLED}
    policies = store.policies_for(record.namespace, record.labels, labels)
    plan = make_plan(policies, record.namespace, labels, Defaults(toolpolicy.__version__, image=""))
    found = decide(restore(pod), plan)
    if found.eligible and not record.injected:
        message = "the pod is eligible, and older than its policy or its namespace's label: restart it"
        return Eligibility(True, Reason.SELECTED, message, servers=found.servers)
    return found


def _lines(pod: PodRecord, verdict: Eligibility, store: Store, *, known: bool) -> Iterator[str]:
    if pod.injected:
        yield from _sidecar(pod, store)
        if not verdict.eligible and known:
            yield f"a new pod like it would not be injected ({verdict.reason}): {verdict.message}"
        return
    yield verdict.message
    if noted := pod.annotations.get(names.INELIGIBLE_ANNOTATION):
        yield f"it was admitted without protection ({noted}), since its policies say ineligible: Warn, or only audit"
    if verdict.reason is Reason.SELECTED:
        yield f"run: {restart_commands([pod])[0]}"
    labels = store.namespace_labels(pod.namespace)
    if verdict.reason is Reason.NAMESPACE_NOT_ENABLED and names.INJECTION_LABEL not in labels:
        yield "(unless the operator runs with injection by default, which can't be seen from here)"


def _sidecar(pod: PodRecord, store: Store) -> Iterator[str]:
    note = pod.annotations
    version, interception, ports = (
        note.get(key, "?")
        for key in (names.INJECTED_ANNOTATION, names.INTERCEPTION_ANNOTATION, names.SERVERS_ANNOTATION)
    )
    ready = ", ready" if pod.ready else ""
    yield f"sidecar {version}, interception {interception}, MCP ports {ports}; the pod is {pod.phase}{ready}"
    revision, entries = index_entries(store, pod.namespace)
    announced = note.get(names.RULES_ANNOTATION)
    if revision is not None and pod.phase != "Running":
        yield f"written for it: rules revision {revision} with {_policies(entries)}; nothing reported yet ({pod.phase})"
    elif revision is not None:
        newest = "the newest" if announced in (None, revision) else f"the newest is {revision}"
        yield f"rules revision {announced or revision} ({newest}) with {_policies(entries)}"


def _policies(entries: Sequence[Entry]) -> str:
    return count(len(entries), "policy", "policies")


def _policy(found: PolicyRecord, pod: PodRecord, store: Store) -> str:
    state = pod_state(pod, found, dict(found.status), store)
    spec = found.binding.policy.spec
    if found.policy is None:
        return f"{found.kind} {found.name} is invalid ({in_place(found.binding)}): {found.problems[0]}"
    return (
        f"{found.kind} {found.name} ({spec.mode}, default {spec.default_action}, {count(len(spec.rules), 'rule')}, "
        f"generation {found.generation}): {state}"
    )


def _missed(found: PolicyRecord, pod: PodRecord, store: Store) -> str:
    title = f"{found.kind} {found.name}"
    policy: Policy = found.binding.policy
    labels = store.namespace_labels(pod.namespace)
    if isinstance(policy, ClusterToolPolicy) and not covers(policy, labels):
        return f"{title}: the namespace lacks {_unmet(policy.spec.namespace_selector, labels)}"
    return f"{title}: the pod lacks {_unmet(policy.spec.selector, pod.labels)}"


def _unmet(selector: LabelSelector, labels: Any) -> str:
    """The conditions that do not hold."""
    held = mapping(labels)
    unmet = [
        f"{key}={value}" + (f" (it has {key}={held[key]})" if key in held else "")
        for key, value in sorted(selector.match_labels.items())
        if held.get(key) != value
    ]
    unmet += [
        f"{requirement.key} {requirement.operator} {','.join(requirement.values)}".rstrip()
        for requirement in selector.match_expressions
        if not matches(LabelSelector(match_expressions=(requirement,)), held)
    ]
    return ", ".join(unmet) or "nothing"
