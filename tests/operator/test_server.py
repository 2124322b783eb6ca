"""The operator's listeners: whatever comes in, the answer is a review or a status that says what to do."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from toolpolicy_operator import listener as listener_module
from toolpolicy_operator import server as server_module
from toolpolicy_operator.pki import new_authority, new_leaf
from toolpolicy_operator.server import Addresses, Readiness, Review, ReviewHandler, Served, Server, judged
from toolpolicy_operator.tls import ReloadingContext

LOCAL = Addresses("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")


def review(uid: str = "u1") -> Review:
    request = {"uid": uid, "operation": "CREATE", "namespace": "n", "name": "p", "object": {"kind": "Pod"}}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def allow(asked: Review) -> Review:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": asked["request"]["uid"], "allowed": True},
    }


class Running:
    def __init__(self, server: Server, client: aiohttp.ClientSession, tls: ReloadingContext, context: ssl.SSLContext):
        self.server, self.client, self.tls, self.context = server, client, tls, context

    def url(self, listener: str, path: str) -> str:
        scheme = "http" if listener == "admin" else "https"
        return f"{scheme}://127.0.0.1:{self.server.ports[listener]}{path}"

    async def post(self, body: Any, path: str = "/mutate/pods", **more: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = self.url("webhooks", path)
        async with self.client.post(url, data=data, ssl=self.context, **more) as answer:
            assert answer.content_type == "application/json"
            return answer.status, await answer.json()


def _ready() -> tuple[bool, dict[str, Any]]:
    return True, {}


def _metrics(accept: str) -> tuple[bytes, str]:
    return b"m 1\n", "text/plain"


def _unseen(path: str, outcome: str, seconds: float) -> None:
    pass


@asynccontextmanager
async def running(
    handler: ReviewHandler = allow,
    *,
    readiness: Readiness = _ready,
    control: Iterable[web.AbstractRouteDef] = (),
    observe: Callable[[str, str, float], None] = _unseen,
) -> AsyncGenerator[Running]:
    now = datetime.now(UTC)
    authority = new_authority(now, timedelta(days=1))
    tls = ReloadingContext()
    tls.use(new_leaf(authority, ["127.0.0.1"], now, timedelta(hours=1)))
    server = Server(Served({"/mutate/pods": handler}, readiness, _metrics, control, observe), tls)
    await server.start(LOCAL)
    context = ssl.create_default_context(cadata=authority.certificate)
    async with aiohttp.ClientSession() as client:
        try:
            yield Running(server, client, tls, context)
        finally:
            await server.close()


@pytest.mark.asyncio
async def test_a_review_is_answered_by_its_handler_with_or_without_waiting() -> None:
    async def slowly(asked: Review) -> Review:
        await asyncio.sleep(0)
        return allow(asked)

    for handler in (allow, slowly):
        async with running(handler) as lab:
            status, answer = await lab.post(review("abc"))
        assert (status, answer["response"]) == (200, {"uid": "abc", "allowed": True})


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"null", "expected an AdmissionReview"),
        (b"[]", "expected an AdmissionReview"),
        ({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1"}, "expected an AdmissionReview of"),
        ({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}, "has no request"),
        ({**review(), "request": {"operation": "CREATE"}}, "no uid"),
        ({**review(), "request": {"uid": "u", "operation": "CREATE", "object": []}}, "object is not an object"),
    ],
)
async def test_a_body_that_is_no_review_is_a_status_that_says_so(body: Any, says: str) -> None:
    async with running() as lab:
        status, answer = await lab.post(body)
    assert (status, answer["kind"], answer["reason"]) == (400, "Status", "BadRequest")
    assert says in answer["message"]


@pytest.mark.asyncio
async def test_what_is_too_long_without_a_length_or_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}"

    async with running() as lab:
        url = lab.url("webhooks", "/mutate/pods")
        async with lab.client.post(url, data=pieces(), ssl=lab.context) as answer:
            assert (answer.status, (await answer.json())["reason"]) == (411, "LengthRequired")
        monkeypatch.setattr(server_module, "MAX_REVIEW", 10)
        assert (await lab.post(review()))[0] == 413
        status, answer = await lab.post(review(), "/mutate/other")
        assert (status, answer["kind"]) == (404, "Status")
        async with lab.client.get(url, ssl=lab.context) as got:
            assert (got.status, (await got.json())["kind"]) == (405, "Status")


@pytest.mark.asyncio
async def test_bodies_together_are_bounded_and_the_room_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait(asked: Review) -> Review:
        entered.set()
        await release.wait()
        return allow(asked)

    async with running(wait) as lab:
        body = json.dumps(review()).encode()
        lab.server._budget.most = len(body) + 10  # pyright: ignore[reportPrivateUsage]
        first = asyncio.create_task(lab.post(body))
        await asyncio.wait_for(entered.wait(), 10)
        status, answer = await lab.post(body)
        assert (status, answer["reason"]) == (503, "ServiceUnavailable")
        release.set()
        assert (await first)[0] == 200
        assert (await lab.post(body))[0] == 200


def _raise(asked: Review) -> Review:
    raise KeyError("secret detail")


async def _never(asked: Review) -> Review:
    await asyncio.Event().wait()
    return {}


def _says(answer: Any) -> ReviewHandler:
    return lambda asked: answer


FAILING: list[tuple[ReviewHandler, str, int]] = [
    (_raise, "error", 500),
    (_says({}), "error", 500),
    (_says(None), "error", 500),
    (_says({"response": {"uid": "another", "allowed": True}}), "error", 500),
    (_says({"response": {"uid": "u1", "allowed": "yes"}}), "error", 500),
    (_never, "timeout", 504),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("handler", "outcome", "code"), FAILING)
async def test_a_handler_that_fails_denies_and_keeps_its_details(
    handler: ReviewHandler, outcome: str, code: int
) -> None:
    answer, seen = await judged(handler, review(), 0.05)
    response = answer["response"]
    assert (seen, response["allowed"], response["uid"], response["status"]["code"]) == (outcome, False, "u1", code)
    assert "secret detail" not in json.dumps(answer)
    assert "operator's log" in response["status"]["message"]


@pytest.mark.asyncio
async def test_the_deadline_is_what_the_api_server_says_less_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = server_module._deadline  # pyright: ignore[reportPrivateUsage]
    assert [deadline(text) for text in ("5s", "2s", "30s", "", "x", "-1s", "0s", "²s")] == [
        4.5, 1.5, 4.5, 4.5, 4.5, 4.5, 0.5, 4.5,
    ]  # fmt: skip


@pytest.mark.asyncio
async def test_outcomes_are_observed() -> None:
    seen: list[tuple[str, str]] = []

    def observe(path: str, outcome: str, seconds: float) -> None:
        seen.append((path, outcome))

    async with running(observe=observe) as lab:
        await lab.post(review())
    async with running(_raise, observe=observe) as lab:
        await lab.post(review())
    assert seen == [("/mutate/pods", "allowed"), ("/mutate/pods", "error")]


@pytest.mark.asyncio
async def test_health_says_ready_only_while_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"ready": False}
    async with running(readiness=lambda: (state["ready"], {"reasons": ["not synced"]})) as lab:

        async def get(path: str) -> tuple[int, str]:
            async with lab.client.get(lab.url("admin", path)) as answer:
                return answer.status, await answer.text()

        assert (await get("/healthz"))[0] == 200
        status, text = await get("/readyz")
        assert status == 503
        assert "not synced" in text
        state["ready"] = True
        assert (await get("/readyz"))[0] == 200
        lab.server.draining = True
        assert (await get("/readyz"))[0] == 503
        assert await get("/metrics") == (200, "m 1\n")
        assert (await get("/mutate/pods"))[0] == 404


@pytest.mark.asyncio
async def test_control_routes_are_on_their_own_port_and_never_answer_with_a_traceback() -> None:
    async def report(request: web.Request) -> web.Response:
        if request.query.get("fail"):
            raise RuntimeError("secret detail")
        return web.json_response({"next": 60, "size": len(await request.read())})

    async with running(control=[web.post("/v1/report", report)]) as lab:

        async def post(path: str, body: bytes, listener: str = "control") -> tuple[int, str]:
            async with lab.client.post(lab.url(listener, path), data=body, ssl=lab.context) as answer:
                return answer.status, await answer.text()

        assert (await post("/v1/report", b"{}"))[0] == 200
        assert (await post("/v1/report", b"x" * (server_module.MAX_CONTROL + 1)))[0] == 413
        status, text = await post("/v1/report?fail=1", b"{}")
        assert (status, json.loads(text)["reason"]) == (500, "InternalError")
        assert "secret detail" not in text
        assert (await post("/mutate/pods", b"{}"))[0] == 404
        assert (await post("/v1/report", b"{}", "webhooks"))[0] == 404


@pytest.mark.asyncio
async def test_a_silent_connection_is_closed_and_one_that_no_other_can_make_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener_module, "SILENT_SECONDS", 0.05)
    async with running() as lab:
        port = lab.server.ports["admin"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


class Kept:
    """A plain connection to the admin port, kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, lab: Running, source: str = "127.0.0.1") -> Kept:
        port = lab.server.ports["admin"]
        return cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)))

    async def ask(self, path: str = "/healthz") -> tuple[int, bool]:
        """The status, and whether the connection was said to be closed."""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()
        size = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("Content-Length:"))
        await self.reader.readexactly(size)
        return int(head.split()[1]), "Connection: close" in head

    async def ended(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(), 10) == b""
        except ConnectionResetError:
            return True


