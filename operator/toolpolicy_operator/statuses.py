"""Writes a policy's status: what ``status.py`` makes of it, by server-side apply, only where it differs.

The write carries the version that was read. After an edit in between it fails, and the edit asks for another.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from toolpolicy_operator import rollout, tasks
from toolpolicy_operator.canonical import canonical
from toolpolicy_operator.control.reports import Reports
from toolpolicy_operator.kube import POLICIES_API, Api, Object, policy_path
from toolpolicy_operator.records import Kind, PolicyRecord
from toolpolicy_operator.standing import Situation
from toolpolicy_operator.status import Assessment, assess, gather
from toolpolicy_operator.store import Store
from toolpolicy_operator.tasks import Task

Told = Callable[[PolicyRecord, Object], None]
"""Hears of each status that was written; the record has the one before."""


class Statuses:
    """The step of a status task. ``again`` asks for the task in so many seconds; ``too_large`` says why a policy does
    not fit into its namespace's rules, if it does not.
    """

    def __init__(
        self,
        api: Api,
        store: Store,
        reports: Reports,
        *,
        again: Callable[[Task, float], None],
        too_large: Callable[[PolicyRecord], str | None] = lambda record: None,
        told: Told = lambda record, status: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api, self._store, self._reports, self._now = api, store, reports, now
        self._again, self._too_large, self._told = again, too_large, told

    async def __call__(self, task: Task) -> None:
        record = self._store.policy(task.kind, task.namespace, task.name)
        if record is None:
            return
        assessment = self.assess(record)
        if assessment.again is not None:
            self._again(task, assessment.again)
        if assessment.status.pods_needing_restart and rollout.wanted(record):
            self._again(tasks.rollout(record), 0.0)
        wanted: Object = assessment.status.model_dump(mode="json", by_alias=True)
        if canonical(wanted) == canonical(dict(record.status)):
            return
        metadata: Object = {"name": record.name, "uid": record.uid, "resourceVersion": str(record.version)}
        if record.namespace is not None:
            metadata["namespace"] = record.namespace
        obj: Object = {"apiVersion": POLICIES_API, "kind": record.kind, "metadata": metadata, "status": wanted}
        answer = await self._api.apply(policy_path(record.kind, record.namespace, record.name, "status"), obj)
        self._store.put(Kind(record.kind), answer)
        self._told(record, wanted)

    def assess(self, record: PolicyRecord) -> Assessment:
        """The status that the policy should have now."""
        at = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
        return assess(self.situation(record, at))

    def situation(self, record: PolicyRecord, at: str = "") -> Situation:
        """What the status is made of."""
        return gather(record, self._store, self._reports, at, too_large=self._too_large(record))
