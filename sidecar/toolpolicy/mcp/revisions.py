"""The protocol revisions, and what differs between them for a policy proxy.

A revision is the date string of the specification. Revisions are an enumerated set and not ordered strings: one that is
not known here (a later one) is treated like the newest, which is the strictest.
"""

from __future__ import annotations

from typing import Final

R2024_11_05: Final = "2024-11-05"
"""Only HTTP+SSE: ``GET /sse`` announces the path that messages are posted to."""
R2025_03_26: Final = "2025-03-26"
"""Streamable HTTP; the only revision with JSON-RPC batches; what a server assumes where no version is said."""
R2025_06_18: Final = "2025-06-18"
"""Batches removed, ``MCP-Protocol-Version`` added."""
R2025_11_25: Final = "2025-11-25"
"""Tasks, URL elicitation."""
R2026_07_28: Final = "2026-07-28"
"""Stateless: no ``initialize``, no session, no GET stream; every request carries its own envelope in ``_meta``."""

KNOWN: Final = (R2024_11_05, R2025_03_26, R2025_06_18, R2025_11_25, R2026_07_28)
LATEST: Final = R2026_07_28
ASSUMED: Final = R2025_03_26
"""The revision of a request that names none (specification 2025-06-18, Streamable HTTP, protocol version header)."""

_HANDSHAKE: Final = frozenset(KNOWN[:-1])

META_PROTOCOL_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
META_CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
META_CLIENT_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"


def known(revision: str | None) -> bool:
    """Whether this is a published revision that is tested here."""
    return revision in KNOWN


def batch_allowed(revision: str | None) -> bool:
    """Whether a JSON-RPC batch is part of this revision. None is a request that names no revision."""
    return revision is None or revision == R2025_03_26


def requires_standard_headers(revision: str | None) -> bool:
    """Whether ``Mcp-Method`` and ``Mcp-Name`` must accompany the body (2026-07-28, SEP-2243)."""
    return revision is not None and revision not in _HANDSHAKE


def has_sessions(revision: str | None) -> bool:
    """Whether the revision has ``initialize`` and ``Mcp-Session-Id``; later ones are stateless."""
    return revision is None or revision in _HANDSHAKE


def has_result_type(revision: str | None) -> bool:
    """Whether ``resultType`` is mandatory in results. Older clients ignore it."""
    return not has_sessions(revision)
