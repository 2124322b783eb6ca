"""Two replicas: one writes, both serve, and a writer that was gone for a while overwrites nothing."""

from __future__ import annotations

import itertools
import select
import signal
import socket
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.control import ControlPlane
from support.relay import Relay
from support.replicas import (
    Replica,
    Replicas,
    apply,
    eventually,
    generations,
    kubeconfig_through,
    namespace_of,
    objects,
    plane_of_its_own,
    pod,
    policy,
    rules_of,
    run_pod,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("replicas")]
TAKEOVER = 20.0
_names = itertools.count()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Generator[ControlPlane]:
    with plane_of_its_own(tmp_path_factory.mktemp("plane")) as (found, _):
        yield found


@pytest.fixture
def replicas(plane: ControlPlane, tmp_path: Path) -> Generator[Replicas]:
    started = Replicas(plane.kubeconfig, tmp_path / "replicas")
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def space(plane: ControlPlane) -> str:
    name = f"agents-{next(_names)}"
    apply(plane, namespace_of(name), policy(name, "imaging"))
    return name


def version_of(plane: ControlPlane, space: str) -> str:
    return objects(plane, "configmap", "toolpolicy-rules", "-n", space)["metadata"]["resourceVersion"]


def written(plane: ControlPlane, space: str, generation: int) -> dict[str, object]:
    def probe() -> dict[str, object]:
        index = rules_of(plane, space)
        return index if generations(index).get("imaging") == generation else {}

    return eventually(probe, f"generation {generation} in the rules of {space}")


def edit(plane: ControlPlane, space: str, tool: str) -> None:
    apply(plane, policy(space, "imaging", tool))


@dataclass
class History:
    """Every (epoch, generation) that the rules of a namespace went through, by a watch that misses nothing."""

    seen: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def follow(self, plane: ControlPlane, space: str, until: threading.Event) -> None:
        while not until.wait(0.05):
            index = rules_of(plane, space)
            if index:
                self.seen.append((index["epoch"], generations(index).get("imaging", 0)))

    def never_goes_back(self) -> bool:
        return self.seen == sorted(self.seen)


def test_one_replica_writes_and_both_serve(plane: ControlPlane, replicas: Replicas, space: str) -> None:
    one, two = replicas.start("one"), replicas.start("two")
    eventually(lambda: one.ready and two.ready, "both are ready")
    writer = replicas.writer()
    written(plane, space, 1)
    assert [r.leading for r in (one, two)].count(True) == 1
    lease = objects(plane, "lease", "toolpolicy-operator", "-n", "toolpolicy-system")
    assert lease["spec"]["holderIdentity"] == writer.name
    assert {r.state["holder"] for r in (one, two)} == {writer.name}


def test_pods_are_touched_when_their_rules_change(plane: ControlPlane, replicas: Replicas, space: str) -> None:
    replicas.start("one")
    apply(plane, pod(space, "mcp-0"), pod(space, "web", injected=False))
    run_pod(plane, space, "mcp-0")
    for generation, tool in ((1, "read_*"), (2, "list_*")):
        edit(plane, space, tool)
        revision = written(plane, space, generation)["revision"]

        def touched(revision: object = revision) -> bool:
            found = objects(plane, "pod", "mcp-0", "-n", space)["metadata"]["annotations"]
            return found.get("toolpolicy.dev/rules") == revision

        eventually(touched, f"mcp-0 is touched for {revision}")
    other = objects(plane, "pod", "web", "-n", space)["metadata"].get("annotations", {})
    assert "toolpolicy.dev/rules" not in other


