"""A control plane of this machine: etcd, API server, controller manager and scheduler as processes on 127.0.0.1.

Every process is started so that the kernel kills it when its starter dies: nothing survives, however a run ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from cluster import components, pki
from cluster.components import Layout
from tools import environments

START_DEADLINE = 180.0
"""Seconds until a control plane answers; it takes 5 on an idle machine, and two cores may run much else."""
KUBECTL_TIMEOUT = 120.0
CRDS = environments.ROOT / "manifests" / "crds"


class ClusterError(RuntimeError):
    """A cluster can't be had or did not do what was waited for; the message says what to do or ends with logs."""


@dataclass(frozen=True)
class ControlPlane:
    """How tests reach a cluster. Plain data, so that parallel test workers can share one."""

    kubeconfig: Path
    """The administrator's."""
    url: str
    ca: Path
    """The certificate, PEM, by which the API server is known."""
    programs: Path
    """The folder that holds kubectl."""
    host: str
    """The address at which the API server, and pods, reach servers of this machine: for webhooks by URL."""
    folder: Path
    """Scratch and logs of this run."""
    keys: Path | None = None
    """The folder of the authority that signs users; None where certificates come from the cluster."""
    audit: Path | None = None
    controllers: bool = True
    """Whether a controller manager runs: without it nothing collects garbage or makes ServiceAccounts."""

    @property
    def audit_log(self) -> Path:
        """The API server's audit log: one JSON event a line, level Metadata, written before each answer."""
        if self.audit is None:
            raise ClusterError("this cluster's audit log is out of reach: run without TOOLPOLICY_TEST_KUBECONFIG")
        return self.audit

    def kubectl(
        self,
        *arguments: str | Path,
        stdin: str | None = None,
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, as the administrator if no other ``kubeconfig`` is given; ``check`` raises ClusterError."""
        command = [
            str(self.programs / "kubectl"),
            f"--kubeconfig={kubeconfig or self.kubeconfig}",
            f"--cache-dir={self.folder / 'kubectl-cache'}",
            *map(str, arguments),
        ]
        environment = os.environ | {"KUBECTL_KUBERC": "false", "PATH": f"{self.programs}:{os.environ['PATH']}"}
        try:
            done = subprocess.run(
                command,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                timeout=KUBECTL_TIMEOUT,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"no answer within {KUBECTL_TIMEOUT:.0f} s: {' '.join(command)}") from None
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig for ``user`` in ``groups``, who has no rights but those that tests bind to them."""
        name = re.sub(r"[^A-Za-z0-9.-]", "-", f"user-{user}-{'-'.join(groups)}-{os.getpid()}")
        path = self.folder / f"{name}.kubeconfig"
        if self.keys is None:
            from cluster.foreign import certificate

            pair = certificate(self, user, groups)
        else:
            pair = pki.Authority.load(self.keys).issue(user, groups)
        pki.private_file(path, pki.kubeconfig(self.url, self.ca.read_bytes(), user, pair).encode())
        return path


class Components:
    """The processes of one control plane, started and owned by this process."""

    def __init__(self, layout: Layout, programs: Path, commands: dict[str, list[str]] | None = None) -> None:
        self.layout = layout
        self.programs = programs
        self.commands = commands if commands is not None else _commands(layout, programs)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start ``etcd``, ``apiserver``, ``controllers`` or ``scheduler``; its log is ``log/NAME.log``."""
        program, *arguments = self.commands[name]
        log = self.layout.folder / "log"
        log.mkdir(exist_ok=True)
        with (log / f"{name}.log").open("ab") as output:
            self._running[name] = spawn([self.programs / program, *arguments], output)

    def stop(self, name: str) -> None:
        """Kill one; its state, if it has any, stays for the next ``start``."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def pause(self, name: str) -> None:
        self._running[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._running[name].send_signal(signal.SIGCONT)

    def close(self) -> None:
        for name in reversed(list(self._running)):
            self.stop(name)

    def check(self) -> None:
        """Raise ClusterError if one has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise ClusterError(f"{name} ended with {process.returncode}:\n{logs(self.layout.folder, name)}")


def spawn(command: Sequence[str | Path], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program that the kernel kills when this process dies, out of reach of the terminal's Ctrl-C."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def programs() -> Path:
    """The folder of the programs: ``KUBEBUILDER_ASSETS``, else built from ``tests/cluster/kube`` into the cache."""
    chosen = os.environ.get("KUBEBUILDER_ASSETS")
    if not chosen:
        return environments.kubernetes()
    folder = Path(chosen).expanduser().resolve()
    missing = [name for name in ("etcd", "kube-apiserver", "kubectl") if not (folder / name).is_file()]
    if missing:
        raise ClusterError(
            f"KUBEBUILDER_ASSETS={chosen} lacks {', '.join(missing)}: unset it, and the tests build their own"
        )
    return folder


def layout(folder: Path) -> Layout:
    """A layout on free ports of 127.0.0.1."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        api, etcd, peer = (cast(int, probe.getsockname()[1]) for probe in probes)
    return Layout(folder, "127.0.0.1", api, etcd, peer)


def boot(plan: Layout, parts: Components) -> ControlPlane:
    """Start ``parts`` in an empty folder and return when the API server answers, ServiceAccounts are and CRDs are."""
    if shutil.which("setpriv") is None:
        raise ClusterError("setpriv is missing: apt-get install util-linux")
    components.prepare(plan)
    for name in ("etcd", "apiserver"):
        parts.start(name)
    wait_until(lambda: answers(plan), "an answer of the API server", parts)
    for name in ("controllers", "scheduler"):
        if name in parts.commands:
            parts.start(name)
    plane = described(plan, parts.programs, controllers="controllers" in parts.commands)
    install_crds(plane)
    if plane.controllers:
        wait_until(lambda: has_account(plane, "default"), "default ServiceAccount", parts)
    return plane


def described(plan: Layout, programs: Path, *, controllers: bool = True) -> ControlPlane:
    """How to reach what was laid out by ``plan``."""
    return ControlPlane(
        kubeconfig=plan.kubeconfig("admin"),
        url=plan.url,
        ca=plan.pki / "ca.crt",
        programs=programs,
        host=plan.host,
        folder=plan.folder,
        keys=plan.pki,
        audit=plan.audit_log,
        controllers=controllers,
    )


def install_crds(plane: ControlPlane) -> None:
    """Apply ``manifests/crds`` and wait until they are served."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", CRDS)
    plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", CRDS)


def has_account(plane: ControlPlane, namespace: str) -> bool:
    return plane.kubectl("get", "serviceaccount", "default", "-n", namespace, check=False).returncode == 0


def answers(plan: Layout) -> bool:
    """Whether the API server says that it is ready."""
    context = ssl.create_default_context(cafile=str(plan.pki / "ca.crt"))
    try:
        with urllib.request.urlopen(f"{plan.url}/readyz", timeout=5, context=context) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_until(condition: Callable[[], bool], what: str, parts: Components, deadline: float = START_DEADLINE) -> None:
    """Return once ``condition`` holds; ClusterError when a process ends or ``deadline`` seconds pass before."""
    end = time.monotonic() + deadline
    while not condition():
        parts.check()
        if time.monotonic() > end:
            raise ClusterError(f"no {what} within {deadline:.0f} s\n{logs(parts.layout.folder)}")
        time.sleep(0.05)


def logs(folder: Path, *names: str, limit: int = 3000) -> str:
    """The ends of the logs below ``folder``, all of them or those named."""
    files = [folder / "log" / f"{name}.log" for name in names] or sorted((folder / "log").glob("*.log"))
    return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-limit:]}" for file in files)


def _commands(plan: Layout, folder: Path) -> dict[str, list[str]]:
    commands = {
        "etcd": components.etcd(plan),
        "apiserver": components.apiserver(plan),
        "controllers": components.controllers(plan),
        "scheduler": components.scheduler(plan),
    }
    return {name: command for name, command in commands.items() if (folder / command[0]).exists()}
