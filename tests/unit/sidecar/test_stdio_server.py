"""The bridge in front of real processes: what a Streamable HTTP client sees of a stdio server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from toolpolicy.sidecar.stdio_child import Patience, StdioError
from toolpolicy.sidecar.stdio_pool import StdioLimits
from toolpolicy.sidecar.stdio_server import StdioBridge
from toolpolicy.sidecar.stdio_streams import Bounds

SCRIPT = [sys.executable, str(Path(__file__).parents[2] / "support" / "stdio_script.py")]
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
MODERN = {"MCP-Protocol-Version": "2026-07-28"}
URL = "http://localhost/mcp"


def request(request_id: Any, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}


def call(request_id: Any, tool: str, token: Any = None, **arguments: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": tool, "arguments": arguments}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return request(request_id, "tools/call", params)


def said(message: dict[str, Any]) -> Any:
    return message["result"]["content"][0]["text"]


@dataclass
class Answer:
    status: int
    headers: Any
    messages: list[dict[str, Any]]

    @property
    def last(self) -> dict[str, Any]:
        return self.messages[-1]


def events(body: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]


@dataclass
class Client:
    """A Streamable HTTP client, as plain as can be."""

    http: aiohttp.ClientSession
    headers: dict[str, str] = field(default_factory=dict[str, str])
    server: str = ""

    async def post(self, message: Any, **headers: str) -> Answer:
        sent = ACCEPT | self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        async with self.http.post(URL, data=io.BytesIO(body), headers=sent) as answer:
            text = await answer.text()
            kind = answer.content_type
            messages = events(text) if kind == "text/event-stream" else [json.loads(text)] if text else []
            return Answer(answer.status, answer.headers, messages)

    @asynccontextmanager
    async def stream(self, message: Any | None = None) -> AsyncGenerator[Callable[[], Any]]:
        """A POST, or a GET stream, whose messages are taken one by one."""
        method = "GET" if message is None else "POST"
        body = None if message is None else json.dumps(message).encode()
        async with self.http.request(method, URL, data=body, headers=ACCEPT | self.headers) as answer:
            assert answer.status == 200, await answer.text()

            async def take() -> dict[str, Any] | None:
                while line := await answer.content.readline():
                    if line.startswith(b"data: "):
                        return json.loads(line[6:])
                return None

            yield take

    async def initialize(self, revision: str = "2025-11-25", capabilities: dict[str, Any] | None = None) -> Answer:
        params = {"protocolVersion": revision, "capabilities": capabilities or {}, "clientInfo": {"name": "t"}}
        answer = await self.post(request("init", "initialize", params))
        if "Mcp-Session-Id" in answer.headers:
            self.headers = {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"], "MCP-Protocol-Version": revision}
            self.server = answer.last["result"]["serverInfo"]["version"]
        return answer


@dataclass
class Bridge:
    bridge: StdioBridge
    http: aiohttp.ClientSession
    log: list[str]
    logged: asyncio.Event

    def client(self) -> Client:
        return Client(self.http)

    async def session(self, revision: str = "2025-11-25") -> Client:
        client = self.client()
        await client.initialize(revision)
        return client

    def modern(self) -> Client:
        return Client(self.http, dict(MODERN))

    async def until_logged(self, text: str) -> None:
        async with asyncio.timeout(10):
            while not any(text in line for line in self.log):
                self.logged.clear()
                await self.logged.wait()


@asynccontextmanager
async def running(*arguments: str, shared: bool = False, **limits: Any) -> AsyncGenerator[Bridge]:
    log: list[str] = []
    logged = asyncio.Event()

    def note(line: str) -> None:
        log.append(line)
        logged.set()

    bridge = StdioBridge([*SCRIPT, *arguments], shared, limits=StdioLimits(**limits), log=note)
    await bridge.start()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(bridge.socket_path), limit=0)) as http:
            yield Bridge(bridge, http, log, logged)
    finally:
        await bridge.stop()


def exists(pid: int) -> bool:
    """Whether it is there, be it only as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while exists(pid):
            await asyncio.sleep(0.01)


# -- one session
# --------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_call_is_answered_as_json_under_its_own_id() -> None:
    async with running() as bridge:
        client = await bridge.session()
        for request_id in (1, "1", "ä\u2028", -5):
            answer = await client.post(call(request_id, "echo", a=[1, "zwei", None]))
            assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
            assert answer.last["id"] == request_id
            assert json.loads(said(answer.last)) == {"a": [1, "zwei", None]}


