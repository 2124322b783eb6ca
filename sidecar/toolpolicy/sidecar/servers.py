"""The MCP servers of one process: one, or a pod's several, each behind a port of its own.

Every server has its own listener, connections, catalogue and sessions (a session id means something to the server that
gave it, and to no other). Rules, limits, identities and the audit are shared: a limit per principal holds over all of
the pod's servers. With several, metrics carry the label ``server`` and audit records ``extra.serverPort``, the port of
the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from toolpolicy.sidecar.app import Sidecar
from toolpolicy.sidecar.interfaces import AuditEntry, AuditLog, Identifier, RuleSource, StateStore
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.state.memory import MemoryState
from toolpolicy.sidecar.target import parse_servers


class PortAudit:
    """The audit, whose records also say to which port's server a call went."""

    def __init__(self, audit: AuditLog, port: int) -> None:
        self._audit = audit
        self._port = port

    def record(self, entry: AuditEntry) -> bool:
        return self._audit.record(replace(entry, extra={**entry.extra, "serverPort": self._port}))

    def close(self) -> None:
        """The shared log is closed by who opened it."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all servers of a process have in common."""

    rules: RuleSource
    identifier: Identifier
    state: StateStore
    audit: AuditLog
    metrics: Metrics


class Servers:
    """All of them together; ``sidecars`` in the order of the settings. Raises ValueError for what can't be used."""

    def __init__(self, settings: Settings, shared: Shared) -> None:
        local: list[StateStore] = []

        def one_local() -> StateStore:
            if not local:
                local.append(MemoryState(settings.max_buckets))
            return local[0]

        self.sidecars: list[Sidecar] = []
        for port, own in each(settings):
            metrics = shared.metrics if port is None else shared.metrics.of_server(str(port))
            audit = shared.audit if port is None else PortAudit(shared.audit, port)
            made = Sidecar(own, shared.rules, shared.identifier, shared.state, audit, metrics, local=one_local)
            metrics.follow(_listed(made))
            self.sidecars.append(made)

    def shown(self) -> list[dict[str, str]]:
        """For ``/status``."""
        return [{"listen": sidecar.address, "upstream": sidecar.upstream} for sidecar in self.sidecars]

    async def start(self) -> None:
        """Listen everywhere, or nowhere. Raises ``listeners.AddressFault`` with what to do."""
        for number, sidecar in enumerate(self.sidecars):
            try:
                await sidecar.start()
            except BaseException:
                await asyncio.gather(*(started.drain() for started in self.sidecars[:number]))
                raise

    async def drain(self) -> None:
        """All at once, so that the grace period is one."""
        await asyncio.gather(*(sidecar.drain() for sidecar in self.sidecars))


def each(settings: Settings) -> list[tuple[int | None, Settings]]:
    """The settings of every server, and its port where there are several."""
    if not settings.servers:
        return [(None, settings)]
    pairs = parse_servers(settings.servers)
    return [
        (
            target if len(pairs) > 1 else None,
            replace(settings, listen=f"[::]:{port}", upstream=f"http://127.0.0.1:{target}"),
        )
        for port, target in pairs
    ]


def known_ports(settings: Settings) -> frozenset[int]:
    """The ports of a pod that are the sidecar's own, or lead to it: MCP, their servers', admin."""
    ports = {port for pair in (parse_servers(settings.servers) if settings.servers else ()) for port in pair}
    for address in (settings.listen, settings.admin, settings.upstream.rstrip("/")):
        port = address.rpartition(":")[2].partition("/")[0]
        if port.isascii() and port.isdigit():
            ports.add(int(port))
    return frozenset(ports)


def _listed(sidecar: Sidecar) -> Callable[[str], bool]:
    return lambda name: sidecar.catalogue.get(name) is not None
