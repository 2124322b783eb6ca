"""Reports of real sidecars, with tokens of a real API server, to real operators: what a policy's status then says."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from cluster.control import ControlPlane
from support import replicas
from support.replicas import Replica, Replicas, eventually
from support.reporters import (
    Pod,
    Sidecar,
    await_enforced,
    condition,
    control_url,
    operator_token,
    rules_files,
    start_replica,
)
from toolpolicy_operator.control.reviews import PATIENCE, RATE
from toolpolicy_operator.kube import Api, api_path

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("reports")]


@dataclass
class World:
    """A cluster with running operators, and what a test starts in a namespace of its own."""

    plane: ControlPlane
    replicas: Replicas
    stack: ExitStack
    namespace: str = field(default_factory=lambda: f"t-{uuid.uuid4().hex[:10]}")

    def prepare(self, generation: int = 1, **spec: Any) -> None:
        if generation == 1:
            replicas.apply(self.plane, replicas.namespace_of(self.namespace))
            eventually(lambda: replicas.objects(self.plane, "sa", "default", "-n", self.namespace), "a ServiceAccount")
        manifest = replicas.policy(self.namespace, "imaging", f"tool_{generation}", **spec)
        replicas.apply(self.plane, manifest)
        wanted = {"imaging": generation}
        eventually(lambda: replicas.generations(replicas.rules_of(self.plane, self.namespace)) == wanted, "rules")

    def pod(self, name: str, *, injected: bool = True) -> Pod:
        return Pod.run(self.plane, self.namespace, name, injected=injected)

    def sidecar(self, pod: Pod, replica: Replica | None = None, *, token: str | None = None) -> Sidecar:
        return self.stack.enter_context(Sidecar(pod, control_url(replica or self.replicas.writer()), token=token))

    def enforced(self, status: str, reason: str, generation: int = 1) -> dict[str, Any]:
        return await_enforced(self.plane, self.namespace, "imaging", (status, reason), generation)

    def current(self, pods: int) -> None:
        """Wait until the status counts so many pods as current."""

        def counted() -> bool:
            return condition(self.plane, self.namespace, "imaging").get("pods", {}).get("current") == pods

        eventually(counted, f"{pods} current")


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlane, Replicas]]:
    folder = tmp_path_factory.mktemp("reports")
    with replicas.plane_of_its_own(folder) as (plane, _):
        running = Replicas(plane.kubeconfig, folder / "replicas")
        operator_token(plane, running.folder)
        try:
            for name in ("first", "second"):
                start_replica(running, name)
            eventually(lambda: all(r.ready for r in running.started), "both are ready")
            running.writer()
            yield plane, running
        finally:
            running.close()


@pytest.fixture
def world(operators: tuple[ControlPlane, Replicas]) -> Generator[World]:
    with ExitStack() as stack:
        yield World(*operators, stack)


def test_enforced_follows_what_sidecars_report_edit_by_edit(world: World) -> None:
    world.prepare()
    world.enforced("Unknown", "NoMatchingPods")
    first, second = world.pod("mcp-0"), world.pod("mcp-1")
    world.enforced("Unknown", "WaitingForReports")
    running = [world.sidecar(first), world.sidecar(second)]
    found = world.enforced("True", "Programmed")
    assert found["pods"] == {"selected": 2, "injected": 2, "current": 2, "optedOut": 0}
    world.prepare(2)
    running[0].mount()
    half = world.enforced("Unknown", "WaitingForReports", 2)
    assert "mcp-1" in half["message"]
    running[1].mount()
    world.enforced("True", "Programmed", 2)


def test_a_sidecar_reaches_the_writer_by_way_of_any_replica(world: World) -> None:
    world.prepare()
    writer = world.replicas.writer()
    other = next(r for r in world.replicas.started if r is not writer and r.process.poll() is None)
    world.sidecar(world.pod("mcp-0"), other)
    assert world.enforced("True", "Programmed")["pods"]["current"] == 1


def test_partially_enforced_names_the_pod_that_lags_and_its_problem(world: World) -> None:
    world.prepare()
    lagging = world.sidecar(world.pod("mcp-0"))
    world.sidecar(world.pod("mcp-1"))
    world.enforced("True", "Programmed")
    index = json.loads(rules_files(world.plane, world.namespace)["index.json"])
    lagging.mount(index_json=json.dumps({**index, "epoch": 0}).encode())
    found = world.enforced("False", "PartiallyEnforced")
    assert "1 of 2 pods" in found["message"]
    assert "mcp-0 refused the newest rules" in found["message"]
    lagging.mount()
    world.enforced("True", "Programmed")
    world.pod("old", injected=False)
    found = world.enforced("False", "PartiallyEnforced")
    assert "old run without a sidecar" in found["message"]


def test_a_listener_beside_the_sidecar_is_a_way_round_it(world: World) -> None:
    world.prepare()
    with socket.create_server(("0.0.0.0", 0)):
        pod = world.pod("mcp-0")
        world.stack.enter_context(Sidecar(pod, control_url(world.replicas.writer()), crowded=True))
        found = world.enforced("False", "BypassPossible")
    assert "mcp-0 also listens on " in found["message"]


def test_a_sidecar_that_lies_about_its_pod_is_refused_and_changes_nothing(world: World) -> None:
    world.prepare()
    honest, victim = world.pod("mcp-0"), world.pod("mcp-1")
    world.sidecar(honest)
    liar = world.sidecar(victim, token=honest.token())
    eventually(lambda: "own pod only" in said(liar), "a refusal that says why")
    assert liar.readiness()["ready"], "what the operator thinks of a sidecar never ends its readiness"
    world.current(1)
    world.enforced("Unknown", "WaitingForReports")


def test_a_token_of_another_audience_or_past_its_end_or_of_a_deleted_pod_is_refused(world: World) -> None:
    world.prepare()
    wrong, late, gone = world.pod("wrong"), world.pod("late"), world.pod("gone")
    other = world.sidecar(wrong, token=wrong.token("https://other.example"))
    expired = world.sidecar(late, token=expired_token(world.plane, late))
    token = gone.token()
    gone.delete()
    deleted = world.sidecar(gone, token=token)
    for sidecar, says in ((other, "not for the audience"), (expired, "expired"), (deleted, "does not accept")):
        eventually(lambda s=sidecar, t=says: t in said(s) and "401" in said(s), says)
    # A new token in the same file is all it takes.
    (other.folder / "token").write_text(wrong.token())
    eventually(lambda: other.readiness()["control"]["takenAt"], "the report with the right token")
    world.current(1)
    world.enforced("Unknown", "WaitingForReports")


def said(sidecar: Sidecar) -> str:
    return str(sidecar.readiness()["control"]["lastError"])


def expired_token(plane: ControlPlane, pod: Pod) -> str:
    """The API server gives none for less than ten minutes: the same claims, its own key, another time."""
    assert plane.keys is not None
    good, key = pod.token(), ECKey.import_key((plane.keys / "sa.key").read_text())
    read = jwt.decode(good, key, algorithms=["ES256"])
    past = {
        **read.claims,
        "iat": int(time.time()) - 7200,
        "nbf": int(time.time()) - 7200,
        "exp": int(time.time()) - 3600,
    }
    return jwt.encode(dict(read.header), past, key, algorithms=["ES256"])


class Watched:
    """Every Enforced condition that the policy ever had, by a watch."""

    def __init__(self, world: World) -> None:
        self.seen: list[tuple[str, str]] = []
        self._world, self._ended = world, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.is_set():
            found = condition(self._world.plane, self._world.namespace, "imaging")
            if found and (not self.seen or self.seen[-1] != (found["status"], found["reason"])):
                self.seen.append((found["status"], found["reason"]))
            self._ended.wait(0.1)


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_after_a_takeover_the_status_stands_then_is_unknown_and_never_false(
    how: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One sidecar reaches only the writer that goes away, the other only the one that comes."""
    folder = tmp_path_factory.mktemp("takeover")
    with replicas.plane_of_its_own(folder) as (plane, _), ExitStack() as stack:
        running = Replicas(plane.kubeconfig, folder / "replicas")
        stack.callback(running.close)
        operator_token(plane, running.folder)
        world = World(plane, running, stack)
        first = start_replica(running, "first", takeover=8.0)
        eventually(lambda: first.leading, "the first writes")
        second = start_replica(running, "second", takeover=8.0)
        eventually(lambda: second.ready, "the second is ready")
        world.prepare()
        pods = [world.pod("mcp-0"), world.pod("mcp-1")]
        lost, kept = world.sidecar(pods[0], first), world.sidecar(pods[1], second)
        before = world.enforced("True", "Programmed")
        with Watched(world) as watched:
            first.signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            eventually(lambda: second.leading, "takeover", 20.0)
            stood = condition(plane, world.namespace, "imaging")
            assert stood["lastTransitionTime"] == before["lastTransitionTime"]
            kept.signal(signal.SIGHUP)
            world.enforced("Unknown", "WaitingForReports")
            found = condition(plane, world.namespace, "imaging")
            assert "mcp-0" in found["message"]
            # A sidecar whose address leads to a replica again is heard, and what it says counts.
            lost.stop()
            world.sidecar(pods[0], second)
            kept.signal(signal.SIGHUP)
            world.enforced("True", "Programmed")
        assert watched.seen[0] == ("True", "Programmed")
        assert not [entry for entry in watched.seen if entry[0] == "False"], watched.seen


