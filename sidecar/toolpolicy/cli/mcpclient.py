"""A small MCP client that can do one thing: ask a server a few requests, over Streamable HTTP or stdio.

The server is not trusted: every answer is bounded in size, every wait in time, what it asks is refused, and a child
process is always ended and reaped. Sources: MCP specification 2025-11-25 (transports, lifecycle) and 2026-07-28.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import aiohttp

from toolpolicy.mcp.revisions import (
    META_CLIENT_CAPABILITIES,
    META_CLIENT_INFO,
    META_PROTOCOL_VERSION,
    R2025_11_25,
    R2026_07_28,
)
from toolpolicy.mcp.sse import EventScanner, SseError

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one answer."""
REQUEST_TIMEOUT = 30.0
"""Seconds for one answer."""
MAX_STRAY = 10_000
"""Messages and lines before an answer that are not the answer."""
GRACE = 2.0
"""Seconds a child has to end by itself, and again after SIGTERM."""
_STDERR_KEPT = 20

JsonObject = dict[str, Any]


class ServerError(Exception):
    """The server can't be asked; the message says why and what to do."""


class AnsweredError(ServerError):
    """The server answered with a JSON-RPC error, or an HTTP status that refuses the request."""


class Connection(ABC):
    """One server. ``revision`` is the one in use; :meth:`open` settles it."""

    revision = R2025_11_25

    def __init__(self, patience: float = REQUEST_TIMEOUT) -> None:
        self.patience = patience
        self.server_info: JsonObject = {}
        self._ids = 0

    async def open(self) -> None:
        """Initialize as of 2025-11-25; a server that knows no ``initialize`` is asked as of 2026-07-28."""
        client = {"name": "toolpolicy", "version": "0.1"}
        params: JsonObject = {"protocolVersion": R2025_11_25, "capabilities": {}, "clientInfo": client}
        try:
            result = await self.request("initialize", params)
        except AnsweredError as refused:
            self.revision = R2026_07_28
            try:
                self._take_info(await self.request("server/discover", {}))
            except AnsweredError:
                raise refused from None
            return
        revision = result.get("protocolVersion")
        if isinstance(revision, str) and revision.isascii() and len(revision) <= 32:
            self.revision = revision
        self._take_info(result)
        await self.notify("notifications/initialized")

    def _take_info(self, result: JsonObject) -> None:
        info = result.get("serverInfo")
        self.server_info = cast(JsonObject, info) if isinstance(info, dict) else {}

    async def request(self, method: str, params: JsonObject) -> JsonObject:
        """The result of one request; :class:`AnsweredError` for an error, :class:`ServerError` for no answer."""
        self._ids += 1
        if self.revision == R2026_07_28:
            meta = {
                META_PROTOCOL_VERSION: R2026_07_28,
                META_CLIENT_INFO: {"name": "toolpolicy", "version": "0.1"},
                META_CLIENT_CAPABILITIES: {},
            }
            params = {**params, "_meta": meta}
        message: JsonObject = {"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params}
        try:
            async with asyncio.timeout(self.patience):
                answer = await self._exchange(message)
        except TimeoutError:
            raise ServerError(f"no answer to {method} within {self.patience:g} s: is this an MCP server?") from None
        return _result_of(answer, method)

    @abstractmethod
    async def _exchange(self, message: JsonObject) -> JsonObject:
        """Send a request, return the message with its id."""

    @abstractmethod
    async def notify(self, method: str) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...


def _result_of(answer: JsonObject, method: str) -> JsonObject:
    result, error = answer.get("result"), answer.get("error")
    if isinstance(result, dict):
        return cast(JsonObject, result)
    if isinstance(error, dict):
        error = cast(JsonObject, error)
        raise AnsweredError(f"the server refuses {method}: {str(error.get('message'))[:300]} ({error.get('code')})")
    raise ServerError(f"the answer to {method} is neither a result nor an error: is this an MCP server?")


def parse_message(raw: bytes | str) -> JsonObject | None:
    """A JSON object, or None for anything else."""
    try:
        value: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return cast(JsonObject, value) if isinstance(value, dict) else None


class HttpConnection(Connection):
    """Streamable HTTP. Redirects are not followed: they would take the credentials elsewhere."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, patience: float = REQUEST_TIMEOUT) -> None:
        super().__init__(patience)
        self._url = url
        self._headers = dict(headers or {})
        self._session_id: str | None = None
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, connect=10.0), cookie_jar=aiohttp.DummyCookieJar()
        )

    def _request_headers(self, method: str) -> dict[str, str]:
        headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        if method != "initialize":
            headers["MCP-Protocol-Version"] = self.revision
        if self.revision == R2026_07_28:
            headers["Mcp-Method"] = method
        if self._session_id is not None:
            headers["Mcp-Session-Id"] = self._session_id
        return {**headers, **self._headers}

    async def _exchange(self, message: JsonObject) -> JsonObject:
        method = str(message["method"])
        try:
            async with self._client.post(
                self._url, json=message, headers=self._request_headers(method), allow_redirects=False
            ) as response:
                answer = await self._answer(response, message["id"])
                session = response.headers.get("Mcp-Session-Id")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ServerError(f"{self._url} can't be asked: {_said(error)}: is the server running there?") from None
        if method == "initialize" and session is not None:
            self._session_id = session
        return answer

    async def _answer(self, response: aiohttp.ClientResponse, id: object) -> JsonObject:
        if response.status in (301, 302, 303, 307, 308):
            where = response.headers.get("Location", "")[:200]
            raise ServerError(f"{self._url} redirects to {where}: give that URL if you trust it")
        if response.content_type == "text/event-stream":
            async for message in _events(response):
                if message.get("id") == id and "method" not in message:
                    return message
            raise ServerError("the server ended its stream without an answer: try again")
        body = await _bounded(response)
        message = parse_message(body)
        if message is not None and ("result" in message or "error" in message):
            return message
        if response.status in (401, 403):
            raise ServerError(
                f"the server answers {response.status}: give credentials with --header 'Authorization: …'"
            )
        if response.status >= 400:
            raise AnsweredError(
                f"{self._url} answers {response.status}: is this the URL of an MCP endpoint, like …/mcp?"
            )
        raise ServerError(f"{self._url} answers something other than JSON-RPC: is this the URL of an MCP endpoint?")

    async def notify(self, method: str) -> None:
        message = {"jsonrpc": "2.0", "method": method}
        try:
            async with (
                asyncio.timeout(self.patience),
                self._client.post(
                    self._url, json=message, headers=self._request_headers(method), allow_redirects=False
                ) as response,
            ):
                if response.status >= 400:
                    raise ServerError(f"the server answers {method} with {response.status}")
        except TimeoutError:
            raise ServerError(f"no answer to {method} within {self.patience:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerError(f"{self._url} can't be asked: {_said(error)}") from None

    async def close(self) -> None:
        """End the session, as the specification asks for, whether or not the server knows how."""
        if self._session_id is not None:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with (
                    asyncio.timeout(GRACE),
                    self._client.delete(self._url, headers=self._request_headers(""), allow_redirects=False),
                ):
                    pass
        await self._client.close()


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_MESSAGE:
            raise ServerError(f"the answer is larger than {MAX_MESSAGE // 1024 // 1024} MiB")
    return bytes(body)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[JsonObject]:
    scanner, seen = EventScanner(MAX_MESSAGE), 0
    try:
        async for chunk in response.content.iter_any():
            for event in scanner.feed(chunk):
                seen += 1
                if seen > MAX_STRAY:
                    raise ServerError("the server sends events without end, and no answer")
                message = parse_message(event.data) if event.data else None
                if message is not None:
                    yield message
    except SseError as error:
        raise ServerError(str(error)) from None


class StdioConnection(Connection):
    """A child process in a process group of its own, one JSON message a line."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, patience: float = REQUEST_TIMEOUT) -> None:
        super().__init__(patience)
        self._process = process
        self._name = name
        self._said: deque[str] = deque(maxlen=_STDERR_KEPT)
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, command: Sequence[str], patience: float = REQUEST_TIMEOUT) -> StdioConnection:
        name = shlex.join(command)
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, limit=MAX_MESSAGE, start_new_session=True
            )
        except FileNotFoundError:
            raise ServerError(f"{command[0]} is not installed: check the name, or give its full path") from None
        except (OSError, ValueError) as error:
            raise ServerError(f"{name} can't be started: {_said(error)}") from None
        return cls(process, name, patience)

    async def _listen(self) -> None:
        """Keep the end of the child's standard error, and never let it fill its pipe."""
        stream = self._process.stderr
        assert stream is not None
        while chunk := await stream.read(65536):
            self._said.extend(chunk.decode("utf-8", "replace").splitlines())

    async def _send(self, message: JsonObject) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            await stdin.drain()
        except (ConnectionError, RuntimeError):
            raise await self._ended() from None

    async def _exchange(self, message: JsonObject) -> JsonObject:
        await self._send(message)
        stdout = self._process.stdout
        assert stdout is not None
        for _ in range(MAX_STRAY):
            try:
                line = await stdout.readline()
            except ValueError:
                raise ServerError(f"a line of the server is longer than {MAX_MESSAGE // 1024 // 1024} MiB") from None
            if not line:
                raise await self._ended()
            answer = parse_message(line)
            if answer is None:
                continue
            if "method" not in answer and answer.get("id") == message["id"]:
                return answer
            await self._refuse(answer)
        raise ServerError("the server writes lines without end, and no answer")

    async def _refuse(self, message: JsonObject) -> None:
        """Answer what the server asks: it may ping, and nothing else."""
        if "method" not in message or "id" not in message:
            return
        answer: JsonObject = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": -32601, "message": "this client only lists tools"}
        await self._send(answer)

    async def _ended(self) -> ServerError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._process.wait()
                await self._listening
        how = "closed its output" if self._process.returncode is None else f"ended with {self._process.returncode}"
        said = "".join(f"\n  {line[:300]}" for line in self._said)
        return ServerError(f"the server {how} without an answer: {self._name}{said and '; it said:' + said}")

    async def notify(self, method: str) -> None:
        await self._send({"jsonrpc": "2.0", "method": method})

    async def close(self) -> None:
        """Close its input, then ask, then force; the child and what it started are gone afterwards."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            for number in (None, signal.SIGTERM, signal.SIGKILL):
                if number is not None:
                    self._signal(number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(GRACE):
                        await self._drain_and_wait()
                        break
        finally:
            self._signal(signal.SIGKILL)
            await self._process.wait()
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening

    async def _drain_and_wait(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while await stdout.read(65536):
            pass
        await self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _said(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
