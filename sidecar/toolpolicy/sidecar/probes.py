"""The kubelet's probes of an MCP port, answered at the admin port by asking the server itself.

In a pod whose MCP port leads to the sidecar, a probe of that port would ask the sidecar: a tcpSocket probe would find
it open for ever, and an httpGet path is refused unless it is an MCP path. So the operator points them here, and this
asks what the kubelet would have asked (pkg/probe of Kubernetes): an HTTP answer from 200 to 399, redirects followed
only to the server itself; a TCP connection; ``grpc.health.v1.Health/Check`` that says SERVING. A dead server fails its
probe as before.

Whoever reaches the admin port can have a probe asked, so that it is never more than the kubelet could ask: configured
entries only, one question at a time for each, an answer of less than half a second ago told again.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

from toolpolicy.sidecar.near import Near, connected

HOOKS = ("postStart", "preStop")
"""Of a container's lifecycle: HTTP requests that do something, so that each one asked for is made."""
KINDS = ("liveness", "readiness", "startup", *HOOKS)
FRESH = 0.5
"""Seconds within which an answer is told again; the kubelet asks once a second at most."""
MAX_REDIRECTS = 10
MAX_BODY = 10 * 1024
"""Bytes read of an HTTP answer, as the kubelet does."""
MAX_HEAD = 64 * 1024
MAX_PROBES = 64
USER_AGENT = "kube-probe/1.0 (toolpolicy)"
_KEY = re.compile(rf"[a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/({'|'.join(KINDS)})")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_FIELDS = {
    "http": {"type", "port", "timeout", "path", "scheme", "headers"},
    "tcp": {"type", "port", "timeout"},
    "grpc": {"type", "port", "timeout", "service"},
}


class ProbeFailed(Exception):
    """The server is not as the probe wants it; the message says what it found."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. ``timeout`` in seconds; the rest as in a Kubernetes probe."""

    type: str
    port: int
    timeout: float = 1.0
    path: str = "/"
    tls: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    service: str = ""


def parse_probes(text: str) -> dict[str, Probe]:
    """The probes of ``TOOLPOLICY_PROBES`` by ``CONTAINER/KIND``. Raises ValueError with what is wrong."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("expected an object of probes by container/kind")
    entries = cast("dict[str, Any]", found)
    if len(entries) > MAX_PROBES:
        raise ValueError(f"{len(entries)} probes are more than {MAX_PROBES}")
    return {key: _probe(key, value) for key, value in entries.items()}


def _probe(key: str, value: Any) -> Probe:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key[:80]!r}: expected CONTAINER/{' or '.join(KINDS)}")
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    kind = fields.get("type")
    if kind not in _FIELDS:
        raise ValueError(f"{key}: type: expected {', '.join(_FIELDS)}")
    unknown = sorted(fields.keys() - _FIELDS[kind])
    if unknown:
        raise ValueError(f"{key}: {unknown[0][:80]}: no such field of a probe of type {kind}")
    port, timeout = fields.get("port"), fields.get("timeout", 1)
    if type(port) is not int or not 0 < port < 65536:
        raise ValueError(f"{key}: port: expected 1 to 65535")
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout <= 3600:
        raise ValueError(f"{key}: timeout: expected seconds from 0 to 3600")
    path, service = fields.get("path") or "/", fields.get("service") or ""
    if not _is_plain(path) or not _is_plain(service):
        raise ValueError(f"{key}: path and service: expected printable ASCII without blanks")
    scheme = fields.get("scheme", "HTTP")
    if scheme not in ("HTTP", "HTTPS"):
        raise ValueError(f"{key}: scheme: expected HTTP or HTTPS")
    headers = _headers(key, fields.get("headers") or [])
    return Probe(
        kind, port, float(timeout), path if path.startswith("/") else f"/{path}", scheme == "HTTPS", headers, service
    )


def _headers(key: str, value: Any) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for entry in cast("list[Any]", value) if isinstance(value, list) else [None]:
        fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        name, text = fields.get("name"), fields.get("value", "")
        fine = isinstance(name, str) and _HEADER.fullmatch(name) and isinstance(text, str)
        if not fine or not all(c == "\t" or " " <= c <= "~" for c in text) or fields.keys() - {"name", "value"}:
            raise ValueError(f'{key}: headers: expected a list of {{"name": …, "value": …}}')
        pairs.append((cast("str", name), cast("str", text)))
    return tuple(pairs)


def _is_plain(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= 4096 and all("!" <= c <= "~" for c in text)


class Probes:
    """Answers configured probes; each is asked once at a time, and not again while its answer is fresh."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = dict(probes)
        self._near = {key: Near(probe.port) for key, probe in probes.items()}
        self._asking: dict[str, asyncio.Task[tuple[bool, str]]] = {}
        self._asked: dict[str, float] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._probes

    async def ask(self, key: str) -> tuple[bool, str]:
        """Whether the server passes, and what was found. Raises KeyError for a probe that is not configured."""
        probe = self._probes[key]
        now = asyncio.get_running_loop().time()
        task = self._asking.get(key)
        fresh = 0.0 if key.endswith(HOOKS) else FRESH
        if task is None or (task.done() and now - self._asked[key] >= fresh):
            task = asyncio.create_task(check(probe, self._near[key]))
            self._asking[key] = task
            self._asked[key] = now
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ask nothing more."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)


