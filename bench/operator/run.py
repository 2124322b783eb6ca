"""The operator at scale: a real API server, kwok as the kubelet of 1,000 pods, 500 policies in 20 namespaces.

    python bench/operator/run.py [--policies 500 --pods 1000 --namespaces 20 --edits 200]

Measured: the time from the operator's start to everything programmed (each namespace's rules, each pod's annotation,
each policy's status); from an edit's apply to the rules written and the namespace's pods touched; the operator's
memory, its CPU while nothing happens, and its requests per edit by the API server's audit log. Pods are as admission
leaves them; no sidecar runs in them, so none reports. Writes results.json and results.svg beside itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench" / "operator")]

import aiohttp  # noqa: E402
from plot import plot  # noqa: E402

from cluster.control import Components, ControlPlane, boot, layout, programs  # noqa: E402
from support.replicas import namespace_of, pod, policy  # noqa: E402
from toolpolicy_operator.kube import Api, api_path, policy_path  # noqa: E402
from tools import environments  # noqa: E402

HERE = Path(__file__).parent
USER = "bench-operator"
RULES = "toolpolicy.dev/rules"
IDLE_SECONDS = 30.0
Object = dict[str, Any]


def kwok() -> Path:
    """kwok's command, built once into the cache."""
    source = HERE / "kwok"
    target = environments.cache_dir() / f"kwok-{environments.digest(source / 'go.mod', source / 'go.sum')[:16]}"
    if not target.exists():
        print("building kwok (minutes, once) ...", flush=True)
        compiler = environments.machine_go((source / "go.mod").read_text()) or environments.go()
        command = [str(compiler), "build", "-o", str(target), "sigs.k8s.io/kwok/cmd/kwok"]
        subprocess.run(command, cwd=source, check=True)
    return target


def stages(folder: Path) -> Path:
    """kwok's own stages for nodes and pods, without which it does nothing."""
    source = HERE / "kwok"
    compiler = environments.machine_go((source / "go.mod").read_text()) or environments.go()
    command = [str(compiler), "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"]
    found = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True).stdout.strip()
    base = Path(found) / "kustomize" / "stage"
    names = ("node/fast/node-initialize", "node/heartbeat-with-lease/node-heartbeat-with-lease",
             "pod/fast/pod-ready", "pod/fast/pod-complete", "pod/fast/pod-delete")  # fmt: skip
    target = folder / "stages.yaml"
    target.write_text("\n---\n".join((base / f"{name}.yaml").read_text() for name in names))
    return target


class Seen:
    """Rules and pods as a watch tells of them, with the moment."""

    def __init__(self) -> None:
        self.generations: dict[tuple[str, str], tuple[int, float]] = {}
        self.revisions: dict[str, str] = {}
        self.touched: dict[str, dict[str, tuple[str, float]]] = {}
        self.changed = asyncio.Event()

    def rules(self, obj: Object) -> None:
        space, now = obj["metadata"]["namespace"], time.monotonic()
        index: Object = json.loads(obj.get("data", {}).get("index.json", "{}"))
        self.revisions[space] = index.get("revision", "")
        for entry in index.get("policies", {}).values():
            known = self.generations.get((space, entry["name"]))
            if known is None or known[0] != entry["generation"]:
                self.generations[space, entry["name"]] = (entry["generation"], now)

    def pod(self, obj: Object) -> None:
        space, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
        revision = obj["metadata"].get("annotations", {}).get(RULES, "")
        inside = self.touched.setdefault(space, {})
        if inside.get(name, ("", 0.0))[0] != revision:
            inside[name] = (revision, time.monotonic())

    def written(self, space: str, name: str, generation: int) -> bool:
        return self.generations.get((space, name), (0, 0.0))[0] == generation

    def all_touched(self, space: str) -> bool:
        return all(revision == self.revisions.get(space) for revision, _ in self.touched[space].values())

    async def until(self, probe: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not probe():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise SystemExit(f"not within {seconds:.0f} s: {what}") from None


async def watch(
    session: aiohttp.ClientSession, url: str, told: Callable[[Object], None], changed: asyncio.Event
) -> None:
    async with session.get(url, params={"watch": "true"}, timeout=aiohttp.ClientTimeout(total=None)) as answer:
        async for line in answer.content:
            event = json.loads(line)
            if event["type"] in ("ADDED", "MODIFIED"):
                told(event["object"])
            changed.set()


async def populate(api: Api, a: argparse.Namespace) -> None:
    """Nodes, namespaces, policies and pods."""
    some = asyncio.Semaphore(16)

    async def create(path: str, obj: Object) -> None:
        async with some:
            await api.create(path, obj, within=60.0)

    spaces = [f"space-{n:02d}" for n in range(a.namespaces)]
    for space in spaces:
        await create(api_path("v1", "namespaces"), namespace_of(space))
    await asyncio.gather(*(create(api_path("v1", "nodes"), fake_node(n)) for n in range(10)))
    await accounts(api, spaces)
    policies = [(spaces[n % len(spaces)], f"policy-{n // len(spaces):03d}") for n in range(a.policies)]
    pods = [(spaces[n % len(spaces)], f"mcp-{n // len(spaces):03d}") for n in range(a.pods)]
    await asyncio.gather(
        *(create(policy_path("ToolPolicy", s, n).rpartition("/")[0], policy(s, n)) for s, n in policies),
        *(create(api_path("v1", "pods", s), bound(pod(s, n), i)) for i, (s, n) in enumerate(pods)),
    )


async def accounts(api: Api, spaces: list[str]) -> None:
    """Returns when the controllers have made every namespace's ServiceAccount: pods are refused before."""
    async with asyncio.timeout(120):
        while True:
            found = await api.list(api_path("v1", "serviceaccounts"))
            if set(spaces) <= {s["metadata"]["namespace"] for s in found if s["metadata"]["name"] == "default"}:
                return
            await asyncio.sleep(0.2)


def fake_node(number: int) -> Object:
    status = {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "500"}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"kwok-{number}"},
            "status": {**status, "capacity": status["allocatable"]}}  # fmt: skip