@pytest.mark.asyncio
async def test_the_connection_idle_longest_makes_room_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 3)
    async with running() as lab:
        first, second, third = [await Kept.to(lab) for _ in range(3)]
        for kept in (first, second, third, first):
            assert await kept.ask() == (200, False)
        new = await Kept.to(lab)
        assert await new.ask() == (200, False)
        assert await second.ended()
        for kept in (first, third, new):
            assert await kept.ask() == (200, False)
            kept.writer.close()
        second.writer.close()


@pytest.mark.asyncio
async def test_an_address_with_many_connections_takes_no_other_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "MAX_OF_ADDRESS", 2)
    async with running() as lab:
        api_server = await Kept.to(lab, "127.0.0.2")
        assert await api_server.ask() == (200, False)
        flood = [await Kept.to(lab) for _ in range(2)]
        for kept in flood:
            assert await kept.ask() == (200, False)
        flood.append(await Kept.to(lab))
        assert await flood[2].ask() == (200, False)
        assert await flood[0].ended()
        assert await api_server.ask() == (200, False)
        for kept in (api_server, *flood):
            kept.writer.close()


@pytest.mark.asyncio
async def test_a_place_is_free_again_when_its_connection_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 2)
    async with running() as lab:
        stays = await Kept.to(lab)
        assert await stays.ask() == (200, False)
        for _ in range(5):
            # An error ends its connection: nobody holds a place by asking for nothing.
            passing = await Kept.to(lab)
            assert await passing.ask("/elsewhere") == (404, True)
            assert await passing.ended()
            passing.writer.close()
        assert await stays.ask() == (200, False)
        stays.writer.close()


