"""What is known of one request on its way through the gate, and the step from a value that may have to be awaited to
the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from toolpolicy.mcp.envelope import Message
from toolpolicy.mcp.paths import Route
from toolpolicy.policy.types import Call, Decision
from toolpolicy.sidecar.canonical import digest
from toolpolicy.sidecar.interfaces import AuditEntry, Identity
from toolpolicy.sidecar.lens import Caller, Lens, Sight
from toolpolicy.sidecar.rules import RuleSet
from toolpolicy.sidecar.sessions import Owner

if TYPE_CHECKING:
    from toolpolicy.sidecar.requests import Request

T = TypeVar("T")
U = TypeVar("U")

MAX_LABEL = 128
"""Characters kept of a client's name and version."""
MAX_SESSION = 128
"""Characters of a session id that are kept as they are; a longer one counts by its digest."""
NO_CLIENT: Mapping[str, str] = {}


class Case:
    """``session_id`` is the server's own, ``session`` the one that counts for policies (a configured header or
    ``_meta`` key).
    """

    __slots__ = (
        "client", "identity", "owner", "policies", "request", "revision", "route", "rules_revision", "session",
        "session_id", "sight", "started",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 -- made in one place, for each call
        self,
        request: Request,
        route: Route,
        rules: RuleSet,
        identity: Identity,
        started: float,
        sight: Sight,
    ) -> None:
        self.request = request
        self.route = route
        self.policies = rules.policies
        self.rules_revision = rules.revision
        self.sight = sight
        self.identity = identity
        self.started = started
        self.session_id: str | None = None
        self.session: str | None = None
        self.revision: str | None = None
        self.owner: Owner | None = None
        self.client = NO_CLIENT

    def lens(self) -> Lens:
        """How the answer is looked at."""
        return Lens(self.sight, self.caller())

    def caller(self) -> Caller:
        """For whom the answer is."""
        return Caller(self.identity, self.session, self.client)


class Item:
    """One judged message of a request (of a batch there are several)."""

    __slots__ = ("call", "decision", "message")

    def __init__(self, message: Message, call: Call, decision: Decision) -> None:
        self.message = message
        self.call = call
        self.decision = decision


def then(
    value: T | Awaitable[T], step: Callable[[T], U | Awaitable[U]], kinds: type | tuple[type, ...]
) -> U | Awaitable[U]:
    """``step`` of a value that is there (an instance of ``kinds``), at once; of one that has to be awaited, later."""
    if isinstance(value, kinds):
        return step(cast(T, value))
    return _later(cast("Awaitable[T]", value), step)


async def _later(value: Awaitable[T], step: Callable[[T], U | Awaitable[U]]) -> U:
    found = step(await value)
    return await cast("Awaitable[U]", found) if isinstance(found, Awaitable) else found


def bounded_session(value: bytes) -> str:
    """A session id as a key: long ones as their digest, so that nobody fills memory with them."""
    if len(value) <= MAX_SESSION:
        return value.decode("latin-1")
    return "sha256:" + hashlib.sha256(value).hexdigest()


def client_label(info: Mapping[str, Any]) -> Mapping[str, str]:
    """``name`` and ``version`` of clientInfo, cut to what a label may hold."""
    found = {key: value[:MAX_LABEL] for key in ("name", "version") if isinstance(value := info.get(key), str)}
    return found or NO_CLIENT


def unjudged(request: Request, route: Route, who: Identity, decision: Decision, message: Message | None) -> AuditEntry:
    """The record of a request that came before any rules. None of them asks for arguments: their digest is kept."""
    tool = message.tool if message is not None else None
    return AuditEntry(
        decision,
        (message.method if message is not None else None) or f"HTTP {request.method}",
        tool,
        message.id if message is not None else None,
        who.principal,
        None,
        NO_CLIENT,
        digest(message.arguments) if message is not None and tool is not None else None,
        "",
        forwarded=False,
        extra={} if tool is not None else {"path": route.path[:256]},
    )
