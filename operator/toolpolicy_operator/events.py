"""Kubernetes Events (events.k8s.io/v1) on policies and pods: a few, when something turned, never one a reconciliation.

A policy gets one when a condition changes its status or reason, for better or worse; what is merely not known yet
(Unknown) is none. A pod gets one when it is found to run without the sidecar that a policy wants. The same thing said
again is counted, in the Event that there is (its ``series``), and written again after ten minutes at the earliest.
Losing an Event is no harm: nothing waits for one, and a full queue drops them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from toolpolicy_operator.kube import Api, ApiError, Object, api_path
from toolpolicy_operator.queue import Pace
from toolpolicy_operator.records import PodRecord, PolicyRecord

log = logging.getLogger(__name__)

AGAIN_SECONDS = 600.0
FORGET_SECONDS = 3600.0
MOST_PODS = 10
"""Pods that get an Event of their own when a policy's status is written; the status names more."""
_API = "events.k8s.io/v1"
_CONTROLLER = "toolpolicy.dev/operator"
_NOTE = 1024
_QUEUE = 500
_KNOWN = 5000


@dataclass(frozen=True, slots=True)
class Happening:
    """Something worth an Event. ``regarding`` is an ObjectReference."""

    regarding: Mapping[str, Any]
    type: Literal["Normal", "Warning"]
    reason: str
    note: str
    action: str = "Reconcile"

    @property
    def key(self) -> str:
        said = (str(self.regarding.get("uid")), self.type, self.reason, self.note)
        return hashlib.sha256("\0".join(said).encode()).hexdigest()[:20]


def turned(record: PolicyRecord, status: Mapping[str, Any]) -> Iterator[Happening]:
    """What is worth telling of a status that replaces the one of the record."""
    before = _conditions(record.status)
    for kind, condition in _conditions(status).items():
        known = before.get(kind, {})
        if condition.get("status") == "Unknown":
            continue
        if (known.get("status"), known.get("reason")) == (condition.get("status"), condition.get("reason")):
            continue
        if known == {} and kind == "Accepted" and condition.get("status") == "True":
            continue  # that a new policy is valid is what everybody expects
        bad = condition.get("status") == "False"
        reason, message = str(condition.get("reason") or kind), str(condition.get("message") or "")
        yield Happening(record.reference, "Warning" if bad else "Normal", reason, message)


def unguarded(record: PolicyRecord, status: Mapping[str, Any], pods: Mapping[str, PodRecord]) -> Iterator[Happening]:
    """Events for pods that the status newly says need a restart; ``pods`` by the names that the status uses."""
    before = set(_names(record.status))
    for name in [n for n in _names(status) if n not in before][:MOST_PODS]:
        pod = pods.get(name)
        if pod is not None:
            note = f"runs without the sidecar that {record.kind} {record.name} wants: restart it"
            yield Happening(pod.reference, "Warning", "NotInjected", note)


class Recorder:
    """Writes them, slowly, in the order they came. ``identity`` names this replica."""

    def __init__(
        self,
        api: Api,
        identity: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api, self._identity, self._now = api, identity[:128], now
        self._queue: asyncio.Queue[Happening] = asyncio.Queue(_QUEUE)
        self._known: OrderedDict[str, _Told] = OrderedDict()
        self._pace = Pace(2.0, 20)
        self.written = 0
        self.dropped = 0

    def tell(self, happening: Happening) -> None:
        """Soon, if there is room."""
        try:
            self._queue.put_nowait(happening)
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Forever."""
        while True:
            await self.write(await self._queue.get())

    async def write(self, happening: Happening) -> None:
        """One Event, or one more of it."""
        now = self._now()
        told = self._known.get(happening.key)
        if told is not None and (now - told.first).total_seconds() > FORGET_SECONDS:
            told = None
        if told is None:
            told = self._known[happening.key] = _Told(now, now, 1)
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        else:
            told.count += 1
            if (now - told.last).total_seconds() < AGAIN_SECONDS:
                return
            told.last = now
        await self._pace.turn()
        obj = self._event(happening, told)
        try:
            await self._api.apply(api_path(_API, "events", obj["metadata"]["namespace"], obj["metadata"]["name"]), obj)
            self.written += 1
        except ApiError as error:
            self.dropped += 1
            log.info("an Event could not be written: %s", error)

    def _event(self, happening: Happening, told: _Told) -> Object:
        regarding = dict(happening.regarding)
        name = f"{str(regarding['name'])[:200]}.{happening.key}{int(told.first.timestamp()) % 100_000:05d}"
        event: Object = {
            "apiVersion": _API,
            "kind": "Event",
            "metadata": {"name": name, "namespace": regarding.get("namespace") or "default"},
            "eventTime": _micro(told.first),
            "reportingController": _CONTROLLER,
            "reportingInstance": self._identity,
            "action": happening.action,
            "reason": happening.reason,
            "type": happening.type,
            "note": happening.note if len(happening.note) <= _NOTE else happening.note[: _NOTE - 3] + "...",
            "regarding": regarding,
        }
        if told.count > 1:
            event["series"] = {"count": told.count, "lastObservedTime": _micro(told.last)}
        return event


@dataclass(slots=True)
class _Told:
    first: datetime
    last: datetime
    count: int


def _micro(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _conditions(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(c.get("type")): c for c in _mappings(status.get("conditions"))}


def _names(status: Mapping[str, Any]) -> list[str]:
    value = status.get("podsNeedingRestart")
    return [n for n in cast("list[object]", value) if isinstance(n, str)] if isinstance(value, list) else []


def _mappings(value: object) -> list[Mapping[str, Any]]:
    found = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("Mapping[str, Any]", v) for v in found if isinstance(v, dict)]
