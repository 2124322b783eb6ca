"""The rules that a pod's sidecar has, or is about to have, out of its namespace's ConfigMap. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolpolicy.policy.load import load_object
from toolpolicy.policy.model import Policy
from toolpolicy.policy.rulesindex import IndexFault, parse_index, read_manifests
from toolpolicy.policy.selection import Pod, select
from toolpolicy.policy.shapes import mapping, texts
from toolpolicy_operator import names
from toolpolicy_operator.kube import Object
from toolpolicy_operator.kubectl.gather import Snapshot
from toolpolicy_operator.records import PodRecord


class RulesUnreadable(Exception):
    """The ConfigMap holds no valid set of rules: a sidecar would keep the last good one."""


@dataclass(frozen=True, slots=True)
class Loaded:
    revision: str
    policies: Sequence[Policy]
    """Those of the set that select the pod."""
    warnings: Sequence[str]
    """Why the sidecar may decide by other rules."""


def loaded(rules: Object, pod: PodRecord, found: Snapshot) -> Loaded:
    """What the sidecar takes out of ``rules``, checked as it does. Raises :class:`RulesUnreadable`."""
    data = mapping(rules.get("data"))

    def read(key: str) -> bytes:
        if key not in data:
            raise FileNotFoundError(2, "no such key")
        return str(data[key]).encode()

    try:
        index = parse_index(str(data.get(names.INDEX_KEY, "")).encode())
        manifests = read_manifests(index, read)
    except IndexFault as fault:
        raise RulesUnreadable(
            f"the rules of {pod.namespace} are broken, and sidecars keep older ones: {fault}"
        ) from None
    policies: list[Policy] = []
    for entry, manifest in manifests:
        policy, problems = load_object(dict(manifest), entry.key)
        if policy is None:
            raise RulesUnreadable(f"this plugin can't read {entry.key}, is it older than the operator? {problems[0]}")
        policies.append(policy)
    admitted = pod.admitted_labels if pod.admitted_labels is not None else pod.labels
    chosen = select(policies, Pod(pod.namespace, admitted, pod.labels, None))
    return Loaded(index.revision, chosen, _doubts(index.revision, chosen, pod, found))


def _doubts(revision: str, policies: Sequence[Policy], pod: PodRecord, found: Snapshot) -> list[str]:
    """By the operator's word, and by what is newer than these rules."""
    doubts: list[str] = []
    if pod.phase != "Running":
        doubts.append(f"pod {pod.name} is {pod.phase}: its sidecar has reported nothing yet")
    announced = pod.annotations.get(names.RULES_ANNOTATION)
    if announced is not None and announced != revision:
        doubts.append(f"the pod was told of revision {announced}, the newest is {revision}: it may lag")
    inside = {(p.kind, p.metadata.namespace, p.metadata.name): p.metadata.generation for p in policies}
    for policy in found.policies:
        metadata, status = mapping(policy.get("metadata")), mapping(policy.get("status"))
        me = (str(policy["kind"]), metadata.get("namespace"), str(metadata.get("name")))
        if me not in inside:
            continue
        title = f"{me[0]} {me[2]}"
        known = pod.name if me[1] else f"{pod.namespace}/{pod.name}"
        if inside[me] != metadata.get("generation"):
            doubts.append(f"{title} has generation {metadata.get('generation')}, these rules {inside[me]}")
        elif status.get("observedGeneration") != inside[me]:
            doubts.append(f"no sidecar has reported generation {inside[me]} of {title} yet")
        elif known in texts(status.get("podsBehind")):
            doubts.append(
                f"the sidecar has not reported generation {inside[me]} of {title}: it may decide by older rules"
            )
    return doubts
