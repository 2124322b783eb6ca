"""Webhooks that really run, registered with a real API server for one test's namespaces alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cluster.control import ControlPlane
from toolpolicy_operator.kube import Api, ApiError, api_path
from toolpolicy_operator.pki import new_authority, new_leaf
from toolpolicy_operator.server import Addresses, Review, ReviewHandler, Served, Server
from toolpolicy_operator.tls import ReloadingContext

Object = dict[str, Any]
REGISTRATION = "admissionregistration.k8s.io/v1"
DEADLINE = 30.0
RUN_LABEL = "toolpolicy.test/run"
POD_RULES: list[Object] = [
    {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": [operation],
        "resources": [resource],
        "scope": "Namespaced",
    }
    for operation, resource in (("CREATE", "pods"), ("UPDATE", "pods/ephemeralcontainers"))
]


class Cluster:
    """An API server as its administrator, and webhooks of one test, which concern the namespaces it creates."""

    def __init__(self, plane: ControlPlane, api: Api) -> None:
        self.plane = plane
        self.api = api
        self.run = uuid.uuid4().hex[:8]
        self._created: list[str] = []

    async def namespace(self, labels: Mapping[str, str] | None = None) -> str:
        """A new namespace with a ServiceAccount."""
        name = f"inj-{self.run}-{len(self._created)}"
        manifest = {"metadata": {"name": name, "labels": {RUN_LABEL: self.run, **(labels or {})}}}
        await self.api.create("/api/v1/namespaces", manifest)
        self._created.append(f"/api/v1/namespaces/{name}")
        with contextlib.suppress(ApiError):
            account = {"metadata": {"name": "default"}}
            await self.api.create(api_path("v1", "serviceaccounts", name), account)
        return name

    async def register(self, kind: str, name: str, url: str, ca: str, **more: Any) -> None:
        """A webhook of pods by URL; returns when the API server asks it."""
        webhook: Object = {
            "name": f"{name}.toolpolicy.dev",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": url, "caBundle": base64.b64encode(ca.encode()).decode()},
            "failurePolicy": "Fail",
            "timeoutSeconds": 5,
            "sideEffects": "None",
            "namespaceSelector": {"matchLabels": {RUN_LABEL: self.run}},
            "rules": POD_RULES,
            **more,
        }
        full = f"{name}-{self.run}"
        path = api_path(REGISTRATION, f"{kind.lower()}s", None)
        manifest = {"apiVersion": REGISTRATION, "kind": kind, "metadata": {"name": full}, "webhooks": [webhook]}
        await self.api.create(path, manifest)
        self._created.append(f"{path}/{full}")

    async def close(self) -> None:
        for path in reversed(self._created):
            with contextlib.suppress(ApiError):
                await self.api.delete(path)


@contextlib.asynccontextmanager
async def cluster(plane: ControlPlane) -> AsyncGenerator[Cluster]:
    async with await Api.connect(plane.kubeconfig) as api:
        found = Cluster(plane, api)
        try:
            yield found
        finally:
            await found.close()


class Hooks:
    """Handlers that count what they are asked."""

    def __init__(self, plane: ControlPlane, handlers: Mapping[str, ReviewHandler]) -> None:
        authority = new_authority(datetime.now(UTC), timedelta(days=1))
        tls = ReloadingContext()
        tls.use(new_leaf(authority, [plane.host], datetime.now(UTC), timedelta(days=1)))
        self.ca = authority.certificate
        self.asked: dict[str, int] = dict.fromkeys(handlers, 0)
        self.seconds: list[float] = []
        self._handlers = handlers
        self._host = plane.host
        self._server = Server(
            Served(
                reviews={path: self._counted(path) for path in handlers},
                readiness=lambda: (True, {}),
                metrics=lambda accept: (b"", "text/plain"),
                observe=lambda path, outcome, seconds: self.seconds.append(seconds),
            ),
            tls,
        )

    def _counted(self, path: str) -> ReviewHandler:
        async def handle(review: Review) -> Review:
            self.asked[path] += 1
            answer = self._handlers[path](review)
            return await answer if inspect.isawaitable(answer) else answer

        return handle

    async def __aenter__(self) -> Hooks:
        await self._server.start(Addresses(f"{self._host}:0", "", ""))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    def url(self, path: str) -> str:
        return f"https://{self._host}:{self._server.ports['webhooks']}{path}"

    async def until_asked(self, cluster: Cluster, namespace: str, paths: Sequence[str]) -> None:
        """Wait until the API server asks at all of ``paths``: it hears of a registration by a watch."""
        probe = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "a", "image": "x"}]}}
        end = time.monotonic() + DEADLINE
        while not all(self.asked[path] for path in paths):
            if time.monotonic() > end:
                raise TimeoutError(f"the API server asked {self.asked} in {DEADLINE:.0f} s")
            with contextlib.suppress(ApiError):
                await cluster.api.create(api_path("v1", "pods", namespace), probe, dryRun="All")
            await asyncio.sleep(0.02)
