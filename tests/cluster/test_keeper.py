"""Nothing of a cluster survives the run that asked for it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from cluster.control import ClusterError, programs
from cluster.fixtures import lacking
from support.processes import Program
from tools import environments
from tools.environments import InstallError

pytestmark = pytest.mark.slow

OWNER = """
import os, signal
from cluster import keeper
plane = keeper.obtain("control", str(os.getpid()))
print('{"folder": "%s"}' % plane.folder, flush=True)
signal.pause()
"""
DEADLINE = 60.0
PATHS = f"{environments.ROOT / 'tests'}:{environments.ROOT}"


@pytest.fixture
def owner(tmp_path: Path) -> Generator[Program]:
    """A process that has a control plane of its own, below ``tmp_path``."""
    try:
        built = programs()
    except (ClusterError, InstallError) as error:
        raise lacking("a Kubernetes API server", error) from None
    env = {"PYTHONPATH": PATHS, "TMPDIR": str(tmp_path), "KUBEBUILDER_ASSETS": str(built)}
    with Program([sys.executable, "-c", OWNER], name="owner", env=env) as program:
        program.wait_until(program.output, "control plane", DEADLINE)
        yield program


def test_a_killed_run_takes_its_cluster_with_it(owner: Program, tmp_path: Path) -> None:
    assert len(processes(tmp_path)) >= 4
    owner.signal(signal.SIGKILL)
    owner.wait()
    until(lambda: not processes(tmp_path), "end of all processes")
    until(lambda: not list(tmp_path.glob("toolpolicy-clusters-*")), "removal of the run's folder")


def test_a_killed_keeper_takes_its_processes_and_the_next_run_removes_its_files(owner: Program, tmp_path: Path) -> None:
    folder = Path(owner.first_json()["folder"])
    keeper = int((folder / "keeper.pid").read_text())
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not processes(tmp_path), "end of all processes")
    assert folder.exists()
    swept = subprocess.run(
        [sys.executable, "-c", "from cluster import keeper; keeper.sweep()"],
        env=os.environ | {"PYTHONPATH": PATHS, "TMPDIR": str(tmp_path)},
        timeout=DEADLINE,
        check=False,
    )
    assert swept.returncode == 0
    assert not list(tmp_path.glob("toolpolicy-clusters-*"))


def processes(folder: Path) -> list[str]:
    """The command lines, of processes that run, in which ``folder`` is named."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(folder) in command:
            found.append(command)
    return found


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"no {what} within {DEADLINE:.0f} s"
        time.sleep(0.05)
