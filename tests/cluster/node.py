"""A real node on this machine, seen from outside its box: started, waited for, and every trace of it removed.

Needs root, and one at a time: the addresses below, and kernel settings that a kubelet changes for the whole machine
and that are put back afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster import components, images
from cluster.box import BOX_LINK, CONFIG, CONTAINERD, HIERARCHIES, fill
from cluster.components import Layout
from cluster.control import ClusterError, ControlPlane, described, install_crds, logs
from tools import environments

HOST, BOX, NODE, PORT = "10.99.0.1", "10.99.0.2", "node-1", 6443
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "socat": "socat",
    "ipset": "ipset",
    "mmdebstrap": "mmdebstrap",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "sysctl": "procps",
}
"""Program and the Debian package it comes in."""
SETTINGS = (
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
)
"""What a kubelet sets for the whole machine."""
APT_TIMEOUT = 600.0
READY_DEADLINE = 240.0
TURN_DEADLINE = 900.0
"""Seconds to wait for another run's node on this machine to end."""


def ensure_packages() -> None:
    """Have what a node needs: install it as root on Debian, else ClusterError that names it."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program, path=path) is None})
    if os.getuid():
        raise ClusterError("a node needs root: run the tests as root, or set TOOLPOLICY_TEST_KUBECONFIG")
    if not missing:
        return
    wanted = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if shutil.which("apt-get") is None:
        raise ClusterError(f"a node needs the Debian packages {', '.join(missing)}, and here is no apt-get")
    environments.say(wanted)
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", "-q", *arguments],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"{wanted} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


def programs() -> tuple[Path, Path]:
    """The folders of Kubernetes and of the NetworkPolicy engine, both built if need be."""
    return environments.kubernetes(), environments.go_binary(Path(__file__).resolve().parent / "netpol", "netpol")


def start(folder: Path) -> tuple[ControlPlane, Callable[[], None]]:
    """A Kubernetes with one Ready node that has our images, and what ends it. Files go to ``folder``."""
    turn = _turn()
    plan = Layout(folder, BOX, PORT, PORT + 1, PORT + 2, NODE, HOST, cgroup=f"toolpolicy-{os.getpid()}")
    # What has to be undone is written down before it is done.
    left = {"settings": _settings(), "cgroup": plan.cgroup, "link": f"tp-host-{os.getpid()}"}
    (folder / "node.json").write_text(json.dumps(left))
    box: subprocess.Popen[bytes] | None = None

    def stop() -> None:
        if box is not None:
            _kill(box)
        clean(folder)
        turn.close()

    try:
        components.prepare(plan)
        kubernetes, netpol = programs()
        archives = images.write_all(folder / "images")
        _make_cgroups(plan.cgroup)
        box = _start_box(plan, [str(kubernetes), str(netpol), *map(str, archives.values())])
        inner = _inner(box)
        (folder / "box.pid").write_text(str(inner))
        _link(str(left["link"]), inner)
        _wait(folder, box)
        plane = described(plan, kubernetes)
        rbac = folder / "rbac.yaml"
        fill(CONFIG / "rbac.yaml", rbac, {})
        plane.kubectl("apply", "-f", rbac)
        install_crds(plane)
        plane.kubectl("wait", "--for=create", f"node/{NODE}", "--timeout=60s")
        plane.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=90s")
        plane.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    except Exception as error:
        said = logs(folder, limit=1500)
        stop()
        raise ClusterError(f"{error}\n{said}") from error
    except BaseException:
        stop()
        raise
    return plane, stop


def clean(folder: Path) -> None:
    """Remove what outlives the processes of a node: control groups, the link, and its changes of kernel settings."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        left = json.loads((folder / "node.json").read_text())
        # Also where none was made: runc makes one in a v2 tree beside v1's.
        for hierarchy in (HIERARCHIES, *HIERARCHIES.iterdir()):
            _remove_cgroup(hierarchy / left["cgroup"])
        subprocess.run(["ip", "link", "delete", left["link"]], capture_output=True, check=False)
        for name, value in left["settings"].items():
            _setting(name).write_text(value)


def sweep(folder: Path) -> bool:
    """``clean`` after a keeper that was killed, unless another run's node is there, whose settings they are now."""
    turn = _take_turn()
    if turn is None:
        return False
    clean(folder)
    turn.close()
    return True


