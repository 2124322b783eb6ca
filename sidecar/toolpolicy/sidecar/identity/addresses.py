"""The peer's address as an identity: normalised, and taken from a proxy's header only where that proxy is trusted.

A claimed identity costs its holder nothing, so the address has to be the one thing about a caller that he can't vary:
an IPv6 host owns its whole /64, hence one identity per /64; a process of the same host may send from any of millions of
loopback addresses, hence one identity for them all; an IPv4 address written as IPv6 is the IPv4 one; a zone id is
dropped.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_HOPS = 32
"""Entries of a forwarding header that are looked at, from the right."""


class TrustedProxies:
    """Finds the client behind proxies whose address is in ``networks`` (CIDRs; ValueError for one that is none).

    From ``X-Forwarded-For`` and from ``Forwarded`` (RFC 7239) the rightmost entry that is no trusted proxy counts:
    what stands left of it was written by whoever sent the request. If both headers are present, both answers count
    (:meth:`clients`), because the proxy writes one of them and passes the other on as the client made it up.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(n, strict=False) for n in networks)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in n for n in self._networks)

    def clients(self, peer: str, x_forwarded_for: Sequence[bytes], forwarded: Sequence[bytes]) -> tuple[str, ...]:
        """The identities (``addr:…``) of the client, one or two; the peer's own where it is not a trusted proxy."""
        address = parse_address(peer)
        if not (x_forwarded_for or forwarded) or not self.trusts(address):
            return (identity_of(address, peer),)
        found: list[str] = []
        if x_forwarded_for:
            hops = b",".join(x_forwarded_for).decode("latin-1").split(",")
            found.append(self._rightmost(address, peer, [_strip_port(h.strip()) for h in hops[-MAX_HOPS:]]))
        if forwarded:
            found.append(
                self._rightmost(address, peer, forwarded_for(b",".join(forwarded).decode("latin-1"))[-MAX_HOPS:])
            )
        return tuple(dict.fromkeys(found))

    def _rightmost(self, address: Address | None, peer: str, hops: Sequence[str]) -> str:
        last, last_text = address, peer
        for hop in reversed(hops):
            parsed = parse_address(hop)
            if parsed is None:
                break  # a hop that can't be read hides all before it: the proxy that wrote it is the last one known
            last, last_text = parsed, hop
            if not self.trusts(parsed):
                break
        return identity_of(last, last_text)


def parse_address(text: str) -> Address | None:
    """An IP address without zone id, IPv4-mapped IPv6 as IPv4; None for anything else."""
    text, _, _ = text.partition("%")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def identity_of(address: Address | None, text: str) -> str:
    """``addr:203.0.113.7``, ``addr:2001:db8::/64``, or for what is no IP address (a unix socket) ``addr:local``."""
    if address is None:
        return "addr:local" if not text or text.startswith(("unix", "/", "@")) else f"addr:unknown:{text[:64]}"
    if address.is_loopback:
        return "addr:127.0.0.1"
    if isinstance(address, ipaddress.IPv4Address):
        return f"addr:{address}"
    prefix = ipaddress.IPv6Address(int(address) >> 64 << 64)
    return f"addr:{prefix}/64"


def forwarded_for(text: str) -> list[str]:
    """The ``for`` of each element of a Forwarded header, in order; one without a usable ``for`` is the empty string."""
    hops: list[str] = []
    for element in _split_quoted(text, ","):
        value = ""
        for pair in _split_quoted(element, ";"):
            name, _, content = pair.partition("=")
            if name.strip().lower() == "for":
                value = content.strip().strip('"')
        hops.append(_strip_port(value))
    return hops


def _strip_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    if text.count(":") == 1:
        return text.partition(":")[0]
    return text


def _split_quoted(text: str, separator: str) -> list[str]:
    parts: list[str] = []
    start, quoted, escaped = 0, False, False
    for i, c in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and c == "\\":
            escaped = True
        elif c == '"':
            quoted = not quoted
        elif c == separator and not quoted:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return parts
