"""``spec.rollout: Restart``: pods that are older than the policy and run without its sidecar, or with one that does not
intercept the port that it states, are evicted, one after the other, so that what recreates them brings them back with
it.

Only through the Eviction API, which obeys PodDisruptionBudgets; only pods whose controller recreates them for good (a
Job would lose its work); only where new pods are injected; only pods created before this generation was written, so
each pod at most once a generation, however often the operator starts anew. That the policy's author may evict pods
there is checked when the policy is written (:mod:`toolpolicy_operator.admission.rollout`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from toolpolicy_operator.events import Happening
from toolpolicy_operator.kube import Api, ApiError, Object, api_path
from toolpolicy_operator.records import PodRecord, PolicyRecord
from toolpolicy_operator.standing import NEEDS_RESTART, Situation, state_of
from toolpolicy_operator.store import Store
from toolpolicy_operator.tasks import Task

log = logging.getLogger(__name__)

RECREATE = ("ReplicaSet", "StatefulSet", "DaemonSet", "ReplicationController")
BETWEEN_SECONDS = 5.0
"""From one eviction for a policy to the next."""
BLOCKED_SECONDS = 30.0
"""After a PodDisruptionBudget said no."""


def wanted(record: PolicyRecord) -> bool:
    """Whether the policy asks for it."""
    return record.policy is not None and record.policy.spec.rollout == "Restart"


def candidates(record: PolicyRecord, situation: Situation) -> list[PodRecord]:
    """The pods to evict, oldest first."""
    if not wanted(record) or not record.written:
        return []
    found = [
        pod
        for pod in situation.pods
        if pod.phase == "Running"
        and not pod.deleting
        and pod.owner is not None
        and pod.owner.kind in RECREATE
        and state_of(pod, situation) in NEEDS_RESTART
        and situation.enabled.get(pod.namespace)
        and "" < pod.created < record.written
    ]
    return sorted(found, key=lambda pod: (pod.created, pod.namespace, pod.name))


class Rollout:
    """The step of a rollout task: one eviction, then again after a while."""

    def __init__(
        self,
        api: Api,
        store: Store,
        situation: Callable[[PolicyRecord], Situation],
        *,
        again: Callable[[Task, float], None],
        tell: Callable[[Happening], None],
    ) -> None:
        self._api, self._store, self._situation, self._again, self._tell = api, store, situation, again, tell

    async def __call__(self, task: Task) -> None:
        record = self._store.policy(task.kind, task.namespace, task.name)
        pods = candidates(record, self._situation(record)) if record is not None else []
        if record is None or not pods:
            return
        for pod in pods:
            if await self.evict(pod, record):
                self._again(task, BETWEEN_SECONDS)
                return
        self._again(task, BLOCKED_SECONDS)

    async def evict(self, pod: PodRecord, record: PolicyRecord) -> bool:
        """Whether the pod goes; False where a budget holds it for now."""
        eviction: Object = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        try:
            await self._api.create(api_path("v1", "pods", pod.namespace, pod.name, "eviction"), eviction)
        except ApiError as error:
            if error.status == 429:
                return False
            if error.not_found or error.conflict:
                return True  # it went meanwhile
            raise
        note = f"evicted, so that it comes back with the sidecar that {record.kind} {record.name} wants"
        self._tell(Happening(pod.reference, "Normal", "Restarted", note, "Evict"))
        log.info("pod %s/%s was evicted for %s %s", pod.namespace, pod.name, record.kind, record.name)
        return True
