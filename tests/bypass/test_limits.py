"""Ways round a limit: whatever a caller changes about itself, no more calls run than the limit allows."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterator

import pytest

from bypass.test_streams import open_session
from bypass.vectors.build import BASE, LEGACY, call, compact, modern, post, request, standard
from support import servers
from support.rawhttp import exchange
from support.relay import Relay
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("bypass")]

MOST = 3
TRIES = 12
POLICY = f"""\
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {{name: limits}}
spec:
  selector: {{}}
  defaultAction: Deny
  rules:
  - name: a-few
    match: {{tools: [echo]}}
    action: Allow
    rateLimit: {{max: {MOST}, window: 1h, per: PER}}
"""
Address = tuple[str, int]
Attack = Callable[[Address, Iterator[int]], bytes]


def _call(*headers: tuple[str, str]) -> bytes:
    return request("POST", "/mcp", [*BASE, ("MCP-Protocol-Version", LEGACY), *headers], compact(call("echo")))


def _client_info(number: int) -> bytes:
    message = modern("echo")
    message["params"]["_meta"]["io.modelcontextprotocol/clientInfo"] = {"name": f"client-{number}", "version": "1"}
    return standard(message, name="echo")


# What a caller is free to change with every call.
DISGUISES: dict[str, Attack] = {
    "nothing": lambda _, __: _call(),
    "another credential": lambda _, count: _call(("Authorization", f"Bearer {next(count)}")),
    "another session id": lambda _, count: _call(("Mcp-Session-Id", f"made-up-{next(count)}")),
    "another forwarded address": lambda _, count: _call(("X-Forwarded-For", f"10.0.0.{next(count)}")),
    "another forwarded header": lambda _, count: _call(("Forwarded", f"for=10.0.0.{next(count)}")),
    "another client name": lambda _, count: _client_info(next(count)),
    "another user agent": lambda _, count: _call(("User-Agent", f"agent-{next(count)}")),
    "another id": lambda _, count: post(call("echo", id=f"call-{next(count)}")),
    "another revision": lambda _, count: (
        _call() if next(count) % 2 else standard(modern("echo", {"value": "ok"}), name="echo")
    ),
    "another argument": lambda _, count: post(call("echo", {"tag": next(count)})),
    "everything at once": lambda _, count: _call(
        ("Authorization", f"Bearer {next(count)}"),
        ("Mcp-Session-Id", f"made-up-{next(count)}"),
        ("X-Forwarded-For", f"10.0.0.{next(count)}"),
    ),
}


@pytest.fixture(scope="module")
def plain() -> Generator[servers.Server]:
    with servers.stack("plain") as server:
        yield server


def limited(per: str) -> str:
    return POLICY.replace("PER", f"Session, principalMax: {MOST}" if per == "Session" else per)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguise_does_not_help(plain: servers.Server, disguise: str) -> None:
    count = itertools.count()
    attack = DISGUISES[disguise]
    before = plain.executed("echo")
    with Relay(plain.address) as relay:
        for _ in range(TRIES):
            exchange(("127.0.0.1", relay.port), attack(plain.address, count))
    assert plain.executed("echo") == before + TRIES
    for per in ("Session", "Principal"):
        with Sidecar(limited(per), plain.url) as sidecar:
            before = plain.executed("echo")
            for _ in range(TRIES):
                assert exchange(sidecar.address, attack(sidecar.address, count)).reply is not None
            assert plain.executed("echo") == before + MOST, f"per {per}"


def test_a_session_for_each_call_does_not_help() -> None:
    with servers.reference() as server, Sidecar(limited("Session"), server.url) as sidecar:
        for _ in range(TRIES):
            session = open_session(sidecar.address)
            assert exchange(sidecar.address, request("POST", "/mcp", [*BASE, *session], compact(call("echo")))).reply
        assert server.executed("echo") == MOST


def test_calls_at_the_same_time_do_not_help(plain: servers.Server) -> None:
    """Reserved before it is forwarded: no two calls see the same room."""
    start = threading.Barrier(TRIES)

    def race(address: Address) -> None:
        start.wait(10)
        exchange(address, _call())

    with Sidecar(limited("Server"), plain.url) as sidecar:
        before = plain.executed("echo")
        threads = [threading.Thread(target=race, args=(sidecar.address,)) for _ in range(TRIES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert plain.executed("echo") == before + MOST


def test_calls_in_one_segment_do_not_help(plain: servers.Server) -> None:
    with Sidecar(limited("Server"), plain.url) as sidecar:
        before = plain.executed("echo")
        got = exchange(sidecar.address, _call() * TRIES, expect=TRIES)
        assert len(got.replies) == TRIES
        assert plain.executed("echo") == before + MOST


def test_a_call_that_its_caller_gives_up_counts() -> None:
    """Written to the server is run: closing the connection at once gives no room back."""
    with servers.stack("plain") as plain, Sidecar(limited("Server"), plain.url) as sidecar:
        for _ in range(TRIES):
            exchange(sidecar.address, _call(), expect=0)
        assert exchange(sidecar.address, _call()).reply is not None
        assert plain.executed("echo") <= MOST