@pytest.mark.asyncio
async def test_progress_comes_on_the_calls_own_stream_while_it_runs() -> None:
    async with running() as bridge:
        client = await bridge.session()
        async with client.stream(call("w", "wait", token="tok")) as take:
            progress = await take()
            assert progress["params"] == {"progressToken": "tok", "progress": 0}  # and the call is still running
        answer = await client.post(call(2, "progress", token=7, steps=3))
        assert [m["params"]["progressToken"] for m in answer.messages[:-1]] == [7, 7, 7]
        assert said(answer.last) == "done"


@pytest.mark.asyncio
async def test_each_session_has_a_process_of_its_own_and_delete_ends_it() -> None:
    async with running() as bridge:
        one, two = await bridge.session(), await bridge.session()
        assert said((await one.post(call(1, "pid"))).last) == one.server != two.server
        assert one.headers["Mcp-Session-Id"] != two.headers["Mcp-Session-Id"]
        async with bridge.http.delete(URL, headers=one.headers) as answer:
            assert answer.status == 200
        assert (await one.post(call(1, "pid"))).status == 404
        await until_gone(int(one.server))
        assert said((await two.post(call(1, "pid"))).last) == two.server


@pytest.mark.asyncio
async def test_the_servers_request_reaches_the_client_and_its_answer_the_server() -> None:
    async with running() as bridge:
        client = await bridge.session()
        async with client.stream(call(1, "ask", method="roots/list")) as take:
            asked = await take()
            assert asked["method"] == "roots/list"
            answer = await client.post({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": ["r"]}})
            assert (answer.status, answer.messages) == (202, [])
            assert json.loads(said(await take())) == {"roots": ["r"]}


@pytest.mark.asyncio
async def test_an_answer_to_a_question_that_nobody_asked_stops_here() -> None:
    async with running() as bridge:
        client = await bridge.session()
        answer = await client.post({"jsonrpc": "2.0", "id": "never-asked", "result": {}})
        assert answer.status == 202
        assert json.loads(said((await client.post(call(1, "answers"))).last)) == []


@pytest.mark.asyncio
async def test_a_refused_initialize_leaves_neither_session_nor_process() -> None:
    async with running() as bridge:
        answer = await bridge.client().initialize(capabilities={"refuseMe": {}})
        assert answer.last["error"]["message"] == "refused"
        assert "Mcp-Session-Id" not in answer.headers
        async with asyncio.timeout(10):
            while bridge.bridge.processes:
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_the_servers_own_messages_go_to_the_get_stream_where_one_is_open() -> None:
    async with running() as bridge:
        client = await bridge.session()
        async with client.stream() as take:
            answer = await client.post(call(1, "log"))
            assert [m.get("method") for m in answer.messages] == [None]
            assert (await take())["method"] == "notifications/message"
        await client.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        bridge_session = next(iter(bridge.bridge.pool.sessions.values()))
        async with asyncio.timeout(5):
            while bridge_session.streams:
                await asyncio.sleep(0)
        answer = await client.post(call(2, "log"))
        assert [m.get("method") for m in answer.messages] == ["notifications/message", None]


@pytest.mark.asyncio
async def test_a_message_with_nowhere_to_go_waits_for_the_next_get_stream() -> None:
    async with running() as bridge:
        client = Client(bridge.http)
        await client.initialize()
        client.headers["Accept"] = "application/json"
        answer = await client.post(call(1, "update"))
        assert said(answer.last) == "updated"
        client.headers.pop("Accept")
        async with client.stream() as take:
            assert (await take())["method"] == "notifications/tools/list_changed"


@pytest.mark.asyncio
async def test_cancelling_names_the_request_as_the_process_knows_it_and_ends_its_stream() -> None:
    async with running(bounds=Bounds(cancel_grace=0.01)) as bridge:
        client = await bridge.session()
        async with client.stream(call("w", "wait", token=1)) as take:
            await take()
            cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "w"}}
            assert (await client.post(cancel)).status == 202
            assert await take() is None
        cancelled = json.loads(said((await client.post(call(2, "release"))).last))
        assert len(cancelled) == 1 and isinstance(cancelled[0], int)


