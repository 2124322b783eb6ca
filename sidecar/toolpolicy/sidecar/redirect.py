"""``python -m toolpolicy.sidecar.redirect 8000=15771 9000=15773 --except-uid 15771``: the rules that bring a pod's MCP
ports to its sidecar.

One nftables table, ``inet toolpolicy``, for IPv4 and IPv6 alike, written in one transaction: it stands whole or not at
all, and a second run replaces it without a moment in between. Two ways lead to a port:

- from outside, and from a pod to itself by way of its Service: ``prerouting``;
- from inside, to a loopback address or the pod's own: the kernel sends both by ``lo``, so ``output`` catches both. Only
  the sidecar's UID goes through to the server. The rule lets that UID pass and redirects *all* else, instead of
  redirecting what has another UID: a packet without an owner (of a socket that was closed meanwhile) has none at all.

NAT decides on the first packet of a connection, and an init container runs before any container that could have opened
one; so nothing that existed before has to be cut. A privilege (NET_ADMIN), and nothing else, is needed; a container
that has it as well, or the sidecar's UID, can go around (threat model).

What was written is not believed: the table is read back, and one connection a port and family is made, which has to
arrive at the other end. Kernels and sandboxes exist that take rules and do not apply them. Any doubt is exit code 1,
with which the pod does not start.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

TABLE = "toolpolicy"
TIMEOUT = 10.0
"""Seconds for nft, which needs milliseconds."""
PROOF_TIMEOUT = 3.0
"""Seconds for one connection over lo."""
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


class RedirectFault(Exception):
    """The ports are not redirected; the message says why and what to do."""


def ruleset(ports: Mapping[int, int], except_uid: int) -> str:
    """The transaction for ``nft -f``: ``ports`` from an MCP port to the sidecar's. The table is made, so that it can be
    deleted, and made anew.
    """
    outside = [f"add rule inet {TABLE} prerouting tcp dport {port} redirect to :{to}" for port, to in ports.items()]
    inside = [
        f'add rule inet {TABLE} output oifname "lo" tcp dport {port} redirect to :{to}' for port, to in ports.items()
    ]
    return "\n".join(
        (
            f"add table inet {TABLE}",
            f"delete table inet {TABLE}",
            f"add table inet {TABLE}",
            f"add chain inet {TABLE} prerouting {{ type nat hook prerouting priority -100; policy accept; }}",
            f"add chain inet {TABLE} output {{ type nat hook output priority -100; policy accept; }}",
            *outside,
            f'add rule inet {TABLE} output oifname "lo" meta skuid {except_uid} accept',
            *inside,
            "",
        )
    )


def differences(listing: str, ports: Mapping[int, int], except_uid: int) -> list[str]:
    """What of ``nft -j list table inet toolpolicy`` is not as :func:`ruleset` wrote it; empty if all stands."""
    try:
        found = cast("list[dict[str, Any]]", json.loads(listing)["nftables"])
        chains = {
            c["name"]: (c.get("type"), c.get("hook"), c.get("prio"), c.get("policy"))
            for entry in found
            if (c := entry.get("chain")) is not None
        }
        rules: dict[str, list[Any]] = {}
        for entry in found:
            if (rule := entry.get("rule")) is not None:
                rules.setdefault(rule["chain"], []).append(rule["expr"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"nft's listing can't be read ({type(error).__name__}: {error})"]
    wrong = [
        f"chain {name}: expected a nat chain at its hook, found {chains.get(name)}"
        for name in ("prerouting", "output")
        if chains.get(name) != ("nat", name, -100, "accept")
    ]
    expected = _expected(ports, except_uid)
    wrong.extend(
        f"chain {name}: {len(expected[name])} rules were written, {rules.get(name, [])!r:.500} stand"
        for name in expected
        if rules.get(name, []) != expected[name]
    )
    return wrong


def _expected(ports: Mapping[int, int], except_uid: int) -> dict[str, list[Any]]:
    def match(left: Any, right: Any) -> Any:
        return {"match": {"op": "==", "left": left, "right": right}}

    def redirect(port: int, to: int) -> list[Any]:
        return [match({"payload": {"protocol": "tcp", "field": "dport"}}, port), {"redirect": {"port": to}}]

    loopback = match({"meta": {"key": "oifname"}}, "lo")
    own = [loopback, match({"meta": {"key": "skuid"}}, except_uid), {"accept": None}]
    return {
        "prerouting": [redirect(port, to) for port, to in ports.items()],
        "output": [own, *([loopback, *redirect(port, to)] for port, to in ports.items())],
    }


# -- the edge: nft, sockets, arguments


def install(ports: Mapping[int, int], except_uid: int) -> None:
    """Write the table, read it back, prove it. Raises :class:`RedirectFault`."""
    _nft(["-f", "-"], ruleset(ports, except_uid))
    wrong = differences(_nft(["-j", "list", "table", "inet", TABLE]), ports, except_uid)
    if wrong:
        raise RedirectFault("the rules don't stand as they were written: " + "; ".join(wrong))
    prove(ports, except_uid)


def _nft(arguments: Sequence[str], text: str = "") -> str:
    binary = shutil.which("nft", path=os.environ.get("PATH", "") + ":" + _PATH)
    if binary is None:
        raise RedirectFault("there is no nft here: this must run in toolpolicy's image, which holds nftables")
    try:
        done = subprocess.run(  # noqa: S603 -- our own arguments
            [binary, *arguments], input=text, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise RedirectFault(f"nft did not end within {TIMEOUT:g} s") from None
    except OSError as error:
        raise RedirectFault(f"nft can't be run: {error.strerror}") from None
    if done.returncode != 0:
        raise RedirectFault(f"nft: {_cause(done.stderr)}")
    return done.stdout


def _cause(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not set(line.strip()) <= {"^", "~"}]
    said = "; ".join(lines[:4])[:500] or "failed without a word"
    if "not permitted" in said:
        return (
            f"{said}. The init container lacks NET_ADMIN: allow it in the namespace's pod security, or let the policy "
            "say interception: Port"
        )
    if "not supported" in said or "No such file" in said or "Protocol" in said:
        return (
            f"{said}. The node's kernel lacks nf_tables with NAT for inet (Linux 5.2 or newer, modules nf_tables, "
            "nft_redir, nft_chain_nat); without it the policy must say interception: Port"
        )
    return said


def prove(ports: Mapping[int, int], except_uid: int) -> None:
    """One connection a port and family, which must arrive at the sidecar's port. Raises :class:`RedirectFault`.

    A sidecar that listens there already (a run in a living pod) is left in peace: its rules were proved before it.
    """
    if os.geteuid() == except_uid:
        raise RedirectFault(f"this runs as UID {except_uid}, which is the one that is not redirected")
    with ExitStack() as stack:
        families = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
        for family, address in families:
            listeners = {to: _listen(stack, family, address, to) for to in dict.fromkeys(ports.values())}
            for port, to in ports.items():
                listener = listeners[to]
                if listener is not None:
                    _arrives(listener, family, address, port, to)


def _listen(stack: ExitStack, family: int, address: str, port: int) -> socket.socket | None:
    """A listener of our own; None where this family is off, or the sidecar is there already."""
    try:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(4)
        listener.settimeout(PROOF_TIMEOUT)
    except OSError as error:
        off = family == socket.AF_INET6 and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
        if off or error.errno == errno.EADDRINUSE:
            return None
        raise RedirectFault(f"can't listen on {address} port {port} for a proof: {error.strerror}") from None
    return listener


def _arrives(listener: socket.socket, family: int, address: str, port: int, to: int) -> None:
    shown = f"{address} port {port}"
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(PROOF_TIMEOUT)
        try:
            client.connect((address, port))
            listener.accept()[0].close()
        except OSError as error:
            why = error.strerror or str(error)
            raise RedirectFault(
                f"the rules stand, and yet a connection to {shown} did not arrive at port {to} ({why}): this kernel or "
                "sandbox does not apply nftables; the policy must say interception: Port"
            ) from None


def parse_ports(texts: Iterable[str], to: int | None) -> dict[int, int]:
    """``8000=15771``, or ``8000`` where ``to`` is given, as a map. Raises ValueError with what is wrong."""
    ports: dict[int, int] = {}
    for text in texts:
        left, separator, right = text.partition("=")
        port = _port(left)
        target = _port(right) if separator else to
        if target is None:
            raise ValueError(f"{text}: expected PORT=TARGET, or --to TARGET for all")
        if port in ports:
            raise ValueError(f"port {port} is given twice")
        ports[port] = target
    both = sorted(set(ports) & set(ports.values()))
    if both:
        raise ValueError(f"port {both[0]} is redirected and a target of a redirection")
    return ports


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) < 65536:
        raise ValueError(f"{text[:40]!r} is no port: expected 1 to 65535")
    return int(text)


def _uid(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:12]) < 2**32 - 1:
        raise argparse.ArgumentTypeError("expected a number from 1: root's packets can't be excepted")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toolpolicy.sidecar.redirect",
        description="Redirect a pod's MCP ports to its sidecar, by one nftables table.",
        epilog="example: python -m toolpolicy.sidecar.redirect 8000=15771 9000=15773 --except-uid 15771",
    )
    parser.add_argument("ports", nargs="+", metavar="PORT[=TARGET]", help="an MCP port, and the sidecar's port for it")
    parser.add_argument("--to", type=int, metavar="TARGET", help="the sidecar's port for those without =TARGET")
    parser.add_argument("--except-uid", type=_uid, required=True, metavar="UID", help="the sidecar's user")
    parser.add_argument("--print", action="store_true", help="write the rules to stdout, and change nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if every port is redirected, 1 if not, 2 for arguments that can't be used."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        ports = parse_ports(options.ports, None if options.to is None else _port(str(options.to)))
    except ValueError as error:
        parser.error(str(error))
    if options.print:
        sys.stdout.write(ruleset(ports, options.except_uid))
        return 0
    try:
        install(ports, options.except_uid)
    except RedirectFault as fault:
        sys.stderr.write(f"toolpolicy: the MCP ports are not redirected, so this pod must not start: {fault}\n")
        return 1
    shown = ", ".join(f"{port} to {to}" for port, to in ports.items())
    sys.stderr.write(f"toolpolicy: redirected {shown}; user {options.except_uid} excepted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
