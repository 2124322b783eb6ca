"""The operator's memory of the cluster: policies, namespaces, pods and the written rules, fed by the watch and by a
LIST every few minutes.

One thread, the main loop's, touches it. Events may come late, twice, or out of order (kopf hands each object to a
worker of its own), so what counts is the object's version, never the order of arrival. A uid that was deleted stays
deleted: no late event or older LIST brings it back.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from toolpolicy.policy.model import ClusterToolPolicy, Policy
from toolpolicy.policy.selection import matches
from toolpolicy_operator import names
from toolpolicy_operator.binding import Binding
from toolpolicy_operator.kube import Listing, Object
from toolpolicy_operator.records import (
    Kind,
    Labels,
    NamespaceRecord,
    PodRecord,
    PolicyRecord,
    Record,
    RulesRecord,
    identity,
    labels_from_json,
    record,
)

Key = tuple[str | None, str]
_REMEMBERED_DELETIONS = 10_000


@dataclass(frozen=True, slots=True)
class Change:
    """An object that came (``old`` None), changed, or went (``new`` None)."""

    kind: Kind
    old: Record | None
    new: Record | None


Listener = Callable[[Change], None]


class Store:
    def __init__(self, default_injection: bool = False) -> None:
        self._records: dict[Kind, dict[Key, Record]] = {kind: {} for kind in Kind}
        self._in_namespace: dict[Kind, defaultdict[str, dict[str, Record]]] = {
            kind: defaultdict(dict) for kind in (Kind.TOOL_POLICY, Kind.POD)
        }
        self._admitted: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._pod_uids: set[str] = set()
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._synced: set[Kind] = set()
        self._listeners: list[Listener] = []
        self.default_injection = default_injection
        """Whether a namespace that says nothing is enabled."""

    # What comes in

    def put(self, kind: Kind, obj: Object) -> bool:
        """An object that exists. False if it was known, or is older than what is known."""
        uid, version, key = identity(obj)
        known = self._records[kind].get(key)
        if uid in self._deleted or (known is not None and version <= known.version):
            return False
        new = record(kind, obj, known)
        self._records[kind][key] = new
        if kind in self._in_namespace and key[0] is not None:
            self._in_namespace[kind][key[0]][key[1]] = new
        self._count_pod(known, new)
        self._tell(Change(kind, known, new))
        return True

    def adopt(self, found: PolicyRecord, binding: Binding) -> bool:
        """What is in force for an invalid policy. False if the policy is another by now."""
        kind = Kind(found.kind)
        if self._records[kind].get(found.key) is not found:
            return False
        new = replace(found, binding=binding)
        self._records[kind][found.key] = new
        if kind in self._in_namespace and found.namespace is not None:
            self._in_namespace[kind][found.namespace][found.name] = new
        self._tell(Change(kind, found, new))
        return True

    def remove(self, kind: Kind, obj: Object) -> bool:
        """An object that was deleted. False if it was not known."""
        uid, _, key = identity(obj)
        return self._forget(kind, key, uid)

    def forget_rules(self, found: RulesRecord) -> bool:
        """Rules that we deleted ourselves, before the watch says so."""
        return self._forget(Kind.RULES, found.key, found.uid)

    def replace(self, kind: Kind, listing: Listing) -> int:
        """A LIST: what it has is put, what it lacks and is not newer is removed. Returns how much was not known."""
        repaired = sum(self.put(kind, obj) for obj in listing)
        listed = {identity(obj)[2] for obj in listing}
        version = int(listing.resource_version) if listing.resource_version.isdecimal() else 0
        gone = [(k, r.uid) for k, r in self._records[kind].items() if k not in listed and r.version <= version]
        repaired += sum(self._forget(kind, key, uid) for key, uid in gone)
        self._synced.add(kind)
        return repaired

    def _forget(self, kind: Kind, key: Key, uid: str) -> bool:
        self._deleted[uid] = None
        if len(self._deleted) > _REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)
        known = self._records[kind].get(key)
        if known is None or known.uid != uid:
            return False
        del self._records[kind][key]
        if kind in self._in_namespace and key[0] is not None:
            inside = self._in_namespace[kind][key[0]]
            inside.pop(key[1], None)
            if not inside:
                del self._in_namespace[kind][key[0]]
        self._count_pod(known, None)
        self._tell(Change(kind, known, None))
        return True

    def _count_pod(self, old: Record | None, new: Record | None) -> None:
        if isinstance(old, PodRecord):
            self._pod_uids.discard(old.uid)
        if isinstance(new, PodRecord):
            self._pod_uids.add(new.uid)
        for pod, step in ((old, -1), (new, 1)):
            if isinstance(pod, PodRecord) and pod.admitted_in is not None:
                counts = self._admitted[pod.namespace]
                counts[pod.admitted_in] += step
                if counts[pod.admitted_in] <= 0:
                    del counts[pod.admitted_in]
                if not counts:
                    del self._admitted[pod.namespace]

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def _tell(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)

    # What is asked

    @property
    def synced(self) -> bool:
        """Every kind was listed once."""
        return len(self._synced) == len(Kind)

    @property
    def missing(self) -> list[str]:
        """The kinds that were not listed yet."""
        return sorted(kind.value for kind in Kind if kind not in self._synced)

    def count(self, kind: Kind) -> int:
        return len(self._records[kind])

    def policies(self) -> Iterator[PolicyRecord]:
        for kind in (Kind.TOOL_POLICY, Kind.CLUSTER_TOOL_POLICY):
            yield from cast("Iterable[PolicyRecord]", self._records[kind].values())

    def policies_in(self, namespace: str) -> list[PolicyRecord]:
        """The namespace's own policies, valid or not."""
        inside = self._in_namespace[Kind.TOOL_POLICY].get(namespace, {})
        return cast("list[PolicyRecord]", list(inside.values()))

    def cluster_policies(self) -> list[PolicyRecord]:
        return cast("list[PolicyRecord]", list(self._records[Kind.CLUSTER_TOOL_POLICY].values()))

    def policy(self, kind: str, namespace: str | None, name: str) -> PolicyRecord | None:
        return cast("PolicyRecord | None", self._records[Kind(kind)].get((namespace, name)))

    def namespaces(self) -> list[NamespaceRecord]:
        return cast("list[NamespaceRecord]", list(self._records[Kind.NAMESPACE].values()))

    def namespace(self, name: str) -> NamespaceRecord | None:
        return cast("NamespaceRecord | None", self._records[Kind.NAMESPACE].get((None, name)))

    def namespace_labels(self, name: str) -> Labels:
        found = self.namespace(name)
        return found.labels if found is not None else {}

    def pods(self) -> Iterator[PodRecord]:
        return iter(cast("Iterable[PodRecord]", self._records[Kind.POD].values()))

    def pods_in(self, namespace: str) -> list[PodRecord]:
        inside = self._in_namespace[Kind.POD].get(namespace, {})
        return cast("list[PodRecord]", list(inside.values()))

    def pod(self, namespace: str, name: str) -> PodRecord | None:
        return cast("PodRecord | None", self._records[Kind.POD].get((namespace, name)))

    def pod_exists(self, uid: str) -> bool:
        return uid in self._pod_uids

    def rules(self, namespace: str) -> RulesRecord | None:
        return cast("RulesRecord | None", self._records[Kind.RULES].get((namespace, names.RULES_CONFIGMAP)))

    def all_rules(self) -> list[RulesRecord]:
        return cast("list[RulesRecord]", list(self._records[Kind.RULES].values()))

    def injection_enabled(self, labels: Mapping[str, str]) -> bool:
        """Whether pods of a namespace with these labels are injected."""
        return injection_enabled(labels, self.default_injection)

    def policies_for(self, namespace: str, labels: Labels, namespace_labels: Labels | None = None) -> list[Policy]:
        """The policies that select a new pod with these labels, as they are in force. Whether its namespace is enabled
        is not asked.
        """
        about = self.namespace_labels(namespace) if namespace_labels is None else namespace_labels
        own = [r.binding.policy for r in self.policies_in(namespace)]
        cluster = [r.binding.policy for r in self.cluster_policies() if covers(r.binding.policy, about)]
        return [p for p in [*own, *cluster] if matches(p.spec.selector, labels)]

    def policies_of(self, namespace: str) -> list[PolicyRecord]:
        """What belongs in the namespace's rules: its own policies, and the cluster's that match it now or matched at
        the admission of a pod that still runs. Valid or not, in a stable order."""
        label_sets = self._label_sets(namespace)
        cluster = [r for r in self.cluster_policies() if any(covers(r.binding.policy, labels) for labels in label_sets)]
        return sorted([*self.policies_in(namespace), *cluster], key=lambda r: (r.kind, r.name))

    def reaches(self, found: PolicyRecord, namespace: str) -> bool:
        """Whether the policy belongs in the namespace's rules."""
        if found.kind == Kind.TOOL_POLICY:
            return found.namespace == namespace
        return any(covers(found.binding.policy, labels) for labels in self._label_sets(namespace))

    def _label_sets(self, namespace: str) -> list[Labels]:
        """The namespace's labels now, and those at the admission of pods that still run."""
        admitted = (labels_from_json(text) for text in self._admitted.get(namespace, ()))
        return [self.namespace_labels(namespace), *(labels for labels in admitted if labels is not None)]

    def selected(self, found: PolicyRecord) -> list[PodRecord]:
        """The pods that the policy selects: by their labels now, or those at admission where a sidecar runs."""
        spaces = [found.namespace] if found.namespace is not None else [n.name for n in self.namespaces()]
        return [
            pod
            for space in spaces
            if self._in_namespace[Kind.POD].get(space) and self.reaches(found, space)
            for pod in self.pods_in(space)
            if selects(found.binding.policy, pod)
        ]


def selects(policy: Policy, pod: PodRecord) -> bool:
    """Whether the policy's pod selector takes the pod, the namespace apart."""
    if matches(policy.spec.selector, pod.labels):
        return True
    return pod.guarded and pod.admitted_labels is not None and matches(policy.spec.selector, pod.admitted_labels)


def covers(policy: Policy, namespace_labels: Labels) -> bool:
    """Whether a ClusterToolPolicy takes namespaces with these labels."""
    return isinstance(policy, ClusterToolPolicy) and matches(policy.spec.namespace_selector, namespace_labels)


def injection_enabled(labels: Labels, default: bool) -> bool:
    """``toolpolicy.dev/injection`` on the Namespace, else the default."""
    stated = labels.get(names.INJECTION_LABEL)
    return default if stated not in (names.ENABLED, names.DISABLED) else stated == names.ENABLED
