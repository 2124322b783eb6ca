"""Sidecars of pods that no kubelet runs: real processes, with the token, the rules and the CA that a kubelet would give
them, so that a control plane alone shows what becomes of their reports.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cluster.control import ControlPlane
from support import kubelet, replicas
from support.processes import Program
from support.replicas import ROOT, Replica, eventually
from support.servers import free_port

ADMIN = re.compile(r"admin on 127\.0\.0\.1:(\d+)")
OPERATOR_AUDIENCE = "toolpolicy.dev/operator"


@dataclass(frozen=True)
class Pod:
    """A running pod of the API server, as its sidecar knows it."""

    plane: ControlPlane
    namespace: str
    name: str
    uid: str

    @classmethod
    def run(cls, plane: ControlPlane, namespace: str, name: str, *, injected: bool = True) -> Pod:
        replicas.apply(plane, replicas.pod(namespace, name, injected=injected))
        replicas.run_pod(plane, namespace, name)
        found = replicas.objects(plane, "pod", name, "-n", namespace)
        return cls(plane, namespace, name, found["metadata"]["uid"])

    def token(self, audience: str = "toolpolicy.dev") -> str:
        """From the TokenRequest API, bound to the pod, as the kubelet asks for it."""
        return self.plane.kubectl(
            "create", "token", "default", f"--namespace={self.namespace}", f"--audience={audience}", "--duration=10m",
            "--bound-object-kind=Pod", f"--bound-object-name={self.name}", f"--bound-object-uid={self.uid}",
        ).stdout.strip()  # fmt: skip

    def delete(self) -> None:
        self.plane.kubectl("delete", "pod", self.name, "-n", self.namespace, "--grace-period=0", "--force")


def rules_files(plane: ControlPlane, namespace: str) -> dict[str, bytes]:
    """What the namespace's rules ConfigMap holds; empty if there is none."""
    found = replicas.objects(plane, "configmap", "toolpolicy-rules", "-n", namespace)
    return {key: text.encode() for key, text in found.get("data", {}).items()}


ALONE = """
import sys
from toolpolicy.sidecar import __main__, serve
serve.foreign_listeners = lambda *known: []
sys.exit(__main__.main())
"""
"""The sidecar, but for what else listens on this machine: in a pod it would see the pod's own sockets."""


class Sidecar(Program):
    """The sidecar of ``pod``, which reports to ``url``; with ``crowded`` it sees what else listens on this machine."""

    def __init__(self, pod: Pod, url: str, *, token: str | None = None, crowded: bool = False) -> None:
        self.pod = pod
        self._work = tempfile.TemporaryDirectory(prefix="reporter-")
        self.folder = Path(self._work.name)
        self.volume = self.folder / "rules"
        self.mount()
        (self.folder / "token").write_text(token or pod.token())
        settings = {
            "LISTEN": "127.0.0.1:0",
            "UPSTREAM": "http://127.0.0.1:9/mcp",
            "ADMIN": "127.0.0.1:0",
            "AUDIT": str(self.folder / "audit.jsonl"),
            "RULES": str(self.volume),
            "RULES_INDEX": "required",
            "POD_NAMESPACE": pod.namespace,
            "POD_LABELS": json.dumps({"app": "mcp"}),
            "POD_NAME": pod.name,
            "POD_UID": pod.uid,
            "CONTROL_URL": url,
            "CONTROL_TOKEN_FILE": str(self.folder / "token"),
            "CONTROL_CA_FILE": str(self.volume / "control-ca.crt"),
        }
        environment = {f"TOOLPOLICY_{name}": value for name, value in settings.items()}
        program = ["-m", "toolpolicy.sidecar"] if crowded else ["-c", ALONE]
        super().__init__([sys.executable, *program], name=f"sidecar-{pod.name}", env=environment)

    def mount(self, **changes: bytes) -> None:
        """What the kubelet does after a write of the ConfigMap; ``changes`` are what a test would rather have."""
        files = eventually(lambda: rules_files(self.pod.plane, self.pod.namespace), "rules of the namespace")
        assert "control-ca.crt" in files
        kubelet.write(self.volume, {**files, **{name.replace("_", "."): raw for name, raw in changes.items()}})

    def readiness(self) -> dict[str, Any]:
        """What ``/readyz`` says, ready or not."""
        port = self.wait_until(lambda: ADMIN.search(self.errors()), "line that says where it listens")[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
            return cast("dict[str, Any]", json.load(answer))

    def stop(self) -> None:
        super().stop()
        self._work.cleanup()


def start_replica(running: replicas.Replicas, name: str, *, takeover: float | None = None) -> Replica:
    """A replica whose control API others reach, with a token of its own for them. ``takeover``: the seconds that a
    stored status stands, instead of a minute and a half.
    """
    running.folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    log = running.folder / f"{name}.log"
    program = "from toolpolicy_operator import status, __main__ as main; import sys\n"
    program += f"status.TAKEOVER = {takeover}\n" if takeover is not None else ""
    command = [
        sys.executable, "-c", program + "sys.exit(main.main())", "--kubeconfig", str(running.kubeconfig),
        "--identity", name, "--image", "registry.test/sidecar:1", "--dns-names", "127.0.0.1",
        "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--control-listen", f"127.0.0.1:{port}",
        "--control-url", f"https://127.0.0.1:{port}", "--control-address", f"127.0.0.1:{port}",
        "--token-file", str(running.folder / "operator.token"),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOOLPOLICY_")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=environment)
    replica = Replica(name, process, log)
    running.started.append(replica)
    replica.await_listening()
    return replica


def operator_token(plane: ControlPlane, folder: Path) -> None:
    """The projected token by which one replica speaks to another."""
    account = "toolpolicy-operator"
    where = "--namespace=toolpolicy-system"
    plane.kubectl("create", "serviceaccount", account, where)
    token = plane.kubectl("create", "token", account, where, f"--audience={OPERATOR_AUDIENCE}").stdout.strip()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "operator.token").write_text(token)


def control_url(replica: Replica) -> str:
    return f"https://127.0.0.1:{replica.ports['control']}"


def condition(plane: ControlPlane, namespace: str, policy: str) -> dict[str, Any]:
    """The Enforced condition of a policy; empty while there is none."""
    status = replicas.objects(plane, "toolpolicy", policy, "-n", namespace).get("status", {})
    found = [c for c in status.get("conditions", []) if c["type"] == "Enforced"]
    return cast("dict[str, Any]", {**found[0], "pods": status.get("pods", {})}) if found else {}


def await_enforced(plane: ControlPlane, namespace: str, policy: str, wanted: Sequence[str], generation: int = 1) -> Any:
    """The condition once it has this status and reason for this generation."""
    seen: dict[str, Any] = {}

    def probe() -> dict[str, Any]:
        seen.update(condition(plane, namespace, policy))
        right = [seen.get("status"), seen.get("reason")] == list(wanted)
        return seen if right and seen.get("observedGeneration") == generation else {}

    try:
        return eventually(probe, f"Enforced of {policy}: {wanted}")
    except AssertionError as error:
        raise AssertionError(f"{error}; the condition is {seen}") from None
