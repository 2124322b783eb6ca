"""One MCP server process and its three pipes.

Traps this module is about: ``Process.wait()`` also waits for the pipes, which a grandchild may hold open for ever, so
the exit itself is what counts here; a server that is stuck writing stdout never reads its stdin, so stdout is read
until the end; and whatever the server started is in its process group, and ends with it.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Log = Callable[[str], None]

_STDERR_LINE: Final = 8192
_BUFFER: Final = 1 << 18
"""Bytes read ahead of stdout before the process has to wait (asyncio takes twice that)."""
_DRAIN_SECONDS: Final = 1.0
_KILL_SECONDS: Final = 5.0


def to_stderr(line: str) -> None:
    """The default log. It never raises: a server whose stderr nobody takes any more would come to a stop."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class StdioError(Exception):
    """The server's process cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the shutdown of the MCP specification waits at each step, in seconds."""

    after_close: float = 2.0
    """From closing stdin to SIGTERM."""
    after_term: float = 2.0
    """From SIGTERM to SIGKILL."""


def check_command(command: Sequence[str]) -> None:
    """Raises StdioError if ``command`` cannot be started: not given, not found, not executable."""
    if not command:
        raise StdioError("no command was given: put the MCP server's command line behind --")
    name = command[0]
    if shutil.which(name) is not None:
        return
    if os.sep in name:
        why = "is not executable" if Path(name).exists() else "does not exist"
        raise StdioError(f"cannot start the MCP server: {name} {why}")
    raise StdioError(f"cannot start the MCP server: command not found: {name} (is it installed and on PATH?)")


def describe_exit(status: int) -> str:
    """``status`` as asyncio gives it (negative: the signal) in words."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def printable(line: bytes) -> str:
    """A line of a foreign process that is safe to show on a terminal."""
    text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """asyncio's own, telling of the exit when it happens and not when the last pipe closes."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self.exited = asyncio.Event()
        self.stdout_closed = asyncio.Event()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        super().pipe_connection_lost(fd, exc)
        if fd == 1:
            self.stdout_closed.set()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


class Child:
    """A running server. Made by ``spawn``; ``stop`` must be awaited once, whatever happened before."""

    def __init__(
        self, transport: asyncio.SubprocessTransport, protocol: _Protocol, log: Log, patience: Patience, max_line: int
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._process = asyncio.subprocess.Process(transport, protocol, asyncio.get_running_loop())
        self._log = log
        self._patience = patience
        self._max_line = max_line
        self._writing = asyncio.Lock()
        self._stopping: asyncio.Task[None] | None = None
        self.exited = protocol.exited
        self.fault = ""
        """Why we ended it, where it did not end by itself."""
        self._stderr = asyncio.create_task(self._relay_stderr())
        self._watch = asyncio.create_task(self._after_exit())

    @classmethod
    async def spawn(
        cls, command: Sequence[str], log: Log, *, max_line: int = 1 << 24, patience: Patience | None = None
    ) -> Child:
        """Start ``command`` in a process group of its own, with our environment and directory. Raises StdioError."""
        check_command(command)
        loop = asyncio.get_running_loop()
        pipe = asyncio.subprocess.PIPE
        try:
            transport, protocol = await loop.subprocess_exec(
                lambda: _Protocol(min(max_line, _BUFFER), loop),
                *command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise StdioError(f"cannot start the MCP server {command[0]}: {error}") from error
        return cls(transport, protocol, log, patience or Patience(), max_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self.exited.is_set() and self._stopping is None

    def epitaph(self) -> str:
        """How it ended, for an error message or the log."""
        if self.fault:
            return f"the MCP server process was ended: {self.fault}"
        status = self._transport.get_returncode()
        return f"the MCP server process {'is ending' if status is None else describe_exit(status)}"

    async def lines(self) -> AsyncIterator[bytes]:
        """What it writes on stdout, line by line, to the end. A line over the limit ends the process."""
        stdout = self._process.stdout
        assert stdout is not None
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                part = await stdout.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                if parts or error.partial.strip():
                    yield b"".join([*parts, error.partial])
                return
            except asyncio.LimitOverrunError as error:
                # longer than the reader's buffer, which is kept small: one for each session
                part = await stdout.readexactly(error.consumed)
            except OSError:
                return
            parts.append(part)
            size += len(part)
            if size > self._max_line:
                self.fault = f"it wrote a line of more than {self._max_line} bytes"
                return
            if part.endswith(b"\n"):
                line = b"".join(parts)
                parts, size = [], 0
                if not line.isspace():
                    yield line

    async def send(self, text: str) -> None:
        """Write one message; waits while the server does not read. Raises StdioError once it is gone."""
        async with self._writing:
            self.send_soon(text)
            stdin = self._process.stdin
            assert stdin is not None
            try:
                await stdin.drain()
            except (ConnectionError, OSError) as error:
                raise StdioError(self.epitaph()) from error

    def send_soon(self, text: str) -> None:
        """Write one message without waiting. A line is never torn: it enters the buffer as a whole or not at all."""
        stdin = self._process.stdin
        assert stdin is not None
        if not self.alive or stdin.is_closing():
            raise StdioError(self.epitaph())
        stdin.write(text.encode() + b"\n")

    async def stop(self) -> None:
        """End it as the specification says: close stdin, then SIGTERM, then SIGKILL to its group. Idempotent."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._end())
        await asyncio.shield(self._stopping)

    async def _end(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        if not await self._exits_within(self._patience.after_close):
            self._signal(signal.SIGTERM)
            if not await self._exits_within(self._patience.after_term):
                self._signal(signal.SIGKILL)
                if not await self._exits_within(_KILL_SECONDS):
                    self._log(f"MCP server process {self.pid} survived SIGKILL; giving up on it")
                    self._watch.cancel()
                    self._stderr.cancel()
                    self._transport.close()
                    return
        await self._watch
        with contextlib.suppress(ConnectionError, OSError):
            await stdin.wait_closed()

    async def _exits_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.exited.wait()
        except TimeoutError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def _after_exit(self) -> None:
        """Once it has exited: end what it left in its group, read what is still in the pipes, free them."""
        await self.exited.wait()
        self._signal(signal.SIGKILL)
        await asyncio.wait([self._stderr], timeout=_DRAIN_SECONDS)
        self._stderr.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._protocol.stdout_closed.wait()
        self._transport.close()

    async def _relay_stderr(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        rest = b""
        while chunk := await stderr.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _STDERR_LINE:
                lines.append(rest)
                rest = b""
            for line in lines:
                self._log(f"[mcp-server {self.pid}] {printable(line[:_STDERR_LINE])}")
        if rest:
            self._log(f"[mcp-server {self.pid}] {printable(rest[:_STDERR_LINE])}")