def test_a_thousand_sidecars_that_come_back_at_once_do_not_flood_the_api_server(world: World) -> None:
    world.prepare()
    pods = [world.pod(f"mcp-{n}") for n in range(20)]
    url, ca = control_url(world.replicas.writer()), rules_files(world.plane, world.namespace)["control-ca.crt"]
    line = world.plane.audit_log.stat().st_size
    tokens = asyncio.run(many_tokens(world.plane, pods, 50))
    started = time.monotonic()
    answers = asyncio.run(report_all(url, ca.decode(), tokens))
    seconds = time.monotonic() - started
    assert len(tokens) == 1000
    assert answers["taken"] == 1000
    reviews = list(reviewed(world.plane, line))
    # One review a token, no more: nobody who was sent away cost the API server anything.
    assert len(reviews) == 1000
    # In the long run no more than the rate; after a moment in which the API server was slow, what had waited for it.
    busiest = max(sum(1 for other in reviews if at <= other < at + 1.0) for at in reviews)
    assert busiest <= RATE * (1 + PATIENCE)
    assert max(reviews) - min(reviews) > 0.8 * 1000 / RATE
    assert seconds < 60
    assert answers["sent away"] > 0


async def many_tokens(plane: ControlPlane, pods: list[Pod], each: int) -> list[tuple[Pod, str]]:
    """``each`` different tokens of every pod."""
    async with await Api.connect(plane.kubeconfig) as api:
        busy = asyncio.Semaphore(16)

        async def one(pod: Pod) -> tuple[Pod, str]:
            bound = {"kind": "Pod", "apiVersion": "v1", "name": pod.name, "uid": pod.uid}
            spec = {"audiences": ["toolpolicy.dev"], "expirationSeconds": 600, "boundObjectRef": bound}
            request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
            path = api_path("v1", "serviceaccounts", pod.namespace, "default", "token")
            async with busy:
                answer = await api.create(path, request)
            return pod, cast("dict[str, Any]", answer["status"])["token"]

        return await asyncio.gather(*(one(pod) for pod in pods for _ in range(each)))


