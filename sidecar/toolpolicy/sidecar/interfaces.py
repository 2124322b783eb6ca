"""The seams of the sidecar: what the way of a call asks of identity, state, audit and rules.

Each is as narrow as its one caller needs, so that memory or Redis, a file or a ConfigMap, stdout or OTLP plug in
behind it. A method typed ``T | Awaitable[T]`` answers at once where it can: the hot path then never yields to the
event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from toolpolicy.policy.types import Decision, Demand, Principal, Shortage, value

RawHeaders = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a downstream connection. ``certificate`` is the verified client certificate (DER) or None."""

    address: str
    certificate: bytes | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """``identities`` are all ids that count for limits, ``principal.id`` first (see ``policy.types.Call``)."""

    principal: Principal
    identities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IdentityRefused:
    """A credential that was presented and is not valid: HTTP ``status`` (401) and the reason."""

    status: int
    reason: str
    www_authenticate: str = "Bearer"


class Identifier(Protocol):
    def identify(
        self, peer: Peer, headers: RawHeaders
    ) -> Identity | IdentityRefused | Awaitable[Identity | IdentityRefused]: ...


class Grant(Protocol):
    """Demands that were reserved together."""

    audit_shortages: Sequence[Shortage]
    """Audited demands that had no room (they are recorded, never refused)."""

    def release(self) -> None:
        """Give back, only when the request was never fully written upstream."""
        ...


@dataclass(frozen=True, slots=True)
class Refused:
    """No enforced demand was reserved: these had no room."""

    shortages: Sequence[Shortage]


class StateUnavailable(Exception):
    """The store did not answer; ``onStateFailure`` decides."""


class StateStore(Protocol):
    def reserve(self, demands: Sequence[Demand]) -> Grant | Refused | Awaitable[Grant | Refused]: ...

    def size(self) -> int:
        """Live buckets, for the metric."""
        ...

    async def close(self) -> None: ...


@value
class AuditEntry:
    """One decision. ``arguments`` is given only where a policy asks for it, else only the digest is recorded."""

    decision: Decision
    method: str
    tool: str | None
    request_id: str | int | None
    principal: Principal
    session: str | None
    client: Mapping[str, str]
    arguments_digest: str | None
    revision: str
    """Of the rules."""
    forwarded: bool
    arguments: Mapping[str, Any] | None = None
    redact: Sequence[str] = ()
    """JSON pointers into ``arguments`` (``spec.audit.redact``)."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


class AuditLog(Protocol):
    def record(self, entry: AuditEntry) -> bool:
        """True once the line is with the operating system; False if it could not be (``onAuditFailure`` decides)."""
        ...

    def close(self) -> None: ...


class RuleSource(Protocol):
    """Where compiled rules come from. ``current`` is None before the first good set: then everything is denied."""

    current: Any
    """``rules.RuleSet | None``; swapped atomically."""

    def subscribe(self, changed: Callable[[], None]) -> None: ...
