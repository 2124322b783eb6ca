"""stdio on this side, Streamable HTTP on the other: for a desktop client that wraps its server in ``toolpolicy proxy``.

Every line goes to the Sidecar as a POST of the same bytes; what comes back is written as lines. Requests run side by
side; notifications and answers keep their place among them. Only protocol is written to stdout, everything else to the
log.

The end of a session that the server declares (404, the death of its process) ends this one too, with exit code 1: a
stdio client knows by that to start its server again.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, BinaryIO, Final, cast

import aiohttp

from toolpolicy.mcp import revisions
from toolpolicy.mcp.sse import EventScanner, SseError
from toolpolicy.sidecar.stdio_child import Log, to_stderr
from toolpolicy.sidecar.stdio_frames import (
    CANCELLED_ID,
    ID,
    VERSION_KEY,
    Frame,
    FrameError,
    RequestId,
    Shape,
    as_id,
    error_text,
    one_line,
    parse,
)
from toolpolicy.sidecar.stdio_params import ParamHeaders, header_value
from toolpolicy.sidecar.stdio_pipes import LineReader, LineWriter, Overlong
from toolpolicy.sidecar.target import parse_target

_UNREACHABLE: Final = -32000
_AT_ONCE: Final = 1 << 18
_MAX_ANSWER: Final = 64 << 20
_NAME_FIELD: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_ENDLESS: Final = frozenset({"subscriptions/listen"})
_RESUME_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """Times in seconds, sizes in bytes."""

    max_line: int = 16 << 20
    """Longer lines on stdin are answered with an error, and longer events cut the stream."""
    drain: float = 30.0
    """After the end of stdin, for calls in flight to be answered."""
    notify: float = 30.0
    """For a notification to be taken; those behind it wait."""
    retry: float = 1.0
    """Before a lost GET stream is opened again; doubles up to ``max_retry`` while it fails."""
    max_retry: float = 30.0


async def serve_stdio(
    target: str,
    stdin: BinaryIO,
    stdout: BinaryIO,
    *,
    path: str = "/mcp",
    stop: asyncio.Event | None = None,
    limits: FrontLimits | None = None,
    log: Log = to_stderr,
) -> int:
    """Carry MCP between ``stdin``/``stdout`` and ``target`` (``unix:SOCKET`` or an http(s) URL) until either side ends.

    ``path`` is where MCP is served on a unix socket, or on a URL without a path. ``stop`` ends it early (on SIGTERM,
    say), with two seconds for calls in flight. Returns the exit code: 0 after the end of stdin, 1 if the server ended
    the session or nobody reads stdout. Only the file descriptors of the streams are used.
    """
    limits = limits or FrontLimits()
    where = parse_target(target)
    connector: aiohttp.BaseConnector
    if where.socket_path is not None:
        connector = aiohttp.UnixConnector(where.socket_path, limit=0)
        url = f"http://localhost{where.path or path}"
    else:
        connector = aiohttp.TCPConnector(limit=0)
        url = target if where.path else target.rstrip("/") + path
    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(_note_sent)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
        headers={"User-Agent": "toolpolicy-stdio"},
    ) as http:
        out = LineWriter(stdout.fileno())
        front = _Front(http, url, out, limits, log)
        code = await front.run(LineReader(stdin.fileno(), limits.max_line), stop or asyncio.Event())
        await out.close()
        return code


async def _note_sent(
    session: aiohttp.ClientSession, context: SimpleNamespace, sent: aiohttp.TraceRequestChunkSentParams
) -> None:
    call = context.trace_request_ctx
    if isinstance(call, _Call):
        call.unsent -= len(sent.chunk)
        if call.unsent <= 0:
            call.sent.set()


@dataclass(slots=True, eq=False)
class _Call:
    """A POST that is owed answers. ``waiting``: id to its JSON text."""

    waiting: dict[RequestId, str]
    methods: dict[RequestId, str]
    modern: bool
    unsent: int
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def endless(self) -> bool:
        return any(method in _ENDLESS for method in self.methods.values())


class _Front:
    def __init__(self, http: aiohttp.ClientSession, url: str, out: LineWriter, limits: FrontLimits, log: Log) -> None:
        self._http = http
        self._url = url
        self._out = out
        self._limits = limits
        self._log = log
        self._session = ""
        self._version = ""
        self._calls: set[_Call] = set()
        self._stream: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._params = ParamHeaders()

    async def run(self, reader: LineReader, stop: asyncio.Event) -> int:
        pump = asyncio.create_task(self._pump(reader))
        ends = [asyncio.create_task(event.wait()) for event in (stop, self._lost, self._out.broken)]
        try:
            await asyncio.wait([pump, *ends], return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            await self._drain(2.0 if stop.is_set() or self._lost.is_set() else self._limits.drain)
        finally:
            for task in [pump, *ends, *(call.task for call in self._calls), self._stream]:
                if task is not None:
                    task.cancel()
        await self._close_session()
        return 1 if self._lost.is_set() or self._out.broken.is_set() else 0

    async def _drain(self, patience: float) -> None:
        tasks = [call.task for call in self._calls if call.task and call.waiting and not call.endless]
        if tasks and not self._out.broken.is_set():
            broken = asyncio.create_task(self._out.broken.wait())
            await asyncio.wait(
                [asyncio.gather(*tasks, return_exceptions=True), broken],
                timeout=patience,
                return_when=asyncio.FIRST_COMPLETED,
            )
            broken.cancel()

    async def _close_session(self) -> None:
        if self._session and not self._lost.is_set():
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(2), self._http.delete(self._url, headers=self._session_headers()):
                    pass

    # -- from the client -----------------------------------------------------------------------------------------------

    async def _pump(self, reader: LineReader) -> None:
        async for line in reader.lines():
            if isinstance(line, Overlong):
                await self._out.write(error_text("null", -32600, f"a message of more than {line.limit} bytes"))
                continue
            try:
                frames, _ = parse(line)
            except FrameError as error:
                await self._out.write(error_text(_guess_id(line), error.code, str(error)))
                continue
            await self._take(line, frames)

    async def _take(self, line: bytes, frames: list[Frame]) -> None:
        requests = [frame for frame in frames if frame.shape is Shape.REQUEST]
        if not requests:
            await self._notify(line, frames[0])
            return
        version = requests[0].value(("params", "_meta", VERSION_KEY))
        modern = isinstance(version, str) and not revisions.has_sessions(version)
        call = _Call(
            {frame.id: frame.raw(ID) or "null" for frame in requests if frame.id is not None},
            {frame.id: frame.method for frame in requests if frame.id is not None},
            modern,
            len(line),
        )
        headers = self._request_headers(requests[0], version) if modern else self._session_headers()
        self._calls.add(call)
        call.task = asyncio.create_task(self._call(line, call, headers))
        if any(frame.method == "initialize" for frame in requests):
            await asyncio.wait([call.task])  # what follows needs its session
        else:
            sent = asyncio.create_task(call.sent.wait())  # what follows must not overtake it
            await asyncio.wait([call.task, sent], return_when=asyncio.FIRST_COMPLETED)
            sent.cancel()

    async def _notify(self, line: bytes, frame: Frame) -> None:
        if frame.method == "notifications/cancelled" and await self._cancelled(frame):
            return
        try:
            async with asyncio.timeout(self._limits.notify):
                async with self._http.post(self._url, data=_body(line), headers=self._session_headers()) as answer:
                    if answer.status >= 400:
                        self._log(f"{frame.method or 'an answer'} was refused: HTTP {answer.status}")
                    self._check_lost(answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._log(f"{frame.method or 'an answer'} could not be delivered: {error or type(error).__name__}")
        if frame.method == "notifications/initialized" and self._session and self._stream is None:
            self._stream = asyncio.create_task(self._keep_stream())

    async def _cancelled(self, frame: Frame) -> bool:
        """Nothing more is owed for the call. In 2026-07-28 closing its POST *is* the cancellation: True."""
        wanted = as_id(frame.value(CANCELLED_ID))
        for call in list(self._calls):
            if wanted is not None and wanted in call.waiting:
                del call.waiting[wanted]
                if call.modern and call.task is not None:
                    call.task.cancel()
                    return True
        return False

    def _session_headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self._session:
            headers["Mcp-Session-Id"] = self._session
        if self._version:
            headers["MCP-Protocol-Version"] = self._version
        return headers

    def _request_headers(self, frame: Frame, version: object) -> dict[str, str]:
        """The standard headers of a 2026-07-28 request (SEP-2243)."""
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        headers |= {"MCP-Protocol-Version": str(version), "Mcp-Method": header_value(frame.method)}
        name = frame.value(("params", _NAME_FIELD.get(frame.method, "")))
        if isinstance(name, str):
            headers["Mcp-Name"] = header_value(name)
            if frame.method == "tools/call":
                headers |= self._params.of(name, frame.value(("params", "arguments")))
        return headers

    # -- to the client -------------------------------------------------------------------------------------------------

    async def _call(self, line: bytes, call: _Call, headers: dict[str, str]) -> None:
        problem = "the MCP server ended the answer's stream before it answered"
        try:
            async with self._http.post(self._url, data=_body(line), headers=headers, trace_request_ctx=call) as answer:
                last_event = await self._receive(answer, call)
            if call.waiting and last_event and not call.modern:
                await self._resume(call, last_event)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            problem = f"the MCP server cannot be reached: {error or type(error).__name__}"
        finally:
            self._calls.discard(call)
        for id_text in call.waiting.values():
            await self._out.write(error_text(id_text, _UNREACHABLE, problem))

    async def _resume(self, call: _Call, last_event: str) -> None:
        """Pick up a stream that broke off: some servers close it on purpose and let the client come back."""
        for _ in range(_RESUME_ATTEMPTS):
            if not call.waiting:
                return
            await asyncio.sleep(self._limits.retry)
            headers = self._session_headers() | {"Last-Event-ID": last_event, "Accept": "text/event-stream"}
            async with self._http.get(self._url, headers=headers) as answer:
                if answer.status != 200:
                    return
                last_event = await self._receive(answer, call) or last_event

    async def _receive(self, answer: aiohttp.ClientResponse, call: _Call) -> str:
        """Write what ``answer`` brings. Returns the id of the last event, if events had ids."""
        if answer.status == 200 and answer.content_type == "text/event-stream":
            self._adopt(answer)
            last_event = ""
            async for event_id, data in self._events(answer):
                last_event = event_id or last_event
                await self._deliver(data, call)
                if not call.waiting:
                    break
            return last_event
        body = await self._body(answer)
        if answer.status == 200:
            self._adopt(answer)
            await self._deliver(body, call)
        else:
            await self._deliver_refusal(answer, body, call)
        return ""

    def _adopt(self, answer: aiohttp.ClientResponse) -> None:
        session = answer.headers.get("Mcp-Session-Id")
        if session and not self._session:
            self._session = session

    async def _deliver(self, data: bytes, call: _Call | None) -> None:
        try:
            frames, batch = parse(data)
        except FrameError as error:
            self._log(f"the MCP server sent no JSON-RPC message: {error}")
            return
        for frame in frames:
            if frame.shape is Shape.RESPONSE and call is not None and frame.id is not None:
                method = call.methods.get(frame.id, "")
                call.waiting.pop(frame.id, None)
                version = frame.value(("result", "protocolVersion")) if method == "initialize" else None
                if isinstance(version, str):
                    self._version = version
                if method == "tools/list" and call.modern:
                    self._params.learn(frame.value(("result",)))
            if not batch:
                await self._out.write(one_line(frame.text))
        if batch:
            await self._out.write(one_line(data.decode()))

    async def _deliver_refusal(self, answer: aiohttp.ClientResponse, body: bytes, call: _Call) -> None:
        """An HTTP error as a JSON-RPC error for each id; with the server's own words where it has any."""
        said: Frame | None = None
        with contextlib.suppress(FrameError):
            frames, _ = parse(body)
            if len(frames) == 1 and frames[0].shape is Shape.RESPONSE and "error" in frames[0].top:
                said = frames[0]
        for id_text in list(call.waiting.values()):
            text = f"the MCP server answered HTTP {answer.status} {answer.reason or ''}".rstrip()
            await self._out.write(
                error_text(id_text, _UNREACHABLE, text) if said is None else one_line(said.replaced({ID: id_text}))
            )
        call.waiting.clear()
        if not call.modern:
            self._check_lost(answer.status)

    def _check_lost(self, status: int) -> None:
        if status == 404 and self._session and not self._lost.is_set():
            self._log("the MCP server ended the session")
            self._lost.set()

    async def _keep_stream(self) -> None:
        """The GET stream, opened again whenever it ends, for as long as the server offers one."""
        wait = self._limits.retry
        last_event = ""
        while True:
            headers = self._session_headers() | {"Accept": "text/event-stream"}
            if last_event:
                headers["Last-Event-ID"] = last_event
            try:
                async with self._http.get(self._url, headers=headers) as answer:
                    if answer.status != 200:
                        self._check_lost(answer.status)
                        return
                    opened = asyncio.get_running_loop().time()
                    async for event_id, data in self._events(answer):
                        last_event = event_id or last_event
                        await self._deliver(data, None)
                    # one that was open for a while may be opened again at once; 404 then says that the session is over
                    lived = asyncio.get_running_loop().time() - opened
                    wait = 0.0 if lived > self._limits.retry else self._limits.retry
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._log(f"the stream for messages of the MCP server broke off: {error or type(error).__name__}")
            await asyncio.sleep(wait)
            wait = min(max(wait * 2, self._limits.retry), self._limits.max_retry)

    async def _events(self, answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, bytes]]:
        scanner = EventScanner(self._limits.max_line)
        async for chunk in answer.content.iter_any():
            try:
                events = scanner.feed(chunk)
            except SseError as error:
                raise aiohttp.ClientPayloadError(str(error)) from error
            for event in events:
                if event.data:
                    yield (event.id or b"").decode("utf-8", "replace"), event.data

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > _MAX_ANSWER:
                raise aiohttp.ClientPayloadError(f"an answer of more than {_MAX_ANSWER} bytes")
            parts.append(chunk)
        return b"".join(parts)


def _body(line: bytes) -> bytes | io.BytesIO:
    """aiohttp writes bytes in one go, and warns where they are many."""
    return line if len(line) < _AT_ONCE else io.BytesIO(line)


def _guess_id(line: bytes) -> str:
    """The id of a malformed message as JSON text, so that its sender learns which one it was."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return "null"
    request_id = as_id(cast("dict[str, object]", value).get("id")) if isinstance(value, dict) else None
    return "null" if request_id is None else json.dumps(request_id)
