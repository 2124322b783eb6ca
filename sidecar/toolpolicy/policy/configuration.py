"""Checks of what is not a rule: where the server listens, how callers are identified, what is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from toolpolicy.policy.documents import Path
from toolpolicy.policy.explained import Explained
from toolpolicy.policy.shapes import items, mapping

_OWN_NAMES = ("addr:", "cred:", "anonymous", "system:")
"""What ids of the sidecar's own giving, and of the cluster, begin with."""
_NEVER_A_SESSION = frozenset(
    [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "mcp-session-id",
        "origin",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-for",
    ]
)


def check_server(server: dict[str, Any], path: Path) -> Iterator[Explained]:
    """``spec.server``: paths that mean what they say, and nothing unjudged beside the MCP endpoint."""
    mcp = server.get("path", "/mcp")
    if isinstance(mcp, str):
        yield from _check_path(mcp, (*path, "path"))
    seen: set[str] = set()
    for index, item in enumerate(items(server.get("passThrough"))):
        where = (*path, "passThrough", index, "path")
        other = mapping(item).get("path")
        if not isinstance(other, str):
            continue
        yield from _check_path(other, where)
        if isinstance(mcp, str) and _loose(other) == _loose(mcp):
            message = f"a server may take it for its MCP path {mcp[:80]}, which is always judged"
            yield Explained(where, message, "pass-through")
        if other in seen:
            yield Explained(where, "the path is there twice: give it once, with all its methods", "pass-through")
        seen.add(other)


def _loose(path: str) -> str:
    """What careless routers make of a path: no case, no trailing slash, no path parameters."""
    return path.partition(";")[0].casefold().rstrip("/")


def _check_path(path: str, where: Path) -> Iterator[Explained]:
    if "//" in path or any(part in (".", "..") for part in path.split("/")):
        yield Explained(where, "a path has no empty, `.` or `..` segments", "path")


def check_identity(identity: dict[str, Any], path: Path) -> Iterator[Explained]:
    """``spec.identity``: keys that can be fetched safely, certificates that parse, networks, one source of sessions."""
    issuers: set[str] = set()
    prefixes: dict[str, str] = {}
    for index, item in enumerate(items(identity.get("jwt"))):
        entry, where = mapping(item), (*path, "jwt", index)
        jwks, issuer = entry.get("jwks"), entry.get("issuer")
        if isinstance(jwks, str) and (fault := _jwks_fault(jwks)):
            yield Explained((*where, "jwks"), fault, "jwks")
        if isinstance(issuer, str):
            if any(char.isspace() for char in issuer):
                yield Explained(
                    (*where, "issuer"), "an issuer has no blanks: it is compared exactly with `iss`", "issuer"
                )
            if issuer in issuers:
                message = "the issuer is there twice: give it once, with all its audiences"
                yield Explained((*where, "issuer"), message, "issuer")
            issuers.add(issuer)
            prefix = entry.get("principalPrefix", "")
            if isinstance(prefix, str):
                yield from _check_prefix(prefix, issuer, prefixes, where)
    if isinstance(pem := identity.get("clientCA"), str) and (fault := _pem_fault(pem)):
        yield Explained((*path, "clientCA"), fault, "certificate")
    if isinstance(identity.get("session"), dict):
        yield from _check_session(mapping(identity.get("session")), (*path, "session"))
    for index, network in enumerate(items(identity.get("trustedProxies"))):
        if isinstance(network, str) and (fault := _network_fault(network)):
            yield Explained((*path, "trustedProxies", index), fault, "cidr")


def _check_prefix(prefix: str, issuer: str, prefixes: dict[str, str], where: Path) -> Iterator[Explained]:
    if not prefix.isprintable() or prefix.startswith(_OWN_NAMES):
        message = (
            f"a prefix is printable, and does not begin as names that no issuer gives do ({', '.join(_OWN_NAMES)})"
        )
        yield Explained((*where, "principalPrefix"), message, "principal-prefix")
    other = prefixes.setdefault(prefix, issuer)
    if other != issuer:
        message = (
            f"{other} has the same prefix, so that either issuer could name the other's principals: "
            f"give it one of its own, such as principalPrefix: {issuer}#"
        )
        yield Explained((*where, "principalPrefix"), message, "principal-prefix")


def _jwks_fault(jwks: str) -> str | None:
    if "://" not in jwks:
        return None if jwks.strip() == jwks else "a path has no blanks around it"
    expected = "expected a file's path, or an https URL (http only on loopback)"
    try:
        url = urlsplit(jwks)
        host = url.hostname or ""
        _ = url.port
    except ValueError as error:
        return f"{expected}: {error}"
    if any(char.isspace() for char in jwks) or not host or url.username is not None or url.fragment:
        return f"{expected}, without user, blanks or fragment"
    if url.scheme == "https" or (url.scheme == "http" and _loopback(host)):
        return None
    return expected + (": keys that come over http can be replaced on the way" if url.scheme == "http" else "")


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pem_fault(pem: str) -> str | None:
    if "PRIVATE KEY" in pem:
        return "holds a private key: a policy holds certificates only, and that key must be replaced now"
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415  (only where a CA is given)

    try:
        load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        return f"expected PEM certificates (-----BEGIN CERTIFICATE-----): {str(error).split(chr(10))[0][:160]}"
    return None


def _network_fault(network: str) -> str | None:
    try:
        ip_network(network)
    except ValueError as error:
        try:
            meant = f": did you mean {ip_network(network, strict=False)}?"
        except ValueError:
            meant = ""
        return f"expected a network like 10.0.0.0/8 or 2001:db8::/32 ({str(error)[:100]}){meant}"
    return None


def _check_session(session: dict[str, Any], path: Path) -> Iterator[Explained]:
    given = [name for name in ("header", "metaKey") if name in session]
    if len(given) != 1:
        said = "both are given" if given else "neither is given"
        yield Explained(path, f"expected exactly one of header and metaKey; {said}", "session")
    header = session.get("header")
    if isinstance(header, str) and header.lower() in _NEVER_A_SESSION:
        yield Explained((*path, "header"), f"{header} has a meaning of its own and can't name a session", "session")


def check_audit(audit: dict[str, Any], path: Path) -> Iterator[Explained]:
    """``spec.audit``: there is nothing to redact in a digest."""
    if audit.get("redact") and audit.get("arguments", "Digest") == "Digest":
        message = "only with arguments: Full; a digest shows nothing that could be redacted"
        yield Explained((*path, "redact"), message, "redact", at_key=True)