@pytest.mark.asyncio
async def test_a_batch_is_taken_only_where_the_revision_has_batches() -> None:
    async with running() as bridge:
        old, new = await bridge.session("2025-03-26"), await bridge.session("2025-06-18")
        batch = [call(1, "echo", a=1), call("two", "echo"), {"jsonrpc": "2.0", "method": "notifications/x"}]
        assert {m["id"] for m in (await old.post(batch)).messages} == {1, "two"}
        assert (await new.post(batch)).status == 400
        array = await old.post(batch, Accept="application/json")
        assert [m["id"] for m in sorted(array.last, key=lambda m: str(m["id"]))] == [1, "two"]  # type: ignore[index]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {"Content_Type": "text/plain"}, 415),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {"Mcp_Session_Id": "unknown"}, 404),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', {}, 400),
        (b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}', {"Mcp_Session_Id": "unknown"}, 400),
    ],
)
async def test_what_cannot_be_served_is_refused(body: bytes, headers: dict[str, str], status: int) -> None:
    async with running() as bridge:
        answer = await bridge.client().post(body, **headers)
        assert answer.status == status
        assert answer.last["error"]["message"]


# -- the life of a process
# ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [("exit", {"status": 3}, "exited with status 3"), ("kill", {}, "was killed by SIGKILL")],
)
async def test_its_death_answers_what_was_in_flight_and_ends_the_session(
    tool: str, arguments: dict[str, Any], words: str
) -> None:
    async with running() as bridge:
        client = await bridge.session()
        async with client.stream() as unsolicited, client.stream(call("w", "wait", token=1)) as waiting:
            await waiting()
            answer = await client.post(call("x", tool, **arguments))
            assert answer.last["id"] == "x" and words in answer.last["error"]["message"]
            lost = await waiting()
            assert lost["id"] == "w" and words in lost["error"]["message"]
            assert await unsolicited() is None
        assert (await client.post(call(2, "echo"))).status == 404
        await bridge.until_logged(words)
        await until_gone(int(client.server))
        again = await bridge.session()
        assert said((await again.post(call(1, "pid"))).last) == again.server


@pytest.mark.asyncio
async def test_what_the_process_started_ends_with_it() -> None:
    async with running() as bridge:
        client = await bridge.session()
        grandchild = int(said((await client.post(call(1, "grandchild"))).last))
        assert exists(grandchild)
        await client.post(call(2, "exit", status=0))
        async with asyncio.timeout(10):
            while (
                Path(f"/proc/{grandchild}/stat").exists() and " Z " not in Path(f"/proc/{grandchild}/stat").read_text()
            ):
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_a_process_that_ignores_everything_is_killed_in_the_end() -> None:
    async with asyncio.timeout(20):
        async with running("stubborn", patience=Patience(after_close=0.1, after_term=0.1)) as bridge:
            client = await bridge.session()
    assert not exists(int(client.server))


@pytest.mark.asyncio
async def test_stderr_is_passed_on_line_by_line_without_control_characters() -> None:
    async with running() as bridge:
        client = await bridge.session()
        await client.post(call(1, "stderr", line="\x1b[31mred\x07 " + "x" * 20_000))
        await bridge.until_logged("red")
        line = next(line for line in bridge.log if "red" in line)
        assert line.startswith(f"[mcp-server {client.server}] \\x1b[31mred\\x07")
        assert len(line) < 9000


@pytest.mark.asyncio
async def test_junk_on_stdout_is_reported_and_does_no_harm() -> None:
    async with running() as bridge:
        client = await bridge.session()
        assert said((await client.post(call(1, "junk"))).last) == "sorry"
        assert any("this is no JSON" in line for line in bridge.log)


@pytest.mark.asyncio
async def test_an_endless_line_ends_the_process_and_not_our_memory() -> None:
    async with running(max_line=10_000) as bridge:
        client = await bridge.session()
        answer = await client.post(call(1, "long-line", bytes=100_000))
        assert "more than 10000 bytes" in answer.last["error"]["message"]
        await until_gone(int(client.server))


@pytest.mark.asyncio
async def test_large_messages_pass_both_ways() -> None:
    async with running() as bridge:
        client = await bridge.session()
        large = "ä" * 1_000_000
        assert json.loads(said((await client.post(call(1, "echo", text=large))).last)) == {"text": large}


