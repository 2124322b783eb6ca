"""Reports to the operator, against an operator that listens on TLS, answers as it likes and changes its certificate."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cluster import pki
from support import kubelet
from toolpolicy.mcp.catalogue import ToolCatalogue
from toolpolicy.sidecar.admin import Health
from toolpolicy.sidecar.audit import NoAuditLog
from toolpolicy.sidecar.control import ControlClient, Reporter, client, start_reporting
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.rules import DirectoryRules, Pod
from toolpolicy.sidecar.settings import Settings, SettingsError, from_environ
from toolpolicy_operator.control.report import MAX_BYTES, parse_report

DEADLINE = 15.0
Answer = Callable[[], web.Response]


def taken(following: Any = 60) -> web.Response:
    return web.json_response({"next": following, "sealingKey": "of a newer operator"})


@dataclass
class Operator:
    """What it was sent, and what it answers."""

    answer: Answer = taken
    reports: asyncio.Queue[tuple[str, dict[str, Any]]] = field(default_factory=asyncio.Queue[Any])
    url: str = ""

    async def report(self, request: web.Request) -> web.Response:
        await self.reports.put((request.headers["Authorization"], json.loads(await request.read())))
        return self.answer()

    async def next(self) -> tuple[str, dict[str, Any]]:
        return await asyncio.wait_for(self.reports.get(), DEADLINE)

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            _, report = await self.next()
            if wanted(report):
                return report

    @asynccontextmanager
    async def serve(self, folder: Path, authority: pki.Authority, port: int = 0) -> AsyncGenerator[Operator]:
        pki.save(folder, "operator", authority.issue("operator", addresses=["127.0.0.1"]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "operator.crt", folder / "operator.key")
        app = web.Application()
        app.router.add_post("/v1/report", self.report)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_address=True).start()
        self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


@dataclass
class Rig:
    operator: Operator
    rules: DirectoryRules
    volume: Path
    folder: Path
    client: ControlClient
    health: Health
    catalogue: ToolCatalogue
    listeners: list[tuple[str, int]]

    async def write(self, generation: int, **changes: Any) -> None:
        """New rules come by the volume, and are loaded."""
        manifest = kubelet.policy()
        manifest["metadata"]["generation"] = generation
        kubelet.write(self.volume, kubelet.volume_files([manifest], revision=f"1-{generation}", **changes))
        await self.rules.load()


@asynccontextmanager
async def rig(folder: Path, operator: Operator | None = None, authority: pki.Authority | None = None):
    operator, authority = operator or Operator(), authority or pki.Authority.create()
    volume = folder / "rules"
    rules = DirectoryRules(volume, pod=Pod("agents"), require_index=True)
    kubelet.write(volume, kubelet.volume_files([kubelet.policy()]))
    await rules.load()
    (folder / "token").write_text("first\n")
    (folder / "ca.crt").write_bytes(authority.certificate)
    health, catalogue = Health(rules, NoAuditLog(), lambda: 0), ToolCatalogue()
    async with operator.serve(folder, authority):
        settings = Settings(
            control_url=operator.url,
            control_token_file=str(folder / "token"),
            control_ca_file=str(folder / "ca.crt"),
            pod_namespace="agents",
            pod_name="mcp-0",
            pod_uid="uid-0",
        )
        listeners: list[tuple[str, int]] = []
        reporter = Reporter(settings, rules, [catalogue], NoAuditLog(), lambda: listeners)
        reporting = start_reporting(settings, reporter, health, Metrics())
        rules.subscribe(reporting.poke)
        try:
            yield Rig(operator, rules, volume, folder, reporting, health, catalogue, listeners)
        finally:
            await reporting.close()


@pytest.mark.asyncio
async def test_a_start_is_reported_with_policies_by_uid_and_generation(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        authorization, report = await it.operator.next()
    assert authorization == "Bearer first"
    assert report["pod"] == {"namespace": "agents", "name": "mcp-0", "uid": "uid-0"}
    assert (report["revision"], report["epoch"], report["problems"]) == ("1-1", 1, [])
    assert report["policies"] == [
        {"kind": "ToolPolicy", "namespace": "agents", "name": "imaging", "uid": "uid-imaging", "generation": 1}
    ]


@pytest.mark.asyncio
async def test_new_rules_are_reported_at_once_with_the_token_of_that_moment(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.operator.next()
        (tmp_path / "token").write_text("second")
        await it.write(2)
        authorization, report = await it.operator.next()
    assert (authorization, report["policies"][0]["generation"]) == ("Bearer second", 2)


@pytest.mark.asyncio
async def test_rules_that_are_refused_are_reported_beside_those_that_stay(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.operator.next()
        await it.write(2, epoch=0)
        report = await it.operator.until(lambda report: bool(report["problems"]))
    assert report["policies"][0]["generation"] == 1
    assert "epoch 0 is lower than 1" in report["problems"][0]


@pytest.mark.asyncio
async def test_before_any_good_rules_there_is_a_report_too(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.rules.current = None
        it.client.poke()
        report = await it.operator.until(lambda report: report["revision"] is None)
    assert (report["policies"], report["epoch"]) == ([], 0)


@pytest.mark.asyncio
async def test_tools_are_reported_as_they_are_classified(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        it.catalogue.observe(
            {"tools": [{"name": "delete_study"}, {"name": "get", "annotations": {"readOnlyHint": False}}]}
        )
        it.client.poke()
        report = await it.operator.until(lambda report: bool(report["tools"]))
    assert [(t["name"], t["category"]) for t in report["tools"]] == [("delete_study", "Destructive"), ("get", "Write")]


@pytest.mark.asyncio
async def test_a_socket_that_is_opened_later_is_reported_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolpolicy.sidecar.control.report.LOOK_SECONDS", 0.01)
    async with rig(tmp_path) as it:
        assert (await it.operator.next())[1]["listeners"] == []
        it.listeners.append(("0.0.0.0", 9090))
        report = await it.operator.until(lambda report: bool(report["listeners"]))
    assert report["listeners"] == [{"address": "0.0.0.0", "port": 9090}]


def test_looking_for_sockets_takes_little_of_the_time(tmp_path: Path) -> None:
    now, looks = [0.0], [0]

    def slow() -> list[tuple[str, int]]:
        looks[0] += 1
        now[0] += 0.5
        return []

    rules = DirectoryRules(tmp_path)
    reporter = Reporter(Settings(), rules, [], NoAuditLog(), slow, clock=lambda: now[0])
    for _ in range(1000):
        reporter.urgent()
        now[0] += 1.0
    assert looks[0] <= 3


@pytest.mark.asyncio
async def test_the_authority_may_change_under_a_running_sidecar(tmp_path: Path) -> None:
    first, second = pki.Authority.create(), pki.Authority.create()
    operator = Operator()
    async with rig(tmp_path, operator, first) as it:
        await operator.next()
        port = int(operator.url.rsplit(":", 1)[1])
        (tmp_path / "next").mkdir()
        renewed = tmp_path / "ca.next"
        renewed.write_bytes(first.certificate + second.certificate)
        renewed.rename(tmp_path / "ca.crt")
        other = Operator()
        await it.client.close()
        async with other.serve(tmp_path / "next", second):
            it.client._url = it.client._url.replace(f":{port}", f":{other.url.rsplit(':', 1)[1]}")  # pyright: ignore[reportPrivateUsage]
            it.client.start()
            assert (await other.next())[1]["revision"] == "1-1"


@pytest.mark.asyncio
async def test_an_operator_of_another_authority_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY", 0.01)
    async with rig(tmp_path) as it:
        await it.operator.next()
        (tmp_path / "ca.crt").write_bytes(pki.Authority.create().certificate)
        it.client.poke()
        await failing(it.client)
        assert it.operator.reports.empty()
        assert "certificate" in it.client.last_error.lower()


async def failing(reporting: ControlClient) -> None:
    async with asyncio.timeout(DEADLINE):
        while reporting.note() is None:
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
@pytest.mark.parametrize("break_it", ["no token file", "no CA file", "a CA that is none"])
async def test_a_file_that_is_missing_shows_and_mends_itself(
    break_it: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(client, "LONGEST", 0.05)
    async with rig(tmp_path) as it:
        await it.operator.next()
        ca = (tmp_path / "ca.crt").read_bytes()
        if break_it == "a CA that is none":
            (tmp_path / "ca.crt").write_text("nothing")
        else:
            (tmp_path / ("token" if "token" in break_it else "ca.crt")).unlink()
        it.client.poke()
        await failing(it.client)
        ready, detail = it.health.readiness()
        assert ready
        assert any("rules stay enforced" in reason for reason in detail["reasons"])
        (tmp_path / "token").write_text("third")
        (tmp_path / "ca.crt").write_bytes(ca)
        while not it.operator.reports.empty():
            it.operator.reports.get_nowait()
        assert (await it.operator.next())[0] == "Bearer third"
        async with asyncio.timeout(DEADLINE):
            while it.client.note() is not None:
                await asyncio.sleep(0.01)


def status(code: int, **headers: str) -> Answer:
    return lambda: web.json_response({"kind": "Status", "message": "because\x1b[2J"}, status=code, headers=headers)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (status(401), "refused"),
        (status(403), "refused"),
        (status(404), "refused"),
        (status(307, Location="/v1/report"), "refused"),
        (status(500), "refused"),
        (status(429, **{"Retry-After": "0"}), "busy"),
        (status(503, **{"Retry-After": "soon"}), "busy"),
        (lambda: web.Response(text="<html>"), "failed"),
    ],
)
async def test_a_report_that_is_not_taken_is_tried_again(
    answer: Answer, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY", 0.01)
    async with rig(tmp_path, Operator(answer)) as it:
        for _ in range(3):
            await it.operator.next()
        assert it.client.results[result] >= 2
        assert it.client.taken_at is None
        assert len([r for r in caplog.records if "did not take this pod's report" in r.message]) == 1
        assert "\x1b" not in (it.client.note() or "")
        it.operator.answer = taken
        async with asyncio.timeout(DEADLINE):
            while it.client.failures:
                await asyncio.sleep(0.01)
        assert it.client.taken_at is not None


@pytest.mark.asyncio
async def test_new_rules_do_not_hurry_a_sidecar_that_was_asked_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SPREAD", 0.0)
    async with rig(tmp_path, Operator(status(429, **{"Retry-After": "200"}))) as it:
        await it.operator.next()
        async with asyncio.timeout(DEADLINE):
            while not it.client.failures:
                await asyncio.sleep(0)
        await it.write(2)
        # With nothing to hold it back a poke is answered in some rounds of the loop.
        for _ in range(200):
            await asyncio.sleep(0)
        assert it.operator.reports.empty()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("said", "least", "most"),
    [(20, 15.0, 20.0), (10**9, 45.0, 60.0), (-3, 0.75, 1.0), ("x", 45.0, 60.0), (True, 45.0, 60.0), (None, 45.0, 60.0)],
)
async def test_the_operator_says_when_to_come_back_within_reason(
    said: Any, least: float, most: float, tmp_path: Path
) -> None:
    now = 1000.0
    async with rig(tmp_path, Operator(lambda: taken(said))) as it:
        await it.client.close()
        pauses: list[float] = []

        async def wait(until: float) -> None:
            pauses.append(until - now)
            if len(pauses) > 1:
                raise asyncio.CancelledError

        it.client._clock = lambda: now  # pyright: ignore[reportPrivateUsage]
        it.client._wait = wait  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(asyncio.CancelledError):
            await it.client._run()  # pyright: ignore[reportPrivateUsage]
    assert least <= pauses[1] <= most


@pytest.mark.asyncio
async def test_a_report_always_fits_and_is_one_that_the_operator_reads(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        long: list[dict[str, Any]] = [{"name": f"ä{n:04}" + "x" * 250, "inputSchema": {}} for n in range(2500)]
        it.catalogue.observe({"tools": [*long, {"name": "y" * 5000}]})
        await it.write(2, epoch=0)
        body = it.client._reports.compose()  # pyright: ignore[reportPrivateUsage]
    assert len(body) <= MAX_BYTES
    report = parse_report(body)
    assert report.tools and report.problems
    assert report.policies[0].uid == "uid-imaging"


def test_where_nothing_is_reported_nothing_is_imported() -> None:
    program = "import sys, toolpolicy.sidecar.__main__; print('toolpolicy.sidecar.control' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_half_of_the_settings_is_an_error_that_names_the_rest() -> None:
    with pytest.raises(SettingsError) as error:
        from_environ({"TOOLPOLICY_CONTROL_URL": "http://operator:9444", "TOOLPOLICY_POD_NAME": "a"})
    assert "expected https://" in str(error.value)
    assert "TOOLPOLICY_CONTROL_TOKEN_FILE" in str(error.value)
    assert "TOOLPOLICY_POD_NAME," not in str(error.value)
