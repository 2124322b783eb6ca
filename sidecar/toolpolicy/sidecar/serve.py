"""A sidecar from settings to the end of the process: what ``toolpolicy proxy`` and the container both run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from toolpolicy.policy.model import IdentityConfig
from toolpolicy.sidecar.admin import Health, start_admin
from toolpolicy.sidecar.audit import ChainedAuditLog, NoAuditLog, audit_key, open_audit
from toolpolicy.sidecar.identity import RequestIdentifier
from toolpolicy.sidecar.interfaces import Identity, IdentityRefused, Peer, RawHeaders
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.probes import Probes, parse_probes
from toolpolicy.sidecar.procnet import foreign_listeners
from toolpolicy.sidecar.rules import DirectoryRules, FileRules, Pod, parse_labels
from toolpolicy.sidecar.servers import Servers, Shared, known_ports
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.state.memory import MemoryState
from toolpolicy.sidecar.target import parse_servers, parse_target

log = logging.getLogger(__name__)

Rules = FileRules | DirectoryRules
_OTHER_FILES = 256
"""Files besides connections: rules, audit, pipes, the interpreter's own."""


class StartFault(Exception):
    """The sidecar can't start; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """What is said when it serves. ``address`` is HOST:PORT or ``unix:PATH``, ``path`` where MCP is served there."""

    address: str
    path: str
    admin: str
    upstream: str
    policies: tuple[str, ...]
    tls: bool
    further: tuple[tuple[str, str], ...] = ()
    """Address and upstream of the second server and those after it."""
    denying: bool = False
    """No rules are in force yet: everything is denied."""


class Identifiers:
    """An identifier that follows the rules: ``spec.identity`` may change with any reload."""

    def __init__(self, rules: Rules, settings: Settings) -> None:
        self._rules = rules
        self._settings = settings
        self._key = settings.identity_key.encode()
        self._config: IdentityConfig | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._now = self._make(None)
        rules.subscribe(self.follow)

    def identify(
        self, peer: Peer, headers: RawHeaders
    ) -> Identity | IdentityRefused | Awaitable[Identity | IdentityRefused]:
        return self._now.identify(peer, headers)

    def follow(self) -> None:
        """Take over what the rules in force say."""
        current = self._rules.current
        config = current.policies.identity if current is not None else None
        if config == self._config:
            return
        self._config = config
        before, self._now = self._now, self._make(config)
        for coroutine in (before.close(), self._now.start()):
            task = asyncio.get_running_loop().create_task(coroutine)
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _make(self, config: IdentityConfig | None) -> RequestIdentifier:
        return RequestIdentifier(config, self._key, self._settings)

    async def close(self) -> None:
        await self._now.close()


def make_rules(settings: Settings, paths: Sequence[str]) -> Rules:
    """The source of rules: the files of a laptop, or a directory (``settings.rules`` where no ``paths`` are given)."""
    paths = list(paths) or ([settings.rules] if settings.rules else [])
    if not paths:
        raise StartFault("no policy is given: name a file or directory with --policy, or set TOOLPOLICY_RULES")
    directories = [path for path in paths if Path(path).is_dir()]
    if directories and len(paths) > 1:
        raise StartFault(f"{directories[0]} is a directory: give one directory, or any number of files")
    if directories or settings.rules_index == "required":
        return DirectoryRules(
            paths[0],
            settings.rules_interval,
            settings.rules_max_bytes,
            pod=_pod(settings),
            labels_file=settings.pod_labels_file or None,
            require_index=settings.rules_index == "required",
        )
    missing = [path for path in paths if not Path(path).exists()]
    if missing:
        raise StartFault(f"{missing[0]}: there is no such file or directory")
    return FileRules(paths, settings.rules_interval, settings.rules_max_bytes)


def _pod(settings: Settings) -> Pod | None:
    """What selectors are matched against; None without a cluster."""
    if not settings.pod_namespace:
        return None
    try:
        admitted = parse_labels(settings.pod_labels) if settings.pod_labels else {}
        namespace = parse_labels(settings.namespace_labels) if settings.namespace_labels else {}
    except ValueError as error:
        raise StartFault(f"the pod's labels can't be read: {error}") from None
    # What the operator put into a namespace's index selects the namespace: now, or when this pod was admitted.
    return Pod(settings.pod_namespace, admitted, None, None if settings.rules_index == "required" else namespace)


async def serve(
    settings: Settings,
    *,
    policies: Sequence[str] = (),
    command: Sequence[str] = (),
    shared: bool = False,
    insist: bool = False,
    ready: Callable[[Running], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. ``command`` is a stdio server to be wrapped (``shared``: one
    process
    for all).

    ``insist``: rules that can't be used at the start are a :class:`StartFault` (a laptop); otherwise everything is
    denied until a good set comes (a pod).
    """
    _log_to_stderr(settings)
    enough_files(settings)
    stop = asyncio.Event()
    if not command and not settings.servers:
        try:
            parse_target(settings.upstream)
        except ValueError as error:
            raise StartFault(f"the upstream: {error}") from None
    async with AsyncExitStack() as stack:
        rules = make_rules(settings, policies)
        identifiers = Identifiers(rules, settings)
        stack.push_async_callback(identifiers.close)
        status = await rules.load(quiet=insist)
        if insist and rules.current is None:
            raise StartFault("\n".join(("the policies can't be used", *status.problems)))
        try:
            key, _ = audit_key(settings, os.environ)
            audit = open_audit(settings.audit, key)
        except (OSError, ValueError) as error:
            raise StartFault(f"the audit can't be kept: {error}") from None
        stack.callback(audit.close)
        if command:
            settings = replace(settings, upstream=await _bridge(stack, command, shared))
        metrics = Metrics(settings.metrics_max_tools)
        state = MemoryState(settings.max_buckets)
        stack.push_async_callback(state.close)
        over_stdio = settings.listen == "stdio"
        if over_stdio:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="toolpolicy-"))
            settings = replace(settings, listen=f"unix:{directory}/front.sock")
        try:
            servers = Servers(settings, Shared(rules, identifiers, state, audit, metrics))
            await servers.start()
        except ValueError as error:
            raise StartFault(str(error)) from None
        stack.push_async_callback(servers.drain)
        health = Health(rules, audit, state.size)
        health.extra["servers"] = servers.shown
        if settings.pod_namespace:
            health.extra["listeners"] = lambda: [asdict(one) for one in foreign_listeners(known_ports(settings))]
        if settings.control_url:
            _report(stack, settings, servers, rules, audit, health, metrics)
        admin_at = await _admin(stack, settings, health, metrics)
        watching = asyncio.create_task(rules.watch())
        stack.callback(watching.cancel)
        _on_signals(stop, rules, audit)
        gc.collect()
        gc.freeze()
        if ready is not None:
            ready(_running(settings, servers, rules, admin_at))
        code = 0
        if over_stdio:
            from toolpolicy.sidecar.stdio_client import serve_stdio

            path = servers.sidecars[0].paths[0]
            code = await serve_stdio(settings.listen, sys.stdin.buffer, sys.stdout.buffer, path=path, stop=stop)
        else:
            await stop.wait()
        health.draining = True
        log.info("draining")
    return code