@pytest.mark.asyncio
async def test_a_session_without_a_sign_of_life_expires_but_not_one_with_an_open_stream() -> None:
    async with running(idle=0.05) as bridge:
        idle, listening = await bridge.session(), await bridge.session()
        async with listening.stream():
            await until_gone(int(idle.server))
            later = await bridge.session()
            await until_gone(int(later.server))
            assert (await idle.post(call(1, "echo"))).status == 404
            assert (await listening.post(call(1, "echo"))).status == 200


@pytest.mark.asyncio
async def test_the_longest_idle_session_makes_room_and_busy_ones_are_kept() -> None:
    async with running(max_sessions=2) as bridge:
        one, two = await bridge.session(), await bridge.session()
        async with one.stream():
            three = await bridge.session()
            assert (await two.post(call(1, "echo"))).status == 404
            async with three.stream():
                refused = await bridge.client().initialize()
                assert "sessions are in use" in refused.last["error"]["message"]
                assert "Mcp-Session-Id" not in refused.headers


@pytest.mark.asyncio
@pytest.mark.parametrize("command", [[], ["no-such-command-here"], ["/no/such/file"], [str(Path(__file__))]])
async def test_a_command_that_cannot_start_says_so_at_once(command: list[str]) -> None:
    bridge = StdioBridge(command)
    with pytest.raises(StdioError, match=r"command|MCP server"):
        await bridge.start()
    await bridge.stop()


@pytest.mark.asyncio
async def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    async with running() as bridge:
        path = bridge.bridge.socket_path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()
    deep = tmp_path / ("d" * 120)
    deep.mkdir(mode=0o700)
    with pytest.raises(StdioError, match="cannot listen"):
        await StdioBridge(SCRIPT, socket_path=deep / "s").start()
    tmp_path.chmod(0o755)
    with pytest.raises(StdioError, match="chmod 700"):
        await StdioBridge(SCRIPT, socket_path=tmp_path / "s").start()


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_stalls_only_for_a_while() -> None:
    async with running(bounds=Bounds(queued_bytes=10_000, stall_seconds=0.1)) as bridge:
        client = await bridge.session()
        body = json.dumps(call(1, "flood", token=1, count=20_000)).encode()
        async with bridge.http.post(URL, data=body, headers=ACCEPT | client.headers) as stalled:
            assert stalled.status == 200  # and nothing of it is read
            (session,) = bridge.bridge.pool.sessions.values()
            async with asyncio.timeout(10):
                while not session.exchanges[0].outbox.cut:
                    await asyncio.sleep(0.01)
            assert (await client.post(call(2, "echo"))).status == 200
            with pytest.raises(aiohttp.ClientError):
                await stalled.read()


# -- many clients of one process
# ----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_shared_process_keeps_equal_ids_and_tokens_of_its_clients_apart() -> None:
    async with running(shared=True) as bridge:
        clients = [await bridge.session() for _ in range(4)]
        assert len({client.server for client in clients}) == 1
        assert len({client.headers["Mcp-Session-Id"] for client in clients}) == 4
        answers = await asyncio.gather(
            *(client.post(call(1, "progress", token=1, steps=n + 1)) for n, client in enumerate(clients))
        )
        for n, answer in enumerate(answers):
            assert [m["params"] for m in answer.messages[:-1]] == [
                {"progressToken": 1, "progress": step} for step in range(n + 1)
            ]
            assert answer.last["id"] == 1


@pytest.mark.asyncio
async def test_a_shared_process_cannot_ask_a_client_and_sees_none_of_its_capabilities() -> None:
    async with running(shared=True) as bridge:
        client = bridge.client()
        answer = await client.initialize(capabilities={"roots": {}})
        assert answer.last["result"]["_meta"] == {"sawCapabilities": {}}
        asked = json.loads(said((await client.post(call(1, "ask", method="roots/list"))).last))
        assert asked["code"] == -32601


@pytest.mark.asyncio
async def test_messages_of_a_shared_process_reach_whom_they_concern() -> None:
    async with running(shared=True) as bridge:
        one, two = await bridge.session(), await bridge.session()
        async with one.stream() as first, two.stream() as second:
            await one.post(call(1, "log"))  # could be anyone's: told to nobody
            await one.post(call(2, "update"))
            assert (await first())["method"] == (await second())["method"] == "notifications/tools/list_changed"


@pytest.mark.asyncio
async def test_a_session_cannot_cancel_the_call_of_another() -> None:
    async with running(shared=True) as bridge:
        one, two = await bridge.session(), await bridge.session()
        async with one.stream(call(5, "wait", token=1)) as take:
            await take()
            await two.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}})
            assert json.loads(said((await two.post(call(6, "release"))).last)) == []


