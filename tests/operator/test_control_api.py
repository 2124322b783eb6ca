"""The control API over HTTP and, between replicas, TLS: who may report what, and where a report ends up."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from cluster import pki
from toolpolicy_operator.control import app, relay
from toolpolicy_operator.control.app import PER_POD, ControlApi
from toolpolicy_operator.control.metrics import ControlMetrics
from toolpolicy_operator.control.relay import Relay
from toolpolicy_operator.control.report import MAX_BYTES, Report, ReportFault, parse_report
from toolpolicy_operator.control.reports import Reports
from toolpolicy_operator.control.reviews import TokenReviews

SERVER_NAME = "toolpolicy-operator.toolpolicy-system.svc"
POD = {"namespace": "agents", "name": "mcp-0", "uid": "uid-0"}
REPORT: dict[str, Any] = {"pod": POD, "version": "0.1.0", "revision": "1-7", "epoch": 1}
DEADLINE = 15.0


def token(account: str, pod: str = "", audience: str = "toolpolicy.dev") -> str:
    claims = {"aud": [audience], "account": account, "pod": pod}
    return "h." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".s"


SIDECAR = token("agents:mcp", "mcp-0")
OPERATOR = token("toolpolicy-system:toolpolicy-operator", audience="toolpolicy.dev/operator")


class Cluster:
    """Accepts every token as what it says."""

    async def create(self, path: str, obj: dict[str, Any]) -> dict[str, Any]:
        claims = json.loads(base64.urlsafe_b64decode(obj["spec"]["token"].split(".")[1] + "=="))
        extra = {
            f"authentication.kubernetes.io/pod-{key}": [value]
            for key, value in (("name", claims["pod"]), ("uid", claims["pod"].replace("mcp", "uid")))
            if value
        }
        user = {"username": f"system:serviceaccount:{claims['account']}", "extra": extra}
        return {"status": {"authenticated": True, "audiences": claims["aud"], "user": user}}


@dataclass
class Election:
    leading: bool = True
    address: str = ""


@dataclass
class Replica:
    """One of the operator, with its control API at ``url``."""

    election: Election = field(default_factory=Election)
    reports: Reports = field(default_factory=Reports)
    token: str = OPERATOR
    ca: str = ""
    url: str = ""
    api: ControlApi = field(init=False)

    def __post_init__(self) -> None:
        cluster = Cluster()
        self.api = ControlApi(
            sidecars=TokenReviews(cluster, "toolpolicy.dev", lambda uid: True, rate=1e6),
            operators=TokenReviews(cluster, "toolpolicy.dev/operator", lambda uid: True, rate=1e6),
            operator="toolpolicy-system/toolpolicy-operator",
            reports=self.reports,
            leadership=self.election,
            relay=Relay(self.election, lambda: self.token, lambda: self.ca, SERVER_NAME),
        )

    @asynccontextmanager
    async def serve(self, context: ssl.SSLContext | None = None) -> AsyncGenerator[Replica]:
        application = web.Application(client_max_size=MAX_BYTES)
        application.router.add_routes(self.api.routes())
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await self.api.close()
            await runner.cleanup()

    async def post(
        self, body: Any = REPORT, bearer: str = SIDECAR, path: str = "/v1/report", ca: str = ""
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        context = ssl.create_default_context(cadata=ca) if ca else True
        timeout = aiohttp.ClientTimeout(total=DEADLINE)
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.post(
                self.url + path, data=raw, headers=headers, ssl=context, server_hostname=SERVER_NAME if ca else None
            ) as answer,
        ):
            return answer.status, await answer.json(), dict(answer.headers)


@pytest.mark.asyncio
async def test_a_report_of_the_tokens_own_pod_is_taken_and_the_answer_says_when_to_come_back() -> None:
    async with Replica().serve() as replica:
        status, answer, _ = await replica.post()
        received = replica.reports.get("uid-0")
    assert (status, answer) == (200, {"next": 60.0})
    assert received is not None
    assert received.report.revision == "1-7"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "lie", [{"name": "mcp-1"}, {"uid": "uid-1"}, {"namespace": "other"}, {"name": "mcp-1", "uid": "uid-1"}]
)
async def test_a_sidecar_that_reports_for_another_pod_is_refused_with_the_reason(lie: dict[str, str]) -> None:
    async with Replica().serve() as replica:
        status, answer, _ = await replica.post({**REPORT, "pod": {**POD, **lie}})
        assert status == 403
        assert "own pod only" in answer["message"]
        assert len(replica.reports) == 0


@pytest.mark.asyncio
async def test_a_token_of_no_pod_may_not_report() -> None:
    async with Replica().serve() as replica:
        status, answer, _ = await replica.post(bearer=token("agents:mcp"))
    assert status == 403
    assert "bound to no pod" in answer["message"]


@pytest.mark.asyncio
@pytest.mark.parametrize("bearer", ["", "x", token("agents:mcp", "mcp-0", "https://kubernetes.default.svc"), OPERATOR])
async def test_who_does_not_prove_who_they_are_is_asked_to(bearer: str) -> None:
    async with Replica().serve() as replica:
        status, _, headers = await replica.post(bearer=bearer)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")


BAD_BODIES: list[tuple[Any, str]] = [
    (b"", "the body"),
    (b"\xff\xfe", "the body"),
    (b"[" * 100_000, "the body"),
    ([], "the body"),
    ({}, "pod: Field required"),
    ({**REPORT, "pod": "mcp-0"}, "pod: "),
    ({**REPORT, "pod": {**POD, "name": "../etc"}}, "pod.name: "),
    ({**REPORT, "pod": {**POD, "uid": ""}}, "pod.uid: "),
    ({**REPORT, "epoch": "1"}, "epoch: "),
    ({**REPORT, "epoch": -1}, "epoch: "),
    ({**REPORT, "epoch": 2**63}, "epoch: "),
    ({**REPORT, "epoch": 1.5}, "epoch: "),
    ({**REPORT, "policies": [{"kind": "Pod", "name": "x"}]}, "policies.0.kind: "),
    ({**REPORT, "policies": [{"kind": "ToolPolicy", "name": "x"}] * 1001}, "policies: "),
    ({**REPORT, "problems": ["x" * 2001]}, "problems.0: "),
    ({**REPORT, "tools": [{"name": "", "category": "Read", "risk": "Low"}]}, "tools.0.name: "),
    ({**REPORT, "listeners": [{"address": "0.0.0.0", "port": 65536}]}, "listeners.0.port: "),
    ({**REPORT, "listeners": [{"address": "0.0.0.0", "port": True}]}, "listeners.0.port: "),
    ({**REPORT, "version": "\ud800"}, "the body"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("body", "says"), BAD_BODIES, ids=[f"{n}" for n in range(len(BAD_BODIES))])
async def test_a_body_that_is_no_report_is_refused_and_told_where(body: Any, says: str) -> None:
    async with Replica().serve() as replica:
        status, answer, _ = await replica.post(body)
        assert (status, len(replica.reports)) == (400, 0)
        assert says in answer["message"]
        assert answer["message"].isprintable()
        assert len(answer["message"]) < 3000


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*REPORT, *POD, "x"]), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()), st.sampled_from([*Report.model_fields]))
def test_whatever_is_sent_is_a_report_or_a_fault_that_fits_on_a_line(body: bytes, name: str) -> None:
    inside = b'{"pod": %b, "version": "1", "%b": %b}' % (json.dumps(POD).encode(), name.encode(), body)
    for sent in (body, inside):
        try:
            report = parse_report(sent)
        except ReportFault as fault:
            assert str(fault).isprintable()
            assert len(str(fault)) < 3000
        else:
            assert hash(report.tools) == hash(report.tools)


@pytest.mark.asyncio
async def test_fields_of_a_newer_sidecar_are_passed_over() -> None:
    async with Replica().serve() as replica:
        newer = {**REPORT, "sealing": {"a": 1}, "policies": [{"kind": "ToolPolicy", "name": "x", "since": 5}]}
        assert (await replica.post(newer))[0] == 200


@pytest.mark.asyncio
async def test_a_body_without_end_is_not_read() -> None:
    async with Replica().serve() as replica:
        status, _, _ = await replica.post({**REPORT, "x": "y" * MAX_BYTES})
        assert status == 413

        async def pieces() -> AsyncGenerator[bytes]:
            yield b"{"

        async with (
            aiohttp.ClientSession() as client,
            client.post(
                replica.url + "/v1/report", data=pieces(), headers={"Authorization": f"Bearer {SIDECAR}"}
            ) as answer,
        ):
            assert answer.status == 411


@pytest.mark.asyncio
async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "READ_SECONDS", 0.01)
    async with Replica().serve() as replica, asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(replica.url.rsplit(":", 1)[1]))
        head = f"POST /v1/report HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SIDECAR}\r\nContent-Length: 99\r\n\r\n"
        writer.write(head.encode() + b"{")
        assert b" 408 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


@pytest.mark.asyncio
async def test_a_pod_that_reports_without_pause_is_told_to_wait() -> None:
    async with Replica().serve() as replica:
        for _ in range(PER_POD):
            assert (await replica.post())[0] == 200
        status, _, headers = await replica.post()
        assert status == 429
        assert int(headers["Retry-After"]) >= 1
        other = {**REPORT, "pod": {**POD, "name": "mcp-1", "uid": "uid-1"}}
        assert (await replica.post(other, token("agents:mcp", "mcp-1")))[0] == 200


# Between replicas


@dataclass
class Pair:
    """A replica that sidecars reach, and the one that holds the Lease."""

    near: Replica
    holder: Replica


@asynccontextmanager
async def pair(folder: Path, *, trusted: bool = True, near_token: str = OPERATOR) -> AsyncGenerator[Pair]:
    authority = pki.Authority.create()
    pki.save(folder, "holder", authority.issue("holder", addresses=[SERVER_NAME]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "holder.crt", folder / "holder.key")
    ca = (authority if trusted else pki.Authority.create()).certificate.decode()
    near, holder = Replica(Election(leading=False), token=near_token, ca=ca), Replica(ca=authority.certificate.decode())
    async with holder.serve(context), near.serve():
        near.election.address = holder.url.removeprefix("https://")
        yield Pair(near, holder)


@pytest.mark.asyncio
async def test_any_replica_takes_a_report_and_the_holder_has_it(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        assert (await both.near.post())[:2] == (200, {"next": 60.0})
        assert both.holder.reports.get("uid-0") is not None
        assert both.near.reports.get("uid-0") is None


@pytest.mark.asyncio
async def test_a_lie_goes_no_further_than_the_replica_that_heard_it(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        assert (await both.near.post({**REPORT, "pod": {**POD, "name": "mcp-9"}}))[0] == 403
        assert not both.holder.api.answers


@pytest.mark.asyncio
async def test_without_a_holder_the_sidecar_is_asked_to_come_back_soon(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.near.election.address = ""
        status, answer, headers = await both.near.post()
        assert status == 503
        assert "holds the Lease" in answer["message"]
        assert 1 <= int(headers["Retry-After"]) <= 5


@pytest.mark.asyncio
async def test_a_replica_that_lost_the_lease_takes_no_report_and_passes_none_on(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.holder.election.leading = False
        both.holder.election.address = both.near.url.removeprefix("http://")
        assert (await both.near.post())[0] == 503
        assert len(both.holder.reports) == len(both.near.reports) == 0
        assert dict(both.near.api.answers) == {503: 1}


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", ["unreachable", "untrusted", "no token", "token of a sidecar", "token of another"])
async def test_a_holder_that_can_not_be_told_is_said_to_the_sidecar(fault: str, tmp_path: Path) -> None:
    tokens = {
        "no token": "",
        "token of a sidecar": SIDECAR,
        "token of another": token("agents:toolpolicy-operator", audience="toolpolicy.dev/operator"),
    }
    async with pair(tmp_path, trusted=fault != "untrusted", near_token=tokens.get(fault, OPERATOR)) as both:
        if fault == "unreachable":
            both.near.election.address = "127.0.0.1:1"
        status, _, headers = await both.near.post()
        assert (status, len(both.holder.reports)) == (503, 0)
        assert "Retry-After" in headers


@pytest.mark.asyncio
async def test_a_holder_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "SECONDS", 0.05)

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    ended = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with pair(tmp_path) as both:
        both.near.election.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert (await both.near.post())[0] == 503
    ended.set()
    server.close()
    await server.wait_closed()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("bearer", "status"),
    [
        (OPERATOR, 200),
        ("", 401),
        (SIDECAR, 401),
        (token("agents:mcp", "mcp-0", "toolpolicy.dev/operator"), 403),
        (token("agents:toolpolicy-operator", "", "toolpolicy.dev/operator"), 403),
        (token("toolpolicy-system:default", "", "toolpolicy.dev/operator"), 403),
    ],
)
async def test_only_the_operator_itself_may_report_for_others(bearer: str, status: int) -> None:
    async with Replica().serve() as holder:
        assert (await holder.post(bearer=bearer, path="/v1/relay/report"))[0] == status
        assert len(holder.reports) == (status == 200)


@pytest.mark.asyncio
async def test_a_renewed_authority_is_trusted_from_the_next_report_on(tmp_path: Path) -> None:
    async with pair(tmp_path, trusted=False) as both:
        assert (await both.near.post())[0] == 503
        both.near.ca = both.holder.ca
        assert (await both.near.post())[0] == 200


@pytest.mark.asyncio
async def test_what_became_of_reports_can_be_scraped(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.near.post()
        await both.near.post(bearer="x")
        near, holder = (generate_latest(ControlMetrics(r.api)).decode() for r in (both.near, both.holder))
    assert 'toolpolicy_operator_control_requests_total{status="401"} 1.0' in near
    assert 'toolpolicy_operator_token_reviews_total{outcome="asked"} 1.0' in near
    assert 'toolpolicy_operator_relayed_reports_total{outcome="passed"} 1.0' in near
    assert "toolpolicy_operator_reports 1.0" in holder
