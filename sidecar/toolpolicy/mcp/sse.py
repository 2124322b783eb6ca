"""Server-sent events, read incrementally (WHATWG HTML, section 9.2) without changing or delaying a byte.

Lines end in LF, CRLF or CR, and a chunk may end anywhere, also between CR and LF. Every byte that is fed belongs to
exactly one event's ``raw`` (or to what :meth:`EventScanner.finish` returns), so that unchanged events are forwarded
as they came.

Trap: after a blank line that ends in CR nobody knows yet whether a LF follows. Where the stream has been using CRLF the
scanner waits for it, since it is on its way; otherwise the event is delivered at once, and a LF that does follow is an
event of its own, without data.
"""

from __future__ import annotations

from typing import Final

MAX_EVENT: Final = 16 * 1024 * 1024
"""Default bound of one event in bytes."""

_BOM: Final = b"\xef\xbb\xbf"
_LF: Final = 0x0A
_CR: Final = 0x0D


class SseError(ValueError):
    """A stream that can't be followed: an event above the size limit."""


class Event:
    """One event: ``raw`` as received, blank line included. The fields are read when first asked for."""

    __slots__ = ("_fields", "_first", "raw")

    def __init__(self, raw: bytes, first: bool = False) -> None:
        self.raw = raw
        self._first = first
        self._fields: tuple[bytes | None, str | None, bytes | None] | None = None

    @property
    def data(self) -> bytes | None:
        """The data lines joined by LF; None if there is no data line (a comment, a bare id or retry)."""
        return self._read()[0]

    @property
    def event(self) -> str | None:
        """The event's type as stated; None if it states none (a client then takes it as ``message``)."""
        return self._read()[1]

    @property
    def id(self) -> bytes | None:
        """The id as stated; None if it states none."""
        return self._read()[2]

    def _read(self) -> tuple[bytes | None, str | None, bytes | None]:
        if self._fields is None:
            data: list[bytes] = []
            kind: str | None = None
            id: bytes | None = None
            for line, _ in _lines(self.raw, self._first):
                name, value = _field(line)
                if name == b"data":
                    data.append(value)
                elif name == b"event":
                    kind = value.decode("utf-8", "replace")
                elif name == b"id" and b"\0" not in value:
                    id = value
            self._fields = (b"\n".join(data) if data else None, kind, id)
        return self._fields

    def __repr__(self) -> str:
        return f"Event({self.raw[:80]!r})"


class EventScanner:
    """Cuts a stream into events. Work is linear in the bytes fed, however small the chunks are.

    ``max_event`` bounds one event in bytes; above it :meth:`feed` raises :class:`SseError`.
    """

    __slots__ = ("_buffer", "_crlf", "_line", "_max", "_scanned", "_started")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._max = max_event
        self._buffer = bytearray()
        self._scanned = 0
        self._line = 0
        self._crlf = False
        self._started = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes, in order."""
        buffer = self._buffer
        buffer += chunk
        found: list[Event] = []
        begin = 0
        position = self._scanned
        line = self._line
        size = len(buffer)
        next_cr = buffer.find(b"\r", position)
        next_lf = buffer.find(b"\n", position)
        while next_cr >= 0 or next_lf >= 0:
            if next_cr >= 0 and (next_lf < 0 or next_cr < next_lf):
                end = next_cr + 1
                blank = next_cr == line
                if end == size and (self._crlf or not blank):
                    position = next_cr
                    break
                if end < size and buffer[end] == _LF:
                    self._crlf = True
                    end += 1
            else:
                end = next_lf + 1
                blank = next_lf == line
            line = end
            if blank:
                found.append(self._event(bytes(buffer[begin:end])))
                begin = end
            position = end
            if 0 <= next_cr < end:
                next_cr = buffer.find(b"\r", end)
            if 0 <= next_lf < end:
                next_lf = buffer.find(b"\n", end)
        else:
            position = size
        if begin:
            del buffer[:begin]
        self._scanned = position - begin
        self._line = line - begin
        if len(buffer) > self._max or any(len(event.raw) > self._max for event in found):
            raise SseError(f"an event is larger than {self._max} bytes")
        return found

    def finish(self) -> bytes:
        """What is left at the end of the stream: an event that was never finished. A client discards it; so must a
        proxy that filters, since nobody has looked at it."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = self._line = 0
        return rest

    def _event(self, raw: bytes) -> Event:
        first = not self._started
        self._started = True
        return Event(raw, first)


def replace_data(event: Event, new: bytes) -> bytes:
    """The event's bytes with other data; every other line, the order and the line ends stay as they are.

    An event without data is returned unchanged. ``new`` may hold several lines.
    """
    out: list[bytes] = []
    rest = event.raw
    done = False
    for line, end in _lines(event.raw, False):
        marked = line.removeprefix(_BOM) if rest is event.raw and not out else line
        if _field(marked)[0] != b"data":
            out.append(line + end)
        elif not done:
            done = True
            mark = line[: len(line) - len(marked)]
            out.append(mark + b"".join(b"data: " + part + end for part in new.splitlines() or [b""]))
    return b"".join(out)


def _lines(raw: bytes, first: bool) -> list[tuple[bytes, bytes]]:
    """(line, its end) for every line of an event."""
    if first and raw.startswith(_BOM):
        raw = raw[len(_BOM) :]
    return [(line.rstrip(b"\r\n"), line[len(line.rstrip(b"\r\n")) :]) for line in raw.splitlines(keepends=True)]


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")
