"""The server processes of the bridge and the sessions they serve: who gets which, when they end, when they start
again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from toolpolicy.sidecar.stdio_child import Child, Log, Patience, StdioError
from toolpolicy.sidecar.stdio_link import Link
from toolpolicy.sidecar.stdio_streams import Bounds, Session

_STEADY_SECONDS: Final = 60.0
_LONGEST_WAIT: Final = 2.0


@dataclass(frozen=True, slots=True)
class StdioLimits:
    """Bounds of the bridge; times in seconds, sizes in bytes."""

    max_line: int = 16 << 20
    """Largest message either way."""
    max_sessions: int = 64
    """Sessions, and with them processes. The longest idle one makes room for a new one, if any is idle."""
    idle: float = 1800.0
    """A session that has no open request or stream for that long ends."""
    stateless_idle: float = 300.0
    """As ``idle``, for the process of clients without sessions."""
    commit_after: float = 10.0
    """A silent call's answer becomes an event stream, so that nobody on the way takes it for dead."""
    keep_alive: float = 15.0
    """Between comments on a silent stream."""
    backoff: float = 0.5
    """Before a dead process without sessions is started again; doubles with each death up to ``max_backoff``."""
    max_backoff: float = 30.0
    bounds: Bounds = field(default_factory=Bounds)
    patience: Patience = field(default_factory=Patience)


class _Slot:
    """A process that serves everyone of a kind, and how often it died of late."""

    def __init__(self, limits: StdioLimits) -> None:
        self.link: Link | None = None
        self.lock = asyncio.Lock()
        self._limits = limits
        self._deaths = 0
        self._not_before = 0.0
        self._started = 0.0
        self._epitaph = ""

    def started(self, link: Link) -> None:
        self.link = link
        self._started = asyncio.get_running_loop().time()

    def died(self, link: Link) -> None:
        if self.link is not link:
            return
        self.link = None
        now = asyncio.get_running_loop().time()
        self._deaths = 1 if now - self._started > _STEADY_SECONDS else self._deaths + 1
        self._not_before = now + min(self._limits.backoff * 2 ** (self._deaths - 1), self._limits.max_backoff)
        self._epitaph = link.child.epitaph()

    async def wait(self) -> None:
        """Until it may be started again; raises StdioError where that takes too long to wait for."""
        remaining = self._not_before - asyncio.get_running_loop().time()
        if remaining > _LONGEST_WAIT:
            raise StdioError(f"{self._epitaph}; it is started again in {remaining:.0f} s")
        if remaining > 0:
            await asyncio.sleep(remaining)


class Pool:
    """Made by ``start`` (raises StdioError if the command cannot be started); ``stop`` ends every process."""

    def __init__(self, command: Sequence[str], limits: StdioLimits, log: Log, *, shared: bool) -> None:
        self.sessions: dict[str, Session] = {}
        self.shared = shared
        self._command = command
        self._limits = limits
        self._log = log
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._spare: Link | None = None
        self._stateless = _Slot(limits)
        self._everyone = _Slot(limits)
        self._ending: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._opening = 0
        self._stopping = False

    async def start(self) -> None:
        """Start the first process, so that a command that cannot run says so now."""
        self._spare = await self._spawn()
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """End every process as the specification says, all at once."""
        self._stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.gather(*(link.child.stop() for link in self._links))
        await asyncio.gather(*self._links.values(), *self._ending)

    @property
    def processes(self) -> int:
        return len(self._links)

    async def for_stateless(self) -> Link:
        """The process of all clients without sessions."""
        return await self._shared_by(self._stateless)

    async def open_session(self) -> Session:
        """A new session with its process. Raises StdioError if there can be none now."""
        if len(self.sessions) + self._opening >= self._limits.max_sessions:
            idle = [session for session in self.sessions.values() if not session.busy]
            if not idle:
                raise StdioError(f"all {self._limits.max_sessions} sessions are in use; try again later")
            self.end_session(min(idle, key=lambda session: session.used))
        self._opening += 1
        try:
            link = await (self._shared_by(self._everyone) if self.shared else self._unused())
        finally:
            self._opening -= 1
        session = Session(secrets.token_urlsafe(32), link, asyncio.get_running_loop().time())
        link.sessions.add(session)
        self.sessions[session.id] = session
        return session

    def end_session(self, session: Session) -> None:
        """Forget ``session``, end its streams, and its process if that was its own. Idempotent."""
        if self.sessions.pop(session.id, None) is None:
            return
        session.link.sessions.discard(session)
        for exchange in list(session.exchanges):
            session.link.abandon(exchange, cancel=self.shared)
        for stream in session.streams:
            stream.close()
        if not self.shared:
            self._retire(session.link)

    async def _sweep(self) -> None:
        limits = self._limits
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(limits.idle, limits.stateless_idle, 60.0) / 4)
            for session in list(self.sessions.values()):
                if not session.busy and loop.time() - session.used > limits.idle:
                    self.end_session(session)
            link = self._stateless.link
            if link is not None and not link.pending and loop.time() - link.used > limits.stateless_idle:
                self._stateless.link = None
                self._retire(link)

    async def _spawn(self) -> Link:
        if self._stopping:
            raise StdioError("the MCP server is being shut down")
        child = await Child.spawn(
            self._command, self._log, max_line=self._limits.max_line, patience=self._limits.patience
        )
        link = Link(child, self._log, self._limits.bounds, shared=self.shared)
        self._links[link] = asyncio.create_task(self._run(link))
        return link

    async def _run(self, link: Link) -> None:
        try:
            await link.run()
        except Exception as error:  # noqa: BLE001 (the edge of a process: its clients must not wait for ever)
            link.child.fault = f"unexpected {type(error).__name__}: {error}"
            await link.child.stop()
            link.fail(link.child.epitaph())
        del self._links[link]
        for session in list(link.sessions):
            self.sessions.pop(session.id, None)
        if not self._stopping and not link.retired:
            self._log(f"{link.child.epitaph()} (pid {link.child.pid})")
        self._stateless.died(link)
        self._everyone.died(link)

    async def _unused(self) -> Link:
        """A process that nobody has initialised or used."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.child.alive:
            return spare
        probed = self._stateless.link
        if probed is not None and probed.probed and not probed.pending and probed.child.alive:
            self._stateless.link = None
            return probed
        return await self._spawn()

    async def _shared_by(self, slot: _Slot) -> Link:
        """The one process of ``slot``, started if it is not there."""
        async with slot.lock:
            if slot.link is None or not slot.link.child.alive:
                await slot.wait()
                slot.started(await self._unused())
            assert slot.link is not None
            return slot.link

    def _retire(self, link: Link) -> None:
        """End a process that is not needed any more, in the background."""
        link.retired = True
        task = asyncio.create_task(link.child.stop())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
