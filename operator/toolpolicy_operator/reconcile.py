"""From the store to the cluster: a namespace's rules and the touch of its pods, a policy's status.

Only the Lease's holder writes (``election.py``), and each write says which version it read. What fails is tried again
by the queue; what was written comes back through the watch, and is put into the store at once so that the next look is
not at the past.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from toolpolicy_operator import configmap, names, tasks
from toolpolicy_operator.configmap import Contents
from toolpolicy_operator.election import Election
from toolpolicy_operator.kube import Api, ApiError, Object, api_path
from toolpolicy_operator.queue import Pace, WorkQueue
from toolpolicy_operator.records import Kind, NamespaceRecord, PodRecord, PolicyRecord, RulesRecord
from toolpolicy_operator.store import Change, Store
from toolpolicy_operator.tasks import Task, What

log = logging.getLogger(__name__)

WORKERS = 8
TOUCHES_PER_SECOND = 200.0
TOUCHES_AT_ONCE = 8
STATUS_DELAY = 0.5
"""Seconds that a status waits for what else is about to change it: the reports of many pods are one write."""
Step = Callable[[Task], Awaitable[None]]
Observe = Callable[[Task, str, float], None]


class Reconciler:
    """``ca`` gives the PEM of the control API's CA: None while there is none yet, empty where none is used.

    Tasks of a kind that nobody does (:meth:`step`) are not queued.
    """

    def __init__(
        self,
        api: Api,
        store: Store,
        election: Election,
        *,
        ca: Callable[[], str | None] = lambda: "",
        observe: Observe = lambda task, outcome, seconds: None,
    ) -> None:
        self._api, self._store, self._election, self._ca, self._observe = api, store, election, ca, observe
        self._steps: dict[What, Step] = {What.RULES: self._rules, What.TOUCH: self._touch}
        self.queue: WorkQueue[Task] = WorkQueue()
        self._pace = Pace(TOUCHES_PER_SECOND, 50)
        self._revisions = 0
        self._revisions_of = 0
        self._touched: dict[str, str] = {}
        self.problems: dict[Task, str] = {}
        self._too_large: dict[str, str] = {}
        store.listen(self._changed)

    def begin(self) -> None:
        """This replica writes from now on: everything is looked at."""
        self.queue.clear()
        self._touched.clear()
        for task in tasks.everything(self._store):
            self.add(task)

    def end(self) -> None:
        """It writes no more."""
        self.queue.clear()
        self.problems.clear()

    def add(self, task: Task, delay: float = 0.0) -> None:
        """Ask for a task, if this replica writes."""
        if self._election.leading and task.what in self._steps:
            self.queue.add(task, max(delay, STATUS_DELAY if task.what is What.STATUS else 0.0))

    def step(self, what: What, step: Step) -> None:
        """Who does the tasks of this kind."""
        self._steps[what] = step

    def refresh_rules(self) -> None:
        """The control API's CA changed: it stands in all rules."""
        for record in self._store.all_rules():
            self.add(tasks.rules(record.namespace))

    async def run(self) -> None:
        """Forever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    def _changed(self, change: Change) -> None:
        if change.kind is Kind.POD and change.new is None and change.old is not None:
            self._touched.pop(change.old.uid, None)
        if self._election.leading:
            for task in tasks.after(change, self._store):
                self.add(task)

    async def _work(self) -> None:
        while True:
            task = await self.queue.get()
            try:
                await self.do(task)
            finally:
                self.queue.done(task)

    async def do(self, task: Task) -> None:
        """One task, whatever comes of it."""
        if not self._election.leading:
            return
        started, outcome = monotonic(), "done"
        try:
            await self._steps[task.what](task)
            self.queue.succeeded(task)
            self.problems.pop(task, None)
        except ApiError as error:
            delay = self.queue.retry(task, error.retry_after)
            outcome = "conflict" if error.conflict else "error"
            if not error.conflict:
                self._say(task, f"{_name(task)}: {error}", delay)
        except Exception as error:
            # The worker's edge: one object that can't be reconciled must not keep the others from it.
            outcome = "fault"
            log.exception("%s could not be reconciled", _name(task))
            self.problems[task] = f"{_name(task)}: internal error: {error}"
            self.queue.retry(task)
        self._observe(task, outcome, monotonic() - started)

    def _say(self, task: Task, problem: str, delay: float) -> None:
        if self.problems.get(task) != problem:
            log.warning("%s; again in %.1f s", problem, delay)
        self.problems[task] = problem

    # The rules of a namespace

    async def _rules(self, task: Task) -> None:
        space = task.namespace or ""
        namespace, current = self._store.namespace(space), self._store.rules(space)
        if namespace is None or (namespace.terminating and current is None):
            return
        guarded = any(pod.guarded for pod in self._store.pods_in(space))
        records = self._store.policies_of(space)
        if not guarded and not (records and self._store.injection_enabled(namespace.labels)):
            await self._remove_rules(current)
            return
        ca = self._ca()
        if ca is None:
            raise ApiError(0, "NoCA", "the control API has no certificate yet")
        if await self._recovered(records, current):
            records = self._store.policies_of(space)
        await self._write_rules(namespace, current, configmap.contents(records, ca))

    async def _recovered(self, records: Sequence[PolicyRecord], current: RulesRecord | None) -> bool:
        """Whether the rules as they were written before this operator started hold an older, valid generation of a
        policy that is invalid now: that stays in force then, in place of a stand-in.
        """
        wanting = [r for r in records if r.binding.stand_in and configmap.older(r, current)]
        if not wanting or current is None:
            return False
        there = await self._api.get(_rules_path(current.namespace))
        adopted = False
        for record in wanting:
            binding = configmap.kept(record, there)
            adopted = (binding is not None and self._store.adopt(record, binding)) or adopted
        return adopted

    async def _remove_rules(self, current: RulesRecord | None) -> None:
        """No pod of ours runs in the namespace, and none is to come."""
        if current is None or current.terminating:
            return
        try:
            await self._delete_rules(current)
        except ApiError as error:
            if not error.not_found:
                raise

    async def _write_rules(self, namespace: NamespaceRecord, current: RulesRecord | None, wanted: Contents) -> None:
        if not self._fits(namespace.name, wanted):
            return
        there = configmap.written(current)
        if max(there.epoch, _epoch(current)) > self._election.epoch:
            await self._election.raise_epoch(max(there.epoch, _epoch(current)))
        epoch = self._election.epoch
        whole = current is not None and configmap.holds(wanted, current)
        if current is not None and whole and current.owned and _epoch(current) == epoch:
            return
        if current is not None and current.foreign:
            # Server-side apply would leave in place what another manager owns. Pods keep what they have mounted.
            await self._delete_rules(current)
            current = None
        if whole and there.index is not None:
            index = (there.index.epoch, there.index.revision)
        else:
            index = (epoch, self._next_revision(epoch))
        obj = configmap.manifest(wanted, namespace, index, epoch, current)
        try:
            answer = await self._api.apply(_rules_path(namespace.name), obj)
        except ApiError as error:
            if error.conflict:
                await self._look_again(namespace.name, current)
            if error.not_found or (error.forbidden and "being terminated" in error.message):
                return  # the namespace went meanwhile
            raise
        self._store.put(Kind.RULES, answer)

    def _fits(self, namespace: str, wanted: Contents) -> bool:
        """Whether a ConfigMap holds it; if not the pods keep what they have, and the policies' status says so."""
        before = self._too_large.pop(namespace, None)
        if wanted.size > configmap.MAX_CONFIGMAP:
            self._too_large[namespace] = (
                f"the rules of namespace {namespace} have {wanted.size:,} bytes and a ConfigMap holds "
                f"{configmap.MAX_CONFIGMAP:,}: its pods keep the rules they have; delete or shorten policies"
            )
        if self._too_large.get(namespace) != before:
            for record in self._store.policies_of(namespace):
                self.add(tasks.status(record))
        return namespace not in self._too_large

    def too_large(self, record: PolicyRecord) -> str | None:
        """Why the policy does not fit into the rules of a namespace that it reaches, if it does not."""
        return next((why for space, why in self._too_large.items() if self._store.reaches(record, space)), None)

    async def _delete_rules(self, current: RulesRecord) -> None:
        version = str(current.version)
        await self._api.delete(_rules_path(current.namespace), uid=current.uid, resource_version=version)
        self._store.forget_rules(current)

    async def _look_again(self, namespace: str, current: RulesRecord | None) -> None:
        """After a conflict: what is there now, without waiting for the watch."""
        try:
            self._store.put(Kind.RULES, await self._api.get(_rules_path(namespace)))
        except ApiError as error:
            if not error.not_found:
                raise
            if current is not None:
                self._store.forget_rules(current)

    def _next_revision(self, epoch: int) -> str:
        if self._revisions_of != epoch:
            self._revisions_of, self._revisions = epoch, 0
        self._revisions += 1
        return f"{epoch}-{self._revisions}"

    # The touch of its pods

    async def _touch(self, task: Task) -> None:
        space = task.namespace or ""
        revision = configmap.written(self._store.rules(space)).revision
        if revision is None:
            return
        pods = [pod for pod in self._store.pods_in(space) if self._stale(pod, revision)]
        some = asyncio.Semaphore(TOUCHES_AT_ONCE)

        async def one(pod: PodRecord) -> None:
            async with some:
                await self._pace.turn()
                if self._election.leading:
                    await self._touch_pod(pod, revision)

        faults = await asyncio.gather(*(one(pod) for pod in pods), return_exceptions=True)
        for fault in faults:
            if isinstance(fault, BaseException):
                raise fault

    def _stale(self, pod: PodRecord, revision: str) -> bool:
        if not pod.guarded or pod.deleting or not pod.node:
            return False
        return pod.annotations.get(names.RULES_ANNOTATION) != revision and self._touched.get(pod.uid) != revision

    async def _touch_pod(self, pod: PodRecord, revision: str) -> None:
        """The uid keeps it from a successor of the same name. A late touch by an old writer does no harm: it changes
        what the kubelet looks at, not what it finds."""
        patch: Object = {"metadata": {"uid": pod.uid, "annotations": {names.RULES_ANNOTATION: revision}}}
        try:
            await self._api.patch(api_path("v1", "pods", pod.namespace, pod.name), patch, metadata_only=True)
        except ApiError as error:
            if not error.not_found and not error.conflict:
                raise
        self._touched[pod.uid] = revision


def _rules_path(namespace: str) -> str:
    return api_path("v1", "configmaps", namespace, names.RULES_CONFIGMAP)


def _epoch(current: RulesRecord | None) -> int:
    text = current.annotations.get(names.EPOCH_ANNOTATION, "") if current is not None else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 17 else 0


def floor(store: Store) -> int:
    """The highest epoch that stands in any rules."""
    return max((max(_epoch(r), configmap.written(r).epoch) for r in store.all_rules()), default=0)


def _name(task: Task) -> str:
    where = f"{task.namespace}/{task.name}" if task.namespace and task.name else task.namespace or task.name
    return f"{task.what} of {task.kind or 'namespace'} {where}"