async def check(probe: Probe, near: Near | None = None) -> tuple[bool, str]:
    """Ask once: whether the server passes, and what was found, in one line."""
    ask: dict[str, Callable[[Probe, Near], Awaitable[str]]] = {"http": _http, "tcp": _tcp, "grpc": _grpc}
    try:
        async with asyncio.timeout(probe.timeout * 0.9):  # so that the kubelet hears why, and not only that it is late
            return True, await ask[probe.type](probe, near or Near(probe.port))
    except TimeoutError:
        return False, f"no answer within {probe.timeout:g} s"
    except (ProbeFailed, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        return False, str(error)
    except OSError as error:
        return False, os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


async def _tcp(probe: Probe, near: Near) -> str:
    _, writer = await connected(near)
    writer.transport.abort()
    return "connected"


async def _grpc(probe: Probe, near: Near) -> str:
    from toolpolicy.sidecar.grpchealth import GrpcFault, check_health

    reader, writer = await connected(near)
    try:
        status = await check_health(reader, writer, f"localhost:{probe.port}", probe.service)
    except GrpcFault as fault:
        raise ProbeFailed(str(fault)) from None
    finally:
        writer.transport.abort()
    if status != "SERVING":
        raise ProbeFailed(f"its health is {status}")
    return status


async def _http(probe: Probe, near: Near) -> str:
    own = f"{'https' if probe.tls else 'http'}://server:{probe.port}"
    target = probe.path
    for _ in range(MAX_REDIRECTS):
        status, location = await _get(probe, near, target)
        if not 300 <= status < 400 or not location:
            break
        try:
            url = urlsplit(urljoin(own + target, location))
        except ValueError:
            break
        at_home = url.netloc in (f"server:{probe.port}", f"localhost:{probe.port}", f"127.0.0.1:{probe.port}")
        if not at_home or url.scheme != own.partition(":")[0]:
            break  # as the kubelet does: a redirect elsewhere is an answer, and is not followed
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    else:
        raise ProbeFailed(f"more than {MAX_REDIRECTS} redirects")
    if not 200 <= status < 400:
        raise ProbeFailed(f"HTTP {status}")
    return f"HTTP {status}"


async def _get(probe: Probe, near: Near, target: str) -> tuple[int, str]:
    """The status and Location of one GET."""
    given = {name.lower() for name, _ in probe.headers}
    usual = (("Host", f"localhost:{probe.port}"), ("User-Agent", USER_AGENT), ("Accept", "*/*"))
    headers = [*(h for h in usual if h[0].lower() not in given), *probe.headers, ("Connection", "close")]
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    reader, writer = await connected(near, tls=probe.tls, limit=MAX_HEAD)
    try:
        writer.write("\r\n".join(lines).encode("latin-1", "replace"))
        status, found = 100, dict[str, str]()
        while 100 <= status < 200:
            status, found = _head(await reader.readuntil(b"\r\n\r\n"))
        length = found.get("content-length", "")
        if length.isascii() and length.isdigit() and status not in (204, 304):
            await reader.readexactly(min(int(length[:9]), MAX_BODY))
    finally:
        writer.close()
    location = found.get("location", "")
    return status, location if _is_plain(location) else ""


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    match = re.match(r"HTTP/1\.[01] (\d{3})( |$)", first)
    if match is None:
        raise ProbeFailed(f"no HTTP answer: {first[:80]!r}")
    pairs = (line.partition(":") for line in rest if line)
    return int(match[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}