def bound(obj: Object, number: int) -> Object:
    return {**obj, "spec": {**obj["spec"], "nodeName": f"kwok-{number % 10}"}}


async def all_running(api: Api, count: int) -> None:
    async with asyncio.timeout(600):
        while True:
            found = await api.list(api_path("v1", "pods"), fieldSelector="status.phase=Running")
            if len(found) >= count:
                return
            await asyncio.sleep(1)


async def all_stated(api: Api, count: int) -> None:
    async with asyncio.timeout(600):
        while True:
            found = await api.list(api_path("toolpolicy.dev/v1alpha1", "toolpolicies"))
            stated = [p for p in found if p.get("status", {}).get("observedGeneration") == p["metadata"]["generation"]]
            if len(stated) >= count and all(p["status"]["pods"]["selected"] for p in stated):
                return
            await asyncio.sleep(0.2)


class Operator:
    """The process that is measured."""

    def __init__(self, plane: ControlPlane, log: Path) -> None:
        self._log = log
        command = [
            sys.executable, "-m", "toolpolicy_operator", "--kubeconfig", str(plane.kubeconfig_for(USER)),
            "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
            "--image", "registry.test/sidecar:1", "--control-url", "https://127.0.0.1:9444",
        ]  # fmt: skip
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
        self.started = time.monotonic()

    @property
    def rss_mib(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmRSS")

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def idle(self) -> bool:
        for line in self._log.read_text().splitlines():
            if " listening: " in line:
                port = line.rpartition("admin on port ")[2]
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
                    return json.load(answer)["queued"] == 0
        return False

    async def settle(self) -> None:
        async with asyncio.timeout(300):
            while not await asyncio.to_thread(self.idle):
                await asyncio.sleep(0.2)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def requests_of(audit: Path, offset: int) -> tuple[Counter[str], int]:
    """What the operator asked since ``offset`` bytes of the audit log: verb and resource; the Lease apart."""
    found: Counter[str] = Counter()
    with audit.open("rb") as file:
        file.seek(offset)
        for line in file:
            event: Object = json.loads(line)
            reference: Object = event.get("objectRef", {})
            if event["user"]["username"] == USER and reference.get("resource") != "leases" and event["verb"] != "watch":
                sub = f"/{reference['subresource']}" if reference.get("subresource") else ""
                found[f"{event['verb']} {reference.get('resource', event['requestURI'])}{sub}"] += 1
        return found, file.tell()


async def edits(api: Api, seen: Seen, spaces: list[str], a: argparse.Namespace) -> dict[str, Any]:
    """One edit after the other: seconds until its rules are written, until the pods of its namespace are touched."""
    written: list[float] = []
    touched: list[float] = []
    chance = random.Random(1)
    for number in range(a.edits):
        space, name = chance.choice(spaces), f"policy-{chance.randrange(a.policies // a.namespaces):03d}"
        started = time.monotonic()
        answer = await api.apply(policy_path("ToolPolicy", space, name), policy(space, name, f"edit{number}_*"))
        generation = answer["metadata"]["generation"]
        await seen.until(partial(seen.written, space, name, generation), f"edit {number}")
        written.append(seen.generations[space, name][1] - started)
        await seen.until(partial(seen.all_touched, space), f"pods of edit {number}")
        touched.append(max(at for _, at in seen.touched[space].values()) - started)
        await asyncio.sleep(chance.uniform(0.0, 0.2))
    return {
        "written": quantiles(written),
        "touched": quantiles(touched),
        "touched_seconds": [round(t, 4) for t in touched],
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": round(cuts[49], 4), "p99": round(cuts[98], 4), "max": round(max(seconds), 4)}


async def measure(plane: ControlPlane, a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    plane.kubectl("create", "clusterrolebinding", USER, "--clusterrole=cluster-admin", f"--user={USER}")
    context = ssl.create_default_context(cafile=str(plane.ca))
    async with await Api.connect(plane.kubeconfig) as api:
        access = await api.access()
        context.load_cert_chain(str(access.certificate), str(access.key))
        print("populating ...", flush=True)
        await populate(api, a)
        await all_running(api, a.pods)
        seen = Seen()
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), read_bufsize=2**22) as session,
            asyncio.TaskGroup() as group,
        ):
            rules = f"{plane.url}/api/v1/configmaps?fieldSelector=metadata.name%3Dtoolpolicy-rules"
            watches = [
                group.create_task(watch(session, rules, seen.rules, seen.changed)),
                group.create_task(watch(session, f"{plane.url}/api/v1/pods", seen.pod, seen.changed)),
            ]
            operator = Operator(plane, folder / "operator.log")
            try:
                return await run(api, plane.audit_log, operator, seen, a)
            finally:
                operator.end()
                for task in watches:
                    task.cancel()


