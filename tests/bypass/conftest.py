"""Servers, relays and sidecars that all vectors of a session share."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field

import pytest

from bypass.policies import POLICIES
from support import servers
from support.relay import Relay
from support.sidecar import Sidecar


@dataclass
class Range:
    """Starts each server, its relay and its sidecars when a vector first asks for them."""

    _stack: contextlib.ExitStack
    _servers: dict[str, servers.Server] = field(default_factory=dict[str, servers.Server])
    _relays: dict[str, Relay] = field(default_factory=dict[str, Relay])
    _sidecars: dict[tuple[str, str], Sidecar] = field(default_factory=dict[tuple[str, str], Sidecar])

    def server(self, kind: str) -> servers.Server:
        if kind not in self._servers:
            self._servers[kind] = self._stack.enter_context(servers.stack(kind))
        return self._servers[kind]

    def relay(self, kind: str) -> Relay:
        if kind not in self._relays:
            self._relays[kind] = self._stack.enter_context(Relay(self.server(kind).address))
        return self._relays[kind]

    def sidecar(self, kind: str, policy: str) -> Sidecar:
        if (kind, policy) not in self._sidecars:
            sidecar = Sidecar(POLICIES[policy], self.server(kind).url)
            self._sidecars[kind, policy] = self._stack.enter_context(sidecar)
        return self._sidecars[kind, policy]


@pytest.fixture(scope="session")
def shooting_range() -> Generator[Range]:
    with contextlib.ExitStack() as stack:
        yield Range(stack)
