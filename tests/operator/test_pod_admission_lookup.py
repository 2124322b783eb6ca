"""The one look at the API server for a pod that the store does not select."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from support.pods import ENABLED, NAMESPACE
from toolpolicy_operator.admission.lookup import ApiLookup
from toolpolicy_operator.admission.pods import LookupFailed
from toolpolicy_operator.kube import Api, ApiError, Listing
from toolpolicy_operator.store import Store

pytestmark = pytest.mark.asyncio

MCP = {"app": "mcp"}


class Server:
    """An API server that answers when it is let, and counts."""

    def __init__(self) -> None:
        self.policies: list[dict[str, Any]] = []
        self.cluster: list[dict[str, Any]] = []
        self.fault: ApiError | None = None
        self.let = asyncio.Event()
        self.let.set()
        self.begun = asyncio.Event()
        self.reads = 0

    def create(self, name: str, **spec: Any) -> None:
        metadata = {"name": name, "namespace": NAMESPACE, "uid": name, "resourceVersion": "1", "generation": 1}
        self.policies.append({"metadata": metadata, "spec": {"selector": {"matchLabels": MCP}, **spec}})

    async def get(self, path: str, *, within: float = 0) -> Any:
        assert path == f"/api/v1/namespaces/{NAMESPACE}"
        return {"metadata": {"name": NAMESPACE, "labels": ENABLED}}

    async def list(self, path: str, *, within: float = 0) -> Listing:
        if self.fault is not None:
            raise self.fault
        own = "/namespaces/" in path
        seen = list(self.policies) if own else list(self.cluster)
        self.reads += own
        self.begun.set()
        await self.let.wait()
        return Listing(seen)


def lookup(server: Server) -> ApiLookup:
    return ApiLookup(cast("Api", server), Store())


async def names(read: ApiLookup) -> list[str]:
    found, labels = await read.read(NAMESPACE)
    assert labels == ENABLED
    return [p.metadata.name for p in found.policies_for(NAMESPACE, MCP, labels)]


async def test_reads_policies_of_both_kinds_and_the_namespace() -> None:
    server = Server()
    server.create("imaging")
    metadata = {"name": "baseline", "uid": "b", "resourceVersion": "1", "generation": 1}
    server.cluster.append({"metadata": metadata, "spec": {"selector": {}}})
    other = {"matchLabels": {"team": "other"}}
    spec = {"selector": {}, "namespaceSelector": other}
    server.cluster.append({"metadata": {**metadata, "name": "elsewhere"}, "spec": spec})
    assert sorted(await names(lookup(server))) == ["baseline", "imaging"]


async def test_a_policy_that_is_invalid_hides_no_other() -> None:
    server = Server()
    server.create("broken", rules=[{"name": "a", "action": "Nonsense"}])
    server.create("imaging")
    assert "imaging" in await names(lookup(server))


async def test_whoever_asks_while_a_read_runs_gets_the_next_one_and_shares_it() -> None:
    server = Server()
    server.let.clear()
    read = lookup(server)
    first = asyncio.create_task(names(read))
    await server.begun.wait()
    server.create("imaging")  # after the first read began: it does not see it
    later = [asyncio.create_task(names(read)) for _ in range(20)]
    await asyncio.sleep(0)
    server.let.set()
    async with asyncio.timeout(5):
        assert await first == []
        assert await asyncio.gather(*later) == [["imaging"]] * 20
    assert server.reads == 2


async def test_who_gives_up_does_not_end_the_read_of_others() -> None:
    server = Server()
    server.create("imaging")
    server.let.clear()
    read = lookup(server)
    first = asyncio.create_task(names(read))
    await server.begun.wait()
    impatient, patient = asyncio.create_task(names(read)), asyncio.create_task(names(read))
    await asyncio.sleep(0)
    first.cancel()
    impatient.cancel()
    server.let.set()
    async with asyncio.timeout(5):
        assert await patient == ["imaging"]


async def test_a_failure_says_what_failed_and_the_next_read_begins_anew() -> None:
    server = Server()
    server.fault = ApiError(403, "Forbidden", "toolpolicies is forbidden")
    read = lookup(server)
    with pytest.raises(LookupFailed, match="toolpolicies is forbidden"):
        await read.read(NAMESPACE)
    server.fault = None
    server.create("imaging")
    assert await names(read) == ["imaging"]


async def test_an_api_server_that_does_not_answer_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolpolicy_operator.admission.lookup.READ_SECONDS", 0.01)
    server = Server()
    server.let.clear()
    with pytest.raises(LookupFailed, match="no answer"):
        await lookup(server).read(NAMESPACE)
