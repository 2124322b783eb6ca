"""Policies and namespace straight from the API server, for the moment in which a watch has not told of them yet.

A consistent LIST (no resourceVersion) that begins after a pod's admission began sees every policy that was created
before the pod. All who ask while one runs share the *next* one of their namespace, never the running one: it may have
begun too early for them. So at most two reads of a namespace are under way or waiting, however many pods come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from toolpolicy.policy.model import Policy
from toolpolicy.policy.selection import matches
from toolpolicy_operator.admission.pods import LookupFailed, Selection
from toolpolicy_operator.kube import POLICIES_API, Api, ApiError, Object, api_path
from toolpolicy_operator.records import Kind, Labels, PolicyRecord, identity, namespace_record, policy_record
from toolpolicy_operator.store import covers

READ_SECONDS = 1.0
"""For each of the three requests; who asks waits no longer in all."""


class Known(Protocol):
    """Policies that were parsed before."""

    def policy(self, kind: str, namespace: str | None, name: str) -> PolicyRecord | None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """What one read found; a :class:`Selection`."""

    name: str
    labels: Labels
    policies: tuple[Policy, ...]

    def namespace_labels(self, name: str) -> Labels:
        return self.labels if name == self.name else {}

    def policies_for(self, namespace: str, labels: Labels, namespace_labels: Labels) -> Sequence[Policy]:
        return [
            policy
            for policy in self.policies
            if (policy.kind == Kind.TOOL_POLICY or covers(policy, namespace_labels))
            and matches(policy.spec.selector, labels)
        ]


class ApiLookup:
    """``known`` spares parsing policies again that the store has."""

    def __init__(self, api: Api, known: Known) -> None:
        self._api = api
        self._known = known
        self._running: dict[str, asyncio.Task[Found]] = {}
        self._next: dict[str, asyncio.Task[Found]] = {}

    async def read(self, namespace: str) -> tuple[Selection, Mapping[str, str]]:
        """Raises :class:`LookupFailed`."""
        found = await asyncio.shield(self._join(namespace))
        return found, found.labels

    def _join(self, namespace: str) -> asyncio.Task[Found]:
        running = self._running.get(namespace)
        if running is None:
            return self._begin(namespace)
        waiting = self._next.get(namespace)
        if waiting is None:
            waiting = self._next[namespace] = asyncio.create_task(self._after(running, namespace))
        return waiting

    def _begin(self, namespace: str) -> asyncio.Task[Found]:
        task = self._running[namespace] = asyncio.create_task(self._read(namespace))
        task.add_done_callback(lambda done: self._ended(namespace, done))
        return task

    def _ended(self, namespace: str, task: asyncio.Task[Found]) -> None:
        if self._running.get(namespace) is task:
            del self._running[namespace]
        if not task.cancelled():
            task.exception()  # whoever asked may have given up meanwhile

    async def _after(self, running: asyncio.Task[Found], namespace: str) -> Found:
        await asyncio.wait([running])
        mine = self._next.pop(namespace)
        self._running[namespace] = mine
        mine.add_done_callback(lambda done: self._ended(namespace, done))
        return await self._read(namespace)

    async def _read(self, namespace: str) -> Found:
        try:
            async with asyncio.timeout(READ_SECONDS):
                labels, own, cluster = await asyncio.gather(
                    self._api.get(api_path("v1", "namespaces", None, namespace), within=READ_SECONDS),
                    self._list(Kind.TOOL_POLICY, "toolpolicies", namespace),
                    self._list(Kind.CLUSTER_TOOL_POLICY, "clustertoolpolicies", None),
                )
        except TimeoutError:
            raise LookupFailed(f"no answer from the API server within {READ_SECONDS:g} s") from None
        except ApiError as error:
            raise LookupFailed(str(error)) from error
        return Found(namespace, namespace_record(labels).labels, (*own, *cluster))

    async def _list(self, kind: Kind, plural: str, namespace: str | None) -> list[Policy]:
        listing = await self._api.list(api_path(POLICIES_API, plural, namespace), within=READ_SECONDS)
        policies: list[Policy] = []
        for obj in listing:
            _, _, (where, name) = identity(obj)
            found = policy_record(kind, _typed(obj, kind), self._known.policy(kind.value, where, name))
            policies.append(found.binding.policy)
        return policies


def _typed(obj: Object, kind: Kind) -> Object:
    """An item of a LIST, which lacks kind and version."""
    return {"apiVersion": POLICIES_API, "kind": kind.value, **obj}
