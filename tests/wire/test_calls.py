"""The way of one call: judged, forwarded, answered; or refused, and told why."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.policies import allow, deny, policy
from toolpolicy.policy.model import Policy
from toolpolicy.policy.types import Demand
from toolpolicy.sidecar.interfaces import StateUnavailable
from wire.rig import DEADLINE, INITIALIZE, READS, Peer, Seen, StaticRules, call, echo, post, request, sidecar, upstream

pytestmark = pytest.mark.asyncio


async def test_an_allowed_call_is_forwarded_with_its_own_bytes_and_answered_with_the_servers() -> None:
    body = b'{"jsonrpc":"2.0",  "id":7, "method":"tools/call", "params":{"name":"get_thing", "arguments":{"a":1.10}}}'
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.post(body, "X-Mine: kept", "Origin: http://app.example")
        assert reply.status == 200
        assert reply.json() == {
            "jsonrpc": "2.0",
            "id": 7,
            "result": {"content": [{"type": "text", "text": "executed get_thing"}]},
        }
        assert "server" not in reply.headers
        seen = server.seen[0]
        assert seen.body == body
        assert seen.header("Host") == "127.0.0.1"
        assert seen.header("Origin") == "http://app.example"
        assert seen.header("X-Mine") == "kept"
        assert [e.decision.action for e in running.audit.entries] == ["Allow"]
        assert running.audit.entries[0].forwarded


async def test_a_denied_call_never_reaches_the_server_and_says_why() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.call("delete_thing", id="a")
        assert reply.status == 200
        assert reply.json()["id"] == "a"
        assert reply.json()["result"]["isError"] is True
        assert "no deletes" in reply.text
        assert server.seen == []
        assert not running.audit.entries[0].forwarded
        again = await client.call("get_thing")
        assert again.text == "executed get_thing"


async def test_many_calls_share_one_upstream_connection() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        for number in range(20):
            assert (await client.call("get_thing", id=number)).json()["id"] == number
        assert len(server.peers) == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        burst = [post(call(tool, id=n)) for n, tool in enumerate(["get_a", "delete_b", "get_c", "get_d", "delete_e"])]
        await client.send(b"".join(burst))
        replies = [await client.reply() for _ in burst]
        assert [r.json()["id"] for r in replies] == [0, 1, 2, 3, 4]
        assert server.executed == ["get_a", "get_c", "get_d"]


async def test_a_request_in_many_small_pieces_is_the_same_request() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        for byte in post(call("get_thing")):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.reply()).text == "executed get_thing"
        for byte in post(call("delete_thing")):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.reply()).denied
        assert server.executed == ["get_thing"]


async def test_a_chunked_request_is_forwarded_with_a_length() -> None:
    body = json.dumps(call("get_thing")).encode()
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:10], body[10:])) + b"0\r\n\r\n"
    head = b"POST /mcp HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        await client.send(head + pieces)
        assert (await client.reply()).text == "executed get_thing"
        assert server.seen[0].body == body
        assert server.seen[0].header("Transfer-Encoding") is None


async def test_a_denial_is_an_event_for_a_client_that_takes_no_json() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        usual = ("Content-Type: application/json", "Accept: text/event-stream")
        await client.send(post(call("delete_thing"), usual=usual))
        reply = await client.reply()
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.body.startswith(b"event: message\ndata: {")
        assert server.seen == []


@pytest.mark.parametrize(
    ("method", "params", "passes"),
    [
        ("ping", None, True),
        ("prompts/list", None, True),
        ("resources/read", {"uri": "x://y"}, False),
        ("vendor/start", {}, False),
    ],
)
async def test_other_methods_pass_or_are_judged(method: str, params: dict[str, Any] | None, passes: bool) -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.post(request(method, params))
        assert len(server.seen) == passes
        assert ("error" in reply.json()) is not passes


async def test_notifications_and_answers_to_the_server_pass() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        bodies: list[dict[str, Any]] = [
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            {"jsonrpc": "2.0", "id": 3, "result": {"roots": []}},
        ]
        for body in bodies:
            assert (await client.post(body)).status == 202
        assert len(server.seen) == 2


async def test_a_list_is_filtered_and_the_rest_of_it_stays() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.post(request("tools/list"))
        assert [tool["name"] for tool in reply.json()["result"]["tools"]] == ["get_thing"]
        assert int(reply.headers["content-length"]) == len(reply.body)
        assert server.seen[0].header("Accept-Encoding") is None


async def test_a_compressed_list_is_not_handed_on() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.answer(b"\x1f\x8b garbage", 200, "Content-Encoding: gzip")

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.post(request("tools/list"), "Accept-Encoding: gzip")
        assert reply.status == 502
        assert "compressed" in reply.text


async def test_a_list_that_is_no_json_is_not_handed_on() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.answer(b'{"result":{"tools":[{"name":"delete_thing"}]}')

    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        assert (await client.post(request("tools/list"))).status == 502


# -- limits, state, audit


def limited(maximum: int, **spec: Any) -> Policy:
    return policy(
        allow("get_*", rateLimit={"max": maximum, "window": 60, "per": "Principal"}), deny("delete_*"), **spec
    )


async def test_a_limit_holds_and_says_when_to_retry() -> None:
    async with upstream() as server, sidecar(server.url, limited(2)) as running, running.client() as client:
        replies = [await client.call("get_thing") for _ in range(3)]
        assert [r.denied for r in replies] == [False, False, True]
        assert replies[2].json()["result"]["_meta"]["toolpolicy.dev/decision"]["retryAfter"] > 0
        assert len(server.seen) == 2


async def test_a_call_that_never_reached_the_server_gives_its_place_back() -> None:
    async with upstream() as server:
        pass
    async with sidecar(server.url, limited(1)) as running, running.client() as client:
        for _ in range(3):
            reply = await client.call("get_thing")
            assert reply.status == 502
            assert "nothing was executed" in reply.text


async def test_a_call_that_may_have_been_executed_keeps_its_place() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        peer.abort()

    async with upstream(script) as server, sidecar(server.url, limited(1)) as running, running.client() as client:
        assert (await client.call("get_thing")).status == 502
        assert (await client.call("get_thing")).json()["result"]["isError"]
        assert len(server.seen) == 1


class NoStore:
    def reserve(self, demands: list[Demand]) -> Any:
        raise StateUnavailable

    def size(self) -> int:
        return 0

    async def close(self) -> None:
        pass


class LateNoStore(NoStore):
    async def reserve(self, demands: list[Demand]) -> Any:
        await asyncio.sleep(0)
        raise StateUnavailable


@pytest.mark.parametrize("store", [NoStore, LateNoStore])
@pytest.mark.parametrize(
    ("how", "outcomes"), [("Deny", [True, True]), ("Local", [False, True]), ("Allow", [False, False])]
)
async def test_what_a_lost_store_means_is_the_policys_choice(store: type[Any], how: str, outcomes: list[bool]) -> None:
    rules = limited(1, onStateFailure=how)
    async with upstream() as server, sidecar(server.url, rules, state=store()) as running, running.client() as client:
        assert [(await client.call("get_thing")).denied for _ in range(2)] == outcomes


@pytest.mark.parametrize(("how", "denied"), [("Deny", True), ("Continue", False)])
async def test_what_a_full_disk_means_is_the_policys_choice(how: str, denied: bool) -> None:
    rules = limited(1, onAuditFailure=how)
    async with upstream() as server, sidecar(server.url, rules) as running, running.client() as client:
        running.audit.works = False
        reply = await client.call("get_thing")
        assert reply.denied is denied
        assert len(server.seen) == (not denied)
        running.audit.works = True
        assert (await client.call("get_thing")).denied is not denied, "the place must be given back exactly if denied"


async def test_an_approval_is_denied_while_nobody_can_give_one() -> None:
    rules = policy({"match": {"tools": ["get_*"]}, "action": "RequireApproval"})
    async with upstream() as server, sidecar(server.url, rules) as running, running.client() as client:
        reply = await client.call("get_thing")
        assert "approval is not available here" in reply.text
        assert server.seen == []


# -- batches


async def test_a_batch_passes_only_whole() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        good = await client.post([call("get_a", id=1), call("get_b", id=2)])
        assert [item["id"] for item in good.json()] == [1, 2]
        bad = await client.post([call("get_a", id=1), call("delete_b", id=2), request("ping", id=3)])
        assert [item["id"] for item in bad.json()] == [1, 2, 3]
        assert "no deletes" in json.dumps(bad.json()[1])
        assert "Not executed" in json.dumps(bad.json()[0])
        assert server.executed == ["get_a", "get_b"]


async def test_a_batch_is_refused_where_the_revision_has_none() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        reply = await client.post([call("get_a")], "MCP-Protocol-Version: 2025-06-18")
        assert reply.status == 400
        assert server.seen == []


async def test_the_calls_of_a_batch_draw_from_a_limit_together_or_not_at_all() -> None:
    async with upstream() as server, sidecar(server.url, limited(3)) as running, running.client() as client:
        refused = await client.post([call("get_a", id=n) for n in range(4)])
        assert all(item["result"]["isError"] for item in refused.json())
        taken = await client.post([call("get_a", id=n) for n in range(3)])
        assert "isError" not in json.dumps(taken.json())
        assert len(server.executed) == 3


# -- rules


async def test_before_the_first_rules_everything_is_denied() -> None:
    rules = StaticRules()
    async with upstream() as server, sidecar(server.url, rules=rules) as running, running.client() as client:
        assert (await client.call("get_thing")).denied
        assert "error" in (await client.post(INITIALIZE)).json()
        await client.get()
        assert (await client.reply()).status == 503
        assert (await client.post({"jsonrpc": "2.0", "method": "notifications/x"})).status == 503
        assert server.seen == []
        rules.put(READS)
        assert not (await client.call("get_thing")).denied


async def test_a_swap_of_rules_counts_from_the_next_call() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        assert not (await client.call("get_thing")).denied
        running.rules.put(policy(deny()))
        assert (await client.call("get_thing")).denied
        running.rules.put(policy(allow()))
        assert not (await client.call("delete_thing")).denied
        assert server.executed == ["get_thing", "delete_thing"]


# -- the catalogue


def by_category() -> Policy:
    return policy({"match": {"categories": ["Read"]}, "action": "Allow"})


async def test_the_catalogue_is_listed_once_with_the_callers_headers_where_a_decision_needs_it() -> None:
    async with upstream() as server, sidecar(server.url, by_category()) as running, running.client() as client:
        reply = await client.call("get_thing", {}, "Authorization: Bearer abc", "Mcp-Session-Id: s-9")
        assert reply.text == "executed get_thing"
        assert [s.json()["method"] for s in server.seen] == ["tools/list", "tools/call"]
        assert server.seen[0].header("Authorization") == "Bearer abc"
        assert server.seen[0].header("Mcp-Session-Id") == "s-9"
        await client.call("get_thing")
        assert len(server.seen) == 3


async def test_a_tool_that_the_server_does_not_list_is_denied_and_asked_for_once_a_second_at_most() -> None:
    async with upstream() as server, sidecar(server.url, by_category()) as running, running.client() as client:
        for _ in range(5):
            assert (await client.call("get_unlisted")).denied
        assert [s.json()["method"] for s in server.seen] == ["tools/list"]


async def test_all_pages_of_the_catalogue_are_fetched_and_calls_that_wait_share_them() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        message = seen.json()
        if message["method"] != "tools/list":
            await echo(peer, seen)
            return
        cursor = message["params"].get("cursor")
        page: dict[str, Any] = {"tools": [{"name": f"get_{cursor or 'first'}", "inputSchema": {}}]}
        if cursor != "last":
            page["nextCursor"] = "last"
        await peer.answer({"jsonrpc": "2.0", "id": message["id"], "result": page})

    async with upstream(script) as server, sidecar(server.url, by_category()) as running:
        async with running.client() as one, running.client() as two:
            first, second = await asyncio.gather(one.call("get_last"), two.call("get_first"))
            assert first.text == "executed get_last"
            assert second.text == "executed get_first"
        methods = [s.json()["method"] for s in server.seen]
        assert methods.count("tools/list") == 2


async def test_a_server_that_does_not_list_in_time_leaves_the_tool_unknown() -> None:
    async def script(peer: Peer, seen: Seen) -> None:
        await peer.gone()

    async with upstream(script) as server, sidecar(server.url, by_category(), list_timeout=0.05) as running:
        async with running.client() as client:
            assert (await client.call("get_thing")).denied
        await server.until(lambda: len(server.seen) == 1)


# -- faults of our own


class Broken:
    """An identifier with a bug, at once or later."""

    def __init__(self, *, late: bool) -> None:
        self._late = late

    def identify(self, peer: Any, headers: Any) -> Any:
        if not self._late:
            raise RuntimeError("a bug")

        async def later() -> Any:
            raise RuntimeError("a bug")

        return later()


@pytest.mark.parametrize("late", [False, True])
async def test_a_fault_of_our_own_is_500_forwards_nothing_and_ends_no_other_call(late: bool) -> None:
    async with upstream() as server, sidecar(server.url, identifier=Broken(late=late)) as running:
        for _ in range(2):
            async with running.client() as client:
                reply = await client.call("get_thing")
                assert reply.status == 500
                assert "nothing was executed" in reply.text
                assert await client.closed()
        assert server.seen == []


async def test_what_came_before_any_rules_is_on_record() -> None:
    rules = StaticRules()
    async with upstream() as server, sidecar(server.url, rules=rules) as running, running.client() as client:
        assert (await client.call("get_thing", {"a": 1}, id="x")).denied
        await client.get()
        assert (await client.reply()).status == 503
        call_, stream = running.audit.entries
        assert (call_.decision.code, call_.method, call_.tool, call_.request_id, call_.forwarded) == (
            "NoRulesYet", "tools/call", "get_thing", "x", False,
        )  # fmt: skip
        assert call_.arguments_digest
        assert call_.principal.id == "addr:127.0.0.1"
        assert (stream.decision.code, stream.method, stream.extra) == ("NoRulesYet", "HTTP GET", {"path": "/mcp"})
        assert server.seen == []


async def test_a_wrong_path_is_told_the_right_one() -> None:
    rules = policy(allow("get_*"), server={"path": "/tools"})
    async with (
        upstream() as server,
        sidecar(f"http://127.0.0.1:{server.port}", rules) as running,
        running.client() as client,
    ):
        reply = await client.post(call("get_thing"), target="/mcp")
        assert reply.status == 404
        assert "MCP is served at /tools exactly" in reply.text


async def test_the_time_until_the_server_answers_is_measured() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        await client.call("get_thing")
        await client.call("delete_thing")
        assert sum(running.metrics.call_seconds.counts) == 1
        assert 0 < running.metrics.call_seconds.total < DEADLINE