@pytest.mark.asyncio
async def test_a_full_port_takes_reviews_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 1)
    async with running() as lab:
        _, idle = await asyncio.open_connection("127.0.0.1", lab.server.ports["webhooks"], ssl=lab.context)
        assert (await lab.post(review()))[0] == 200
        idle.transport.abort()


@pytest.mark.asyncio
async def test_reviews_under_way_are_answered_when_the_server_closes() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait(asked: Review) -> Review:
        entered.set()
        await release.wait()
        return allow(asked)

    async with running(wait) as lab:
        under_way: Awaitable[tuple[int, Any]] = asyncio.create_task(lab.post(review()))
        await asyncio.wait_for(entered.wait(), 10)
        closing = asyncio.create_task(lab.server.close())
        await asyncio.sleep(0)
        release.set()
        assert (await under_way)[0] == 200
        await closing


@pytest.mark.asyncio
async def test_an_address_that_is_none_or_taken_is_an_error_and_leaves_nothing_open() -> None:
    async with running() as lab:
        taken = f"127.0.0.1:{lab.server.ports['admin']}"
        second = Server(Served({}, _ready, _metrics), lab.tls)
        with pytest.raises(OSError, match="in use"):
            await second.start(Addresses("127.0.0.1:0", "", taken))
        with pytest.raises(ValueError, match="expected HOST:PORT"):
            await second.start(Addresses("9443", "", ""))