async def run(api: Api, audit: Path, operator: Operator, seen: Seen, a: argparse.Namespace) -> dict[str, Any]:
    print("starting the operator ...", flush=True)
    await seen.until(
        lambda: len(seen.generations) >= a.policies and all(map(seen.all_touched, seen.touched)), "all is programmed"
    )
    programmed, spaces = time.monotonic() - operator.started, sorted(seen.touched)
    await all_stated(api, a.policies)
    stated = time.monotonic() - operator.started
    await operator.settle()
    start, offset = requests_of(audit, 0)
    print(f"programmed after {programmed:.1f} s, every status after {stated:.1f} s; idling ...", flush=True)
    before, at = operator.cpu_seconds, time.monotonic()
    await asyncio.sleep(IDLE_SECONDS)
    idle = (operator.cpu_seconds - before) / (time.monotonic() - at)
    _, offset = requests_of(audit, offset)
    print(f"idle CPU {idle:.2%}, RSS {operator.rss_mib:.0f} MiB; editing ...", flush=True)
    found = await edits(api, seen, spaces, a)
    await operator.settle()
    await asyncio.sleep(1)
    asked, _ = requests_of(audit, offset)
    return {
        "size": {"policies": a.policies, "pods": a.pods, "namespaces": a.namespaces, "edits": a.edits},
        "programmed_seconds": round(programmed, 2),
        "stated_seconds": round(stated, 2),
        "requests_to_start": dict(start.most_common()),
        "idle_cpu": round(idle, 4),
        "rss_mib": round(operator.rss_mib, 1),
        "edit": found,
        "requests_per_edit": {name: round(count / a.edits, 2) for name, count in asked.most_common()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("policies", 500), ("pods", 1000), ("namespaces", 20), ("edits", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    fake = kwok()
    with tempfile.TemporaryDirectory(prefix="toolpolicy-bench-") as text:
        folder = Path(text)
        plan = layout(folder / "control")
        parts = Components(plan, programs())
        kubelet: subprocess.Popen[bytes] | None = None
        try:
            plane = boot(plan, parts)
            plane.kubectl("create", "namespace", "toolpolicy-system")
            command = [str(fake), f"--kubeconfig={plane.kubeconfig}", f"--config={stages(folder)}",
                       "--manage-all-nodes", "--node-lease-duration-seconds=40"]  # fmt: skip
            with (folder / "kwok.log").open("wb") as output:
                kubelet = subprocess.Popen(command, stdout=output, stderr=output)
            result = asyncio.run(measure(plane, a, folder))
        finally:
            if kubelet is not None:
                kubelet.send_signal(signal.SIGTERM)
                kubelet.wait(30)
            parts.close()
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "results.svg").write_text(plot(result["edit"]["touched_seconds"]))
    print(json.dumps({k: v for k, v in result.items() if k != "edit"}, indent=1))
    print({k: v for k, v in result["edit"].items() if k != "touched_seconds"})


if __name__ == "__main__":
    main()
