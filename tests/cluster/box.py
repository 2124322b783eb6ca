"""The inside of a node's box: PID 1 of namespaces of its own (PID, mount, net, uts, ipc), started by ``node.py``.

Here the machine looks like a node: own /run, /var/lib and /var/log, a network of its own with one link to the host.
When PID 1 ends, the kernel ends everything else in the box, pods included, and takes its mounts and links away.

Traps, each of which cost time: kubelet and containerd must see /sys/fs/cgroup as it is, so ``ip netns exec`` won't do;
there has to be a default route, though it leads nowhere; a cgroup v1 cpuset allows nothing until told.

usage: python -m cluster.box LAYOUT_JSON PROGRAMS IMAGE.tar...
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from cluster import components
from cluster.components import Layout
from cluster.control import ClusterError, Components, answers, wait_until

BOX_LINK = "toolpolicy-box"
CONTAINERD = "/run/containerd/containerd.sock"
CONFIG = Path(__file__).resolve().parent / "config"
HIERARCHIES = Path("/sys/fs/cgroup")
QUEUE = "100"
"""The netfilter queue in which the first packet of a connection waits for the NetworkPolicy engine's verdict."""
DEADLINE = 120.0


def main(plan: Layout, programs: Path, netpol: Path, images: list[Path]) -> None:
    """Set the box up, start everything, write ``box.ready`` (or ``box.failed``) and reap until killed."""
    try:
        settle(plan)
        parts = Components(plan, programs, commands(plan, netpol))
        start(plan, parts, images)
        (plan.folder / "box.ready").touch()
    except Exception as error:  # the process edge: whoever waits outside must hear of it
        traceback.print_exc()
        (plan.folder / "box.failed").write_text(str(error))
        raise SystemExit(1) from None
    reap()


def settle(plan: Layout) -> None:
    """Network, mounts and cgroups of the box."""
    run("mount", "--make-rprivate", "/")
    socket.sethostname(plan.node)
    run("ip", "link", "set", "lo", "up")
    end = time.monotonic() + DEADLINE
    while not Path("/sys/class/net", BOX_LINK).exists() and not _links_have(BOX_LINK):
        if time.monotonic() > end:
            raise ClusterError(f"no link {BOX_LINK} within {DEADLINE:.0f} s")
        time.sleep(0.02)
    run("ip", "addr", "add", f"{plan.address}/24", "dev", BOX_LINK)
    run("ip", "link", "set", BOX_LINK, "up")
    run("ip", "route", "add", "default", "via", plan.host)
    for setting in ("net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1"):
        run("sysctl", "-qw", setting)
    node = plan.folder / "node"
    for folder in ("log", "lib", "containerd", "cni"):
        (node / folder).mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", str(node / "lib"), "/var/lib")
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    run("mount", "--bind", str(node / "log"), "/var/log")
    run("mount", "--make-rshared", "/")
    for source, target in TEMPLATES.items():
        fill(CONFIG / source, node / target, {"RUN": str(plan.folder), "NODE": plan.node, "CGROUP": plan.cgroup})


TEMPLATES = {
    "containerd.toml": "containerd.toml",
    "kubelet.yaml": "kubelet.yaml",
    "proxy.yaml": "proxy.yaml",
    "bridge.conflist": "cni/10-bridge.conflist",
}


def fill(source: Path, target: Path, values: Mapping[str, str]) -> None:
    text = source.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    target.write_text(text)


def commands(plan: Layout, netpol: Path) -> dict[str, list[str]]:
    """What runs on the node, in this order."""
    node = plan.folder / "node"
    return {
        "etcd": components.etcd(plan),
        "apiserver": components.apiserver(plan),
        "controllers": components.controllers(plan),
        "scheduler": components.scheduler(plan),
        "containerd": [shutil.which("containerd") or "containerd", "--config", str(node / "containerd.toml")],
        "kubelet": [
            "kubelet",
            f"--config={node / 'kubelet.yaml'}",
            f"--kubeconfig={plan.kubeconfig('node')}",
            f"--hostname-override={plan.node}",
            f"--node-ip={plan.address}",
            "--root-dir=/var/lib/kubelet",
            "--v=2",
        ],
        "proxy": ["kube-proxy", f"--config={node / 'proxy.yaml'}", f"--hostname-override={plan.node}"],
        "netpol": [str(netpol / "netpol"), f"--kubeconfig={plan.kubeconfig('netpol')}", f"--node={plan.node}"],
    }


def start(plan: Layout, parts: Components, images: list[Path]) -> None:
    """Start all of it, each when what it needs answers."""
    for name in ("etcd", "apiserver", "containerd"):
        parts.start(name)
    wait_until(lambda: answers(plan), "an answer of the API server", parts)
    for name in ("controllers", "scheduler"):
        parts.start(name)
    ctr = ["ctr", "--address", CONTAINERD]
    wait_until(lambda: subprocess.run([*ctr, "version"], capture_output=True).returncode == 0, "containerd", parts)
    for image in images:
        run(*ctr, "--namespace=k8s.io", "images", "import", str(image))
    for name in ("kubelet", "proxy", "netpol"):
        parts.start(name)
    new = ["-m", "conntrack", "--ctstate", "NEW"]
    run("iptables", "-w", "-I", "FORWARD", *new, "-j", "NFQUEUE", "--queue-num", QUEUE)


def reap() -> None:
    """Wait for what ends, as PID 1 must for the orphans of its box, until killed."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


def _links_have(name: str) -> bool:
    # /sys may still show the links of the namespace it was mounted in.
    return subprocess.run(["ip", "link", "show", name], capture_output=True).returncode == 0


if __name__ == "__main__":
    main(Layout.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), [Path(image) for image in sys.argv[4:]])
