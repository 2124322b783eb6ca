"""Lines in and out of file descriptors that may be anything: a pipe, a terminal, a file, /dev/null.

Threads do the blocking calls. asyncio's own pipe transports refuse regular files, and set O_NONBLOCK on the terminal
that parent and stderr share. The threads are daemons that hold no lock of the interpreter's streams, so a peer that
never reads or writes does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

_CHUNK: Final = 65536
_CHUNKS_AHEAD: Final = 16
_UNWRITTEN: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Overlong:
    """Stands in for a line over the limit, which was skipped."""

    limit: int


class LineReader:
    """Reads lines of at most ``limit`` bytes from ``descriptor``, a few chunks ahead at most."""

    def __init__(self, descriptor: int, limit: int) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(_CHUNKS_AHEAD)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        chunk = b"-"
        while chunk:
            self._room.acquire()
            try:
                chunk = os.read(self._descriptor, _CHUNK)
            except OSError:
                chunk = b""
            try:
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            except RuntimeError:  # the loop is closed: nobody listens any more
                return

    async def lines(self) -> AsyncIterator[bytes | Overlong]:
        """Every line without its end, to the end of the input; blank ones are left out."""
        rest = b""
        skipping = False
        while chunk := await self._chunks.get():
            self._room.release()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if skipping or len(line) > self._limit:
                    skipping = False
                    yield Overlong(self._limit)
                elif line and not line.isspace():
                    yield line
            if len(rest) > self._limit:
                skipping, rest = True, b""
        if skipping or len(rest) > self._limit:
            yield Overlong(self._limit)
        elif rest and not rest.isspace():
            yield rest


class LineWriter:
    """Writes whole lines to ``descriptor`` in the order they come. ``broken`` is set when nobody reads any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._unwritten = 0
        self._room = asyncio.Event()
        self._ended = asyncio.Event()
        self.broken = asyncio.Event()
        threading.Thread(target=self._write, name="stdout", daemon=True).start()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            left = memoryview(line)
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                self._tell(self.broken.set)
                break
            self._tell(self._written, len(line))
        self._tell(self._ended.set)

    def _tell(self, function: object, *arguments: object) -> None:
        assert callable(function)
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed
            return

    def _written(self, count: int) -> None:
        self._unwritten -= count
        self._room.set()

    async def write(self, text: str) -> None:
        """Queue one line; waits while more than 1 MiB is unwritten. Lines for a broken peer are dropped."""
        line = text.encode() + b"\n"
        self._unwritten += len(line)
        self._lines.put(line)
        while self._unwritten > _UNWRITTEN and not self.broken.is_set():
            self._room.clear()
            waits = [asyncio.ensure_future(self._room.wait()), asyncio.ensure_future(self.broken.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def close(self, patience: float = 5.0) -> None:
        """Until everything is written, but no longer than ``patience`` seconds."""
        self._lines.put(None)
        try:
            async with asyncio.timeout(patience):
                await self._ended.wait()
        except TimeoutError:
            self.broken.set()