def client_at(address: str) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, force_close=True, local_addr=(address, 0))
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30))


async def report_all(url: str, ca: str, tokens: list[tuple[Pod, str]]) -> dict[str, int]:
    """All at once, each pod's from an address of its own; who is sent away comes back when it is told to."""
    context = ssl.create_default_context(cadata=ca)
    counted = {"taken": 0, "sent away": 0}
    addresses = {name: f"127.0.1.{number}" for number, name in enumerate({pod.name for pod, _ in tokens}, 1)}
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(client_at(address)) for name, address in addresses.items()}

        async def one(pod: Pod, token: str) -> None:
            client = clients[pod.name]
            named = {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid}
            body = {"pod": named, "version": "0.1.0", "revision": "1-1", "epoch": 1}
            headers = {"Authorization": f"Bearer {token}"}
            for _ in range(20):
                async with client.post(f"{url}/v1/report", json=body, headers=headers, ssl=context) as answer:
                    if answer.status == 200:
                        counted["taken"] += 1
                        return
                    assert answer.status in (429, 503), await answer.text()
                    counted["sent away"] += 1
                    pause = int(answer.headers["Retry-After"])
                await asyncio.sleep(pause)

        await asyncio.gather(*(one(pod, token) for pod, token in tokens))
    return counted


def reviewed(plane: ControlPlane, offset: int) -> Iterator[float]:
    """When each TokenReview since ``offset`` of the audit log came to the API server."""
    from datetime import datetime

    with plane.audit_log.open() as file:
        file.seek(offset)
        for line in file:
            if '"tokenreviews"' not in line:
                continue
            event = json.loads(line)
            if event["stage"] == "ResponseComplete" and event["verb"] == "create":
                yield datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
