"""The admin port, over real HTTP: what the probes are told in each state of the sidecar."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from toolpolicy.sidecar.admin import Admin, Health, start_admin
from toolpolicy.sidecar.audit import ChainedAuditLog, NoAuditLog
from toolpolicy.sidecar.audit.sinks import FileSink
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.rules import FileRules

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"
POLICY = """
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {name: a, namespace: agents}
spec: {selector: {}, rules: [{name: one, match: {tools: [search]}, action: Allow}]}
"""
DEADLINE = 10.0


@asynccontextmanager
async def admin_for(health: Health) -> AsyncGenerator[tuple[Admin, aiohttp.ClientSession]]:
    admin = await start_admin("127.0.0.1:0", health, Metrics())
    timeout = aiohttp.ClientTimeout(total=DEADLINE)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{admin.port}", timeout=timeout) as client:
        try:
            yield admin, client
        finally:
            await admin.close()


def rules(tmp_path: Path, text: str = POLICY) -> FileRules:
    (tmp_path / "p.yaml").write_text(text)
    return FileRules([tmp_path / "p.yaml"])


@pytest.mark.asyncio
async def test_alive_from_the_start_and_ready_once_rules_are_in_force(tmp_path: Path) -> None:
    source = rules(tmp_path)
    async with admin_for(Health(source, NoAuditLog(), lambda: 0)) as (_, client):
        assert (await client.get("/healthz")).status == 200
        answer = await client.get("/readyz")
        assert answer.status == 503
        assert (await answer.json())["reasons"] == ["no rules are in force yet: every call is denied"]
        await source.load()
        answer = await client.get("/readyz")
        detail = await answer.json()
        assert (answer.status, detail["ready"], detail["reasons"]) == (200, True, [])
        assert detail["rules"]["revision"] == source.status.revision


@pytest.mark.asyncio
async def test_refused_rules_are_told_and_leave_it_ready(tmp_path: Path) -> None:
    source = rules(tmp_path)
    await source.load()
    (tmp_path / "p.yaml").write_text(POLICY + "  surprise: 1")
    await source.load()
    async with admin_for(Health(source, NoAuditLog(), lambda: 0)) as (_, client):
        answer = await client.get("/readyz")
        detail = await answer.json()
        assert answer.status == 200
        assert detail["reasons"] == ["the newest rules were refused; see rules.problems"]
        assert detail["rules"]["problems"]
        assert detail["rules"]["failures"] == 1


@pytest.mark.asyncio
async def test_draining_is_not_ready_and_still_alive(tmp_path: Path) -> None:
    source = rules(tmp_path)
    await source.load()
    health = Health(source, NoAuditLog(), lambda: 0)
    async with admin_for(health) as (_, client):
        health.draining = True
        assert (await client.get("/readyz")).status == 503
        assert (await client.get("/healthz")).status == 200


@pytest.mark.asyncio
async def test_the_status_shows_the_audits_head(tmp_path: Path) -> None:
    audit = ChainedAuditLog(FileSink(tmp_path / "a.log"), b"k" * 32)
    health = Health(rules(tmp_path), audit, lambda: 7, extra={"upstream": lambda: "http://x"})
    async with admin_for(health) as (_, client):
        status = json.loads(await (await client.get("/status")).text())
    audit.close()
    assert status["audit"]["head"] == f"1:{audit.head[1]}"
    assert status["state"] == {"buckets": 7}
    assert status["upstream"] == "http://x"


@pytest.mark.asyncio
async def test_metrics_say_what_rules_and_audit_know(tmp_path: Path) -> None:
    source = rules(tmp_path)
    await source.load()
    audit = ChainedAuditLog(FileSink(tmp_path / "a.log"), b"k" * 32)
    async with admin_for(Health(source, audit, lambda: 7)) as (_, client):
        answer = await client.get("/metrics")
        text = await answer.text()
        openmetrics = await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    audit.close()
    found = {s.name: (s.value, s.labels) for f in text_string_to_metric_families(text) for s in f.samples}
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")
    assert found["toolpolicy_audit_head_sequence"][0] == 1
    assert f"{int(found['toolpolicy_audit_head_mac'][0]):012x}" == audit.head[1][:12]
    assert found["toolpolicy_rules_info"][1] == {"revision": source.status.revision}
    assert found["toolpolicy_limit_buckets"][0] == 7
    assert found["toolpolicy_ready"][0] == 1
    undocumented = {n for n in found if n.startswith("toolpolicy_") and f"`{n}`" not in PAGE.read_text("utf-8")}
    assert undocumented == set()


@pytest.mark.asyncio
async def test_only_get_and_head_and_only_its_own_paths(tmp_path: Path) -> None:
    async with admin_for(Health(rules(tmp_path), NoAuditLog(), lambda: 0)) as (_, client):
        for path in ("/healthz", "/readyz", "/status", "/metrics"):
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert (await client.request(method, path, data=b"x")).status == 405
            head = await client.head(path)
            assert head.status in (200, 503)
            assert await head.read() == b""
        for path in ("/", "/mcp", "/metrics/", "/admin"):
            assert (await client.get(path)).status == 404


@pytest.mark.asyncio
async def test_a_large_body_is_not_read(tmp_path: Path) -> None:
    async with admin_for(Health(rules(tmp_path), NoAuditLog(), lambda: 0)) as (admin, _):
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
            assert b"200" in await reader.readline()
            writer.close()


@pytest.mark.asyncio
async def test_a_port_that_is_taken_and_an_address_that_is_none(tmp_path: Path) -> None:
    health = Health(rules(tmp_path), NoAuditLog(), lambda: 0)
    async with admin_for(health) as (admin, _):
        with pytest.raises(OSError, match="in use"):
            await start_admin(f"127.0.0.1:{admin.port}", health, Metrics())
    for address in ("", "9901", "localhost", "x:y", "127.0.0.1:99999"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            await start_admin(address, health, Metrics())