@pytest.mark.asyncio
async def test_a_shared_process_that_died_is_started_for_the_next_client() -> None:
    async with running(shared=True, backoff=0.01) as bridge:
        one, two = await bridge.session(), await bridge.session()
        await one.post(call(1, "exit", status=9))
        assert [(await client.post(call(2, "echo"))).status for client in (one, two)] == [404, 404]
        again = await bridge.session()
        assert again.server != one.server


@pytest.mark.asyncio
async def test_a_process_that_keeps_dying_is_left_alone_for_a_while() -> None:
    async with running(backoff=10) as bridge:
        assert "status 4" in (await bridge.modern().post(call(1, "exit", status=4))).last["error"]["message"]
        refused = await bridge.modern().post(call(2, "echo"))
        assert "exited with status 4; it is started again in" in refused.last["error"]["message"]


# -- 2026-07-28: no sessions
# --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_clients_without_sessions_share_a_process_and_keep_their_ids() -> None:
    async with running() as bridge:
        answers = await asyncio.gather(*(bridge.modern().post(call(1, "echo", n=n)) for n in range(5)))
        assert [json.loads(said(answer.last)) for answer in answers] == [{"n": n} for n in range(5)]
        assert all("Mcp-Session-Id" not in answer.headers for answer in answers)
        assert bridge.bridge.processes == 1


@pytest.mark.asyncio
async def test_closing_the_post_cancels_the_call() -> None:
    async with running() as bridge:
        client = bridge.modern()
        async with client.stream(call("w", "wait", token="t")) as take:
            assert (await take())["params"]["progressToken"] == "t"
        async with asyncio.timeout(10):
            while not json.loads(said((await client.post(call(2, "release"))).last)):
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_a_client_with_a_session_that_goes_away_cancels_nothing() -> None:
    async with running() as bridge:
        client = await bridge.session()
        async with client.stream(call("w", "wait", token="t")) as take:
            await take()
        session = next(iter(bridge.bridge.pool.sessions.values()))
        async with asyncio.timeout(5):
            while session.exchanges:
                await asyncio.sleep(0)
        assert json.loads(said((await client.post(call(2, "release"))).last)) == []


@pytest.mark.asyncio
async def test_a_subscription_carries_the_id_of_its_own_client() -> None:
    async with running() as bridge:
        client = bridge.modern()
        async with client.stream(request("sub", "subscriptions/listen")) as take:
            acknowledged = await take()
            assert acknowledged["params"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": "sub"}


@pytest.mark.asyncio
async def test_errors_have_the_status_of_the_revision_and_get_and_delete_do_not_exist() -> None:
    async with running() as bridge:
        assert (await bridge.modern().post(request(1, "no/such"))).status == 404
        assert (await bridge.modern().post(call(1, "no-such-tool"))).status == 400
        for method in ("GET", "DELETE"):
            async with bridge.http.request(method, URL, headers=ACCEPT | MODERN) as answer:
                assert (answer.status, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.asyncio
async def test_a_process_that_only_refused_the_probe_serves_the_session_that_follows() -> None:
    async with running("legacy") as bridge:
        assert (await bridge.modern().post(request(1, "server/discover"))).last["error"]["code"] == -32601
        client = await bridge.session()
        assert said((await client.post(call(1, "pid"))).last) == client.server
        assert bridge.bridge.processes == 1


@pytest.mark.asyncio
async def test_the_process_of_nobody_expires() -> None:
    async with running(stateless_idle=0.05) as bridge:
        pid = int(said((await bridge.modern().post(call(1, "pid"))).last))
        await until_gone(pid)
        assert int(said((await bridge.modern().post(call(1, "pid"))).last)) != pid


@pytest.mark.asyncio
async def test_a_silent_call_opens_its_stream_before_anyone_takes_it_for_dead() -> None:
    async with running(commit_after=0.01, keep_alive=0.01) as bridge:
        client = await bridge.session()
        body = json.dumps(call(1, "ask", method="x")).encode()  # its question is taken by the GET stream
        async with client.stream(), bridge.http.post(URL, data=body, headers=ACCEPT | client.headers) as answer:
            assert answer.content_type == "text/event-stream"
            assert (await answer.content.readline()).startswith(b":")
