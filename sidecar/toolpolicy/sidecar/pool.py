"""The pool of upstream connections: which one takes a request, when one is dialled, closed, or given up on.

Only a *reused* connection that died before any byte of the answer is replaced, once, and only for a request that is
idempotent (RFC 9110 section 9.2.2) or was never fully written: half a request can't be executed, for its
Content-Length is not met. A server that closes idle connections may have done so already while the event loop has not
looked: one ``poll`` before reuse sees it.
"""

from __future__ import annotations

import asyncio
import os
import select
import ssl

from toolpolicy.sidecar.near import Near
from toolpolicy.sidecar.outbox import Outbox
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.target import LOOPBACK, Target
from toolpolicy.sidecar.upstream import Connection, Died, Receiver

SWEEP = 0.5
"""Seconds between looks for idle connections and overdue answers: timeouts are exact to this."""
FRESH = 0.05
"""Seconds of idleness below which a connection is reused without a poll."""


class Pool:
    """Sends requests to ``target``. ``ssl_context`` is needed where the target is https."""

    def __init__(self, target: Target, settings: Settings, ssl_context: ssl.SSLContext | None = None) -> None:
        self.target = target
        in_our_pod = bool(settings.pod_namespace) and target.host in LOOPBACK
        self._near = Near(target.port, target.host) if in_our_pod else None
        """A server of our own pod may be bound to another of the pod's addresses."""
        self.max_head = settings.max_answer_head
        self._connect_timeout = settings.connect_timeout
        self._first_byte = settings.first_byte_timeout
        self._keepalive = settings.upstream_keepalive
        self._most = settings.upstream_connections
        self._most_idle = settings.upstream_idle
        self._ssl = ssl_context
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop.call_soon)
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._dialling: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def connections(self) -> int:
        return len(self._all) + len(self._dialling)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def send(
        self,
        receiver: Receiver,
        request: bytes,
        *,
        idempotent: bool = False,
        head_only: bool = False,
        patient: bool = False,
    ) -> None:
        """Send ``request`` (whole: head and body) and give its answer to ``receiver``, perhaps before this returns.

        ``head_only``: the answer has no body (HEAD). ``patient``: no limit on how long the first byte may take.
        """
        now = self._loop.time()
        due = 0.0 if patient else now + self._first_byte
        connection = self._take(now)
        if connection is None:
            self._dial(receiver, request, idempotent, head_only, due)
        elif receiver.begin(connection):
            connection.start(receiver, request, idempotent=idempotent, head_only=head_only, due=due)
            if len(self._all) - len(self._idle) > 1:
                self._outbox.put(connection, receiver, request)
            else:  # nobody else is at work: nothing to wait for
                connection.write(receiver, request)
        else:
            self.released(connection, reusable=True)

    def _take(self, now: float) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            age = now - connection.idle_since
            transport = connection.transport
            if transport.is_closing() or age >= self._keepalive or (age > FRESH and _readable(transport)):
                self.lost(connection)
                transport.abort()
                continue
            connection.reused = True
            return connection
        return None

    def _dial(self, receiver: Receiver, request: bytes, idempotent: bool, head_only: bool, due: float) -> None:
        # What may last for hours leaves room for calls, or a caller's idle streams would end all others' work.
        most = self._most if due else self._most - self._most // 4
        if self._closed or self.connections >= most:
            reason = "the sidecar is stopping" if self._closed else f"all {most} upstream connections are in use"
            receiver.died(Died(503, reason, written=False))
            return
        task = self._loop.create_task(self._dialled(receiver, request, idempotent, head_only, due))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dialled(self, receiver: Receiver, request: bytes, idempotent: bool, head_only: bool, due: float) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._connect()
        except TimeoutError:
            reason = f"the MCP server at {self.target} took no connection within {self._connect_timeout:g} s"
            receiver.died(Died(502, reason, written=False))
            return
        except OSError as error:  # refused, unreachable, no such host or socket; also every ssl.SSLError
            known = error.errno and not isinstance(error, ssl.SSLError)
            reason = os.strerror(error.errno) if known and error.errno else str(error)
            receiver.died(Died(502, f"the MCP server at {self.target} can't be reached: {reason}", written=False))
            return
        except asyncio.CancelledError:
            receiver.died(Died(503, "the sidecar is stopping", written=False))
            raise
        self._all.add(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP, self._sweep)
        if receiver.begin(connection):
            if due:
                due = self._loop.time() + self._first_byte
            connection.start(receiver, request, idempotent=idempotent, head_only=head_only, due=due)
            connection.write(receiver, request)
        else:
            self.released(connection, reusable=True)

    async def _connect(self) -> Connection:
        target = self.target
        if target.socket_path is not None:
            return (await self._loop.create_unix_connection(lambda: Connection(self), target.socket_path))[1]
        if self._near is None:
            return await self._connect_to(target.host)
        return await self._near.reach(self._connect_to)

    async def _connect_to(self, host: str) -> Connection:
        name = self.target.host if self._ssl is not None else None
        return (
            await self._loop.create_connection(
                lambda: Connection(self), host, self.target.port, ssl=self._ssl, server_hostname=name
            )
        )[1]

    # -- what a connection tells

    def released(self, connection: Connection, reusable: bool) -> None:
        if (
            reusable
            and not self._closed
            and len(self._idle) < self._most_idle
            and not connection.transport.is_closing()
        ):
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
        else:
            self.lost(connection)
            connection.transport.close()

    def unanswered(self, connection: Connection, receiver: Receiver, how: str) -> None:
        if connection.reused and (connection.idempotent or not connection.written):
            self._dial(receiver, connection.request, connection.idempotent, connection.head_only, connection.due)
            return
        reason = f"the MCP server closed the connection without an answer{how}"
        receiver.died(Died(502, reason, written=connection.written))

    def lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection.receiver is None and connection in self._idle:
            self._idle.remove(connection)

    # -- time

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._loop.time()
        for connection in [c for c in self._all if c.due and c.receiver is not None and now >= c.due]:
            connection.fail(504, f"the MCP server did not begin to answer within {self._first_byte:g} s")
        for connection in [c for c in self._idle if now - c.idle_since >= self._keepalive]:
            self.lost(connection)
            connection.transport.close()
        if self._all:
            self._sweeper = self._loop.call_later(SWEEP, self._sweep)

    async def close(self) -> None:
        """Close every connection; what is still under way dies."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._dialling):
            task.cancel()
        if self._dialling:
            await asyncio.gather(*self._dialling, return_exceptions=True)
        for connection in list(self._all):
            connection.fail(503, "the sidecar is stopping")


def _readable(transport: asyncio.Transport) -> bool:
    """Whether bytes or an end wait on an idle connection: either way it is of no more use."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0))
