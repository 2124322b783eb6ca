"""The MCP server behind the sidecar, or its client, fails: each way has one outcome (``docs/failure-modes.md``)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from bypass.vectors.build import compact, post
from faults.common import ask, is_denied, open_call, policy, told
from support import servers
from support.faulty import Faulty
from support.rawhttp import Stream, exchange, request
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

PATIENCE = {"TOOLPOLICY_FIRST_BYTE_TIMEOUT": "500ms", "TOOLPOLICY_CONNECT_TIMEOUT": "1s"}


@pytest.fixture(scope="module")
def upstream() -> Generator[Faulty]:
    with Faulty() as faulty:
        yield faulty


@pytest.fixture(scope="module")
def impatient(upstream: Faulty) -> Generator[Sidecar]:
    with Sidecar(policy(), upstream.url, env=PATIENCE) as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def patient(upstream: Faulty) -> Generator[Sidecar]:
    with Sidecar(policy(), upstream.url) as sidecar:
        yield sidecar


def test_a_server_that_refuses_is_said_to_be_down() -> None:
    """503 with the request's id; the limit's room is given back, because nothing was sent."""
    port = servers.free_port()
    with Sidecar(policy(), f"http://127.0.0.1:{port}/mcp") as sidecar:
        for _ in range(3):
            reply = ask(sidecar, "once")
            assert reply.status == 502, reply
            assert "nothing was executed" in told(reply)["message"]
        assert is_denied(ask(sidecar, "delete_everything"), "nothing is deleted here")
        assert sidecar.admin("/readyz")[0] == 200, "readiness never depends on the MCP server's"


def test_a_server_that_hangs_is_given_up(upstream: Faulty, impatient: Sidecar) -> None:
    reply = ask(impatient, "hang")
    assert reply.status == 504
    assert told(reply)["message"]
    assert upstream.gone["hang"].wait(5), "the request that was given up is ended upstream"


def test_a_call_that_may_have_run_keeps_its_place_in_the_limit(upstream: Faulty, impatient: Sidecar) -> None:
    """The server took the whole request and died: it may have run, so nothing is given back and nothing is repeated."""
    assert ask(impatient, "once_dying").status == 502
    assert is_denied(ask(impatient, "once_dying"), "limit")
    assert upstream.asked["once_dying"] == 1


def test_a_server_that_dies_in_the_body_aborts_the_client(patient: Sidecar) -> None:
    with open_call(patient, "die_mid_body") as stream:
        received = stream.until(None)
        assert b"Content-Length: 1000" in received or b"chunked" in received.lower() or b" 502 " in received
        assert not received.endswith(b"0\r\n\r\n"), "a broken answer must not look whole"


def test_a_server_that_dies_in_a_stream_aborts_the_client(upstream: Faulty, patient: Sidecar) -> None:
    with open_call(patient, "die_mid_stream") as stream:
        assert stream.event(b"notifications/progress")
        upstream.gates["die_mid_stream"].set()
        assert not stream.until(None).endswith(b"0\r\n\r\n"), "a broken stream must not end cleanly"


@pytest.mark.parametrize("tool", ["garbage", "huge_head"])
def test_garbage_is_an_error_of_the_servers(patient: Sidecar, tool: str) -> None:
    reply = ask(patient, tool)
    assert reply.status == 502
    assert told(reply)["message"]
    assert ask(patient, "echo").status == 200


def test_a_list_that_cannot_be_read_is_not_passed_on(patient: Sidecar) -> None:
    """What can't be filtered must not be shown."""
    listing: dict[str, Any] = {"jsonrpc": "2.0", "id": 7, "method": "tools/list", "params": {}}
    reply = exchange(patient.address, post(listing)).reply
    assert reply is not None
    assert reply.status == 502
    assert b"delete_everything" not in reply.body


def test_a_slow_answer_arrives_as_it_comes(upstream: Faulty, impatient: Sidecar) -> None:
    """The timeout is for the first byte alone: a stream may then take as long as it likes."""
    with open_call(impatient, "slow") as stream:
        assert stream.event(b"notifications/progress")
        assert ask(impatient, "hang").status == 504, "another call waits longer than the timeout meanwhile"
        upstream.gates["slow"].set()
        assert stream.event(b'"result"')
        assert stream.until(b"0\r\n\r\n")


def test_a_client_that_goes_away_is_gone_for_the_server(upstream: Faulty) -> None:
    upstream.gone["hang"].clear()
    with Sidecar(policy(), upstream.url) as sidecar:
        before = upstream.asked["hang"]
        with open_call(sidecar, "hang") as stream:
            sidecar.wait_until(lambda: upstream.asked["hang"] > before, "call at the upstream", 5)
            stream.reset()
        assert upstream.gone["hang"].wait(5)


def test_a_client_that_does_not_read_holds_the_server_back(upstream: Faulty) -> None:
    """The sidecar takes no more from the server than its client takes from it, and serves others meanwhile."""
    with Sidecar(policy(), upstream.url) as sidecar, open_call(sidecar, "flood") as stream:
        stream.event(b"notifications/progress")
        assert ask(sidecar, "echo").status == 200
        assert upstream.gates["flooded"].wait(30)
        assert upstream.flooded < 32 * 1024 * 1024


def test_a_client_that_never_ends_its_request_is_ended(upstream: Faulty) -> None:
    limits = {"TOOLPOLICY_HEAD_TIMEOUT": "300ms", "TOOLPOLICY_BODY_TIMEOUT": "300ms"}
    with Sidecar(policy(), upstream.url, env=limits) as sidecar:
        with Stream(sidecar.address, b"POST /mcp HTTP/1.1\r\nHost: x\r\n") as head:
            head.until(None)
        body = request("POST", "/mcp", [("Host", "x"), ("Content-Type", "application/json"), ("Content-Length", "100")])
        with Stream(sidecar.address, body + b"{") as stream:
            received = stream.until(None)
            assert not received or b" 408 " in received.split(b"\r\n")[0]
        assert ask(sidecar, "echo").status == 200


def test_the_control_answers(upstream: Faulty, patient: Sidecar) -> None:
    """The same server answers a plain call: what fails above fails for its own reason."""
    assert ask(patient, "echo").json()["result"]["content"][0]["text"] == "done"
    assert compact({}) == b"{}"
    assert upstream.asked["echo"] > 0
