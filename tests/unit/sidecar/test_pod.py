"""The sidecar as it runs in a pod: by its environment alone, behind the redirection, in a network of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import kubelet
from support.netns import POD_ADDRESSES, Namespace, wire
from support.processes import Program

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pod")]
UID = 15771
IPV4, IPV6 = POD_ADDRESSES
PODSERVER = Path(__file__).parents[2] / "support" / "pod_server.py"
PROBES = {
    "app/liveness": {"type": "http", "port": 8000, "path": "/healthz"},
    "app/readiness": {"type": "tcp", "port": 9000},
}


def call(tool: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}}


class Pod:
    """A pod whose ports 8000 and 9000 are redirected to one sidecar, and a world beside it."""

    def __init__(self, stack: ExitStack, volume: Path, env: Mapping[str, str] | None = None) -> None:
        self.stack = stack
        self.volume = volume
        self.world = stack.enter_context(Namespace())
        self.pod = stack.enter_context(Namespace())
        wire(self.world, self.pod)
        self.pod.redirect("8000=15771", "9000=15773", "--except-uid", str(UID))
        self.sidecar = stack.enter_context(self._start(env or {}))
        self.sidecar.wait_until(lambda: self.fetch("/healthz")[0] == 200, "admin port")

    def _start(self, env: Mapping[str, str]) -> Program:
        environment = {
            "TOOLPOLICY_SERVERS": "15771=8000,15773=9000",
            "TOOLPOLICY_ADMIN": ":15772",
            "TOOLPOLICY_RULES": str(self.volume),
            "TOOLPOLICY_RULES_INDEX": "required",
            "TOOLPOLICY_POD_NAMESPACE": "agents",
            "TOOLPOLICY_POD_LABELS": '{"app": "imaging"}',
            "TOOLPOLICY_SERVER_NAME": "agents/imaging",
            "TOOLPOLICY_PROBES": json.dumps(PROBES),
            "TOOLPOLICY_DRAIN_GRACE": "2",
            **env,
        }
        # The interpreter of a checkout may be readable by root alone: reading is all that this user may do more.
        reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *reading]
        return self.pod.start(*user, sys.executable, "-m", "toolpolicy.sidecar", name="sidecar", env=environment)

    @contextmanager
    def server(self, *addresses: str) -> Generator[Program]:
        with self.pod.start(sys.executable, str(PODSERVER), *addresses, name="server") as program:
            program.first_json()
            yield program

    def fetch(self, path: str) -> tuple[int, str]:
        """From the admin port, as the kubelet does: from outside."""
        return self.world.fetch(IPV4, 15772, path)

    def rules(self, *policies: dict[str, Any], revision: str = "1-1") -> None:
        kubelet.write(self.volume, kubelet.volume_files(list(policies), revision=revision))
        self.sidecar.wait_until(lambda: self.status()["rules"]["revision"] == revision, f"revision {revision}")

    def status(self) -> dict[str, Any]:
        return json.loads(self.fetch("/status")[1])

    def say(self, tool: str, host: str = IPV4, port: int = 8000, *, inside: bool = False) -> str:
        """What an agent is told when it calls ``tool``: from the world, or from ``inside`` the pod."""
        status, body = (self.pod if inside else self.world).fetch(host, port, "/mcp", call(tool))
        answer: dict[str, Any] = json.loads(body) if body.startswith("{") else {}
        return answer["result"]["content"][0]["text"] if "result" in answer else f"{status} {body}"


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    volume = tmp_path_factory.mktemp("rules") / "not-there-yet"
    os.chmod(volume.parent, 0o755)  # noqa: PTH101
    with ExitStack() as stack:
        made = Pod(stack, volume)
        # Before the ConfigMap exists: denied, told why, and not ready.
        with made.server("127.0.0.1/8000") as server:
            assert "No valid set of policies is loaded yet" in made.say("search")
            assert made.fetch("/readyz")[0] == 503
            assert made.fetch("/probe/app/liveness")[0] == 200
            server.stop()
        made.rules(kubelet.policy())
        assert made.fetch("/readyz")[0] == 200
        yield made


def test_calls_are_judged_from_outside_and_inside_over_both_families(pod: Pod) -> None:
    with pod.server("127.0.0.1/8000", "127.0.0.1/9000"):
        for port in (8000, 9000):
            for host in (IPV4, IPV6):
                assert pod.say("search", host, port) == f"{port} executed search"
                assert "delete" in pod.say("delete_all", host, port)
                assert "executed" not in pod.say("delete_all", host, port)
            for host in ("127.0.0.1", "::1", IPV4, IPV6):
                assert pod.say("search", host, port, inside=True) == f"{port} executed search"
                assert "executed" not in pod.say("delete_all", host, port, inside=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", IPV4, IPV6])
def test_the_server_is_reached_wherever_it_is_bound(pod: Pod, address: str) -> None:
    with pod.server(f"{address}/8000"):
        assert pod.say("search") == "8000 executed search"
        assert pod.fetch("/probe/app/liveness")[0] == 200


def test_a_rule_that_changes_counts_for_the_next_call(pod: Pod) -> None:
    with pod.server("0.0.0.0/8000"):
        assert "executed" not in pod.say("later")
        pod.rules(kubelet.policy(tool="later"), revision="1-2")
        assert pod.say("later") == "8000 executed later"
        pod.rules(kubelet.policy(), revision="1-3")
        assert "executed" not in pod.say("later")


def test_a_dead_server_fails_its_probes_and_leaves_the_sidecar_ready(pod: Pod) -> None:
    pod.sidecar.wait_until(lambda: pod.fetch("/probe/app/liveness")[0] == 503, "failed probe")
    assert "refused" in pod.fetch("/probe/app/liveness")[1]
    assert pod.fetch("/readyz")[0] == 200
    with pod.server("0.0.0.0/9000"):
        pod.sidecar.wait_until(lambda: pod.fetch("/probe/app/readiness")[0] == 200, "good probe")
    assert "can't be reached" in pod.say("search")


def test_listeners_beside_the_policy_are_told(pod: Pod) -> None:
    assert pod.status()["listeners"] == []
    with pod.server("0.0.0.0/8000", "127.0.0.1/7001", "0.0.0.0/7000", f"{IPV6}/7002"):
        assert pod.status()["listeners"] == [
            {"port": 7000, "address": "0.0.0.0"},
            {"port": 7002, "address": IPV6},
        ]


def test_a_cluster_policy_counts_by_its_presence(pod: Pod) -> None:
    """The operator has matched the namespace; its labels are not the sidecar's to know."""
    baseline = kubelet.policy("baseline", "search", None, namespaceSelector={"matchLabels": {"tier": "prod"}})
    other = kubelet.policy("other", "x", None, selector={"matchLabels": {"app": "somebody"}})
    with pod.server("0.0.0.0/8000"):
        pod.rules(kubelet.policy(tool="*"), baseline, other, revision="1-4")
        assert pod.status()["rules"]["policies"] == 2
        assert pod.say("search") == "8000 executed search"
        assert "executed" not in pod.say("write_all")
        pod.rules(kubelet.policy(), revision="1-5")


