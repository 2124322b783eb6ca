"""The operator as one: what is made of what, in which order it starts and ends.

Every replica watches, serves webhooks and takes reports; the Lease's holder alone writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

import toolpolicy
from toolpolicy_operator import events, names, reconcile, tasks
from toolpolicy_operator.admission import pods as pod_admission
from toolpolicy_operator.admission import policies as policy_admission
from toolpolicy_operator.admission import rollout as rollout_admission
from toolpolicy_operator.admission.lookup import ApiLookup
from toolpolicy_operator.admission.written import WrittenRules
from toolpolicy_operator.canonical import digest
from toolpolicy_operator.certificates import CERT_MANAGER_DIRECTORY, Certificates, Options, service_names
from toolpolicy_operator.control.app import ControlApi
from toolpolicy_operator.control.metrics import ControlMetrics
from toolpolicy_operator.control.relay import Relay
from toolpolicy_operator.control.report import Report
from toolpolicy_operator.control.reports import Reports
from toolpolicy_operator.control.reviews import TokenReviews
from toolpolicy_operator.election import Election
from toolpolicy_operator.events import Recorder
from toolpolicy_operator.guard import Guard
from toolpolicy_operator.injection.plan import Defaults
from toolpolicy_operator.kube import Api, Object
from toolpolicy_operator.lookup import ApiServices
from toolpolicy_operator.metrics import Metrics
from toolpolicy_operator.reconcile import Reconciler
from toolpolicy_operator.records import Kind, PolicyRecord
from toolpolicy_operator.rollout import Rollout
from toolpolicy_operator.rotation import Terms
from toolpolicy_operator.server import Addresses, Review, ReviewHandler, Served, Server
from toolpolicy_operator.settings import Settings
from toolpolicy_operator.statuses import Statuses
from toolpolicy_operator.store import Change, Store
from toolpolicy_operator.sync import Sync
from toolpolicy_operator.tasks import What
from toolpolicy_operator.tls import ReloadingContext
from toolpolicy_operator.watch import Watch

log = logging.getLogger(__name__)

OPERATOR_AUDIENCE = "toolpolicy.dev/operator"


class Application:
    """One replica."""

    def __init__(self, settings: Settings, api: Api) -> None:
        self._settings, self._api = settings, api
        self.store = Store(settings.default_injection)
        self.reports = Reports()
        self.metrics = Metrics()
        self._tls = ReloadingContext()
        self.certificates = self._certificates()
        self.guard = Guard(api)
        self.metrics.gauge(
            "guard_policies_missing", "Policies of the guard that are not in force.", lambda: len(self.guard.missing)
        )
        self.metrics.gauge(
            "certificate_expiry_timestamp_seconds", "When the certificate in use ends.", self.certificates.expiry
        )
        self.election = Election(
            api,
            settings.namespace,
            settings.identity,
            address=settings.control_address,
            floor=lambda: reconcile.floor(self.store),
            gained=self._begin,
            lost=self._end,
        )
        self.reconciler = Reconciler(
            api, self.store, self.election, ca=self._control_ca, observe=self.metrics.reconciled
        )
        self.recorder = Recorder(api, settings.identity)
        statuses = Statuses(
            api,
            self.store,
            self.reports,
            again=self.reconciler.add,
            too_large=self.reconciler.too_large,
            told=self._tell,
        )
        self.reconciler.step(What.STATUS, statuses)
        restarts = Rollout(api, self.store, statuses.situation, again=self.reconciler.add, tell=self.recorder.tell)
        self.reconciler.step(What.ROLLOUT, restarts)
        self.reports.subscribe(self._reported)
        self.store.listen(self._forget)
        self.watch = Watch(api.access, self._event)
        self.sync = Sync(api, self.store, self._synced, self.watch.restart, interval=settings.resync_seconds)
        self._control = self._control_api()
        self.metrics.registry.register(ControlMetrics(self._control))
        self.server = Server(self._served(), self._tls)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._first_sync = asyncio.Event()

    async def start(self) -> None:
        """Listen and begin to work. Raises OSError or ValueError where an address can't be listened on."""
        s = self._settings
        await self.server.start(Addresses(s.listen, s.control_listen, s.admin_listen))
        log.info("listening: %s", ", ".join(f"{name} on port {port}" for name, port in self.server.ports.items()))
        self._spawn("certificates", self._keep_certificates())
        self._spawn("guard", self.guard.run())
        self._spawn("sync", self.sync.run())
        self._spawn("election", self._elect())
        self._spawn("reconciler", self.reconciler.run())
        self._spawn("events", self.recorder.run())

    async def ended(self) -> str:
        """Waits for a part that should run forever to end; says which."""
        done, _ = await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        task = done.pop()
        error = task.exception() if not task.cancelled() else None
        log.error("%s ended: %s", task.get_name(), error, exc_info=error)
        return task.get_name()

    async def stop(self) -> None:
        """Stop writing, give the Lease back, answer what was asked, close."""
        for name in ("election", "reconciler", "sync", "events"):
            await self._cancel(name)
        await self.election.release()
        await asyncio.gather(self.server.close(), self.watch.stop())
        await self._cancel("certificates")
        await self._cancel("guard")
        await self._control.close()
        await self._api.close()

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[name] = asyncio.create_task(work, name=name)

    async def _cancel(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(task, return_exceptions=True)

    async def _elect(self) -> None:
        await self._first_sync.wait()
        await self.election.run()

    def _certificates(self) -> Certificates:
        s = self._settings
        directory = {"own": None, "cert-manager": CERT_MANAGER_DIRECTORY}.get(s.certificates, s.certificate_directory)
        options = Options(
            terms=Terms(service_names(s.service, s.namespace, s.dns_names)),
            namespace=s.namespace,
            configuration=s.webhook_configuration,
            directory=directory,
        )
        return Certificates(
            self._api,
            self._tls,
            options,
            leads=lambda: self.election.leading,
            changed=lambda bundle: self.reconciler.refresh_rules(),
            settled=self._trusted_everywhere,
        )

    async def _keep_certificates(self) -> None:
        await self.certificates.start()
        await self.certificates.run()

    def _trusted_everywhere(self, bundle: str) -> bool:
        """Whether every namespace's rules hold this bundle of CAs; where sidecars don't report, they hold none."""
        wanted = digest(bundle.encode())
        return not self._settings.control_url or all(
            r.digests.get(names.CONTROL_CA_KEY) == wanted for r in self.store.all_rules()
        )

    def _control_ca(self) -> str | None:
        """For the rules: None while there is none yet, empty where sidecars don't report."""
        return (self.certificates.bundle or None) if self._settings.control_url else ""

    # From the cluster

    def _reported(self, report: Report) -> None:
        pod = self.store.pod(report.pod.namespace, report.pod.name)
        if pod is not None:
            for task in tasks.of_pods(pod.namespace, [pod], self.store):
                self.reconciler.add(task)

    def _tell(self, record: PolicyRecord, status: Object) -> None:
        """Events of a status that was written."""
        pods = {
            pod.name if record.namespace else f"{pod.namespace}/{pod.name}": pod for pod in self.store.selected(record)
        }
        for happening in (*events.turned(record, status), *events.unguarded(record, status, pods)):
            self.recorder.tell(happening)

    def _forget(self, change: Change) -> None:
        """Of what is gone, reports are gone, too."""
        if change.new is None and change.old is not None:
            if change.kind is Kind.POD:
                self.reports.forget(change.old.uid)
            elif isinstance(change.old, PolicyRecord):
                self.reports.forget_policy(change.old.uid)

    def _event(self, kind: Kind, deleted: bool, obj: Object) -> None:
        if deleted:
            self.store.remove(kind, obj)
        else:
            self.store.put(kind, obj)

    def _synced(self) -> None:
        log.info("synced: %s", ", ".join(f"{self.store.count(kind)} {kind.value}" for kind in Kind))
        self.watch.start()
        self._first_sync.set()

    def _begin(self) -> None:
        self.reports.begin()
        self.reconciler.begin()

    def _end(self) -> None:
        self.reconciler.end()

    # To those who ask

    def _served(self) -> Served:
        return Served(
            reviews=self._reviews(),
            readiness=self.readiness,
            metrics=self.metrics.render,
            control=self._control.routes(),
            observe=self.metrics.reviewed,
            state=self.state,
        )

    def _reviews(self) -> dict[str, ReviewHandler]:
        s, store, api = self._settings, self.store, self._api
        lookup, services = ApiLookup(self._api, self.store), ApiServices(self._api)
        rules = WrittenRules(self.store)
        defaults = Defaults(
            version=toolpolicy.__version__,
            image=s.image,
            image_pull_policy=s.image_pull_policy,
            control_url=s.control_url,
            default_injection=s.default_injection,
            operator_namespace=s.namespace,
        )

        async def mutate(review: Review) -> Review:
            return await pod_admission.mutate(review, store, lookup, defaults, rules=rules)

        async def validate(review: Review) -> Review:
            return await pod_admission.validate_pod(review, store, lookup, defaults)

        async def policy(review: Review) -> Review:
            answer = await policy_admission.validate_policy(review, store, services)
            refusal = await rollout_admission.check(review, api) if answer["response"]["allowed"] else None
            return refusal or answer

        return {"/mutate/pods": mutate, "/validate/pods": validate, "/validate/policies": policy}

    def _control_api(self) -> ControlApi:
        s = self._settings
        relay = Relay(self.election, self._own_token, lambda: self.certificates.bundle, self._server_name())
        return ControlApi(
            sidecars=TokenReviews(self._api, names.TOKEN_AUDIENCE, self.store.pod_exists),
            operators=TokenReviews(self._api, OPERATOR_AUDIENCE, self.store.pod_exists),
            operator=f"{s.namespace}/{s.service_account}",
            reports=self.reports,
            leadership=self.election,
            relay=relay,
        )

    def _own_token(self) -> str:
        path = self._settings.token_file
        return path.read_text("ascii").strip() if path is not None else ""

    def _server_name(self) -> str:
        return f"{self._settings.service}.{self._settings.namespace}.svc"

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Ready with a synced store and a certificate in use; why not, in words."""
        problems = list(self.sync.faults.values())
        if not self.store.synced:
            problems.append(f"not listed yet: {', '.join(self.store.missing)}")
        if self._tls.pair is None:
            problems.append(self.certificates.problem or "no certificate yet")
        ready = self.store.synced and self._tls.pair is not None
        return ready, {"problems": problems}

    def state(self) -> dict[str, Any]:
        """For people: who writes, what is known, what fails."""
        return {
            "identity": self.election.identity,
            "leading": self.election.leading,
            "holder": self.election.holder,
            "epoch": self.election.epoch,
            "known": {kind.value: self.store.count(kind) for kind in Kind},
            "queued": self.reconciler.queue.busy(),
            "waiting": len(self.reconciler.queue),
            "failing": sorted(set(self.reconciler.problems.values()))[:50],
            "lease": self.election.fault,
            "certificates": self.certificates.problem,
            "guardMissing": self.guard.missing,
            "repairs": self.sync.repairs,
            "watchRestarts": self.watch.restarts,
        }
