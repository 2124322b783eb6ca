"""Several MCP servers behind one process: a port each, and one set of rules, limits and audit for all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.policies import allow, deny, policy
from toolpolicy.policy.model import Policy
from toolpolicy.sidecar.identity import RequestIdentifier
from toolpolicy.sidecar.listeners import AddressFault
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.servers import Servers, Shared, known_ports
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.state.memory import MemoryState
from wire.rig import DEADLINE, INITIALIZE, READS, Client, ListAudit, Reply, StaticRules, upstream

pytestmark = pytest.mark.asyncio
LIMITED = policy(allow("get_*", rateLimit={"max": 2, "window": "60s", "per": "Principal"}), deny("delete_*"))


class Running:
    """Two servers, both behind one process."""

    def __init__(self, servers: Servers, audit: ListAudit, metrics: Metrics, targets: list[int]) -> None:
        self.servers = servers
        self.audit = audit
        self.metrics = metrics
        self.targets = targets

    async def call(self, number: int, tool: str, *headers: str, host: str = "127.0.0.1") -> Reply:
        async with self.client(number, host) as client:
            return await client.call(tool, {}, *headers)

    @contextlib.asynccontextmanager
    async def client(self, number: int, host: str = "127.0.0.1") -> AsyncGenerator[Client]:
        reader, writer = await asyncio.open_connection(host, self.servers.sidecars[number].port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    def metric(self, name: str, **labels: str) -> float | None:
        text = self.metrics.render()[0].decode()
        found = {
            tuple(sorted(s.labels.items())): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.name == f"toolpolicy_{name}"
        }
        return found.get(tuple(sorted(labels.items())))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]


@contextlib.asynccontextmanager
async def two_servers(*policies: Policy) -> AsyncGenerator[Running]:
    async with upstream() as first, upstream() as second:
        one, two = free_ports(2)
        settings = Settings(servers=f"{one}={first.port},{two}={second.port}", drain_grace=2.0, pod_namespace="agents")
        audit, metrics = ListAudit(), Metrics()
        identifier = RequestIdentifier(None, b"key", settings)
        shared = Shared(StaticRules(*(policies or (READS,))), identifier, MemoryState(), audit, metrics)
        servers = Servers(settings, shared)
        await servers.start()
        try:
            yield Running(servers, audit, metrics, [first.port, second.port])
        finally:
            async with asyncio.timeout(DEADLINE):
                await servers.drain()


async def test_each_port_leads_to_its_own_server_by_the_same_rules() -> None:
    async with two_servers() as running:
        for number in (0, 1):
            assert (await running.call(number, "get_thing")).text == "executed get_thing"
            assert "no deletes" in (await running.call(number, "delete_thing")).text
        ports = [entry.extra["serverPort"] for entry in running.audit.entries]
        assert ports == [running.targets[0]] * 2 + [running.targets[1]] * 2


async def test_both_families_come_to_one_listener() -> None:
    async with two_servers() as running:
        assert (await running.call(0, "get_thing", host="::1")).text == "executed get_thing"
        assert (await running.call(0, "get_thing", host="127.0.0.1")).text == "executed get_thing"
        ids = {entry.principal.id for entry in running.audit.entries}
        assert not any("ffff" in found for found in ids)


async def test_a_limit_counts_over_all_servers_of_the_pod() -> None:
    async with two_servers(LIMITED) as running:
        assert not (await running.call(0, "get_thing")).denied
        assert not (await running.call(1, "get_thing")).denied
        assert (await running.call(0, "get_thing")).denied
        assert (await running.call(1, "get_thing")).denied


async def test_metrics_name_the_servers_port() -> None:
    async with two_servers() as running:
        await running.call(0, "get_thing")
        await running.call(1, "get_thing")
        await running.call(1, "delete_thing")
        one, two = map(str, running.targets)
        allowed = {"method": "tools/call", "action": "Allow", "code": "Allowed"}
        assert running.metric("decisions_total", **allowed, server=one) == 1
        assert running.metric("decisions_total", **allowed, server=two) == 1
        assert running.metric("decision_seconds_count", server=two) == 2
        assert running.metric("upstream_seconds_count", server=two) == 1
        assert running.metric("streams", server=one) == 0
        assert running.metric("decisions_total", **allowed) is None


async def test_a_tool_gets_its_label_from_its_own_servers_catalogue() -> None:
    async with two_servers() as running:
        async with running.client(0) as client:
            await client.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        await running.call(0, "get_thing")
        await running.call(1, "get_thing")
        one, two = map(str, running.targets)
        assert running.metric("tool_decisions_total", tool="get_thing", action="Allow", server=one) == 1
        assert running.metric("tool_decisions_total", tool="other", action="Allow", server=two) == 1


async def test_a_session_belongs_to_the_server_that_gave_it() -> None:
    async with two_servers() as running:
        async with running.client(0) as client:
            await client.post(INITIALIZE)
        assert running.metric("sessions", server=str(running.targets[0])) == 1
        assert running.metric("sessions", server=str(running.targets[1])) == 0


async def test_a_taken_port_leaves_nothing_listening() -> None:
    async with upstream() as first, upstream() as second:
        (free,) = free_ports(1)
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            settings = Settings(servers=f"{free}={first.port},{taken}={second.port}", drain_grace=1.0)
            identifier = RequestIdentifier(None, b"key", settings)
            shared = Shared(StaticRules(READS), identifier, MemoryState(), ListAudit(), Metrics())
            with pytest.raises(AddressFault, match="in use"):
                await Servers(settings, shared).start()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", free)


async def test_the_pods_own_ports_are_known() -> None:
    settings = Settings(servers="15771=8000,15773=9000", admin=":15772", listen="127.0.0.1:8080")
    assert known_ports(settings) >= {15771, 15773, 8000, 9000, 15772}
    single = Settings(listen=":15771", upstream="http://127.0.0.1:8000/mcp", admin="127.0.0.1:9901")
    assert known_ports(single) == {15771, 8000, 9901}
