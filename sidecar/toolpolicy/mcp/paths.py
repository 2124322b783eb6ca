"""Which request target goes where. Everything that is not exactly a known path is NOT_FOUND.

Servers are lenient (``/MCP``, ``/mcp/``, ``/mcp#f``, ``//host/mcp``, ``/x/../mcp``, ``/%6dcp`` and absolute-form
targets have all executed tools behind proxies that compared less strictly), so nothing here is normalised in order to
match: a near-variant of an MCP path is never forwarded, not even where ``passThrough`` names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

MAX_ANNOUNCED: Final = 16_384
"""Legacy message paths known at once: some servers put the session into the path."""
MAX_TARGET: Final = 8192

DISCOVERY: Final = (
    "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
)

_PATH: Final = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,=:@-]+(?:/[A-Za-z0-9._~!$&'()*+,=:@-]+)*/?)?")
"""Plain segments only: no empty ones, no ``%``, ``;``, backslash, ``#``, control or non-ASCII character."""
_QUERY: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]{}|^-]*")
_READING: Final = frozenset({"GET", "HEAD"})


class RouteKind(Enum):
    """MCP: judged. LEGACY_SSE: a GET that opens a stream. LEGACY_MESSAGE: a POST that is judged. DISCOVERY and
    PASS_THROUGH: forwarded unjudged, without a request body unless the policy names the method, and audited."""

    MCP = "mcp"
    LEGACY_SSE = "legacySse"
    LEGACY_MESSAGE = "legacyMessage"
    DISCOVERY = "discovery"
    PASS_THROUGH = "passThrough"  # noqa: S105 (a kind of route, not a password)
    NOT_FOUND = "notFound"


@dataclass(frozen=True, slots=True)
class Route:
    """Where a target goes. ``target`` is what to ask upstream: path and query exactly as they came."""

    kind: RouteKind
    path: str
    target: str


class PathError(ValueError):
    """A path that can't be routed, with the reason."""


class PassThroughPath(Protocol):
    """What of ``spec.server.passThrough`` is needed here."""

    @property
    def path(self) -> str: ...
    @property
    def methods(self) -> Sequence[str]: ...


class Routes:
    """The routing table of one server. ``mcp_paths`` and ``legacy_sse`` are exact.

    ``refused`` lists the ``passThrough`` paths that are ignored because they are variants of a judged path, or not
    plain.
    """

    def __init__(
        self,
        mcp_paths: Iterable[str] = ("/mcp",),
        pass_through: Iterable[PassThroughPath] = (),
        *,
        legacy_sse: Iterable[str] = ("/sse",),
    ) -> None:
        self.mcp = tuple(dict.fromkeys(_plain(path) for path in mcp_paths))
        """The MCP paths, in the order given."""
        self._mcp = frozenset(self.mcp)
        self._legacy = frozenset(_plain(path) for path in legacy_sse) - self._mcp
        self._discovery = frozenset(
            [*DISCOVERY, *(base + path.rstrip("/") for base in DISCOVERY for path in self._mcp | self._legacy)]
        )
        self._announced: dict[str, int] = {}
        self._targets: dict[str, int] = {}
        judged = {_loosely(path) for path in self._mcp | self._legacy}
        self._pass: dict[str, frozenset[str]] = {}
        refused: list[str] = []
        for entry in pass_through:
            if _PATH.fullmatch(entry.path) is None or _has_dots(entry.path) or _loosely(entry.path) in judged:
                refused.append(entry.path)
            else:
                allowed = self._pass.get(entry.path, frozenset())
                self._pass[entry.path] = allowed | {method.upper() for method in entry.methods}
        self.refused: tuple[str, ...] = tuple(refused)
        self._usual: dict[str, Route] = {path: Route(RouteKind.MCP, path, path) for path in self._mcp}

    def route(self, method: str, target: bytes | str) -> Route:
        """Decide for one request line. ``target`` is the raw request-target; ``method`` in upper case."""
        usual = self._usual.get(target) if isinstance(target, str) else None
        if usual is not None:
            return usual
        if isinstance(target, bytes):
            target = target.decode("latin-1")
        path, mark, query = target.partition("?")
        kind = RouteKind.NOT_FOUND
        if len(target) <= MAX_TARGET and _QUERY.fullmatch(query) is not None:
            kind = self._kind(method, path, bool(mark), target)
        return Route(kind, path, target)

    def _kind(self, method: str, path: str, has_query: bool, target: str) -> RouteKind:
        if path in self._mcp:
            return RouteKind.MCP
        if path in self._legacy:
            # A modern client tries a POST here first; whatever is posted is judged.
            return RouteKind.LEGACY_SSE if method in _READING else RouteKind.MCP
        if path in self._announced:
            # The query names the session: in another spelling it would be the same session to the server, and here one
            # that belongs to nobody.
            known = method == "OPTIONS" or (method == "POST" and target in self._targets)
            return RouteKind.LEGACY_MESSAGE if known else RouteKind.NOT_FOUND
        if path in self._discovery:
            return RouteKind.DISCOVERY if method in _READING and not has_query else RouteKind.NOT_FOUND
        allowed = self._pass.get(path)
        if allowed is not None and method in allowed and not self._like_announced(path):
            return RouteKind.PASS_THROUGH
        return RouteKind.NOT_FOUND

    def announce(self, endpoint: str) -> str:
        """Learn the path of a legacy ``endpoint`` event. Takes a path with query or an absolute URL; returns the
        origin-form target that the client is to be told. Raises :class:`PathError`. Undone by :meth:`forget`.
        Messages may be posted to exactly that target, its query included."""
        target = endpoint.strip()
        absolute = re.match(r"https?://[^/?#]*", target, re.IGNORECASE)
        if absolute is not None:
            target = target[absolute.end() :]
        path, _, query = target.partition("?")
        if (
            _PATH.fullmatch(path) is None
            or _has_dots(path)
            or _QUERY.fullmatch(query) is None
            or len(target) > MAX_TARGET
        ):
            raise PathError("the server announced a message path that is not a plain path")
        if path not in self._announced and len(self._announced) >= MAX_ANNOUNCED:
            raise PathError(f"the server announced more than {MAX_ANNOUNCED} message paths at once")
        self._announced[path] = self._announced.get(path, 0) + 1
        self._targets[target] = self._targets.get(target, 0) + 1
        return target

    def forget(self, target: str) -> None:
        """The stream that announced this target has ended."""
        for known, key in ((self._announced, target.partition("?")[0]), (self._targets, target)):
            left = known.get(key, 0) - 1
            if left > 0:
                known[key] = left
            else:
                known.pop(key, None)

    def _like_announced(self, path: str) -> bool:
        if not self._announced:
            return False
        loose = _loosely(path)
        return any(_loosely(known) == loose for known in self._announced)


def _plain(path: str) -> str:
    if _PATH.fullmatch(path) is None or _has_dots(path):
        raise PathError(f"the path {path[:64]!r} must start with / and have plain segments: no %, ;, .., // or query")
    return path


def _has_dots(path: str) -> bool:
    return any(segment in (".", "..") for segment in path.split("/"))


def _loosely(path: str) -> str:
    """What a lenient server may take a path for."""
    for _ in range(3):
        path = unquote_to_bytes(path).decode("latin-1")
    path = path.replace("\\", "/").partition("#")[0].partition("?")[0].casefold()
    kept: list[str] = []
    for segment in path.split("/"):
        name = segment.partition(";")[0].strip()
        if name == "..":
            del kept[-1:]
        elif name not in ("", "."):
            kept.append(name)
    return "/".join(kept)