def load_image(plane: ControlPlane, archive: Path) -> None:
    """Import an image archive into a running node."""
    box = (plane.folder / "box.pid").read_text()
    command = ["nsenter", f"--target={box}", "--mount", "ctr", f"--address={CONTAINERD}", "--namespace=k8s.io"]
    done = subprocess.run(
        [*command, "images", "import", str(archive)], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise ClusterError(f"{archive} is not imported: {done.stderr}")


def _turn() -> socket.socket:
    """The right to be this machine's node, once nobody else has it."""
    end = time.monotonic() + TURN_DEADLINE
    while (turn := _take_turn()) is None:
        if time.monotonic() > end:
            raise ClusterError(f"another run has had this machine's node for more than {TURN_DEADLINE:.0f} s")
        time.sleep(0.5)
    return turn


def _take_turn() -> socket.socket | None:
    """A name that only one process can hold, and that the kernel frees when it dies."""
    turn = socket.socket(socket.AF_UNIX)
    try:
        turn.bind("\0toolpolicy-test-node")
    except OSError:
        turn.close()
        return None
    return turn


def _start_box(plan: Layout, arguments: list[str]) -> subprocess.Popen[bytes]:
    spaces = ["--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--net", "--uts", "--ipc"]
    command = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", *spaces, sys.executable, "-m", "cluster.box"]
    (plan.folder / "log").mkdir()
    with (plan.folder / "log" / "box.log").open("wb") as log:
        return subprocess.Popen(
            [*command, plan.dumps(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": f"{arguments[0]}:/usr/sbin:/usr/bin:/sbin:/bin"},
            start_new_session=True,
        )


def _inner(box: subprocess.Popen[bytes]) -> int:
    """The process id, as seen here, of the box's PID 1, once it is in a network of its own."""
    own = Path("/proc/self/ns/net").readlink()
    end = time.monotonic() + READY_DEADLINE
    while time.monotonic() < end and box.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):
            inner = int(Path(f"/proc/{box.pid}/task/{box.pid}/children").read_text().split()[0])
            if Path(f"/proc/{inner}/ns/net").readlink() != own:
                return inner
        time.sleep(0.02)
    raise ClusterError("the box of the node did not start")


def _link(name: str, inner: int) -> None:
    """Join this machine and the box."""
    for command in (
        ["link", "add", name, "type", "veth", "peer", "name", BOX_LINK, "netns", str(inner)],
        ["addr", "add", f"{HOST}/24", "dev", name],
        ["link", "set", name, "up"],
        # So that pods reach servers here, which answer them, and tests reach pods.
        ["route", "add", components.CLUSTER_CIDR, "via", BOX],
    ):
        done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"ip {' '.join(command)}: {done.stderr}")


def _wait(folder: Path, box: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_DEADLINE
    while not (folder / "box.ready").exists():
        if (folder / "box.failed").exists():
            raise ClusterError((folder / "box.failed").read_text())
        if box.poll() is not None or time.monotonic() > end:
            raise ClusterError(f"the node's box ended or is not up after {READY_DEADLINE:.0f} s")
        time.sleep(0.05)


def _kill(box: subprocess.Popen[bytes]) -> None:
    """Kill the box's PID 1, with which the kernel ends all the rest before ``unshare`` sees it end."""
    children = Path(f"/proc/{box.pid}/task/{box.pid}/children")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        box.wait(10)
    box.kill()
    box.wait()


def _hierarchies() -> list[Path]:
    """Where control groups are made: each controller's own tree on cgroup v1, the one tree on v2."""
    if (HIERARCHIES / "cgroup.controllers").exists():
        return [HIERARCHIES]
    return [folder for folder in HIERARCHIES.iterdir() if folder.is_dir() and folder.name != "unified"]


def _make_cgroups(name: str) -> None:
    for hierarchy in _hierarchies():
        group = hierarchy / name
        group.mkdir()
        controllers = hierarchy / "cgroup.controllers"
        if controllers.exists():
            wanted = {"cpu", "cpuset", "memory", "pids", "io"} & set(controllers.read_text().split())
            for folder in (hierarchy, group):
                (folder / "cgroup.subtree_control").write_text(" ".join(f"+{one}" for one in sorted(wanted)))
        # A new v1 cpuset allows nothing until told.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if hierarchy.name == "cpuset":
                (group / file).write_text((hierarchy / file).read_text())


def _remove_cgroup(group: Path) -> None:
    end = time.monotonic() + 10
    while group.exists() and time.monotonic() < end:
        for folder in sorted(group.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


def _settings() -> dict[str, str]:
    return {name: _setting(name).read_text() for name in SETTINGS if _setting(name).exists()}


def _setting(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")
