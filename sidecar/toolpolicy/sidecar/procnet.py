"""Who listens in this network namespace, from ``/proc/net/tcp`` and ``tcp6`` (proc_pid_net(5)).

A pod's containers share one network namespace, so that the sidecar sees every listener of the pod: where its own server
is bound, and which others could be reached from outside past the policy. That takes no privilege, and it tells of
sockets only: not whose they are, and nothing of UDP.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

FILES = ("/proc/net/tcp", "/proc/net/tcp6")
MAX_TEXT = 256 * 1024
"""Characters read of a file: the kernel lists listening sockets first, and thousands of connections behind them."""
MAX_FOREIGN = 100
_LISTEN = "0A"


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A TCP socket that accepts connections; ``address`` as one writes it, ``0.0.0.0`` and ``::`` for all."""

    port: int
    address: str


def parse(text: str) -> Iterator[Listener]:
    """The listeners of one of the files. A line that is none is passed over."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[3] != _LISTEN:
            continue
        host, _, port = fields[1].partition(":")
        try:
            yield Listener(int(port, 16), str(_address(host)))
        except ValueError:
            continue


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Words of 32 bits in the machine's own order; an IPv4 address written as IPv6 is the IPv4 one."""
    if len(text) not in (8, 32):
        raise ValueError(text)
    words = (int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8))
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def read_listeners() -> list[Listener] | None:
    """Everyone who listens here, by port; None where the kernel does not tell."""
    found: set[Listener] = set()
    told = False
    for file in FILES:
        try:
            with Path(file).open(encoding="ascii", errors="replace") as handle:
                text = handle.read(MAX_TEXT)
        except OSError:  # IPv6 is off, or this is no Linux
            continue
        told = True
        found.update(parse(text))
    return sorted(found) if told else None


def foreign(listeners: Collection[Listener], known: Collection[int]) -> list[Listener]:
    """Those that can be reached from outside the pod and are at no ``known`` port."""
    return [one for one in listeners if one.port not in known and not ipaddress.ip_address(one.address).is_loopback][
        :MAX_FOREIGN
    ]


def foreign_listeners(known: Collection[int]) -> list[Listener]:
    """The same, read now: at other ports than ``known``, the sidecar's own and the MCP servers'."""
    return foreign(read_listeners() or (), known)


def candidates(listeners: Collection[Listener] | None, port: int) -> list[str]:
    """Where a server of this pod may be reached at ``port``, the likeliest address first.

    A socket bound to all addresses is reached at a loopback one; ``::`` may take both families or its own alone.
    """
    loopback = ("127.0.0.1", "::1")
    if listeners is None:
        return list(loopback)
    found: list[str] = []
    for one in listeners:
        if one.port == port:
            found.extend({"0.0.0.0": loopback[:1], "::": loopback}.get(one.address, (one.address,)))  # noqa: S104
    return sorted(dict.fromkeys(found), key=lambda a: loopback.index(a) if a in loopback else len(loopback))
