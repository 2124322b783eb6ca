"""Whether the rules of a namespace still fit into one ConfigMap when a policy is added. Pure.

An object of Kubernetes is at most 1 MiB (etcd takes 1.5 MiB a request); 900 KiB leave room for names, the index and
metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolpolicy.policy.load import MAX_POLICY
from toolpolicy.policy.model import Policy
from toolpolicy.policy.shapes import mapping
from toolpolicy_operator.canonical import canonical
from toolpolicy_operator.kube import Object
from toolpolicy_operator.records import PolicyRecord
from toolpolicy_operator.store import Store, covers

MAX_RULES_BYTES = 900 * 1024
"""Of all policies that reach a namespace, in the form that the sidecars get."""
NEAR = 0.8
_INDEX_ENTRY = 300
"""Bytes of one policy's entry in the index, about."""


@dataclass(frozen=True, slots=True)
class Space:
    """A namespace that the policy reaches: its other policies and their bytes."""

    name: str
    others: int
    largest: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the policy now, before this edit (0 if it is new), and of what it shares namespaces with."""

    new: int
    old: int
    spaces: tuple[Space, ...]

    @classmethod
    def of(cls, policy: Policy, manifest: Object, old: Object | None, store: Store) -> Sizes:
        """``manifest`` and ``old`` as the API sends them."""
        own = policy.metadata.namespace
        if own is not None:
            reached = [own]
        else:
            reached = [n.name for n in store.namespaces() if covers(policy, n.labels) and _in_use(n.name, store)]
        me = (policy.kind, own, policy.metadata.name)
        return cls(_bytes(manifest), _bytes(old) if old else 0, tuple(_space(name, me, store) for name in reached))


def too_large(sizes: Sizes) -> str | None:
    """Why the policy can't be taken, or None. An edit that makes it no larger is always taken."""
    if sizes.new <= sizes.old:
        return None
    for space in sizes.spaces:
        if space.others + sizes.new > MAX_RULES_BYTES:
            largest = ", ".join(f"{name} {_kib(size)}" for name, size in space.largest)
            return (
                f"with this policy ({_kib(sizes.new)}) the rules of namespace {space.name} come to "
                f"{_kib(space.others + sizes.new)}, and one ConfigMap takes {_kib(MAX_RULES_BYTES)}: "
                f"shorten or delete another first; the largest are {largest or 'none'}"
            )
    return None


def near(sizes: Sizes) -> Iterator[str]:
    """Warnings that a limit is not far."""
    if sizes.new > NEAR * MAX_POLICY:
        yield f"the policy is {_kib(sizes.new)}, at most {_kib(MAX_POLICY)}: several policies may select the same pod"
    full = [s for s in sizes.spaces if s.others + sizes.new > NEAR * MAX_RULES_BYTES]
    for space in full[:3]:
        yield (
            f"the rules of namespace {space.name} come to {_kib(space.others + sizes.new)} of "
            f"{_kib(MAX_RULES_BYTES)}; beyond that policies are refused"
        )


def _space(name: str, me: tuple[str, str | None, str], store: Store) -> Space:
    others = [r for r in store.policies_of(name) if (r.kind, r.namespace, r.name) != me]
    largest = sorted(((_name(r), len(r.manifest)) for r in others), key=lambda each: -each[1])[:3]
    return Space(name, sum(len(r.manifest) + _INDEX_ENTRY for r in others), tuple(largest))


def _name(found: PolicyRecord) -> str:
    return f"{found.kind} {found.name}"


def _in_use(namespace: str, store: Store) -> bool:
    """Rules are written there."""
    return store.injection_enabled(store.namespace_labels(namespace)) or store.rules(namespace) is not None


def _bytes(manifest: Object) -> int:
    named = {k: v for k, v in mapping(manifest.get("metadata")).items() if k in ("name", "namespace", "uid")}
    return len(canonical({**manifest, "metadata": named}))


def _kib(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 100 * 1024 else f"{size / 1024:.0f} KiB"
