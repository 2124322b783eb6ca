"""The admin port: ``/healthz``, ``/readyz``, ``/status``, ``/metrics`` and the server's own probes, never on the port
that serves MCP.

Readiness says whether *the sidecar* can do its work: rules in force, an audit that can be written, not draining. It
does not depend on the MCP server: a pod whose server is down would otherwise lose the place where its refusals are
explained, and a server that waits for its Service would never start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from aiohttp import web

from toolpolicy import __version__
from toolpolicy.sidecar.listeners import EVERYWHERE, bind_everywhere
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.probes import Probes
from toolpolicy.sidecar.rules import RulesStatus

log = logging.getLogger(__name__)

BACKLOG = 32


class RulesView(Protocol):
    @property
    def current(self) -> Any: ...
    @property
    def status(self) -> RulesStatus: ...


class AuditView(Protocol):
    records: int
    failures: int
    last_error: str

    @property
    def head(self) -> tuple[int, str]: ...
    @property
    def chain(self) -> str: ...
    @property
    def failing(self) -> bool: ...


@dataclass(slots=True)
class Health:
    """What the probes are answered from. ``draining`` is set by the sidecar when it stops accepting calls."""

    rules: RulesView
    audit: AuditView
    buckets: Callable[[], int]
    draining: bool = False
    extra: dict[str, Callable[[], Any]] = field(default_factory=dict[str, Callable[[], Any]])
    """Further members of ``/status``."""
    notes: list[Callable[[], str | None]] = field(default_factory=list[Callable[[], "str | None"]])
    """Further reasons to be shown; none of them ends readiness."""

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Ready or not, and the detail. A set of rules that was refused leaves the sidecar ready with the last good
        one.
        """
        reasons: list[str] = []
        if self.rules.current is None:
            reasons.append("no rules are in force yet: every call is denied")
        if self.draining:
            reasons.append("draining")
        ready = not reasons
        if self.audit.failing:
            reasons.append(f"the audit can't be written: {self.audit.last_error}")
        if self.rules.status.problems:
            reasons.append("the newest rules were refused; see rules.problems")
        reasons.extend(said for note in self.notes if (said := note()))
        return ready, {"ready": ready, "reasons": reasons, "draining": self.draining, **self._parts()}

    def status(self) -> dict[str, Any]:
        ready, detail = self.readiness()
        del ready
        return {"version": __version__, **detail, **{name: read() for name, read in self.extra.items()}}

    def _parts(self) -> dict[str, Any]:
        seq, mac = self.audit.head
        audit = {
            "failing": self.audit.failing,
            "records": self.audit.records,
            "failures": self.audit.failures,
            "lastError": self.audit.last_error,
            "chain": self.audit.chain,
            "head": f"{seq}:{mac}",
        }
        status = self.rules.status
        rules = {**asdict(status), "problems": list(status.problems[:50])}
        return {"rules": _camel(rules), "audit": audit, "state": {"buckets": self.buckets()}}


def describe(metrics: Metrics, health: Health) -> None:
    """Let the metrics read what rules, audit and state know."""
    rules, audit = health.rules, health.audit

    def reloads() -> dict[str, float]:
        return {"success": rules.status.reloads, "failure": rules.status.failures}

    metrics.info("rules", "The revision of the rules in force.", lambda: {"revision": rules.status.revision or ""})
    metrics.gauge("rules_epoch", "The epoch of the rules in force.", lambda: rules.status.epoch)
    metrics.gauge("rules_policies", "Policies in force.", lambda: rules.status.policies)
    metrics.gauge(
        "rules_loaded_timestamp_seconds", "When the rules in force were loaded.", lambda: rules.status.loaded_at or 0
    )
    metrics.gauge(
        "rules_last_reload_successful", "1 if the rules found last are in force.", lambda: not rules.status.problems
    )
    metrics.counter_by("rules_reloads", "Sets of rules loaded or refused.", "result", reloads)
    metrics.gauge("ready", "1 if the sidecar is ready.", lambda: health.readiness()[0])
    metrics.gauge("limit_buckets", "Limit buckets that count something.", health.buckets)
    metrics.counter("audit_records", "Audit records written.", lambda: audit.records)
    metrics.counter("audit_failures", "Audit records that could not be written.", lambda: audit.failures)
    metrics.gauge("audit_failing", "1 while audit records are being lost.", lambda: audit.failing)
    metrics.gauge("audit_head_sequence", "Sequence number of the last audit record.", lambda: audit.head[0])
    metrics.gauge(
        "audit_head_mac",
        "The first 48 bits of that record's MAC, as a number.",
        lambda: int(audit.head[1][:12] or "0", 16),
    )


class Admin:
    """A running admin server."""

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self._runner = runner
        self.port = port

    async def close(self) -> None:
        await self._runner.cleanup()


async def start_admin(address: str, health: Health, metrics: Metrics, probes: Probes | None = None) -> Admin:
    """Serve ``HOST:PORT`` until closed. Raises OSError if the port is taken, ValueError for an address that is none."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"admin address {address!r}: expected HOST:PORT")
    describe(metrics, health)
    app = application(health, metrics, probes)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=15, handle_signals=False)
    await runner.setup()
    try:
        if host.strip("[]") in EVERYWHERE:
            site = web.SockSite(runner, bind_everywhere(int(port), BACKLOG), backlog=BACKLOG)
        else:
            site = web.TCPSite(runner, host.strip("[]"), int(port), backlog=BACKLOG)
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    return Admin(runner, runner.addresses[0][1])


def application(health: Health, metrics: Metrics, probes: Probes | None = None) -> web.Application:
    """GET and HEAD only; no request has a body that is read."""

    async def healthz(request: web.Request) -> web.StreamResponse:
        return _plain(200, "ok\n")

    async def readyz(request: web.Request) -> web.StreamResponse:
        ready, detail = health.readiness()
        return _json(200 if ready else 503, detail)

    async def status(request: web.Request) -> web.StreamResponse:
        return _json(200, health.status())

    async def metrics_(request: web.Request) -> web.StreamResponse:
        body, content_type = metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Server": "toolpolicy"})

    async def probe(request: web.Request) -> web.StreamResponse:
        key = f"{request.match_info['container']}/{request.match_info['kind']}"
        if probes is None or key not in probes:
            return _plain(404, "no such probe is configured\n")
        passed, found = await probes.ask(key)
        return _plain(200 if passed else 503, f"{'ok' if passed else 'failed'}: {found}\n")

    app = web.Application(client_max_size=1024)
    routes: Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
        "/healthz": healthz,
        "/readyz": readyz,
        "/status": status,
        "/metrics": metrics_,
        "/probe/{container}/{kind}": probe,
    }
    for path, handler in routes.items():
        app.router.add_get(path, handler)
    return app


def _plain(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers={"Server": "toolpolicy", "Cache-Control": "no-store"})


def _json(status: int, value: Any) -> web.Response:
    headers = {"Server": "toolpolicy", "Cache-Control": "no-store"}
    return web.Response(
        status=status, text=json.dumps(value, indent=1) + "\n", content_type="application/json", headers=headers
    )


def _camel(fields: Mapping[str, Any]) -> dict[str, Any]:
    def name(snake: str) -> str:
        head, *rest = snake.split("_")
        return head + "".join(r.capitalize() for r in rest)

    return {name(k): v for k, v in fields.items()}
