"""Owns the clusters of one test run, outside the test processes, and ends them when the run's process is gone.

Parallel workers share a cluster, and any of them may end first or be killed, so none of them can own it. The keeper is
a process of its own session that waits on the run's process by a pidfd, which the kernel makes ready on any death,
``kill -9`` included. What it started dies with it; what a killed keeper leaves (folders, and of a node its links and
control groups) the next run sweeps.

usage: python -m cluster.keeper KIND FOLDER OWNER_PID
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from cluster import node
from cluster.control import ClusterError, Components, ControlPlane, boot, layout, programs
from tools import environments

START_DEADLINE = 1200.0
"""Seconds; a node may first have to wait for that of another run."""
STOP_DEADLINE = 60.0
Stop = Callable[[], None]


def base() -> Path:
    """Where the runs of this user lie."""
    return Path(tempfile.gettempdir()) / f"toolpolicy-clusters-{os.getuid()}"


def obtain(kind: str, run: str) -> ControlPlane:
    """The ``kind`` of cluster of test run ``run`` (its process id), started if this is the first to ask."""
    folder = base() / run / kind
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder.parent / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "keeper.pid").exists():
            sweep()
            _launch(kind, folder, run)
        return _result(folder)


def end(run: str) -> None:
    """End every cluster of ``run`` and wait until nothing of it is left."""
    stops = time.monotonic() + STOP_DEADLINE
    for file in (base() / run).glob("*/keeper.pid"):
        with contextlib.suppress(ProcessLookupError, ValueError, OSError):
            os.kill(int(file.read_text()), signal.SIGTERM)
    while list((base() / run).glob("*/keeper.pid")) and time.monotonic() < stops:
        time.sleep(0.05)
    _forget(base() / run)


def sweep() -> None:
    """Remove what keepers that were killed have left."""
    for folder in base().glob("*/*/"):
        with contextlib.suppress(OSError), (folder / "keeper.alive").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.name != "node" or node.sweep(folder):
                shutil.rmtree(folder, ignore_errors=True)
                _forget(folder.parent)


def _launch(kind: str, folder: Path, owner: str) -> None:
    command = [sys.executable, "-m", "cluster.keeper", kind, str(folder), owner]
    paths = f"{environments.ROOT / 'tests'}:{environments.ROOT}"
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise ClusterError(f"the keeper of the test cluster did not start:\n{done.stderr}")


def _result(folder: Path) -> ControlPlane:
    stops = time.monotonic() + START_DEADLINE
    while time.monotonic() < stops:
        if (folder / "failed").exists():
            raise ClusterError((folder / "failed").read_text())
        with contextlib.suppress(FileNotFoundError):
            return _decoded((folder / "ready.json").read_text())
        time.sleep(0.05)
    raise ClusterError(f"no {folder.name} within {START_DEADLINE:.0f} s; see {folder / 'keeper.log'}")


def _decoded(text: str) -> ControlPlane:
    values = cast(dict[str, Any], json.loads(text))
    for name in ("kubeconfig", "ca", "programs", "folder", "keys", "audit"):
        values[name] = Path(values[name]) if values[name] else None
    return ControlPlane(**values)


def main(kind: str, folder: Path, owner_pid: int) -> None:
    owner = os.pidfd_open(owner_pid)
    folder.mkdir(parents=True, mode=0o700)
    if os.fork():
        os._exit(0)
    os.setsid()
    log = os.open(folder / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    alive = (folder / "keeper.alive").open("w")
    fcntl.flock(alive, fcntl.LOCK_EX)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    _publish(folder, "keeper.pid", str(os.getpid()))
    # Also while a start takes long, or waits for another run's node.
    threading.Thread(target=_interrupt_after, args=(owner,), daemon=True).start()
    stop: Stop | None = None
    try:
        try:
            plane, stop = _starter(kind)(folder)
            _publish(folder, "ready.json", json.dumps(dataclasses.asdict(plane), default=str))
        except Exception as error:  # the process edge: the tests that wait must hear of it
            traceback.print_exc()
            _publish(folder, "failed", f"{kind} did not start: {error}")
        while True:
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if stop is not None:
            stop()
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{kind}.lock").unlink(missing_ok=True)
        _forget(folder.parent)


def _interrupt_after(owner: int) -> None:
    """SIGINT to ourselves once the process of pidfd ``owner`` is gone."""
    select.select([owner], [], [])
    os.kill(os.getpid(), signal.SIGINT)


def _publish(folder: Path, name: str, text: str) -> None:
    temporary = folder / f".{name}"
    temporary.write_text(text)
    temporary.rename(folder / name)


def _forget(run: Path) -> None:
    for file in run.glob("*.lock"):
        if not (run / file.stem).exists():
            file.unlink(missing_ok=True)
    for folder in (run, run.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _control(folder: Path) -> tuple[ControlPlane, Stop]:
    plan = layout(folder)
    parts = Components(plan, programs())
    try:
        return boot(plan, parts), parts.close
    except BaseException:
        parts.close()
        raise


def _starter(kind: str) -> Callable[[Path], tuple[ControlPlane, Stop]]:
    return {"control": _control, "node": node.start}[kind]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
