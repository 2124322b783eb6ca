"""The vocabulary of a decision: what is asked, what is known, and what comes out. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar, dataclass_transform

from toolpolicy.policy.model import Action, Category, Per, Risk

Arguments = Mapping[str, Any]
T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass that is frozen for the type checker alone.

    Freezing at run time takes 2 µs for a :class:`Decision`, as much as an expression. These are made for every call.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


@value
class Principal:
    """Who is calling. ``verified`` only for a JWT or a client certificate that was checked."""

    id: str
    kind: str = "Anonymous"
    """``ServiceAccount`` | ``JWT`` | ``Certificate`` | ``Credential`` | ``Address`` | ``Anonymous``.

    ``Credential`` is a keyed hash of an opaque Authorization.
    """
    verified: bool = False
    groups: tuple[str, ...] = ()
    service_account: str | None = None
    """``namespace/name`` of a verified Kubernetes ServiceAccount."""
    claims: Mapping[str, Any] = field(default_factory=dict[str, Any])


@value
class Call:
    """One judged request (DESIGN: ``tools/call`` and the other methods that start something).

    ``identities`` are all ids that count for ``per: Principal`` (a claimed identity never replaces the peer address);
    the first is ``principal.id``. ``session`` is None where the call has none. ``now`` is timezone-aware.
    """

    method: str
    principal: Principal
    now: datetime
    tool: str | None = None
    arguments: Arguments = field(default_factory=dict[str, Any])
    identities: tuple[str, ...] = ()
    session: str | None = None
    client: Mapping[str, str] = field(default_factory=dict[str, str])
    """``name`` and ``version`` of clientInfo: a label, never an identity."""
    server: Mapping[str, str] = field(default_factory=dict[str, str])
    """``name`` and ``namespace``: the owning workload, never a pod."""


@dataclass(frozen=True, slots=True)
class ToolInfo:
    """What the server says of one tool. ``annotations`` as in the MCP specification (``readOnlyHint``, …)."""

    name: str
    input_schema: Mapping[str, Any] | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Catalogue(Protocol):
    """The server's tools as last listed. A tool that is not in it is unknown, which is not the same as harmless."""

    def get(self, name: str) -> ToolInfo | None: ...


@dataclass(frozen=True, slots=True)
class RuleRef:
    """Names one rule (``rule`` None: the policy's default or a setting of it)."""

    kind: str
    namespace: str | None
    policy: str
    rule: str | None
    uid: str | None = None
    generation: int | None = None

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.policy}" if self.namespace else self.policy
        return f"{where}:{self.rule}" if self.rule else where


@value
class Demand:
    """One bucket that a call draws from. All enforced demands of a call are granted or none, each audited one alone."""

    bucket: tuple[str, ...]
    """(policy UID, rule, per, values …): stable across processes and reloads."""
    max: float
    window: float
    """Seconds."""
    cost: float
    """1 for a plain limit."""
    rule: RuleRef
    per: Per
    audit: bool = False


@value
class Shortage:
    """A demand that has no room now. ``retry_after`` is in seconds; None: never (the cost alone is above ``max``)."""

    demand: Demand
    retry_after: float | None


class Counters(Protocol):
    """Read side of the limits: which of these demands have no room at ``now`` (monotonic seconds)."""

    def shortages(self, demands: Sequence[Demand], now: float) -> Sequence[Shortage]: ...


@dataclass(frozen=True, slots=True)
class WouldDeny:
    """What an Audit policy or rule would have done. ``action`` is Deny or RequireApproval."""

    rule: RuleRef
    action: Action
    reason: str


@value
class Decision:
    """The outcome for one call.

    ``reason`` is written for the agent: what was refused, by which rule, what would be accepted. ``code`` is a stable
    word for logs and metrics (see :class:`Code`). ``needs_catalogue``: the answer depends on the server's catalogue,
    which does not know this tool; the caller may list once and ask again, and must otherwise treat the decision as
    the Deny that it is. ``demands`` must be granted by the state store before the call is forwarded.
    """

    action: Action
    code: str
    reason: str = ""
    rules: tuple[RuleRef, ...] = ()
    demands: tuple[Demand, ...] = ()
    would_deny: tuple[WouldDeny, ...] = ()
    category: Category | None = None
    risk: Risk | None = None
    retry_after: float | None = None
    needs_catalogue: bool = False
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """For ``_meta``: schema path and expected, expression, limit, … JSON values."""
    approval_ttl: float | None = None


class Code:
    """The stable words of :attr:`Decision.code`."""

    ALLOWED = "Allowed"
    NO_POLICY = "NoPolicy"
    DENIED_BY_RULE = "DeniedByRule"
    DENIED_BY_DEFAULT = "DeniedByDefault"
    VALIDATION_FAILED = "ValidationFailed"
    SCHEMA_FAILED = "SchemaFailed"
    EXPRESSION_ERROR = "ExpressionError"
    RATE_LIMITED = "RateLimited"
    APPROVAL_REQUIRED = "ApprovalRequired"
    APPROVAL_UNAVAILABLE = "ApprovalUnavailable"
    CATALOGUE_UNKNOWN = "CatalogueUnknown"
    STATE_UNAVAILABLE = "StateUnavailable"
    AUDIT_UNAVAILABLE = "AuditUnavailable"
    NO_RULES_YET = "NoRulesYet"
    INVALID_REQUEST = "InvalidRequest"
    FOREIGN_SESSION = "ForeignSession"
    OVERLOADED = "Overloaded"
