"""Whether the rules that a new pod will mount hold the policies that select it.

A pod that starts with an older ConfigMap would find no policy of its own in it, and a set that is empty by its index
forwards everything. The ConfigMap is written a moment after a policy is created; a pod that one apply creates with its
policy waits for that moment in its admission. Only presence counts: an edit of a policy follows as every edit does.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from toolpolicy.policy.model import Mode, Policy
from toolpolicy.policy.rulesindex import IndexFault, parse_index
from toolpolicy_operator.records import Kind, RulesRecord
from toolpolicy_operator.store import Change, Listener

Reference = tuple[str, str, str | None]
"""Kind, name and uid."""


class RulesStore(Protocol):
    """What is asked of the store."""

    def rules(self, namespace: str) -> RulesRecord | None: ...

    def listen(self, listener: Listener) -> None: ...


class WrittenRules:
    """For the event loop in which the store is fed."""

    def __init__(self, store: RulesStore) -> None:
        self._store = store
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._read: dict[str, tuple[RulesRecord, frozenset[Reference]]] = {}
        store.listen(self._changed)

    async def missing(self, namespace: str, policies: Sequence[Policy], within: float) -> list[Policy]:
        """The enforced ones of ``policies`` that the namespace's rules still lack after ``within`` seconds."""
        wanted = [policy for policy in policies if policy.spec.mode is Mode.ENFORCE]
        lacking = self._lacking(namespace, wanted)
        if not lacking:
            return []
        news = asyncio.Event()
        self._waiting[namespace].add(news)
        try:
            async with asyncio.timeout(within):
                while lacking := self._lacking(namespace, wanted):
                    await news.wait()
                    news.clear()
        except TimeoutError:
            pass
        finally:
            self._waiting[namespace].discard(news)
            if not self._waiting[namespace]:
                del self._waiting[namespace]
        return lacking

    def _lacking(self, namespace: str, wanted: Sequence[Policy]) -> list[Policy]:
        there = self._there(namespace)
        return [p for p in wanted if (p.kind, p.metadata.name, p.metadata.uid) not in there]

    def _there(self, namespace: str) -> frozenset[Reference]:
        """What the index names; read once for each version of it."""
        record = self._store.rules(namespace)
        if record is None:
            return frozenset()
        known = self._read.get(namespace)
        if known is None or known[0] is not record:
            known = self._read[namespace] = (record, _references(record))
        return known[1]

    def _changed(self, change: Change) -> None:
        if change.kind is not Kind.RULES:
            return
        record = change.new or change.old
        if isinstance(record, RulesRecord):
            if change.new is None:
                self._read.pop(record.namespace, None)
            for news in self._waiting.get(record.namespace, ()):
                news.set()


def _references(record: RulesRecord) -> frozenset[Reference]:
    try:
        index = parse_index(record.index)
    except IndexFault:
        return frozenset()
    return frozenset((entry.kind, entry.name, entry.uid) for entry in index.entries)
