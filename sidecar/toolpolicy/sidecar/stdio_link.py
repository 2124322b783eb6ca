"""The way of messages between one server process and the HTTP exchanges that wait for it.

Every request gets an id (and a progress token) of ours on its way in, and its own back on the way out, so that clients
of one process never meet. stdio says nothing about what a message of the server's own belongs to. The rule: to the
newest open GET stream of the session, else to its oldest open POST, else it is kept (bounded) for the next GET stream.
Where several sessions share a process such a message could belong to anyone: only the change notices of lists and of
resources that a session subscribed to are passed on, and the server's requests are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Final

from toolpolicy.sidecar.stdio_child import Child, Log, StdioError
from toolpolicy.sidecar.stdio_frames import (
    ASKED_TOKEN,
    CANCELLED_ID,
    ID,
    SUBSCRIPTION_KEY,
    SUBSCRIPTION_PATHS,
    TOLD_TOKEN,
    Frame,
    FrameError,
    RequestId,
    Shape,
    as_id,
    error_text,
    one_line,
    parse,
    result_text,
)
from toolpolicy.sidecar.stdio_streams import PARKED_MESSAGES, Bounds, Exchange, Session

GONE: Final = -32000
"""JSON-RPC code for a call whose server process ended before it answered (the range left to implementations)."""
_REMEMBERED_TOKENS: Final = 1024


@dataclass(slots=True, eq=False)
class Pending:
    """A request the process has not answered. ``id_text`` and ``token_text`` are what the client wrote, as JSON
    text."""

    exchange: Exchange
    id: RequestId
    id_text: str
    token_text: str | None
    initializes: asyncio.Future[str] | None = None


class Link:
    """A process and everyone who waits for it. ``run`` must be running as a task."""

    def __init__(self, child: Child, log: Log, bounds: Bounds, *, shared: bool) -> None:
        self.child = child
        self.shared = shared
        self.sessions: set[Session] = set()
        self.pending: dict[int, Pending] = {}
        self.used = asyncio.get_running_loop().time()
        self.retired = False
        """Ended because it is not needed any more: no news for the log."""
        self.probed = True
        """Nothing but refused ``server/discover`` probes went through it: it can still be anyone's."""
        self._log = log
        self._bounds = bounds
        self._next = 0
        self._tokens: OrderedDict[int, tuple[Session, str]] = OrderedDict()
        self._initialized: asyncio.Future[str] | None = None
        self._told_initialized = False
        self._late: set[asyncio.Task[None]] = set()

    # -- towards the process -------------------------------------------------------------------------------------------

    async def ask(self, frame: Frame, exchange: Exchange) -> None:
        """Pass a request on. Raises StdioError if the process is gone; its answer comes through ``exchange``."""
        assert frame.id is not None
        self._touch(exchange.session)
        if len(self.pending) >= self._bounds.in_flight:
            raise StdioError(
                f"the MCP server process already has {len(self.pending)} unanswered requests; try again later"
            )
        self.probed = self.probed and frame.method == "server/discover"
        if self.shared and await self._answered_here(frame, exchange):
            return
        self._next += 1
        number = self._next
        token = frame.raw(ASKED_TOKEN)
        pending = Pending(exchange, frame.id, frame.raw(ID) or "null", token)
        changes = {ID: str(number)}
        if token is not None:
            changes[ASKED_TOKEN] = str(number)
            if exchange.session is not None:
                self._remember(number, exchange.session, token)
        if self.shared and frame.method == "initialize":
            self._initialized = pending.initializes = asyncio.get_running_loop().create_future()
            # the process has one client, us: what its many clients can do for it cannot be told apart
            changes["params", "capabilities"] = "{}"
        self.pending[number] = pending
        exchange.open.add(number)
        try:
            await self.child.send(one_line(frame.replaced(changes)))
        except StdioError:
            self._forget(number)
            raise

    async def _answered_here(self, frame: Frame, exchange: Exchange) -> bool:
        """What a shared process has been asked before, or may not be asked again."""
        id_text = frame.raw(ID) or "null"
        if frame.method == "initialize" and self._initialized is not None:
            result = await asyncio.shield(self._initialized)
            if result:
                self.reply(exchange, result_text(id_text, result))
                return True
        uri = frame.params.get("uri")
        if exchange.session is None or not isinstance(uri, str):
            return False
        if frame.method == "resources/subscribe":
            exchange.session.resources.add(uri)
        elif frame.method == "resources/unsubscribe":
            exchange.session.resources.discard(uri)
            if any(uri in other.resources for other in self.sessions):
                self.reply(exchange, result_text(id_text, "{}"))
                return True
        return False

    def reply(self, exchange: Exchange, text: str) -> None:
        """Answer in the server's place."""
        exchange.answered = True
        exchange.outbox.force(text)
        if not exchange.open:
            exchange.outbox.close()

    async def tell(self, frame: Frame, session: Session) -> None:
        """Pass on a notification, or the answer to a request of the server. Raises StdioError if the process is
        gone."""
        self._touch(session)
        if frame.shape is Shape.RESPONSE:
            if frame.id is None or frame.id not in session.asked_by_server:
                return
            session.asked_by_server.discard(frame.id)
            await self.child.send(one_line(frame.text))
            return
        text = frame.text
        if frame.method == "notifications/cancelled":
            wanted = as_id(frame.value(CANCELLED_ID))
            number = self._number_of(session, wanted)
            if number is None:
                return
            text = frame.replaced({CANCELLED_ID: str(number)})
            self._later(self._close_cancelled(number))
        elif frame.method == "notifications/initialized" and self.shared:
            if self._told_initialized:
                return
            self._told_initialized = True
        await self.child.send(one_line(text))

    def abandon(self, exchange: Exchange, *, cancel: bool) -> None:
        """The client of ``exchange`` is gone or done. ``cancel``: tell the process to stop working on what is open."""
        for number in list(exchange.open):
            self._forget(number)
            if cancel:
                params = f'{{"requestId":{number},"reason":"the client disconnected"}}'
                self._say(f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}')
        exchange.outbox.close()
        if exchange.session is not None and exchange in exchange.session.exchanges:
            exchange.session.exchanges.remove(exchange)
        self._touch(exchange.session)

    def fail(self, reason: str) -> None:
        """The process is gone: everything open is answered with ``reason``, every stream ends."""
        for number, pending in list(self.pending.items()):
            self._forget(number)
            self.reply(pending.exchange, error_text(pending.id_text, GONE, reason))
        for session in self.sessions:
            for stream in session.streams:
                stream.close()
        for task in self._late:
            task.cancel()

    # -- from the process ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read the process to its end, stop it, and fail what is open."""
        async for line in self.child.lines():
            try:
                frames, _ = parse(line)
                for frame in frames:
                    await self._route(frame)
            except FrameError as error:
                shown = line[:200].decode("utf-8", "backslashreplace").strip()
                self._log(f"[mcp-server {self.child.pid}] ignored a line on stdout, {error}: {shown!r}")
        await self.child.stop()
        self.fail(self.child.epitaph())

    async def _route(self, frame: Frame) -> None:
        if frame.shape is Shape.RESPONSE:
            await self._answer(frame)
        elif frame.method == "notifications/progress":
            await self._progress(frame)
        elif (subscription := self._subscription(frame)) is not None:
            text = self._with_own_ids(frame, subscription)
            await subscription.exchange.outbox.put(text, self._patience)
        elif self.shared:
            await self._unsolicited_shared(frame)
        elif len(self.sessions) == 1:
            await self._unsolicited(frame, next(iter(self.sessions)))
        else:
            await self._unsolicited_stateless(frame)

    async def _answer(self, frame: Frame) -> None:
        number = frame.id
        pending = self.pending.get(number) if isinstance(number, int) else None
        if not isinstance(number, int) or pending is None:
            return  # the answer to something cancelled or abandoned
        if pending.initializes is not None:
            pending.initializes.set_result(frame.raw(("result",)) or "")
            if "error" in frame.top:
                self._initialized = None
        self.probed = self.probed and "error" in frame.top
        pending.exchange.answered = True
        await pending.exchange.outbox.put(self._with_own_ids(frame, pending, {ID: pending.id_text}), self._patience)
        self._forget(number)
        if not pending.exchange.open:
            pending.exchange.outbox.close()

    async def _progress(self, frame: Frame) -> None:
        number = frame.value(TOLD_TOKEN)
        if not isinstance(number, int):
            return
        pending = self.pending.get(number)
        if pending is not None and pending.token_text is not None and pending.exchange.streams:
            await pending.exchange.outbox.put(
                one_line(frame.replaced({TOLD_TOKEN: pending.token_text})), self._patience
            )
        elif pending is None and number in self._tokens:
            # a task goes on after its request was answered
            session, token = self._tokens[number]
            await self._unsolicited(Frame.of(frame.replaced({TOLD_TOKEN: token})), session)

    def _subscription(self, frame: Frame) -> Pending | None:
        if SUBSCRIPTION_KEY not in frame.text:
            return None
        number = frame.value(SUBSCRIPTION_PATHS[0])
        return self.pending.get(number) if isinstance(number, int) else None

    def _with_own_ids(self, frame: Frame, pending: Pending, changes: dict[tuple[str, ...], str] | None = None) -> str:
        changes = changes or {}
        if SUBSCRIPTION_KEY in frame.text:
            changes |= dict.fromkeys(SUBSCRIPTION_PATHS, pending.id_text)
        return one_line(frame.replaced(changes))

    async def _unsolicited(self, frame: Frame, session: Session) -> None:
        """A message of the server's own for its only client."""
        if frame.shape is Shape.REQUEST and frame.id is not None:
            if len(session.asked_by_server) >= self._bounds.in_flight:
                self._refuse(frame, "too many requests are waiting for the client")
                return
            session.asked_by_server.add(frame.id)
        text = one_line(frame.text)
        exchanges = [exchange.outbox for exchange in session.exchanges if exchange.streams and exchange.open]
        for outbox in [*reversed(session.streams), *exchanges]:
            if await outbox.put(text, self._patience):
                return
        if len(session.parked) == PARKED_MESSAGES:
            self._refuse(session.parked.popleft(), "the client opened no stream to receive requests")
        session.parked.append(Frame.of(text))

    async def _unsolicited_shared(self, frame: Frame) -> None:
        if frame.shape is Shape.REQUEST:
            self._refuse(frame, "several clients share this process, so none can be asked")
            return
        if frame.method == "notifications/resources/updated":
            uri = frame.params.get("uri")
            audience = [session for session in self.sessions if uri in session.resources]
        elif frame.method.endswith("/list_changed") or len(self.sessions) == 1:
            audience = list(self.sessions)
        else:
            audience = []
        for session in audience:
            await self._unsolicited(frame, session)

    async def _unsolicited_stateless(self, frame: Frame) -> None:
        """Without sessions only the one open exchange can be meant; a server may not ask its client anything."""
        if frame.shape is Shape.REQUEST:
            self._refuse(frame, "a client without a session cannot be asked")
            return
        exchanges = {id(pending.exchange): pending.exchange for pending in self.pending.values()}
        if len(exchanges) == 1:
            exchange = next(iter(exchanges.values()))
            if exchange.streams:
                await exchange.outbox.put(one_line(frame.text), self._patience)

    def _refuse(self, frame: Frame, why: str) -> None:
        if frame.shape is not Shape.REQUEST:
            return
        id_text = frame.raw(ID) or "null"
        if frame.method == "ping":
            self._say(result_text(id_text, "{}"))
        else:
            self._say(error_text(id_text, -32601, f"{frame.method}: {why}"))

    def _say(self, text: str) -> None:
        """Something of ours to the process, if it still listens."""
        with contextlib.suppress(StdioError):
            self.child.send_soon(text)

    # -- bookkeeping ---------------------------------------------------------------------------------------------------

    @property
    def _patience(self) -> float:
        return 0.0 if self.shared or not self.sessions else self._bounds.stall_seconds

    def _touch(self, session: Session | None) -> None:
        self.used = asyncio.get_running_loop().time()
        if session is not None:
            session.used = self.used

    def _remember(self, number: int, session: Session, token: str) -> None:
        self._tokens[number] = (session, token)
        while len(self._tokens) > _REMEMBERED_TOKENS:
            self._tokens.popitem(last=False)

    def _number_of(self, session: Session, wanted: RequestId | None) -> int | None:
        for number, pending in self.pending.items():
            if pending.exchange.session is session and pending.id == wanted and wanted is not None:
                return number
        return None

    def _forget(self, number: int) -> None:
        pending = self.pending.pop(number, None)
        if pending is None:
            return
        pending.exchange.open.discard(number)
        if pending.initializes is not None and not pending.initializes.done():
            pending.initializes.set_result("")
            self._initialized = None

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _close_cancelled(self, number: int) -> None:
        """Many servers never answer a cancelled request: its stream ends all the same."""
        await asyncio.sleep(self._bounds.cancel_grace)
        pending = self.pending.get(number)
        if pending is not None:
            self._forget(number)
            if not pending.exchange.open:
                pending.exchange.outbox.close()


def negotiated(frame_text: str) -> str:
    """The protocol version in the answer to ``initialize``, or an empty string."""
    value = Frame.of(frame_text).value(("result", "protocolVersion"))
    return value if isinstance(value, str) else ""