def test_what_does_not_change_is_not_written(plane: ControlPlane, replicas: Replicas, space: str) -> None:
    one = replicas.start("one")
    written(plane, space, 1)
    eventually(lambda: one.state["queued"] == 0, "nothing is left to do")
    before = version_of(plane, space)
    plane.kubectl("label", "toolpolicy", "imaging", "-n", space, "team=x")
    plane.kubectl("annotate", "toolpolicy", "imaging", "-n", space, "note=y")
    edit(plane, space, "read_*")
    apply(plane, pod(space, "web", injected=False))
    later = f"{space}-later"
    apply(plane, namespace_of(later), policy(later, "imaging"))
    written(plane, later, 1)
    eventually(lambda: one.state["queued"] == 0, "nothing is left to do")
    assert version_of(plane, space) == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_a_writer_that_is_gone_is_succeeded(
    plane: ControlPlane, replicas: Replicas, space: str, how: signal.Signals
) -> None:
    replicas.start("one")
    replicas.start("two")
    writer = replicas.writer()
    before = written(plane, space, 1)
    started = time.monotonic()
    writer.signal(how)
    edit(plane, space, "list_*")
    after = written(plane, space, 2)
    assert time.monotonic() - started < TAKEOVER
    assert int(str(after["epoch"])) > int(str(before["epoch"]))


def test_a_writer_paused_for_longer_than_its_lease_overwrites_nothing(
    plane: ControlPlane, replicas: Replicas, space: str
) -> None:
    replicas.start("one")
    replicas.start("two")
    old = replicas.writer()
    written(plane, space, 1)
    over, history = threading.Event(), History()
    follower = threading.Thread(target=history.follow, args=(plane, space, over))
    follower.start()
    try:
        # The edit and the pause race: with luck the old writer has its write under way.
        edit(plane, space, "list_*")
        old.signal(signal.SIGSTOP)
        started = time.monotonic()
        new = next(r for r in replicas.started if r is not old)
        eventually(lambda: new.leading, "the other takes over")
        assert time.monotonic() - started < TAKEOVER
        written(plane, space, 2)
        edit(plane, space, "write_*")
        written(plane, space, 3)
        settled = version_of(plane, space)
        old.signal(signal.SIGCONT)
        eventually(lambda: old.state.get("holder") == new.name and not old.leading, "the old one knows who writes")
        edit(plane, space, "delete_*")
        written(plane, space, 4)
        assert version_of(plane, space) != settled
    finally:
        over.set()
        follower.join()
    assert history.never_goes_back(), history.seen
    assert rules_of(plane, space)["epoch"] == new.state["epoch"]


class Line(Relay):
    """A relay that can be cut: connections end and new ones are not joined until :meth:`mend`."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self._is_cut = threading.Event()

    def cut(self) -> None:
        self._is_cut.set()

    def mend(self) -> None:
        self._is_cut.clear()

    def _pump(self, downstream: socket.socket, upstream: socket.socket) -> None:
        ends = {downstream: upstream, upstream: downstream}
        while not self._is_cut.is_set() and not self._closed.is_set():
            for one in select.select(list(ends), [], [], 0.05)[0]:
                chunk = one.recv(65536)
                if not chunk:
                    return
                ends[one].sendall(chunk)


def test_a_writer_cut_off_from_the_api_server_stops_writing_and_is_succeeded(
    plane: ControlPlane, replicas: Replicas, space: str, tmp_path: Path
) -> None:
    host, port = plane.url.removeprefix("https://").split(":")
    with Line((host, int(port))) as line:
        old = replicas.start("one", kubeconfig=kubeconfig_through(plane, line.port, tmp_path / "through.kubeconfig"))
        eventually(lambda: old.leading, "it writes")
        written(plane, space, 1)
        new = replicas.start("two")
        line.cut()
        started = time.monotonic()
        edit(plane, space, "list_*")
        written(plane, space, 2)
        assert time.monotonic() - started < TAKEOVER
        assert not old.leading
        assert old.ready, "it still serves admissions from what it knows"
        line.mend()
        eventually(lambda: known(old) == new.name, "it knows who writes")
        edit(plane, space, "write_*")
        index = written(plane, space, 3)
        assert index["epoch"] == new.state["epoch"]
        assert not old.leading


def known(replica: Replica) -> str:
    return str(replica.state.get("holder"))
