"""What becomes of a request, before and around the decision: where it goes, who sent it, whose session it is, and the
answer.

From cheap to dear: the path, the headers, the caller, the body, the session, then the judge. A request that is no call
(a stream, the end of a session, a discovery document) is checked the same way and forwarded.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from time import monotonic, perf_counter
from typing import Any, Final, Protocol, cast

from toolpolicy.mcp import answers, methods
from toolpolicy.mcp.envelope import INVALID_REQUEST, EnvelopeError, Kind, Message, parse
from toolpolicy.mcp.headers import HeaderFault, accepts_json, verify
from toolpolicy.mcp.paths import Route, RouteKind, Routes
from toolpolicy.mcp.revisions import batch_allowed, has_sessions
from toolpolicy.policy.model import Action
from toolpolicy.policy.types import Call, Code, Decision
from toolpolicy.sidecar.case import Case, bounded_session, client_label, then, unjudged
from toolpolicy.sidecar.exchange import Exchange, Order
from toolpolicy.sidecar.head import forwarded_head, with_body
from toolpolicy.sidecar.interfaces import AuditEntry, AuditLog, Identifier, Identity, IdentityRefused
from toolpolicy.sidecar.judge import Judge
from toolpolicy.sidecar.judge import Verdict as Judgement
from toolpolicy.sidecar.lens import Caller, Sight
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.requests import Dispatch, Request, Verdict
from toolpolicy.sidecar.rules import RuleSet
from toolpolicy.sidecar.sessions import Owners
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.wiring import Answer

META_SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_NOT_FOUND: Final = RouteKind.NOT_FOUND
_LEGACY: Final = RouteKind.LEGACY_MESSAGE
_DISCOVERY: Final = RouteKind.DISCOVERY
_PASS_THROUGH: Final = RouteKind.PASS_THROUGH
_IDENTITY = (Identity, IdentityRefused)
_NO_RULES = "No valid set of policies is loaded yet, so every call is denied. Try again shortly."
_FOREIGN_SESSION = "This session belongs to another caller. Open a session of your own with initialize."
_FOREIGN_TASK = "This task belongs to another caller."


class Legacy(Protocol):
    """The HTTP+SSE transport of 2024-11-05: answers to posted messages arrive on the stream that announced the path."""

    def announced(self, exchange: Exchange, caller: Caller, data: bytes) -> bytes | None: ...

    def heard(self, exchange: Exchange, data: bytes) -> None: ...

    def asked(self, target: str, ids: Iterable[int | str | None]) -> None: ...

    def deliver(self, target: str, event: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the gate works with. ``host`` replaces the Host header (None: it is preserved)."""

    settings: Settings
    judge: Judge
    identifier: Identifier
    audit: AuditLog
    metrics: Metrics
    sight: Sight
    sessions: Owners
    legacy: Legacy
    host: bytes | None = None


