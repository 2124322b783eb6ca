"""What the metrics of a running sidecar say of real calls."""

from __future__ import annotations

import pytest

from bypass.vectors.build import post
from faults.common import ask, policy
from support.rawhttp import exchange
from support.servers import stack
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clients")]


def test_a_tool_of_the_server_is_counted_under_its_name_and_no_other() -> None:
    with stack("plain") as server, Sidecar(policy(), server.url) as sidecar:
        listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        got = exchange(sidecar.address, post(listing))
        assert got.reply is not None
        known = got.reply.json()["result"]["tools"][0]["name"]
        for tool in (known, "made_up_by_the_caller"):
            ask(sidecar, tool)
        lines = sidecar.admin("/metrics")[1].splitlines()
        counted = [line for line in lines if line.startswith("toolpolicy_tool_decisions_total{")]
        assert any(f'tool="{known}"' in line for line in counted), counted
        assert not any("made_up" in line for line in counted), counted
