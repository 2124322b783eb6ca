"""What has to be looked at again after a change in the cluster. Pure, and no more than that: a pod whose version alone
changed asks for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from toolpolicy_operator import names
from toolpolicy_operator.records import Kind, NamespaceRecord, PodRecord, PolicyRecord, Record, RulesRecord
from toolpolicy_operator.store import Change, Store, selects


class What(StrEnum):
    RULES = "rules"
    """The ConfigMap of a namespace."""
    TOUCH = "touch"
    """The annotation on a namespace's injected pods."""
    STATUS = "status"
    """The status of a policy."""
    ROLLOUT = "rollout"
    """The eviction of pods that predate a policy which asks for it."""


@dataclass(frozen=True, slots=True)
class Task:
    """``kind`` and ``name`` are those of a policy; a namespace's tasks have neither."""

    what: What
    namespace: str | None
    kind: str = ""
    name: str = ""


def rules(namespace: str) -> Task:
    return Task(What.RULES, namespace)


def touch(namespace: str) -> Task:
    return Task(What.TOUCH, namespace)


def status(found: PolicyRecord) -> Task:
    return Task(What.STATUS, found.namespace, found.kind, found.name)


def rollout(found: PolicyRecord) -> Task:
    return Task(What.ROLLOUT, found.namespace, found.kind, found.name)


def everything(store: Store) -> Iterator[Task]:
    """For one who begins to write."""
    spaces = {n.name for n in store.namespaces()} | {r.namespace for r in store.all_rules()}
    yield from (rules(space) for space in spaces)
    yield from (touch(space) for space in spaces)
    yield from (status(found) for found in store.policies())


def after(change: Change, store: Store) -> Iterator[Task]:
    """The tasks that a change asks for. The store has taken the change in already."""
    old, new = change.old, change.new
    match change.kind:
        case Kind.TOOL_POLICY | Kind.CLUSTER_TOOL_POLICY:
            yield from _after_policy(_policy(old), _policy(new), store)
        case Kind.NAMESPACE:
            yield from _after_namespace(old, new, store)
        case Kind.POD:
            yield from _after_pod(_pod(old), _pod(new), store)
        case Kind.RULES:
            known = new if new is not None else old
            if isinstance(known, RulesRecord):
                yield rules(known.namespace)
                yield touch(known.namespace)


def _after_policy(old: PolicyRecord | None, new: PolicyRecord | None, store: Store) -> Iterator[Task]:
    if new is not None:
        yield status(new)
    if old is not None and new is not None and (old.uid, old.generation) == (new.uid, new.generation):
        return
    spaces: set[str] = set()
    for found in (old, new):
        if found is not None:
            spaces |= _reached(found, store)
    yield from (rules(space) for space in spaces)


def _reached(found: PolicyRecord, store: Store) -> set[str]:
    if found.namespace is not None:
        return {found.namespace}
    return {n.name for n in store.namespaces() if store.reaches(found, n.name)}


def _after_namespace(old: Record | None, new: Record | None, store: Store) -> Iterator[Task]:
    before = old if isinstance(old, NamespaceRecord) else None
    now = new if isinstance(new, NamespaceRecord) else None
    known = now or before
    if known is None or (before is not None and now is not None and replace(before, version=now.version) == now):
        return
    yield rules(known.name)
    yield from (status(found) for found in store.policies_in(known.name))
    if store.pods_in(known.name):
        yield from (status(found) for found in store.cluster_policies())


def _after_pod(old: PodRecord | None, new: PodRecord | None, store: Store) -> Iterator[Task]:
    known = new or old
    if known is None or (old is not None and new is not None and _as_seen(old) == _as_seen(new)):
        return
    space = known.namespace
    before = (old.guarded, old.admitted_in) if old is not None else (False, None)
    now = (new.guarded, new.admitted_in) if new is not None else (False, None)
    if before != now:
        yield rules(space)
    if new is not None and new.guarded and new.node:
        yield touch(space)
    yield from of_pods(space, [pod for pod in (old, new) if pod is not None], store)


def _as_seen(pod: PodRecord) -> PodRecord:
    """Without what changes by our own touch and by every write."""
    others = {name: value for name, value in pod.annotations.items() if name != names.RULES_ANNOTATION}
    return replace(pod, version=0, annotations=others)


def of_pods(space: str, pods: Sequence[PodRecord], store: Store) -> Iterator[Task]:
    """The statuses of the policies that select any of these pods of one namespace."""
    for found in (*store.policies_in(space), *store.cluster_policies()):
        if any(selects(found.binding.policy, pod) for pod in pods):
            yield status(found)


def _policy(found: Record | None) -> PolicyRecord | None:
    return found if isinstance(found, PolicyRecord) else None


def _pod(found: Record | None) -> PodRecord | None:
    return found if isinstance(found, PodRecord) else None
