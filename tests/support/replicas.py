"""Operator processes of a test, as many replicas as it wants, and a control plane that is theirs alone: an operator
looks after every namespace of its cluster.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from cluster import pki
from cluster.control import Components, ControlPlane, boot, layout, programs

T = TypeVar("T")
DEADLINE = 60.0
ROOT = Path(__file__).parents[2]


def eventually(probe: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """The first true value of ``probe``; fails with ``what`` and its last value."""
    end = time.monotonic() + deadline
    value = probe()
    while not value:
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:.0f} s: {what}; last seen: {value!r}")
        time.sleep(0.05)
        value = probe()
    return value


@contextmanager
def plane_of_its_own(folder: Path) -> Generator[tuple[ControlPlane, Components]]:
    """A control plane with our CRDs, the operator's namespace and a node for pods; its parts may be stopped and
    paused."""
    plan = layout(folder / "control")
    parts = Components(plan, programs())
    try:
        plane = boot(plan, parts)
        plane.kubectl("create", "namespace", "toolpolicy-system")
        apply(plane, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "nowhere"}})
        yield plane, parts
    finally:
        parts.close()


@dataclass
class Replica:
    """One operator process. ``state`` is what it says at /status."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    admin: int = 0
    ports: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def state(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/status", timeout=5) as answer:
                return cast("dict[str, Any]", json.load(answer))
        except (OSError, urllib.error.URLError):
            return {}

    @property
    def ready(self) -> bool:
        return bool(self.state.get("ready"))

    @property
    def leading(self) -> bool:
        return bool(self.state.get("leading"))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _listening(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        for line in self.log.read_text().splitlines():
            if " listening: " in line:
                pairs = (part.split(" on port ") for part in line.split(" listening: ")[1].split(", "))
                self.ports = {name: int(port) for name, port in pairs}
                self.admin = self.ports["admin"]
                return True
        return False

    def await_listening(self) -> None:
        eventually(self._listening, f"replica {self.name} listens")


@dataclass
class Replicas:
    """Starts replicas against one cluster and ends them all."""

    kubeconfig: Path
    folder: Path
    started: list[Replica] = field(default_factory=list[Replica])

    def start(self, name: str, *arguments: str, kubeconfig: Path | None = None) -> Replica:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{name}.log"
        command = [
            sys.executable, "-m", "toolpolicy_operator", "--kubeconfig", str(kubeconfig or self.kubeconfig),
            "--identity", name, "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0",
            "--admin-listen", "127.0.0.1:0", "--image", "registry.test/sidecar:1",
            "--control-url", "https://127.0.0.1:9444", "--dns-names", "127.0.0.1", *arguments,
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TOOLPOLICY_")}
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=environment)
        replica = Replica(name, process, log)
        self.started.append(replica)
        replica.await_listening()
        return replica

    def writer(self) -> Replica:
        """The replica that writes, once one does."""
        found = eventually(lambda: [r for r in self.started if r.process.poll() is None and r.leading], "one writes")
        return found[0]

    def close(self) -> None:
        for replica in self.started:
            replica.end()


def objects(plane: ControlPlane, *arguments: str) -> dict[str, Any]:
    """``kubectl get … -o json``; empty if there is none."""
    done = plane.kubectl("get", *arguments, "-o", "json", check=False)
    return cast("dict[str, Any]", json.loads(done.stdout)) if done.returncode == 0 else {}


def rules_of(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    """The index of a namespace's rules; empty if there are none."""
    found = objects(plane, "configmap", "toolpolicy-rules", "-n", namespace)
    text = found.get("data", {}).get("index.json")
    return cast("dict[str, Any]", json.loads(text)) if text else {}


def generations(index: dict[str, Any]) -> dict[str, int]:
    """The generation of each policy of an index, by name."""
    return {entry["name"]: entry["generation"] for entry in index.get("policies", {}).values()}


def apply(plane: ControlPlane, *manifests: dict[str, Any]) -> None:
    plane.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(m) for m in manifests))


def policy(namespace: str, name: str, tool: str = "read_*", **spec: Any) -> dict[str, Any]:
    """A ToolPolicy for pods labelled app=mcp; another ``tool`` is another generation."""
    rules = [{"name": "read", "match": {"tools": [tool]}, "action": "Allow"}]
    return {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": "mcp"}}, "rules": rules, **spec},
    }


def cluster_policy(name: str, tool: str = "read_*", **spec: Any) -> dict[str, Any]:
    own = policy("", name, tool, **spec)
    return {**own, "kind": "ClusterToolPolicy", "metadata": {"name": name}}


def namespace_of(name: str, **labels: str) -> dict[str, Any]:
    named = {"toolpolicy.dev/injection": "enabled", **{k.replace("__", "/"): v for k, v in labels.items()}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": named}}


def pod(namespace: str, name: str, *, injected: bool = True, **annotations: Any) -> dict[str, Any]:
    """A pod as admission would have left it: what counts of it for the operator."""
    sidecar = {"name": "toolpolicy-sidecar", "image": "registry.test/sidecar:1", "restartPolicy": "Always"}
    spec: dict[str, Any] = {
        "containers": [{"name": "mcp", "image": "registry.test/mcp:1"}],
        "nodeName": "nowhere",
        "tolerations": [{"operator": "Exists"}],
    }
    if injected:
        spec["initContainers"] = [sidecar]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app": "mcp"},
            "annotations": {f"toolpolicy.dev/{k.replace('_', '-')}": v for k, v in annotations.items()},
        },
        "spec": spec,
    }


def run_pod(plane: ControlPlane, namespace: str, name: str) -> None:
    """Say that a pod runs, as its kubelet would."""
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    patch = json.dumps({"status": status})
    plane.kubectl("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


def kubeconfig_through(plane: ControlPlane, port: int, path: Path) -> Path:
    """The administrator's kubeconfig, by way of a relay on this port of 127.0.0.1."""
    import yaml

    value = yaml.safe_load(plane.kubeconfig.read_text())
    value["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    pki.private_file(path, yaml.safe_dump(value).encode())
    return path
