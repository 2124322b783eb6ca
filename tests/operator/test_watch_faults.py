"""The watch and the periodic LIST against an API server that fails to order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import pytest_asyncio
from kubernetes.aio import client  # pyright: ignore[reportMissingTypeStubs]

from support.replicas import namespace_of, pod, policy
from support.scripted_api import GONE, KINDS, ScriptedApi, scripted_api
from toolpolicy_operator import watch as watching
from toolpolicy_operator.kube import Access, Api, Object
from toolpolicy_operator.records import Kind
from toolpolicy_operator.store import Store
from toolpolicy_operator.sync import Sync
from toolpolicy_operator.watch import Watch

pytestmark = pytest.mark.asyncio
DEADLINE = 30.0


@dataclass
class Watched:
    """A store that is fed by a watch of a scripted API server."""

    api: ScriptedApi
    store: Store
    watch: Watch
    sync: Sync

    async def until(self, probe: Callable[[], object], what: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                while not probe():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"not within {DEADLINE:.0f} s: {what}") from None

    def generation(self, name: str) -> int:
        found = self.store.policy("ToolPolicy", "agents", name)
        return found.generation if found is not None else 0

    def edit(self, *, quietly: bool = False) -> int:
        """Change the policy; returns its generation."""
        return self.api.set("toolpolicies", policy("agents", "imaging"), quietly=quietly)["metadata"]["generation"]


@pytest_asyncio.fixture
async def watched() -> AsyncGenerator[Watched]:
    watching.quiet()
    async with scripted_api() as api:
        api.set("namespaces", namespace_of("agents"))
        api.set("toolpolicies", policy("agents", "imaging"))
        async with _plain(api.url) as plain:
            store = Store()

            async def access() -> Access:
                return Access(api.url, None, None, None, None, True)

            def feed(kind: Kind, deleted: bool, obj: Object) -> None:
                (store.remove if deleted else store.put)(kind, obj)

            watch = Watch(access, feed)
            sync = Sync(plain, store, lambda: None, watch.restart, settle=0.2)
            watch.start()
            found = Watched(api, store, watch, sync)
            try:
                await found.until(lambda: all(api.watched(plural) for plural in KINDS), "everything is watched")
                yield found
            finally:
                await watch.stop()


def _plain(url: str) -> Api:
    """A client over plain HTTP, without credentials."""
    configuration = cast("Any", client).Configuration()
    configuration.host, configuration.retries = url, 0
    return Api(configuration)


async def test_events_reach_the_store(watched: Watched) -> None:
    generation = watched.edit()
    await watched.until(lambda: watched.generation("imaging") == generation, "the edit is known")
    watched.api.delete("toolpolicies", "imaging")
    await watched.until(lambda: watched.generation("imaging") == 0, "the deletion is known")


async def test_a_version_that_is_too_old_is_listed_again(watched: Watched) -> None:
    before = watched.api.seen["list toolpolicies"]
    generation = watched.edit(quietly=True)
    watched.api.tell("toolpolicies", GONE)
    await watched.until(lambda: watched.generation("imaging") == generation, "the LIST told what the watch missed")
    assert watched.api.seen["list toolpolicies"] > before
    again = watched.edit()
    await watched.until(lambda: watched.generation("imaging") == again, "it goes on watching")


async def test_a_request_that_is_one_too_many_is_waited_for(watched: Watched) -> None:
    watched.api.refuse += [("watch", 429, {"Retry-After": "1"})] * 2
    watched.api.tell("toolpolicies", None)
    await watched.until(lambda: watched.api.seen["refused watch"] == 2, "it was refused twice")
    await watched.until(lambda: watched.api.watched("toolpolicies"), "it watches again")
    generation = watched.edit()
    await watched.until(lambda: watched.generation("imaging") == generation, "the edit is known")


async def test_an_api_server_in_trouble_does_not_end_the_watch(watched: Watched) -> None:
    watched.api.refuse += [("watch", 500, {}), ("list", 503, {}), ("watch", 403, {})]
    watched.api.tell("toolpolicies", GONE)
    await watched.until(lambda: not watched.api.refuse, "every fault was met")
    await watched.until(lambda: watched.api.watched("toolpolicies"), "it watches again")
    generation = watched.edit()
    await watched.until(lambda: watched.generation("imaging") == generation, "the edit is known")


async def test_a_watch_that_ends_in_an_error_of_another_kind_begins_anew(watched: Watched) -> None:
    status = {"kind": "Status", "code": 500, "message": "etcdserver: no leader"}
    generation = watched.edit(quietly=True)
    watched.api.tell("pods", {"type": "ERROR", "object": status})
    await watched.until(lambda: watched.watch.restarts > 0, "kopf ended and was started again")
    await watched.until(lambda: watched.generation("imaging") == generation, "it listed again")


async def test_a_deletion_that_was_missed_is_healed_by_the_next_list_which_restarts_the_watch(
    watched: Watched,
) -> None:
    watched.api.set("pods", pod("agents", "mcp-0"))
    await watched.until(lambda: watched.store.pod("agents", "mcp-0"), "the pod is known")
    watched.api.delete("pods", "mcp-0", quietly=True)
    await watched.sync.again()
    assert watched.store.pod("agents", "mcp-0") is None
    assert watched.sync.repairs == 1
    await watched.until(lambda: watched.watch.restarts == 1, "the watch begins anew")


async def test_a_list_that_finds_nothing_new_leaves_the_watch_alone(watched: Watched) -> None:
    watched.api.set("pods", pod("agents", "mcp-0"))
    await watched.until(lambda: watched.store.pod("agents", "mcp-0"), "the pod is known")
    await watched.sync.again()
    assert watched.sync.repairs == 0
    assert watched.watch.restarts == 0
    assert watched.store.synced


async def test_a_watch_that_hangs_is_noticed_by_the_list(watched: Watched) -> None:
    generation = watched.edit(quietly=True)
    await watched.sync.again()
    assert watched.generation("imaging") == generation
    await watched.until(lambda: watched.watch.restarts == 1, "the watch begins anew")


async def test_nothing_is_written_by_watching(watched: Watched) -> None:
    watched.edit()
    assert {name.split()[0] for name in watched.api.seen} <= {"list", "watch"}
