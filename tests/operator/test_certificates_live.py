"""Certificates change under load on a real API server, and nothing is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from cluster.control import ControlPlane
from cluster.fixtures import create_namespace
from support import install
from support.guarded import PLAIN
from toolpolicy_operator import pki, rotation
from toolpolicy_operator.certificates import Certificates, Options
from toolpolicy_operator.kube import Api, ApiError, Object
from toolpolicy_operator.rotation import Terms
from toolpolicy_operator.server import Addresses, Review, ReviewHandler, Served, Server
from toolpolicy_operator.tls import ReloadingContext

pytestmark = pytest.mark.slow

PER_SECOND = 200
WORKERS = 16
ROTATIONS = 3
DEADLINE = 120.0
# So short that the next CA is made as soon as the one before is the only one.
TERMS = Terms(("127.0.0.1",), timedelta(seconds=200), timedelta(seconds=150), overlap=timedelta(seconds=3))
REGISTRATION = "/apis/admissionregistration.k8s.io/v1"


@dataclass
class Replica:
    certificates: Certificates
    server: Server
    served: set[str] = field(default_factory=set[str])

    @property
    def port(self) -> int:
        return self.server.ports["webhooks"]


def allow(review: Review) -> Review:
    response = {"uid": review["request"]["uid"], "allowed": True}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def ready() -> tuple[bool, Object]:
    return True, {}


def metrics(accept: str) -> tuple[bytes, str]:
    return b"", "text/plain"


@contextlib.asynccontextmanager
async def replica(api: Api, namespace: str, name: str, *, leads: bool) -> AsyncGenerator[Replica]:
    tls = ReloadingContext()
    options = Options(TERMS, namespace=namespace, configuration=name, interval=0.3, publish_every=1.0)
    certificates = Certificates(api, tls, options, lambda: leads)
    paths = ("/mutate/pods", "/validate/pods", "/validate/policies")
    handlers: dict[str, ReviewHandler] = dict.fromkeys(paths, allow)
    server = Server(Served(handlers, ready, metrics), tls)
    await certificates.start()
    await server.start(Addresses("127.0.0.1:0", "", ""))
    made = Replica(certificates, server)
    keeping = asyncio.create_task(certificates.run())
    try:
        yield made
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await server.close()


@dataclass
class Load:
    """Pods created as dry runs, and handshakes with what a client trusts that read the webhooks' configuration."""

    api: Api
    namespace: str
    name: str
    done: int = 0
    handshakes: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    started: float = field(default_factory=time.monotonic)

    async def admit(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        while True:
            ahead = self.done / PER_SECOND - (time.monotonic() - self.started)
            self.done += 1
            if ahead > 0:
                await asyncio.sleep(ahead)
            try:
                await self.api.request("POST", path, PLAIN, params={"dryRun": "All"})
            except ApiError as error:
                self.refused[error.message] += 1

    async def shake(self, replica: Replica, plural: str) -> None:
        path = f"{REGISTRATION}/{plural}/{self.name}"
        while True:
            found = await self.api.get(path)
            bundle = base64.b64decode(found["webhooks"][0]["clientConfig"]["caBundle"]).decode()
            context = ssl.create_default_context(cadata=bundle)
            for _ in range(5):
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", replica.port, ssl=context)
                except OSError as error:
                    self.refused[str(error)] += 1
                    continue
                replica.served.add(ssl.DER_cert_to_PEM_cert(writer.get_extra_info("ssl_object").getpeercert(True)))
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                self.handshakes += 1
                await asyncio.sleep(0.03)


async def until(what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE:.0f} s: {what}"
        await asyncio.sleep(0.05)


def configurations(first: Replica, second: Replica, suffix: str, namespace: str) -> list[Object]:
    """One replica mutates and the other validates, so that every pod asks both."""
    found = install.webhooks_by_url("https://127.0.0.1", "", suffix, namespaces=(namespace,))
    for configuration, replica_ in zip(found, (first, second), strict=True):
        for webhook in configuration["webhooks"]:
            client = webhook["clientConfig"]
            client["url"] = client["url"].replace("127.0.0.1", f"127.0.0.1:{replica_.port}")
            client["caBundle"] = base64.b64encode(first.certificates.bundle.encode()).decode()
        configuration["webhooks"] = [w for w in configuration["webhooks"] if w["name"].startswith("pods")]
    return found


@pytest.mark.asyncio
async def test_nothing_is_refused_while_certificates_rotate_and_the_secret_is_replaced(
    control_plane: ControlPlane,
) -> None:
    plane, suffix = control_plane, uuid.uuid4().hex[:8]
    namespace, name = f"certificates-{suffix}", f"toolpolicy-{suffix}"
    create_namespace(plane, namespace, **{"toolpolicy.dev/injection": "enabled"})
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(await Api.connect(plane.kubeconfig))
        first = await stack.enter_async_context(replica(api, namespace, name, leads=True))
        second = await stack.enter_async_context(replica(api, namespace, name, leads=False))
        objects = configurations(first, second, suffix, namespace)
        for document in objects:
            stack.callback(plane.kubectl, "delete", document["kind"], name, check=False)
        stack.callback(plane.kubectl, "delete", "namespace", namespace, "--wait=false", check=False)
        plane.kubectl("apply", "--server-side", "-f", "-", stdin="\n---\n".join(map(json.dumps, objects)))
        load = Load(api, namespace, name)
        working = [asyncio.create_task(load.admit()) for _ in range(WORKERS)]
        working.append(asyncio.create_task(load.shake(first, "mutatingwebhookconfigurations")))
        working.append(asyncio.create_task(load.shake(second, "validatingwebhookconfigurations")))
        try:
            await until("rotations", lambda: min(len(r.served) for r in (first, second)) > ROTATIONS)
            foreign = await replace_secret(api, namespace)
            await until(
                "the replaced CA",
                lambda: all(any(pki.signed_by(s, foreign) for s in r.served) for r in (first, second)),
            )
            assert not load.refused, f"of {load.done} admissions and {load.handshakes} handshakes: {load.refused}"
            assert all(not task.done() for task in working)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
    assert load.done > PER_SECOND


async def replace_secret(api: Api, namespace: str) -> str:
    """Someone puts a CA of their own; returns its certificate."""
    path = f"/api/v1/namespaces/{namespace}/secrets/toolpolicy-ca"
    material, _ = rotation.step(None, TERMS, datetime.now(UTC), False)
    while True:
        secret = await api.get(path)
        secret["data"], secret["metadata"]["annotations"] = rotation.secret_data(material), {}
        try:
            await api.update(path, secret)
        except ApiError as error:
            if error.conflict:
                continue
            raise
        return material.authority.certificate
