"""A node changes much of the machine it runs on, and leaves it as it was, however its run ends.

Its file comes before those that share the run's node: there can be but one on a machine at a time.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import images, node
from cluster.control import ClusterError, programs
from cluster.fixtures import lacking
from cluster.test_keeper import PATHS, processes, until
from support.processes import Program
from tools.environments import InstallError

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.xdist_group("node")]

OWNER = """
import os, signal
from cluster import keeper
plane = keeper.obtain("node", str(os.getpid()))
image = ["--image=toolpolicy.test/mcp:dev", "--image-pull-policy=Never"]
plane.kubectl("run", "one", *image, "--command", "--", "/bin/sleep", "1000")
plane.kubectl("wait", "pod/one", "--for=condition=Ready", "--timeout=60s")
print('{"folder": "%s"}' % plane.folder, flush=True)
signal.pause()
"""
START_DEADLINE = 400.0


def test_a_killed_run_leaves_the_machine_as_it_was(tmp_path: Path) -> None:
    try:
        node.ensure_packages()
        node.programs()
        images.prepare()
        programs()
    except (ClusterError, InstallError) as error:
        raise lacking("a Kubernetes node", error) from None
    before = machine()
    with Program(
        [sys.executable, "-c", OWNER], name="owner", env={"PYTHONPATH": PATHS, "TMPDIR": str(tmp_path)}
    ) as run:
        run.wait_until(run.output, "node with a running pod", START_DEADLINE)
        assert machine() != before
        run.signal(signal.SIGKILL)
        run.wait()
        until(lambda: not processes(tmp_path), "end of all processes")
        until(lambda: not list(tmp_path.glob("toolpolicy-clusters-*")), "removal of the run's folder")
    assert machine() == before


def machine() -> dict[str, object]:
    """What a node changes: mounts, links, control groups, firewall rules, kernel settings, containers' processes."""
    shims = [entry for entry in Path("/proc").glob("[0-9]*/comm") if "containerd" in _text(entry)]
    return {
        "mounts": sorted(line.split(" ", 3)[3] for line in _text(Path("/proc/self/mountinfo")).splitlines()),
        "links": sorted(link.name for link in Path("/sys/class/net").iterdir()),
        "cgroups": sorted(str(folder) for folder in Path("/sys/fs/cgroup").glob("*/*/") if "toolpolicy" in folder.name),
        "rules": _said("nft", "list", "ruleset"),
        "routes": _said("ip", "route"),
        "settings": {name: _text(Path("/proc/sys") / name.replace(".", "/")) for name in (*node.SETTINGS, *FORWARDING)},
        "containers": len(shims),
    }


FORWARDING = ("net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding")


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