class Gate:
    """``rules.current`` and ``routes`` are read once per request; both are swapped when the rules change."""

    def __init__(self, parts: Parts, routes: Routes) -> None:
        self.routes = routes
        self._parts = parts
        self._max_depth = parts.settings.max_depth
        self._max_values = parts.settings.max_values
        self._identifier = parts.identifier
        self._judge = parts.judge
        self._rules = parts.sight.rules
        self._sessions = parts.sessions
        self._sight = parts.sight

    def take(self, request: Request) -> Verdict | Awaitable[Verdict]:
        """The verdict on one request: an answer of ours, or what to send upstream."""
        started = perf_counter()
        head = request.head
        route = self.routes.route(head.method, head.target)
        if route.kind is _NOT_FOUND:
            where = " and ".join(self.routes.mcp)
            return self.refuse("path", 404, f"there is nothing at this path; MCP is served at {where} exactly")
        if request.body is not None and head.method in _BODILESS:
            return self.refuse("body", 400, f"{head.method} takes no body", close=True)
        found = self._identifier.identify(request.peer, head.telling)
        if type(found) is Identity:
            return self._identified(request, route, started, found)
        return then(found, partial(self._identified, request, route, started), _IDENTITY)

    def refuse(
        self, word: str, status: int, text: str, *, close: bool = False, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Answer:
        """A request that is refused before it is a call. ``word`` is for the metric."""
        self._parts.metrics.refused(word)
        return Answer(status, answers.http_error(INVALID_REQUEST, text), headers=headers, close=close)

    def _identified(
        self, request: Request, route: Route, started: float, who: Identity | IdentityRefused
    ) -> Verdict | Awaitable[Verdict]:
        if type(who) is not Identity:
            assert isinstance(who, IdentityRefused)
            challenge = ((b"WWW-Authenticate", who.www_authenticate.encode("latin-1", "replace")),)
            return self.refuse("credential", who.status, who.reason, headers=challenge if who.status == 401 else ())
        rules = cast("RuleSet | None", self._rules.current)
        if rules is None:
            return self._before_rules(request, route, who)
        case = Case(request, route, rules, who, started, self._sight)
        if route.kind is _DISCOVERY or route.kind is _PASS_THROUGH:
            return self._pass_through(case)
        method = request.head.method
        if method == "POST":
            return self._post(case)
        if method in _BODILESS:
            return self._bodiless(case)
        allow = ((b"Allow", b"GET, POST, DELETE, OPTIONS, HEAD"),)
        return self.refuse("method", 405, f"{method} is no method of MCP", headers=allow, close=True)

    def _before_rules(self, request: Request, route: Route, who: Identity) -> Answer:
        message: Message | tuple[Message, ...] | None = None
        if request.method == "POST" and request.body and route.kind is not RouteKind.PASS_THROUGH:
            try:
                message = parse(request.body, max_depth=self._max_depth, max_values=self._max_values)
            except EnvelopeError as error:
                return Answer(error.status, answers.parse_error(error))
        self._parts.metrics.refused("no-rules")
        decision = Decision(Action.DENY, Code.NO_RULES_YET, _NO_RULES)
        single = message if isinstance(message, Message) else None
        self._parts.audit.record(unjudged(request, route, who, decision, single))
        if single is not None and single.kind is Kind.REQUEST:
            return self._spoken(request, answers.denial(single, decision))
        return Answer(503, answers.http_error(answers.DENIED, _NO_RULES), headers=((b"Retry-After", b"1"),))

    # -- POST

    def _post(self, case: Case) -> Verdict | Awaitable[Verdict]:
        request = case.request
        head = request.head
        fault = head.content_fault
        if fault is not None:
            return self._faulty(case, fault, None)
        try:
            message = parse(request.body or b"", max_depth=self._max_depth, max_values=self._max_values)
        except EnvelopeError as error:
            self._invalid(case, error.message)
            return Answer(error.status, answers.parse_error(error))
        if case.route.kind is _LEGACY:
            case.session_id = bounded_session(case.route.target.encode())
        else:
            case.session_id = head.session
        if type(message) is Message:
            single: Message = message
            case.revision = head.version or single.protocol_version
            tool = single.tool
            declared = self._sight.catalogue.declared(tool) if tool is not None else None
            fault = verify(single, head.telling, case.revision, declared)
            messages: tuple[Message, ...] = (single,)
        else:
            messages = cast("tuple[Message, ...]", message)
            case.revision = head.version
            fault = verify(messages, head.telling, case.revision) or self._batch_fault(case, messages)
        if fault is not None:
            return self._faulty(case, fault, message)
        self._bind(case, messages)
        if case.identity.principal.verified and (foreign := self._foreign(case, messages)) is not None:
            return foreign
        judgement = self._judge.judge(case, messages)
        if type(judgement) is Judgement:
            return self._concluded(case, messages, judgement)
        return then(judgement, partial(self._concluded, case, messages), Judgement)

    def _batch_fault(self, case: Case, messages: Sequence[Message]) -> HeaderFault | None:
        if not batch_allowed(case.revision) or any(m.protocol_version not in (None, case.revision) for m in messages):
            return HeaderFault(400, INVALID_REQUEST, "this revision has no batches: send the messages one by one")
        if len(messages) > self._parts.settings.max_batch:
            return HeaderFault(
                400, INVALID_REQUEST, f"a batch may hold {self._parts.settings.max_batch} messages: send fewer"
            )
        return None

    def _bind(self, case: Case, messages: Sequence[Message]) -> None:
        """Which session counts, and what the client calls itself."""
        session = case.session_id if case.session_id is None or has_sessions(case.revision) else None
        source = case.policies.session_source
        if source is not None:
            stated: str | None = None
            if source.header is not None:
                wanted = source.header.lower().encode()
                found = [value for name, value in case.request.headers if name.lower() == wanted]
                stated = bounded_session(found[0]) if len(found) == 1 and found[0] else None
            elif source.meta_key is not None:
                value = messages[0].meta.get(source.meta_key)
                stated = bounded_session(value.encode("utf-8", "replace")) if isinstance(value, str) and value else None
            session = stated or session
        case.session = session
        info = messages[0].client_info
        if info:
            case.client = client_label(info)
        elif case.session_id is not None:
            owner = case.owner = self._sessions.owner(case.session_id, monotonic())
            if owner is not None:
                case.client = owner.client

    def _foreign(self, case: Case, messages: Sequence[Message]) -> Verdict | None:
        principal = case.identity.principal
        now = monotonic()
        reason: str | None = None
        if case.session_id is not None and self._parts.sessions.foreign(case.session_id, principal, now):
            reason = _FOREIGN_SESSION
        for message in messages:
            if any(self._parts.sight.tasks.foreign(task, principal, now) for task in message.task_ids):
                reason = reason or _FOREIGN_TASK
        if reason is None:
            return None
        for message in messages:
            if message.kind is Kind.REQUEST:
                judgement = self._judge.refuse(case, message, Code.FOREIGN_SESSION, reason)
                return self._concluded(case, messages, judgement)
        self._parts.metrics.refused("foreign-session")
        return Answer(403, answers.http_error(answers.DENIED, reason))

    def _concluded(self, case: Case, messages: Sequence[Message], judgement: Judgement) -> Verdict:
        if judgement.allowed:
            return self._dispatch(case, messages, judgement)
        denied = {id(item.message): item.decision for item in judgement.items}
        if len(messages) == 1:
            return self._tell(case, answers.denial(messages[0], judgement.items[0].decision))
        bodies: list[bytes] = []
        for message in messages:
            decision = denied.get(id(message))
            if message.kind is not Kind.REQUEST:
                continue
            if decision is not None and decision.action is Action.DENY:
                bodies.append(answers.denial(message, decision))
            else:
                text = "Not executed: another call of the same batch was refused. Send the allowed ones by themselves."
                bodies.append(answers.refusal(message, text, {"action": "Deny", "code": "BatchRefused"}))
        return self._tell(case, b"[" + b",".join(bodies) + b"]")

    def _tell(self, case: Case, body: bytes) -> Answer:
        """The answer to a denied request, where its client looks for it."""
        if case.route.kind is _LEGACY:
            if self._parts.legacy.deliver(case.route.target, answers.as_sse(body)):
                return Answer(202, b"Accepted", b"text/plain")
            return Answer(404, answers.http_error(INVALID_REQUEST, "the event stream of this message path is gone"))
        return self._spoken(case.request, body)

    def _spoken(self, request: Request, body: bytes) -> Answer:
        if accepts_json(request.headers):
            return Answer(200, body)
        return Answer(200, answers.as_sse(body), answers.EVENT_TYPE)

    def _dispatch(self, case: Case, messages: Sequence[Message], judgement: Judgement) -> Dispatch:
        request = case.request
        body = request.body or b""
        message = messages[0]
        parts = self._parts
        head = request.head.forwarded if parts.host is None else self._forwarded(case, encodings=False)
        order = Order(case.lens, judgement.grant, message.id)
        method = message.method
        if method != methods.CALL or len(messages) > 1:
            order.whole = any(m.method == methods.LISTING for m in messages)
        if case.identity.principal.verified and b"task" in body:
            order.whole = True
        if case.route.kind is _LEGACY:
            parts.legacy.asked(case.route.target, (m.id for m in messages if m.kind is Kind.REQUEST))
        if case.session_id is None:
            if method == "initialize":
                order.taken = partial(self._opened, case)
        elif case.owner is None:
            order.taken = partial(self._shown, case)
        patient = method == "subscriptions/listen"
        if patient:
            order.news = _news_for(message)
            order.stream = True
        return Dispatch(with_body(head, body), order, patient=patient)

    def _forwarded(self, case: Case, *, encodings: bool) -> bytes:
        head = case.request.head
        return forwarded_head(head.method, case.route.target, head.headers, host=self._parts.host, encodings=encodings)

    def _opened(self, case: Case, session: str | None) -> None:
        if session is not None:
            key = bounded_session(session.encode("latin-1"))
            self._parts.sessions.bind(key, case.identity.principal, monotonic(), case.client)

    def _shown(self, case: Case, _: str | None) -> None:
        self._opened(case, case.session_id)

    # -- everything else

    def _bodiless(self, case: Case) -> Verdict:
        request = case.request
        fault = verify((), request.headers)
        if fault is not None:
            return self._faulty(case, fault, None)
        now = monotonic()
        session = case.session_id = request.head.session
        if session is not None and self._parts.sessions.foreign(session, case.identity.principal, now):
            return self.refuse("foreign-session", 404, _FOREIGN_SESSION)
        case.session = session
        if session is not None and (owner := self._parts.sessions.owner(session, now)) is not None:
            case.client = owner.client
        caller = case.caller()
        stream = request.method == "GET"
        order = Order(case.lens)
        if stream:
            order.whole = order.stream = True
            order.news = _NEWS
            order.heard = self._parts.legacy.heard
            order.endpoint = lambda exchange, data: self._parts.legacy.announced(exchange, caller, data)
        elif request.method == "DELETE" and session is not None:
            order.taken = lambda _: self._parts.sessions.end(session)
        return self._send(case, order, encodings=False)

    def _pass_through(self, case: Case) -> Verdict:
        """Unjudged, audited, forwarded: discovery documents and the paths that a policy names."""
        fault = verify((), case.request.headers)
        if fault is not None:
            return self._faulty(case, fault, None)
        kind = "Discovery" if case.route.kind is RouteKind.DISCOVERY else "PassThrough"
        decision = Decision(Action.ALLOW, kind)
        if not self._note(case, decision, forwarded=True) and case.policies.on_audit_failure == "Deny":
            return self.refuse("audit", 503, "the audit log can't be written, and nothing may pass unrecorded")
        return self._send(case, Order(case.lens), encodings=True)

    def _send(self, case: Case, order: Order, *, encodings: bool) -> Dispatch:
        method = case.request.method
        return Dispatch(
            with_body(self._forwarded(case, encodings=encodings), case.request.body),
            order,
            idempotent=method in _BODILESS,
            head_only=method == "HEAD",
            patient=order.stream,
        )

    # -- refusals

    def _faulty(self, case: Case, fault: HeaderFault, message: Message | tuple[Message, ...] | None) -> Answer:
        self._invalid(case, fault.message)
        return Answer(fault.status, answers.header_error(fault, message))

    def _invalid(self, case: Case, reason: str) -> None:
        """A request that can't be a call is recorded like a denied one: it may have been meant as a bypass."""
        self._parts.metrics.refused("invalid")
        self._note(case, Decision(Action.DENY, Code.INVALID_REQUEST, reason), forwarded=False)

    def _note(self, case: Case, decision: Decision, *, forwarded: bool) -> bool:
        request = case.request
        call = Call(request.method, case.identity.principal, datetime.now(UTC))
        return self._parts.audit.record(
            AuditEntry(
                decision,
                f"HTTP {request.method}",
                None,
                None,
                call.principal,
                case.session,
                case.client,
                None,
                case.rules_revision,
                forwarded,
                extra={"path": case.route.path[:256]},
            )
        )


_NEWS = answers.as_sse(b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}')


def _news_for(message: Message) -> bytes | None:
    """What a ``subscriptions/listen`` stream (2026-07-28) is told of a changed list, if it asked to be."""
    wanted = (message.params or {}).get("notifications")
    if not isinstance(wanted, dict) or cast(dict[str, Any], wanted).get("toolsListChanged") is not True:
        return None
    params = {"_meta": {META_SUBSCRIPTION: message.id}}
    text = json.dumps({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": params})
    return answers.as_sse(text.encode())
