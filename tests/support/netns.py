"""Network namespaces for tests that need a pod's network: a pod, and a world that reaches it over a wire of its own.

Needs root, and util-linux, iproute2 and nftables: what is missing fails the test and says what to install. A namespace
lives as long as the one process that holds it; nothing is named in /run, nothing is left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from support.processes import Program

PACKAGES = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "nft": "nftables",
    "capsh": "libcap2-bin",
}
TALK = Path(__file__).with_name("netns_talk.py")
POD_ADDRESSES = ("10.88.0.2", "fd88::2")
WORLD_ADDRESSES = ("10.88.0.1", "fd88::1")


class Namespace:
    """One network namespace with lo up."""

    def __init__(self) -> None:
        missing = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool) is None})
        assert not missing, f"network tests need these packages: apt-get install {' '.join(missing)}"
        assert os.geteuid() == 0, "network tests need root (network namespaces): run them as root"
        hold = "import sys; print('{}', flush=True); sys.stdin.read()"
        self._holder = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline(), "no network namespace could be made"
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait(10)

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def inside(self) -> list[str]:
        """What is put before a command, so that it runs in here."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def run(
        self, *command: str, check: bool = True, env: Mapping[str, str] | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.inside, *command],
            capture_output=True,
            text=True,
            timeout=30,
            input=stdin,
            env=None if env is None else {**os.environ, **env},
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done

    def redirect(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "toolpolicy.sidecar.redirect", *arguments, check=check)

    def start(self, *command: str, name: str, env: Mapping[str, str] | None = None) -> Program:
        return Program([*self.inside, *command], name=name, env=env)

    def serve(self, said: str, *addresses: str, uid: int = 0) -> Program:
        """A server that tells everyone ``said``; ``addresses`` as HOST/PORT."""
        program = self.start(sys.executable, str(TALK), "serve", str(uid), said, *addresses, name=f"says-{said}")
        try:
            program.first_json()
        except BaseException:
            program.stop()
            raise
        return program

    def ask(self, host: str, port: int, *, uid: int = 0, how: str = "plain") -> str:
        """What is said at HOST/PORT to a process of this user, or the name of the error."""
        done = self.run(sys.executable, str(TALK), "ask", str(uid), how, f"{host}/{port}")
        return done.stdout.strip()

    def fetch(self, host: str, port: int, path: str = "/", body: object = None) -> tuple[int, str]:
        """Status and body of an HTTP answer; 0 and the error's name where there is none."""
        what = f"{'GET' if body is None else 'POST'},{path},{'' if body is None else json.dumps(body)}"
        done = self.run(sys.executable, str(TALK), "fetch", "0", what, f"{host}/{port}")
        found = json.loads(done.stdout)
        return found["status"], found["body"]


def wire(world: Namespace, pod: Namespace, addresses: Sequence[str] = POD_ADDRESSES) -> None:
    """Connect both by a cable: eth0 in each."""
    for side in (world, pod):
        side.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
    world.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(pod.pid))
    for side, own in ((world, WORLD_ADDRESSES), (pod, addresses)):
        for address in own:
            length, nodad = ("64", ["nodad"]) if ":" in address else ("24", [])
            side.run("ip", "addr", "add", f"{address}/{length}", "dev", "eth0", *nodad)
        side.run("ip", "link", "set", "eth0", "up")
