"""Every known bypass: through a plain relay it runs a denied tool on a real server, through the sidecar it does not."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from bypass.conftest import Range
from bypass.vectors import VECTORS
from bypass.vectors.build import Vector, call, post
from support.rawhttp import Exchange, Reply, exchange
from support.servers import Server
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("bypass")]

CONTROL_DEADLINE = 5.0
BARRIER = post(call("get_sum", {"a": 1, "b": 2}))
"""An allowed call: once it has run, whatever was forwarded before it has run too."""


def chunks(vector: Vector) -> bytes | list[bytes]:
    return vector.data if isinstance(vector.data, bytes) else list(vector.data)


def runs(server: Server, tool: str, before: int) -> bool:
    """True once ``tool`` ran more often than ``before``."""
    end = time.monotonic() + CONTROL_DEADLINE
    while time.monotonic() < end:
        if server.executed(tool) > before:
            return True
        time.sleep(0.005)
    return False


def is_refusal(reply: Reply) -> bool:
    """An HTTP error, a JSON-RPC error, or a tool result that says that it is an error."""
    if reply.status >= 400:
        return True
    return any("error" in message or message.get("result", {}).get("isError") for message in reply.messages())


def check_refused(vector: Vector, got: Exchange, sidecar: Sidecar) -> None:
    shown = f"{vector.name}: {[(reply.status, reply.body[:300]) for reply in got.replies]}"
    assert not got.hung or got.replies, f"{shown}: no answer\n{sidecar.log()}"
    assert got.replies, f"{shown}: closed without an answer\n{sidecar.log()}"
    assert any(is_refusal(reply) for reply in got.replies), f"{shown}: not refused\n{sidecar.log()}"
    assert all(reply.status < 500 for reply in got.replies), f"{shown}: an error of the sidecar's\n{sidecar.log()}"
    if vector.status is not None:
        assert vector.status in [reply.status for reply in got.replies], f"{shown}: expected {vector.status}"


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector.name) for vector in VECTORS])
def test_runs_through_a_relay_and_is_refused_by_the_sidecar(vector: Vector, shooting_range: Range) -> None:
    for kind in vector.stacks:
        server = shooting_range.server(kind)
        before = server.executed(vector.tool)
        relay = shooting_range.relay(kind)
        exchange(("127.0.0.1", relay.port), chunks(vector), expect=vector.expect, deadline=1.0)
        assert runs(server, vector.tool, before), (
            f"the control failed: {kind} did not run {vector.tool} through a relay"
        )
    for kind in vector.stacks or ("plain",):
        for policy in vector.policies:
            server, sidecar = shooting_range.server(kind), shooting_range.sidecar(kind, policy)
            before = server.executed(vector.tool), server.executed("get_sum")
            got = exchange(sidecar.address, chunks(vector), expect=vector.expect, deadline=5.0)
            check_refused(vector, got, sidecar)
            barrier = exchange(sidecar.address, BARRIER).reply
            assert barrier is not None, f"{vector.name}: the sidecar does not answer any more\n{sidecar.log()}"
            assert barrier.status == 200, f"{vector.name}: the sidecar does not serve any more: {barrier.body!r}"
            assert server.executed("get_sum") == before[1] + 1
            expected = before[0] + (vector.tool == "get_sum")
            assert server.executed(vector.tool) == expected, f"{vector.name}: {kind} ran {vector.tool} behind {policy}"


def test_the_table_is_one_table() -> None:
    """Names are unique; a vector without a control says why it has none, and those are few."""
    assert [name for name, count in Counter(vector.name for vector in VECTORS).items() if count > 1] == []
    without = [vector for vector in VECTORS if not vector.stacks]
    assert [vector.name for vector in without if not vector.control] == []
    assert len(without) * 10 < len(VECTORS)