def _running(settings: Settings, servers: Servers, rules: Rules, admin_at: str) -> Running:
    first, *further = servers.sidecars
    return Running(
        first.address,
        first.paths[0],
        admin_at,
        first.upstream,
        rules.current.names if rules.current is not None else (),
        bool(settings.tls_certificate_file),
        tuple((sidecar.address, sidecar.upstream) for sidecar in further),
        rules.current is None,
    )


def _report(  # noqa: PLR0917 -- wired in one place
    stack: AsyncExitStack,
    settings: Settings,
    servers: Servers,
    rules: Rules,
    audit: ChainedAuditLog | NoAuditLog,
    health: Health,
    metrics: Metrics,
) -> None:
    """Tell the operator what is in force, for as long as this runs."""
    from toolpolicy.sidecar.control import Reporter, start_reporting

    def listeners() -> list[tuple[str, int]]:
        return [(one.address, one.port) for one in foreign_listeners(known_ports(settings))]

    catalogues = [sidecar.catalogue for sidecar in servers.sidecars]
    reporting = start_reporting(settings, Reporter(settings, rules, catalogues, audit, listeners), health, metrics)
    rules.subscribe(reporting.poke)
    stack.push_async_callback(reporting.close)


def enough_files(settings: Settings) -> None:
    """Raise the soft limit of open files, often 1,024, as far as the connections that the settings allow may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    servers = len(parse_servers(settings.servers)) if settings.servers else 1
    wanted = servers * (settings.max_connections + settings.upstream_connections) + _OTHER_FILES
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
            soft = possible
    if soft != resource.RLIM_INFINITY and soft < wanted:
        log.warning("%d files may be open at a time, fewer than the %d that the settings allow for", soft, wanted)


async def _bridge(stack: AsyncExitStack, command: Sequence[str], shared: bool) -> str:
    from toolpolicy.sidecar.stdio_child import StdioError
    from toolpolicy.sidecar.stdio_server import StdioBridge

    bridge = StdioBridge(list(command), shared)
    try:
        await bridge.start()
    except StdioError as error:
        raise StartFault(str(error)) from None
    stack.push_async_callback(bridge.stop)
    return f"unix:{bridge.socket_path}"


async def _admin(stack: AsyncExitStack, settings: Settings, health: Health, metrics: Metrics) -> str:
    if not settings.admin:
        return ""
    probes = Probes(parse_probes(settings.probes) if settings.probes else {})
    stack.push_async_callback(probes.close)
    try:
        admin = await start_admin(settings.admin, health, metrics, probes)
    except (OSError, ValueError) as error:
        known = error.errno if isinstance(error, OSError) else None
        why = os.strerror(known) if known is not None and known > 0 else str(error)
        raise StartFault(
            f"can't listen on {settings.admin} for health and metrics: {why}; choose another with --admin, or none"
        ) from None
    stack.push_async_callback(admin.close)
    return f"{settings.admin.rpartition(':')[0]}:{admin.port}"


def _on_signals(stop: asyncio.Event, rules: Rules, audit: ChainedAuditLog | NoAuditLog) -> None:
    """SIGTERM and SIGINT drain; a second one ends at once. SIGHUP reads the rules again, and goes on in a new audit
    file where the old one was renamed.
    """
    loop = asyncio.get_running_loop()

    def end() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    def again() -> None:
        rules.reload()
        try:
            audit.reopen()
        except OSError as error:
            log.error("the audit goes on in the old file: %s", error)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, again)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to_stderr(settings: Settings) -> None:
    """Log lines go to stderr; a message of ours is one line, whatever a server put into it."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    for before in list(root.handlers):
        root.removeHandler(before)
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())
    with contextlib.suppress(ValueError):
        logging.getLogger("asyncio").setLevel("WARNING")
