"""The sidecar's own process: the disk is full, it is told to end, it is asked for more than it has."""

from __future__ import annotations

import signal
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from bypass.vectors.build import ACCEPT, HOST
from cluster import pki
from faults.common import ask, is_denied, open_call, policy
from support.faulty import Faulty
from support.rawhttp import Stream, request
from support.servers import Server, reference
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

BLOCKS = 4
FULL = ("sh", "-c", f'ulimit -f {BLOCKS}; exec "$@"', "sh")
"""The kernel refuses to let a file of this process grow beyond 2 KiB: the audit's disk is full."""
ENOUGH = 40
"""Calls whose audit lines are longer than that."""


@pytest.fixture
def upstream() -> Generator[Faulty]:
    with Faulty() as faulty:
        yield faulty


def test_a_full_disk_denies_what_cannot_be_recorded(upstream: Faulty) -> None:
    with Sidecar(policy(audit="Deny"), upstream.url, wrapper=FULL) as sidecar:
        replies = [ask(sidecar, "echo") for _ in range(ENOUGH)]
        denied = [reply for reply in replies if reply.json().get("result", {}).get("isError")]
        assert 0 < len(denied) < ENOUGH
        assert "audit" in denied[-1].json()["result"]["content"][0]["text"]
        assert upstream.asked["echo"] == ENOUGH - len(denied), "what could not be recorded did not run"
        assert "audit" in sidecar.admin("/readyz")[1]
        assert sidecar.process.poll() is None


def test_a_full_disk_may_be_told_to_be_no_matter(upstream: Faulty) -> None:
    with Sidecar(policy(audit="Continue"), upstream.url, wrapper=FULL) as sidecar:
        for _ in range(ENOUGH):
            assert not ask(sidecar, "echo").json()["result"].get("isError")
        assert upstream.asked["echo"] == ENOUGH
        assert "audit" in sidecar.admin("/readyz")[1]
        assert ask(sidecar, "delete_everything").json()["result"]["isError"], "the rules are still in force"
        failures = [line for line in sidecar.admin("/metrics")[1].splitlines() if "audit" in line and "fail" in line]
        assert any(not line.endswith(" 0.0") for line in failures if not line.startswith("#")), failures


def test_an_ending_sidecar_answers_what_it_accepted(upstream: Faulty) -> None:
    with Sidecar(policy(), upstream.url) as sidecar:
        with open_call(sidecar, "slow") as stream:
            stream.event(b"notifications/progress")
            sidecar.signal(signal.SIGTERM)
            sidecar.wait_until(lambda: not accepts(sidecar), "closed listener", 10)
            upstream.gates["slow"].set()
            stream.event(b'"result"')
            assert stream.until(None).endswith(b"0\r\n\r\n"), "an accepted call ends cleanly"
        assert sidecar.wait() == 0


def test_an_ending_sidecar_ends_its_streams() -> None:
    with reference() as server, Sidecar(policy(), server.url) as sidecar:
        with Stream(sidecar.address, listening(server, sidecar)) as stream:
            stream.until(b"\r\n\r\n")
            sidecar.signal(signal.SIGTERM)
            assert stream.until(None).endswith(b"0\r\n\r\n"), (
                "a stream ends cleanly, so that its client resumes elsewhere"
            )
        assert sidecar.wait() == 0


def test_an_ending_sidecar_does_not_wait_for_ever(upstream: Faulty) -> None:
    with Sidecar(policy(), upstream.url, env={"TOOLPOLICY_DRAIN_GRACE": "300ms"}) as sidecar:
        with open_call(sidecar, "slow") as stream:
            stream.event(b"notifications/progress")
            sidecar.signal(signal.SIGTERM)
            assert not stream.until(None).endswith(b"0\r\n\r\n"), "what was broken off must not look whole"
        assert sidecar.wait() == 0


def test_more_calls_than_allowed_are_told_to_come_back(upstream: Faulty) -> None:
    with Sidecar(policy(), upstream.url, env={"TOOLPOLICY_MAX_CONCURRENCY": "2"}) as sidecar:
        with open_call(sidecar, "hang"), open_call(sidecar, "hang"):
            sidecar.wait_until(lambda: upstream.asked["hang"] == 2, "two calls at the upstream", 10)
            reply = ask(sidecar, "echo")
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) > 0
        sidecar.wait_until(lambda: ask(sidecar, "echo").status == 200, "room again", 10)


def accepts(sidecar: Sidecar) -> bool:
    try:
        socket.create_connection(sidecar.address, timeout=1).close()
    except OSError:
        return False
    return True


def listening(server: Server, sidecar: Sidecar) -> bytes:
    """The GET of a session's own stream."""
    from bypass.test_streams import open_session

    assert server.port
    return request("GET", "/mcp", [HOST, ACCEPT, *open_session(sidecar.address)])


@pytest.mark.parametrize("away", ["hangs", "refuses"])
def test_an_operator_that_is_away_changes_no_decision(away: str, upstream: Faulty, tmp_path: Path) -> None:
    authority = pki.Authority.create()
    pki.save(tmp_path, "ca", authority.issue("operator", addresses=["127.0.0.1"]))
    (tmp_path / "token").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if away == "refuses":
            silent.close()
        settings = {
            "CONTROL_URL": f"https://127.0.0.1:{port}",
            "CONTROL_TOKEN_FILE": tmp_path / "token",
            "CONTROL_CA_FILE": tmp_path / "ca.crt",
            "POD_NAMESPACE": "agents",
            "POD_NAME": "mcp-0",
            "POD_UID": "uid-0",
        }
        env = {f"TOOLPOLICY_{name}": str(value) for name, value in settings.items()}
        with Sidecar(policy(), upstream.url, env=env) as sidecar:
            if away == "hangs":
                silent.settimeout(10)
                silent.accept()[0].close()
            assert not ask(sidecar, "echo").json()["result"].get("isError")
            assert is_denied(ask(sidecar, "delete_everything"), "nothing is deleted here")
            sidecar.wait_until(
                lambda: "rules stay enforced" in sidecar.admin("/readyz")[1], "word of it in /readyz", 40
            )
            status, _ = sidecar.admin("/readyz")
            assert status == 200
            assert 'toolpolicy_control_reports_total{result="failed"}' in sidecar.admin("/metrics")[1]
            assert not ask(sidecar, "echo").json()["result"].get("isError")
