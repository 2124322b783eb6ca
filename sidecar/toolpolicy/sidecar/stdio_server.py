"""A stdio MCP server, served over Streamable HTTP on a private unix socket.

The Sidecar proxies to the bridge as to any upstream, so that stdio servers take the one judged way. The bridge judges
nothing.

- ``initialize`` starts a session with a process of its own (``shared``: one process for all sessions).
- Requests of 2026-07-28 have no session; they share one process, which is started when the first one comes.
- A process that has only refused ``server/discover`` (as one of before 2026-07-28 does) serves the next session, just
  as it would if its client had probed it over stdio.
- The death of a process answers what was in flight, and ends its sessions: the next request gets 404, and clients
  initialise anew. A process without sessions is started again, ever later when it keeps dying.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aiohttp import web

from toolpolicy.mcp import revisions
from toolpolicy.sidecar.stdio_child import Log, StdioError, check_command, to_stderr
from toolpolicy.sidecar.stdio_frames import VERSION_KEY, Frame, FrameError, Shape, error_text, parse
from toolpolicy.sidecar.stdio_link import GONE, Link, negotiated
from toolpolicy.sidecar.stdio_pool import Pool, StdioLimits
from toolpolicy.sidecar.stdio_streams import Exchange, Outbox, Session

SESSION_HEADER: Final = "Mcp-Session-Id"
VERSION_HEADER: Final = "MCP-Protocol-Version"
_EVENTS: Final = "text/event-stream"
_STREAM_HEADERS: Final = {"Content-Type": _EVENTS, "Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
_ERROR_STATUS: Final = {-32700: 400, -32600: 400, -32602: 400, -32601: 404, -32020: 400, -32021: 400, -32022: 400}
"""HTTP status of a JSON-RPC error without a session (specification 2026-07-28, Streamable HTTP)."""


class StdioBridge:
    """Serves ``command`` on ``socket_path`` (default: one in a new private directory), on every path.

    ``await start()`` raises StdioError if the command cannot be started; ``await stop()`` ends every process. The
    directory of the socket must belong to its owner alone; a missing one is made.
    """

    def __init__(
        self,
        command: Sequence[str],
        shared: bool = False,
        socket_path: Path | str | None = None,
        *,
        limits: StdioLimits | None = None,
        log: Log = to_stderr,
    ) -> None:
        self.command = list(command)
        self.limits = limits or StdioLimits()
        self._given = Path(socket_path) if socket_path is not None else None
        self._own_directory: tempfile.TemporaryDirectory[str] | None = None
        self.pool = Pool(self.command, self.limits, log, shared=shared)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Start the first process, so that a command that cannot run says so now, and listen."""
        check_command(self.command)
        self.socket_path = self._private_socket()
        try:
            await self.pool.start()
            await self._listen()
        except BaseException:
            await self.stop()
            raise

    async def _listen(self) -> None:
        app = web.Application(client_max_size=self.limits.max_line)
        # any path: the sidecar decides where MCP is served, and nobody else can reach the socket
        anywhere = "/{path:(?!\\.well-known/).*}"
        app.router.add_post(anywhere, self._post)
        app.router.add_get(anywhere, self._get, allow_head=False)
        app.router.add_delete(anywhere, self._delete)
        app.on_response_prepare.append(_plain_headers)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=2,
            max_line_size=65536,
            max_field_size=65536,
        )
        await self._runner.setup()
        try:
            await web.UnixSite(self._runner, str(self.socket_path)).start()
        except OSError as error:
            raise StdioError(f"cannot listen on {self.socket_path}: {error} (a shorter TMPDIR may help)") from error
        self.socket_path.chmod(0o600)

    async def stop(self) -> None:
        """End sessions and processes (each as the specification says), and remove the socket. Idempotent."""
        await self.pool.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._own_directory is not None:
            self._own_directory.cleanup()
        elif self._given is not None:
            self._given.unlink(missing_ok=True)

    @property
    def url(self) -> str:
        """As the sidecar's upstream."""
        return f"unix:{self.socket_path}"

    @property
    def processes(self) -> int:
        """How many server processes there are."""
        return self.pool.processes

    def _private_socket(self) -> Path:
        if self._given is None:
            self._own_directory = tempfile.TemporaryDirectory(prefix="toolpolicy-")
            return Path(self._own_directory.name) / "mcp.sock"
        directory = self._given.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) & 0o077:
            raise StdioError(f"the directory of the socket must be its owner's alone: chmod 700 {directory}")
        self._given.unlink(missing_ok=True)
        return self._given

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            return _refusal(415, "null", -32600, "Content-Type must be application/json")
        try:
            frames, batch = parse(await request.read())
        except FrameError as error:
            return _refusal(400, "null", error.code, str(error))
        first = frames[0]
        id_text = (first.raw(("id",)) or "null") if first.shape is Shape.REQUEST else "null"
        if _stateless(request, first):
            return await self._post_stateless(request, frames, id_text)
        if any(frame.method == "initialize" and frame.shape is Shape.REQUEST for frame in frames):
            if len(frames) > 1 or SESSION_HEADER in request.headers:
                return _refusal(400, id_text, -32600, "initialize must be alone, and without a session")
            return await self._initialize(request, first, id_text)
        session = self._session_of(request, id_text)
        if isinstance(session, web.Response):
            return session
        if batch and not revisions.batch_allowed(session.revision):
            return _refusal(400, "null", -32600, f"protocol {session.revision} has no batches")
        session.used = asyncio.get_running_loop().time()
        exchange = Exchange(Outbox(self.limits.bounds.queued_bytes), _takes(request, _EVENTS), session)
        return await self._exchange(request, frames, exchange, session.link)

    async def _post_stateless(self, request: web.Request, frames: list[Frame], id_text: str) -> web.StreamResponse:
        if len(frames) > 1:
            return _refusal(400, "null", -32600, "this protocol version has no batches")
        if frames[0].shape is not Shape.REQUEST:
            return web.Response(status=202)  # without a session there is nobody that a notification could be about
        try:
            link = await self.pool.for_stateless()
        except StdioError as error:
            return _refusal(200, id_text, GONE, str(error))
        exchange = Exchange(Outbox(self.limits.bounds.queued_bytes), _takes(request, _EVENTS))
        return await self._exchange(request, frames, exchange, link)

    async def _initialize(self, request: web.Request, frame: Frame, id_text: str) -> web.StreamResponse:
        try:
            session = await self.pool.open_session()
        except StdioError as error:
            return _refusal(200, id_text, GONE, str(error))
        exchange = Exchange(Outbox(self.limits.bounds.queued_bytes), _takes(request, _EVENTS), session)
        try:
            return await self._exchange(request, [frame], exchange, session.link)
        finally:
            if not session.revision:  # refused, or the client went away
                self.pool.end_session(session)

    async def _exchange(
        self, request: web.Request, frames: list[Frame], exchange: Exchange, link: Link
    ) -> web.StreamResponse:
        """Pass ``frames`` on and answer with what comes back."""
        session = exchange.session
        if session is not None:
            session.exchanges.append(exchange)
        try:
            for frame in frames:
                try:
                    if frame.shape is Shape.REQUEST:
                        await link.ask(frame, exchange)
                    elif session is not None:
                        await link.tell(frame, session)
                except StdioError as error:
                    if frame.shape is Shape.REQUEST:
                        link.reply(exchange, error_text(frame.raw(("id",)) or "null", GONE, str(error)))
            if not any(frame.shape is Shape.REQUEST for frame in frames):
                return web.Response(status=202)
            return await self._answer(request, exchange, single=len(frames) == 1)
        finally:
            link.abandon(exchange, cancel=session is None)

    async def _answer(self, request: web.Request, exchange: Exchange, *, single: bool) -> web.StreamResponse:
        outbox = exchange.outbox
        text: str | None = ""
        try:
            async with asyncio.timeout(self.limits.commit_after if exchange.streams else None):
                text = await outbox.get()
        except TimeoutError:
            pass
        session = exchange.session
        if session is not None and not session.revision and exchange.answered and text:
            session.revision = negotiated(text)
        headers = {SESSION_HEADER: session.id} if session is not None and session.revision else {}
        json_only = not exchange.streams
        if text and exchange.answered and (single or json_only) and (outbox.drained or json_only):
            if json_only and not single:
                texts = [text]
                while (more := await outbox.get()) is not None:
                    texts.append(more)
                text = f"[{','.join(texts)}]"
            status = 200 if session is not None else _status(text)
            return web.Response(status=status, body=text.encode(), content_type="application/json", headers=headers)
        return await self._stream(request, outbox, headers, text, exchange)

    async def _stream(
        self,
        request: web.Request,
        outbox: Outbox,
        headers: dict[str, str],
        text: str | None,
        exchange: Exchange | None = None,
    ) -> web.StreamResponse:
        """Write ``text`` and all that follows as events. An empty ``text`` only opens the stream, None ends it."""
        session = exchange.session if exchange is not None else None
        if session is not None and not session.revision:
            headers = {SESSION_HEADER: session.id}  # of an initialize whose answer is still to come
        response = web.StreamResponse(headers=_STREAM_HEADERS | headers)
        # a client that is gone is no fault to report: what it asked for is given up by the caller
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            while text is not None:
                if text:
                    await response.write(f"event: message\ndata: {text}\n\n".encode())
                    if session is not None and not session.revision and exchange is not None and exchange.answered:
                        session.revision = negotiated(text)
                try:
                    async with asyncio.timeout(self.limits.keep_alive):
                        text = await outbox.get()
                except TimeoutError:
                    await response.write(b": keep-alive\n\n")
                    text = ""
            if outbox.cut and request.transport is not None:
                request.transport.abort()
            await response.write_eof()
        return response

    async def _get(self, request: web.Request) -> web.StreamResponse:
        if _stateless(request, None):
            return _refusal(405, "null", -32600, "this protocol version has no GET stream", {"Allow": "POST"})
        if not _takes(request, _EVENTS):
            return _refusal(406, "null", -32600, f"Accept must name {_EVENTS}")
        session = self._session_of(request, "null")
        if isinstance(session, web.Response):
            return session
        outbox = session.open_stream(self.limits.bounds.queued_bytes)
        try:
            return await self._stream(request, outbox, {SESSION_HEADER: session.id}, "")
        finally:
            outbox.close()
            session.used = asyncio.get_running_loop().time()
            if outbox in session.streams:
                session.streams.remove(outbox)

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        if _stateless(request, None):
            return _refusal(405, "null", -32600, "this protocol version has no sessions", {"Allow": "POST"})
        session = self._session_of(request, "null")
        if isinstance(session, web.Response):
            return session
        self.pool.end_session(session)
        return web.Response(status=200)

    def _session_of(self, request: web.Request, id_text: str) -> Session | web.Response:
        session_id = request.headers.get(SESSION_HEADER)
        if session_id is None:
            return _refusal(400, id_text, -32600, f"{SESSION_HEADER} is missing: initialize first")
        session = self.pool.sessions.get(session_id)
        if session is None:
            return _refusal(
                404, id_text, -32001, "Session not found: it ended, or its server process did; initialize anew"
            )
        version = request.headers.get(VERSION_HEADER)
        if version is not None and not revisions.known(version):
            return _refusal(400, id_text, -32600, f"unsupported {VERSION_HEADER}: {version}")
        return session


def _stateless(request: web.Request, frame: Frame | None) -> bool:
    version: object = request.headers.get(VERSION_HEADER)
    if version is None and frame is not None and frame.shape is Shape.REQUEST:
        version = frame.value(("params", "_meta", VERSION_KEY))
    return isinstance(version, str) and not revisions.has_sessions(version) and version != ""


def _takes(request: web.Request, media: str) -> bool:
    accept = ",".join(request.headers.getall("Accept", ["*/*"])).lower()
    kinds = {part.partition(";")[0].strip() for part in accept.split(",")}
    return bool(kinds & {media, media.partition("/")[0] + "/*", "*/*"})


def _status(text: str) -> int:
    code = Frame.of(text).value(("error", "code"))
    return _ERROR_STATUS.get(code, 200) if isinstance(code, int) else 200


def _refusal(status: int, id_text: str, code: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = error_text(id_text, code, message).encode()
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


async def _plain_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Take back what aiohttp adds of its own: its name, and a type for an empty body."""
    with contextlib.suppress(KeyError):
        del response.headers["Server"]
    if isinstance(response, web.Response) and not response.body:
        with contextlib.suppress(KeyError):
            del response.headers["Content-Type"]
