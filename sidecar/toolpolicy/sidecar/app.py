"""The sidecar: everything wired together, from the socket clients connect to, to the server behind it.

``start`` listens, ``drain`` ends without losing an accepted call: nothing new is accepted, calls under way finish,
streams are ended cleanly, and only what is left after the grace period is broken off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from toolpolicy.mcp import answers
from toolpolicy.mcp.catalogue import ToolCatalogue
from toolpolicy.mcp.paths import Routes
from toolpolicy.policy.compile import PolicySet
from toolpolicy.sidecar.conversation import Conversation, Conversations
from toolpolicy.sidecar.downstream import BUSY, Front, PlainRequest, quiet
from toolpolicy.sidecar.exchange import Client, Exchange, Manner
from toolpolicy.sidecar.gate import Gate, Parts
from toolpolicy.sidecar.interfaces import AuditLog, Identifier, RuleSource, StateStore
from toolpolicy.sidecar.judge import Approvals, Judge, Telemetry
from toolpolicy.sidecar.legacy import LegacyStreams
from toolpolicy.sidecar.lens import Sight
from toolpolicy.sidecar.listeners import Listener, listener_tls, upstream_tls
from toolpolicy.sidecar.lister import CatalogueLister
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.pool import Pool
from toolpolicy.sidecar.requests import Dispatch, Request, Verdict
from toolpolicy.sidecar.sessions import Owners
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.state.memory import MemoryState
from toolpolicy.sidecar.target import parse_target
from toolpolicy.sidecar.upstream import Died
from toolpolicy.sidecar.wiring import Answer

log = logging.getLogger(__name__)


class Sidecar:
    """One enforcing proxy. ``settings.upstream`` and ``settings.listen`` say between what; the rest comes in ready
    made.
    """

    def __init__(  # noqa: PLR0917 -- wired in one place, by serve.py
        self,
        settings: Settings,
        rules: RuleSource,
        identifier: Identifier,
        state: StateStore,
        audit: AuditLog,
        metrics: Metrics,
        *,
        approvals: Approvals | None = None,
        telemetry: Telemetry | None = None,
        local: Callable[[], StateStore] | None = None,
    ) -> None:
        self.settings = settings
        self.draining = False
        self._rules = rules
        self._metrics = metrics
        self._target = parse_target(settings.upstream)
        self._exchanges: set[Exchange] = set()
        self._streams: set[Exchange] = set()
        self._calls = 0
        self._quiet = asyncio.Event()
        self._listener: Listener | None = None
        self._server: Conversations | None = None
        sessions = Owners(settings.max_sessions, settings.session_idle)
        server = self._server_labels(settings)
        self.catalogue = ToolCatalogue(max_tools=settings.max_tools)
        tasks = Owners(settings.max_sessions, settings.session_idle)
        self._sight = Sight(rules, self.catalogue, tasks, server, settings.list_ttl)
        self._policies = self._sight.policies()
        self._routes = self._make_routes()
        self._legacy = LegacyStreams(lambda: self._routes, sessions, self._quiet.set)
        self._pool = Pool(self._target, settings, upstream_tls(settings, self._target))
        host = self._target.authority if self._target.tls else None
        judge = Judge(
            self.catalogue,
            state,
            audit,
            metrics,
            CatalogueLister(self._pool, self._sight, settings, host),
            server,
            local=local or (lambda: MemoryState(settings.max_buckets)),
            approvals=approvals,
            telemetry=telemetry,
        )
        parts = Parts(settings, judge, identifier, audit, metrics, self._sight, sessions, self._legacy, host)
        self._gate = Gate(parts, self._routes)
        self._manner = Manner(self._target.origins, settings.max_list, self)
        self._client_ca: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        metrics.gauge("sessions", "Sessions whose principal is remembered.", lambda: len(sessions))
        metrics.gauge("requests_in_flight", "Requests in work, open streams not counted.", lambda: self._calls)
        metrics.gauge("streams", "Open event streams.", lambda: len(self._streams))
        metrics.gauge("upstream_connections", "Connections to the MCP server.", lambda: self._pool.connections)

    @property
    def port(self) -> int:
        """The port that is listened on; 0 for a unix socket."""
        return self._listener.port if self._listener is not None else 0

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that MCP is served at; the first is the one to show."""
        return self._paths

    @property
    def address(self) -> str:
        """Where MCP is served, to be shown."""
        return self._listener.name if self._listener is not None else ""

    @property
    def upstream(self) -> str:
        """Where the server is, to be shown."""
        return str(self._target)

    @property
    def pool(self) -> Pool:
        """The upstream leg."""
        return self._pool

    # -- life

    async def start(self) -> None:
        """Listen. Raises ``listeners.AddressFault`` with what to do."""
        settings = self.settings
        front = Front(self)
        self._server = Conversations(
            self,
            front.handle,
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            logger=quiet,
            auto_decompress=False,
            keepalive_timeout=settings.client_keepalive,
            max_line_size=settings.max_header,
            max_field_size=settings.max_header,
            max_headers=settings.max_headers,
            lingering_time=0,
        )
        self._listener = Listener(settings.listen, self._connection)
        self._client_ca = self._wanted_ca()
        await self._listener.serve(listener_tls(settings, self._client_ca))
        self._rules.subscribe(self._rules_changed)

    async def drain(self) -> None:
        """Stop accepting; wait for calls, end streams, break off what is left after ``drain_grace`` seconds. Then
        close.
        """
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        self._close_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_grace):
                await self._until(lambda: all(e.order.stream and not self._legacy.owes(e) for e in self._exchanges))
                for exchange in [e for e in self._exchanges if e.order.stream]:
                    exchange.finish()
                await self._until(lambda: not self._exchanges)
        for exchange in list(self._exchanges):
            exchange.break_off()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(1.0)
        await self._pool.close()
        for task in self._tasks:
            task.cancel()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._quiet.clear()
            await self._quiet.wait()

    def _close_idle(self) -> None:
        if self._server is not None:
            for connection in self._server.connections:
                if isinstance(connection, Conversation):
                    connection.drain()

    # -- downstream.Service

    def take(self, request: Request) -> Verdict | Awaitable[Verdict]:
        if self._calls >= self.settings.max_concurrency:
            return self._busy("overload", f"{self._calls} requests are in work already")
        if request.head.method == "GET" and len(self._exchanges) - self._calls >= self.settings.max_streams:
            return self._busy("streams", f"{len(self._streams)} event streams are open already")
        try:
            verdict = self._gate.take(request)
        except Exception:  # noqa: BLE001 -- the edge: a fault of ours forwards nothing and leaves nobody waiting
            return self._faulty()
        if type(verdict) is Dispatch or isinstance(verdict, Answer):
            return verdict
        return self._guarded(cast("Awaitable[Verdict]", verdict))

    async def _guarded(self, verdict: Awaitable[Verdict]) -> Verdict:
        try:
            return await verdict
        except Exception:  # noqa: BLE001 -- as above
            return self._faulty()

    def _faulty(self) -> Answer:
        log.exception("a request was refused for a fault of the sidecar's own")
        return self.refuse("fault", 500, "a fault of the sidecar's own; nothing was executed", close=True)

    def send(self, client: Client, dispatch: Dispatch) -> Exchange:
        exchange = Exchange(client, dispatch.order, self._manner, head_only=dispatch.head_only)
        self._exchanges.add(exchange)
        if not dispatch.order.stream:
            self._calls += 1
        self._pool.send(
            exchange,
            dispatch.request,
            idempotent=dispatch.idempotent,
            head_only=dispatch.head_only,
            patient=dispatch.patient,
        )
        return exchange

    def refuse(
        self, word: str, status: int, text: str, *, close: bool = False, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Answer:
        return self._gate.refuse(word, status, text, close=close, headers=headers)

    def answered(self, status: int) -> None:
        self._metrics.answered(status)

    def waited(self, seconds: float) -> None:
        self._metrics.call_seconds.observe(seconds)

    def _busy(self, word: str, text: str) -> Answer:
        return self.refuse(word, 503, f"{text}; try again", headers=((b"Retry-After", b"1"),))

    # -- exchange.Watcher

    def opened(self, exchange: Exchange) -> None:
        self._streams.add(exchange)

    def closed(self, exchange: Exchange) -> None:
        if exchange in self._exchanges:
            self._exchanges.discard(exchange)
            if not exchange.order.stream:
                self._calls -= 1
            if exchange.streaming:
                self._streams.discard(exchange)
                self._legacy.closed(exchange)
            if self.draining:
                self._quiet.set()

    def failed(self, exchange: Exchange, why: Died) -> Answer:
        self._metrics.upstream_error(
            {503: "refused", 504: "timeout"}.get(why.status, "died" if why.written else "connect")
        )
        self._metrics.answered(why.status)
        log.warning("upstream: %s", why.reason)
        text = why.reason if why.written else f"{why.reason}; nothing was executed"
        return Answer(why.status, answers.http_error(answers.INTERNAL, text, exchange.order.request_id))

    # -- rules

    def _rules_changed(self) -> None:
        self._routes = self._make_routes()
        self._legacy.announce_again(self._routes)
        self._gate.routes = self._routes
        before, self._policies = self._policies, self._sight.policies()
        if self._policies is not None and self._streams and not self.draining:
            self._spawn(self._tell_streams(before, self._policies))
        wanted = self._wanted_ca()
        if wanted != self._client_ca and self._listener is not None and not self.draining:
            self._client_ca = wanted
            self._spawn(self._serve_anew())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Until what a change of rules set off is done: streams told, the listener's client CA in force."""
        await asyncio.gather(*self._tasks)

    async def _tell_streams(self, before: PolicySet | None, after: PolicySet) -> None:
        """Send ``list_changed`` on every stream whose caller now sees other tools, some streams at a time."""
        names = self.catalogue.names()
        now = datetime.now(UTC)
        for number, exchange in enumerate(list(self._streams), 1):
            news = exchange.order.news
            if news is not None:
                lens = exchange.order.lens()
                saw = lens.visible(before, names, now) if before is not None else set[str]()
                if saw != lens.visible(after, names, now):
                    exchange.inject(news)
            if number % 20 == 0:
                await asyncio.sleep(0)

    async def _serve_anew(self) -> None:
        try:
            assert self._listener is not None
            await self._listener.serve(listener_tls(self.settings, self._client_ca))
        except (OSError, ValueError) as error:
            log.error("the new client CA is not in force: %s", error)

    def _wanted_ca(self) -> str | None:
        current = self._rules.current
        identity = current.policies.identity if current is not None else None
        return identity.client_ca if identity is not None else None

    def _make_routes(self) -> Routes:
        current = self._rules.current
        paths = [self._target.path] if self._target.path else []
        through: tuple[Any, ...] = ()
        if current is not None:
            paths.extend(current.policies.paths)
            through = current.policies.pass_through
        self._paths = tuple(dict.fromkeys(paths)) or ("/mcp",)
        routes = Routes(self._paths, through)
        for path in routes.refused:
            log.warning(
                "passThrough path %s is a variant of a judged path, or not plain: it is not passed through", path
            )
        return routes

    def _server_labels(self, settings: Settings) -> Mapping[str, str]:
        name = settings.server_name or str(self._target)
        return {"name": name, "namespace": settings.pod_namespace}

    # -- connections

    def _connection(self) -> asyncio.Protocol:
        assert self._server is not None
        if len(self._server.connections) >= self.settings.max_connections:
            self._metrics.refused("connections")
            return _TooMany()
        return self._server()

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> PlainRequest:
        return PlainRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


class _TooMany(asyncio.Protocol):
    """A connection above ``max_connections``: told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(BUSY)
        transport.close()
