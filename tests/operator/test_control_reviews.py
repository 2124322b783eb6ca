"""TokenReviews: who is believed, for how long, and how few the API server is asked for. The clock is the test's."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from toolpolicy_operator.control import reviews
from toolpolicy_operator.control.reviews import CONCURRENCY, PATIENCE, REFUSED, REMEMBERED, STRIKES, TokenReviews
from toolpolicy_operator.control.tokens import Caller, Refused, bearer, peek, read_review
from toolpolicy_operator.kube import ApiError

AUDIENCE = "toolpolicy.dev"
START = 1_000_000.0


def token(name: str = "a", audience: Any = AUDIENCE, expires: Any = START + 3600) -> str:
    claims: dict[str, Any] = {
        "aud": audience if isinstance(audience, list) else [audience],
        "exp": expires,
        "sub": name,
    }
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJSUzI1NiJ9.{payload}.sig"


def accepted(pod: str = "mcp-0", uid: str = "uid-0", audiences: Any = (AUDIENCE,), **user: Any) -> dict[str, Any]:
    extra = {"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid]}
    about = {"username": "system:serviceaccount:agents:mcp", "extra": extra, **user}
    return {"status": {"authenticated": True, "audiences": list(audiences), "user": about}}


@dataclass
class Cluster:
    """An API server that answers as it is told; time passes only when a test says so."""

    answer: Callable[[str], dict[str, Any]] = lambda token: accepted()
    exists: set[str] = field(default_factory=lambda: {"uid-0"})
    now: float = START
    asked: list[str] = field(default_factory=list[str])
    running: int = 0
    most: int = 0
    gate: asyncio.Event | None = None

    async def create(self, path: str, obj: dict[str, Any]) -> dict[str, Any]:
        assert path == "/apis/authentication.k8s.io/v1/tokenreviews"
        assert obj["spec"]["audiences"] == [AUDIENCE]
        self.asked.append(obj["spec"]["token"])
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
            return self.answer(obj["spec"]["token"])
        finally:
            self.running -= 1

    def reviews(self, rate: float = 1000.0) -> TokenReviews:
        def clock() -> float:
            return self.now

        return TokenReviews(self, AUDIENCE, self.exists.__contains__, rate=rate, clock=clock, wall=clock)


@pytest.mark.asyncio
async def test_an_accepted_token_is_asked_for_once_in_five_minutes() -> None:
    cluster = Cluster()
    found = cluster.reviews()
    for _ in range(3):
        assert await found.caller(token(), "10.0.0.1") == Caller("agents", "mcp", "mcp-0", "uid-0")
        cluster.now += REMEMBERED / 3
    assert len(cluster.asked) == 1
    await found.caller(token(), "10.0.0.1")
    assert len(cluster.asked) == 2
    assert REMEMBERED <= 300


@pytest.mark.asyncio
async def test_a_deleted_pods_token_is_not_believed_from_memory() -> None:
    cluster = Cluster()
    found = cluster.reviews()
    await found.caller(token(), "10.0.0.1")
    cluster.exists.clear()
    cluster.answer = lambda _: {"status": {"error": "pod has been deleted"}}
    with pytest.raises(Refused) as refused:
        await found.caller(token(), "10.0.0.1")
    assert refused.value.status == 401
    assert "pod has been deleted" in refused.value.message


@pytest.mark.asyncio
async def test_a_token_is_not_believed_from_memory_past_its_own_end() -> None:
    cluster = Cluster()
    found, ends = cluster.reviews(), token(expires=START + 20)
    await found.caller(ends, "10.0.0.1")
    cluster.now += 21
    cluster.answer = lambda _: {"status": {"authenticated": False, "error": "token has expired"}}
    with pytest.raises(Refused, match="token has expired"):
        await found.caller(ends, "10.0.0.1")


@pytest.mark.asyncio
async def test_a_refusal_is_remembered_shortly() -> None:
    cluster = Cluster(answer=lambda _: {"status": {"authenticated": False}})
    found = cluster.reviews()
    for _ in range(3):
        with pytest.raises(Refused, match="does not accept"):
            await found.caller(token(), "10.0.0.1")
    assert len(cluster.asked) == 1
    cluster.now += REFUSED + 1
    cluster.answer = lambda _: accepted()
    await found.caller(token(), "10.0.0.1")


@pytest.mark.asyncio
async def test_one_token_is_reviewed_once_at_a_time_and_a_client_that_leaves_does_not_end_it() -> None:
    cluster = Cluster(gate=asyncio.Event())
    found = cluster.reviews()
    waiting = [asyncio.create_task(found.caller(token(), "10.0.0.1")) for _ in range(10)]
    async with asyncio.timeout(10):
        while not cluster.asked:
            await asyncio.sleep(0)
    waiting[0].cancel()
    assert cluster.gate is not None
    cluster.gate.set()
    assert {c.pod_name for c in await asyncio.gather(*waiting[1:])} == {"mcp-0"}
    assert len(cluster.asked) == 1


@pytest.mark.asyncio
async def test_an_api_server_that_fails_is_said_to_and_not_remembered(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster()

    def fail(_: str) -> dict[str, Any]:
        raise ApiError(429, "TooManyRequests", "slow down", 7.0)

    cluster.answer = fail
    found = cluster.reviews()
    with pytest.raises(Refused) as refused:
        await found.caller(token(), "10.0.0.1")
    assert (refused.value.status, refused.value.retry_after) == (503, 7.0)
    with pytest.raises(Refused):
        await found.caller(token("b"), "10.0.0.2")
    assert [r.message.count("slow down") for r in caplog.records] == [1]
    cluster.answer = lambda _: accepted()
    await found.caller(token(), "10.0.0.1")


@pytest.mark.asyncio
async def test_an_api_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews, "ANSWERED", 0.01)
    cluster = Cluster(gate=asyncio.Event())
    with pytest.raises(Refused) as refused:
        await cluster.reviews().caller(token(), "10.0.0.1")
    assert refused.value.status == 503


@pytest.mark.asyncio
async def test_what_can_not_be_valid_costs_the_api_server_nothing() -> None:
    cluster = Cluster()
    found = cluster.reviews()
    for wrong in ("x", "a.b.c", "..", "a.!!.c", token(audience="https://kubernetes.default.svc"), token(audience=5)):
        with pytest.raises(Refused) as refused:
            await found.caller(wrong, "10.0.0.1")
        assert refused.value.status == 401
    assert cluster.asked == []


@pytest.mark.asyncio
async def test_an_address_with_many_refusals_gets_no_more_reviews_for_a_while() -> None:
    cluster = Cluster(answer=lambda t: accepted() if t == token("good") else {"status": {}})
    found = cluster.reviews()
    await found.caller(token("good"), "10.0.0.9")
    for n in range(STRIKES):
        with pytest.raises(Refused, match="does not accept"):
            await found.caller(token(f"forged-{n}"), "10.0.0.9")
    with pytest.raises(Refused) as refused:
        await found.caller(token("one more"), "10.0.0.9")
    assert refused.value.status == 429
    assert refused.value.retry_after
    asked = len(cluster.asked)
    assert asked == STRIKES + 1
    # Who is known already is not punished for a neighbour, and another address not at all.
    await found.caller(token("good"), "10.0.0.9")
    with pytest.raises(Refused, match="does not accept"):
        await found.caller(token("from elsewhere"), "10.0.0.8")
    cluster.now += 61
    with pytest.raises(Refused, match="does not accept"):
        await found.caller(token("one more"), "10.0.0.9")


@pytest.mark.asyncio
async def test_a_thousand_sidecars_at_once_are_spread_out_and_all_get_in() -> None:
    """Clients as they are told to be: who is sent away comes back when its Retry-After says. Time is simulated."""
    cluster, rate = Cluster(), 50.0
    found = cluster.reviews(rate)
    per_second: dict[int, int] = {}
    due = [(START, f"{n}") for n in range(1000)]
    taken_at: list[float] = []
    book = found._pace.book  # pyright: ignore[reportPrivateUsage]
    while due:
        due.sort()
        at, name = due.pop(0)
        cluster.now = max(cluster.now, at)
        try:
            wait = book()
        except Refused as refused:
            assert refused.status == 429
            assert refused.retry_after is not None
            due.append((cluster.now + refused.retry_after, name))
            continue
        assert wait <= PATIENCE
        slot = cluster.now + wait
        per_second[int(slot)] = per_second.get(int(slot), 0) + 1
        taken_at.append(slot)
    assert max(per_second.values()) <= rate + 1
    assert max(taken_at) - START < 1000 / rate + 5
    assert found.sent_away < 2000


@pytest.mark.asyncio
async def test_few_reviews_run_at_a_time() -> None:
    cluster = Cluster(gate=asyncio.Event(), answer=lambda _: accepted())
    found = cluster.reviews(rate=1e9)
    waiting = [asyncio.create_task(found.caller(token(f"{n}"), f"10.0.{n}.1")) for n in range(100)]
    async with asyncio.timeout(10):
        while cluster.running < CONCURRENCY:
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
    assert cluster.gate is not None
    cluster.gate.set()
    await asyncio.gather(*waiting)
    assert (cluster.most, len(cluster.asked)) == (CONCURRENCY, 100)


@pytest.mark.asyncio
async def test_reviews_under_way_end_with_the_server() -> None:
    cluster = Cluster(gate=asyncio.Event())
    found = cluster.reviews()
    waiting = asyncio.create_task(found.caller(token(), "10.0.0.1"))
    async with asyncio.timeout(10):
        while not cluster.asked:
            await asyncio.sleep(0)
        await found.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({}, "does not accept"),
        ({"authenticated": "true"}, "does not accept"),
        ({"authenticated": False, "error": "x" * 5000}, "does not accept"),
        (accepted(audiences=[])["status"], "not for the audience"),
        (accepted(audiences=["other"])["status"], "not for the audience"),
        ({"authenticated": True, "user": accepted()["status"]["user"]}, "not for the audience"),
        (accepted(username="alice")["status"], "no ServiceAccount"),
        (accepted(username="system:serviceaccount:agents")["status"], "no ServiceAccount"),
        (accepted(username="system:serviceaccount::")["status"], "no ServiceAccount"),
        (accepted(username=7)["status"], "no ServiceAccount"),
    ],
)
def test_a_review_that_proves_nothing(status: dict[str, Any], says: str) -> None:
    outcome = read_review({"status": status}, AUDIENCE)
    assert isinstance(outcome, str)
    assert says in outcome
    assert len(outcome) < 500


@pytest.mark.parametrize("extra", [None, {}, {"authentication.kubernetes.io/pod-name": ["a"]}, {"x": 5}])
def test_a_token_that_is_bound_to_no_pod_names_none(extra: Any) -> None:
    assert read_review(accepted(extra=extra), AUDIENCE) == Caller("agents", "mcp", "", "")


@pytest.mark.parametrize(
    "header", [None, "", "Basic abc", "Bearer", "Bearer  ", "Bearer a b", "Bearer " + "x" * 9000, "Bearer ü"]
)
def test_a_header_that_carries_no_token(header: str | None) -> None:
    with pytest.raises(Refused) as refused:
        bearer(header)
    assert refused.value.status == 401


@pytest.mark.parametrize("expires", [None, "soon", True, -1, 1e300, [1]])
def test_an_end_that_is_none_is_unknown(expires: Any) -> None:
    assert peek(token(expires=expires)).expires in (None, 1.0)
