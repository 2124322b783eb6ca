"""The reports that sidecars sent to the holder of the Lease, the last one of each pod, in memory.

They are kept for one term only: a replica that takes over (again) starts with none and waits for sidecars to report
(at most 60 s), because what it heard in an earlier term says nothing about now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from toolpolicy_operator.control.report import Report, Tool

MAX_REPORTS = 20_000
MAX_TOOLS = 200_000
"""Tools of all distinct catalogues together; a catalogue beyond it is not kept, the rest of its report is."""


@dataclass(frozen=True, slots=True)
class Received:
    """A report and when it came, in the clock's (monotonic) seconds."""

    report: Report
    at: float


@dataclass(slots=True)
class _Catalogue:
    tools: tuple[Tool, ...]
    pods: int = 0


Changed = Callable[[Report], None]
"""Called with a report that says something new."""


class Reports:
    """By pod UID. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_uid: dict[str, Received] = {}
        self._catalogues: dict[tuple[Tool, ...], _Catalogue] = {}
        self._tools = 0
        self._listeners: list[Changed] = []
        self._generations: dict[str, tuple[int, float]] = {}
        self.held_since = clock()
        """When this term began."""

    def __len__(self) -> int:
        return len(self._by_uid)

    def __iter__(self) -> Iterator[Received]:
        return iter(list(self._by_uid.values()))

    def subscribe(self, changed: Changed) -> None:
        self._listeners.append(changed)

    def get(self, uid: str) -> Received | None:
        return self._by_uid.get(uid)

    def begin(self) -> None:
        """A new term as holder of the Lease: nothing has been reported to it yet."""
        self._by_uid.clear()
        self._generations.clear()
        self._catalogues.clear()
        self._tools = 0
        self.held_since = self._clock()

    def now(self) -> float:
        """By the clock that reports are stamped with."""
        return self._clock()

    def known_since(self, uid: str, generation: int) -> float:
        """When this generation of a policy was first asked for in this term: an older report is not about it."""
        known = self._generations.get(uid)
        if known is None or known[0] != generation:
            known = self._generations[uid] = (generation, self._clock())
        return known[1]

    def put(self, report: Report) -> bool:
        """Keep the report as its pod's last; True if it says something new. At the cap a new pod's is dropped."""
        uid = report.pod.uid
        before = self._by_uid.get(uid)
        if before is None and len(self._by_uid) >= MAX_REPORTS:
            return False
        report = self._share_tools(report)
        self._by_uid[uid] = Received(report, self._clock())
        if before is not None:
            self._release_tools(before.report)
        new = before is None or _said(before.report) != _said(report)
        if new:
            for changed in self._listeners:
                changed(report)
        return new

    def forget(self, uid: str) -> None:
        """The pod is gone."""
        gone = self._by_uid.pop(uid, None)
        if gone is not None:
            self._release_tools(gone.report)

    def forget_policy(self, uid: str) -> None:
        """The policy is gone."""
        self._generations.pop(uid, None)

    def prune(self, pods: Container[str], policies: Container[str]) -> None:
        """Forget every pod and policy whose UID is not in these."""
        for uid in [uid for uid in self._by_uid if uid not in pods]:
            self.forget(uid)
        for uid in [uid for uid in self._generations if uid not in policies]:
            del self._generations[uid]

    def _share_tools(self, report: Report) -> Report:
        """Pods of one workload list the same tools: they are kept once."""
        tools = report.tools
        if not tools:
            return report
        kept = self._catalogues.get(tools)
        if kept is None:
            if self._tools + len(tools) > MAX_TOOLS:
                return report.model_copy(update={"tools": ()})
            self._tools += len(tools)
            kept = self._catalogues[tools] = _Catalogue(tools)
        kept.pods += 1
        return report.model_copy(update={"tools": kept.tools})

    def _release_tools(self, report: Report) -> None:
        kept = self._catalogues.get(report.tools)
        if kept is None:
            return
        kept.pods -= 1
        if not kept.pods:
            del self._catalogues[report.tools]
            self._tools -= len(report.tools)


def _said(report: Report) -> tuple[object, ...]:
    """What of a report can change a status: not the audit's head, which changes with every call."""
    return (
        report.pod, report.version, report.revision, report.epoch, report.policies, report.problems, report.listeners,
        report.interception, report.state,
    )  # fmt: skip
