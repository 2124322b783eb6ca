"""The decision on a request's messages, step by step: evaluated, approved, counted, recorded; only then forwarded.

Every step answers at once where it can, so that a call usually passes within one turn of the event loop; a step that
has to wait (the server's catalogue, a remote store, a human) continues where it left off. The rules are those the case
was opened with: a swap in between changes nothing for it. Of a batch all items pass or none does.

Nothing is forwarded that was not recorded first, and nothing is refused without being told why.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Protocol, cast

from toolpolicy.mcp.catalogue import ToolCatalogue
from toolpolicy.mcp.envelope import Message
from toolpolicy.policy.decide import conclude, evaluate, without_approvals
from toolpolicy.policy.model import Action
from toolpolicy.policy.types import Call, Code, Decision, Demand, Shortage
from toolpolicy.sidecar.canonical import digest
from toolpolicy.sidecar.case import Case, Item
from toolpolicy.sidecar.interfaces import AuditEntry, AuditLog, Grant, Refused, StateStore, StateUnavailable
from toolpolicy.sidecar.metrics import Metrics


class Approvals(Protocol):
    """The seam for approvals: what becomes of a decision that needs one. Nothing is reserved yet."""

    def ask(self, call: Call, decision: Decision) -> Decision | Awaitable[Decision]: ...


class NoApprovals:
    """Nobody can approve here: such a call is denied, and told so."""

    def ask(self, call: Call, decision: Decision) -> Decision:
        return without_approvals(call, decision)


class Lister(Protocol):
    """Fetches the server's catalogue with the caller's own headers; True if a listing came."""

    def fetch(self, case: Case, message: Message) -> Awaitable[bool]: ...


class Telemetry(Protocol):
    """The seam for traces: called once for each judged message, with what was decided."""

    def decided(self, case: Case, item: Item) -> None: ...


class Verdict:
    """All items may pass (``grant`` holds what was reserved), or at least one is denied."""

    __slots__ = ("allowed", "grant", "items")

    def __init__(self, items: Sequence[Item], allowed: bool, grant: Grant | None = None) -> None:
        self.items = items
        self.allowed = allowed
        self.grant = grant


PASSES = Verdict((), True)
"""Nothing in the request is judged."""
_STATE_DOWN = (
    "The store that counts limits does not answer, so this call can't be counted and is denied. Try again later."
)
_AUDIT_DOWN = "The audit log can't be written, and no call may pass unrecorded. Try again later."


class Judge:
    """``local`` counts limits while the store is away, where a policy says ``onStateFailure: Local``."""

    def __init__(  # noqa: PLR0917 -- wired in one place, by app.py
        self,
        catalogue: ToolCatalogue,
        state: StateStore,
        audit: AuditLog,
        metrics: Metrics,
        lister: Lister,
        server: Mapping[str, str],
        *,
        local: Callable[[], StateStore],
        approvals: Approvals | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._state = state
        self._audit = audit
        self._metrics = metrics
        self._lister = lister
        self._server = server
        self._make_local = local
        self._local: StateStore | None = None
        self._approvals: Approvals = approvals or NoApprovals()
        self._telemetry = telemetry

    def judge(self, case: Case, messages: Sequence[Message]) -> Verdict | Awaitable[Verdict]:
        """Decide on the judged ones among ``messages``."""
        if len(messages) == 1:
            return self._judge_one(case, messages[0])
        now = datetime.now(UTC)
        items: list[Item] = []
        wanting: Message | None = None
        for message in messages:
            if message.judged:
                call = self._call(case, message, now)
                decision = evaluate(case.policies, call, self._catalogue)
                if decision.needs_catalogue:
                    wanting = message
                items.append(Item(message, call, decision))
        if not items:
            return PASSES
        if wanting is None:
            return self._approve(case, items)
        return self._list_first(case, items, wanting)

    def _judge_one(self, case: Case, message: Message) -> Verdict | Awaitable[Verdict]:
        """The same for a single message, which nearly every request is."""
        if not message.judged:
            return PASSES
        call = self._call(case, message, datetime.now(UTC))
        decision = evaluate(case.policies, call, self._catalogue)
        item = Item(message, call, decision)
        if decision.needs_catalogue:
            return self._list_first(case, [item], message)
        if decision.action is not Action.ALLOW:
            return self._approve(case, [item])
        return self._reserve(case, [item])

    def _call(self, case: Case, message: Message, now: datetime) -> Call:
        identity = case.identity
        return Call(
            message.method or "",
            identity.principal,
            now,
            message.tool,
            message.arguments,
            identity.identities,
            case.session,
            case.client,
            self._server,
        )

    async def _list_first(self, case: Case, items: list[Item], message: Message) -> Verdict:
        if await self._lister.fetch(case, message):
            for item in items:
                item.decision = evaluate(case.policies, item.call, self._catalogue)
        verdict = self._approve(case, items)
        return verdict if isinstance(verdict, Verdict) else await verdict

    def _approve(self, case: Case, items: list[Item]) -> Verdict | Awaitable[Verdict]:
        denied = False
        for item in items:
            action = item.decision.action
            if action is Action.REQUIRE_APPROVAL:
                asked = self._approvals.ask(item.call, item.decision)
                if not isinstance(asked, Decision):
                    return self._approve_later(case, items, item, asked)
                item.decision = asked
                denied = denied or asked.action is not Action.ALLOW
            elif action is Action.DENY:
                denied = True
        return self._denied(case, items) if denied else self._reserve(case, items)

    async def _approve_later(self, case: Case, items: list[Item], item: Item, asked: Awaitable[Decision]) -> Verdict:
        item.decision = await asked
        verdict = self._approve(case, items)
        return verdict if isinstance(verdict, Verdict) else await verdict

    # -- limits

    def _reserve(self, case: Case, items: list[Item]) -> Verdict | Awaitable[Verdict]:
        demands = items[0].decision.demands if len(items) == 1 else _together(items)
        if not demands:
            return self._record(case, items, None)
        try:
            found = self._state.reserve(demands)
        except StateUnavailable:
            return self._without_state(case, items, demands)
        if isinstance(found, Refused):
            return self._short(case, items, found.shortages)
        if isinstance(found, Awaitable):
            return self._reserve_later(case, items, demands, found)
        return self._granted(case, items, found)

    async def _reserve_later(
        self, case: Case, items: list[Item], demands: Sequence[Demand], found: Awaitable[Grant | Refused]
    ) -> Verdict:
        try:
            result = await found
        except StateUnavailable:
            return self._without_state(case, items, demands)
        if isinstance(result, Refused):
            return self._short(case, items, result.shortages)
        return self._granted(case, items, result)

    def _without_state(self, case: Case, items: list[Item], demands: Sequence[Demand]) -> Verdict:
        how = case.policies.on_state_failure
        if how == "Allow":
            return self._record(case, items, None)
        if how == "Local":
            if self._local is None:
                self._local = self._make_local()
            found = self._local.reserve(demands)
            if isinstance(found, Refused):
                return self._short(case, items, found.shortages)
            return self._granted(case, items, cast(Grant, found))
        return self._deny_all(case, items, Code.STATE_UNAVAILABLE, _STATE_DOWN)

    def _granted(self, case: Case, items: list[Item], grant: Grant) -> Verdict:
        if grant.audit_shortages:
            self._conclude(case, items, grant.audit_shortages)
        return self._record(case, items, grant)

    def _short(self, case: Case, items: list[Item], shortages: Sequence[Shortage]) -> Verdict:
        self._conclude(case, items, shortages)
        return self._denied(case, items)

    def _conclude(self, case: Case, items: list[Item], shortages: Sequence[Shortage]) -> None:
        for item in items:
            buckets = {demand.bucket for demand in item.decision.demands}
            own = [shortage for shortage in shortages if shortage.demand.bucket in buckets]
            item.decision = conclude(case.policies, item.call, item.decision, own)

    # -- the record

    def _record(self, case: Case, items: list[Item], grant: Grant | None) -> Verdict:
        for item in items:
            if not self._write(case, item, forwarded=True) and case.policies.on_audit_failure == "Deny":
                if grant is not None:
                    grant.release()
                return self._deny_all(case, items, Code.AUDIT_UNAVAILABLE, _AUDIT_DOWN)
        self._count(case, items)
        return Verdict(items, True, grant)

    def _denied(self, case: Case, items: list[Item]) -> Verdict:
        for item in items:
            self._write(case, item, forwarded=False)
        self._count(case, items)
        return Verdict(items, False)

    def _deny_all(self, case: Case, items: list[Item], code: str, reason: str) -> Verdict:
        for item in items:
            item.decision = replace(item.decision, action=Action.DENY, code=code, reason=reason, demands=())
        return self._denied(case, items)

    def _write(self, case: Case, item: Item, *, forwarded: bool) -> bool:
        message = item.message
        config = case.policies.audit
        full = config.arguments == "Full"
        arguments = item.call.arguments
        return self._audit.record(
            AuditEntry(
                item.decision,
                item.call.method,
                item.call.tool,
                message.id,
                item.call.principal,
                item.call.session,
                item.call.client,
                digest(arguments) if item.call.tool is not None else None,
                case.rules_revision,
                forwarded,
                arguments if full else None,
                config.redact if full else (),
                _NO_EXTRA if item.call.tool is not None else _extra(message),
            )
        )

    def refuse(self, case: Case, message: Message, code: str, reason: str) -> Verdict:
        """Deny a message that no rule was asked about: a foreign session or task, no rules yet."""
        call = Call(
            message.method or "", case.identity.principal, datetime.now(UTC), message.tool, session=case.session
        )
        return self._denied(case, [Item(message, call, Decision(Action.DENY, code, reason))])

    def _count(self, case: Case, items: list[Item]) -> None:
        metrics = self._metrics
        metrics.decision_seconds.observe(perf_counter() - case.started)
        for item in items:
            metrics.decided(item.call.method, item.call.tool, item.decision)
            if self._telemetry is not None:
                self._telemetry.decided(case, item)


_NO_EXTRA: Mapping[str, object] = {}


def _extra(message: Message) -> Mapping[str, object]:
    name = message.name
    return _NO_EXTRA if name is None else {"name": name[:256]}


def _together(items: Sequence[Item]) -> tuple[Demand, ...]:
    """The demands of a batch, those of one bucket summed: all are granted or none."""
    found: dict[tuple[tuple[str, ...], bool], Demand] = {}
    for item in items:
        for demand in item.decision.demands:
            key = (demand.bucket, demand.audit)
            before = found.get(key)
            found[key] = demand if before is None else replace(before, cost=before.cost + demand.cost)
    return tuple(found.values())