def test_a_set_that_is_lost_changes_nothing(pod: Pod) -> None:
    with pod.server("0.0.0.0/8000"):
        before = pod.status()["rules"]["failures"]
        kubelet.write(pod.volume, {})
        pod.sidecar.wait_until(lambda: pod.status()["rules"]["failures"] > before, "refused set")
        assert pod.say("search") == "8000 executed search"
        assert "executed" not in pod.say("delete_all")
        pod.rules(kubelet.policy(), revision="1-6")


def test_sigterm_ends_it_in_peace(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with ExitStack() as stack:
        ended = Pod(stack, tmp_path / "rules")
        ended.sidecar.signal(signal.SIGTERM)
        assert ended.sidecar.wait() == 0


def test_where_ipv6_is_off_it_listens_on_ipv4(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    env = {
        **os.environ,
        "TOOLPOLICY_SERVERS": "15771=8000",
        "TOOLPOLICY_ADMIN": ":15772",
        "TOOLPOLICY_RULES": str(tmp_path / "rules"),
        "TOOLPOLICY_RULES_INDEX": "required",
        "TOOLPOLICY_POD_NAMESPACE": "agents",
    }
    with Namespace() as pod:
        pod.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1")
        with pod.start(sys.executable, "-m", "toolpolicy.sidecar", name="sidecar", env=env) as sidecar:
            sidecar.wait_until(lambda: pod.fetch("127.0.0.1", 15772, "/healthz")[0] == 200, "admin port")
            assert "No valid set" in pod.fetch("127.0.0.1", 15771, "/mcp", call("search"))[1]
