"""The MCP ports of a pod: which of its ports the policies mean, and where the sidecar serves each of them."""

from __future__ import annotations

from dataclasses import dataclass

from toolpolicy_operator import names
from toolpolicy_operator.injection import podview
from toolpolicy_operator.injection.plan import Pod

MCP_PORT_NAME = "mcp"
MAX_SERVERS = 16
"""MCP ports of one pod; each is a listener of the sidecar."""


@dataclass(frozen=True, slots=True)
class McpPort:
    """``number`` is the server's, ``names`` those that containers declare for it (none: unnamed or not declared),
    ``listen`` the sidecar's port for it.
    """

    number: int
    names: tuple[str, ...]
    listen: int


@dataclass(frozen=True, slots=True)
class NotFound:
    """No port with which the policies' words could be meant; ``asked`` is None where they say none."""

    asked: str | None


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Several ports could be meant."""

    numbers: tuple[int, ...]
    asked: str | None = None


@dataclass(frozen=True, slots=True)
class TooMany:
    numbers: tuple[int, ...]


Resolved = tuple[McpPort, ...] | NotFound | Ambiguous | TooMany


def resolve(pod: Pod, stated: tuple[int | str | None, ...]) -> Resolved:
    """The pod's MCP ports, ascending, for the ports that its policies state.

    A policy that states none means the port named ``mcp``; where there is none, the ports that other policies state;
    else the pod's only TCP port. A number needs no declaration, since ``containerPort`` is informational.
    """
    declared = _declared(pod)
    by_name: dict[str, set[int]] = {}
    for number, name in declared:
        if name:
            by_name.setdefault(name, set()).add(number)
    found = {port for port in stated if isinstance(port, int)}
    wanted = [port for port in stated if isinstance(port, str)]
    if None in stated and MCP_PORT_NAME in by_name:
        wanted.append(MCP_PORT_NAME)
    for name in wanted:
        numbers = by_name.get(name, set())
        if not numbers:
            return NotFound(name)
        if len(numbers) > 1:
            return Ambiguous(tuple(sorted(numbers)), name)
        found |= numbers
    if not found:
        found = {number for number, _ in declared}
        if not found:
            return NotFound(None)
        if len(found) > 1:
            return Ambiguous(tuple(sorted(found)))
    if len(found) > MAX_SERVERS:
        return TooMany(tuple(sorted(found)))
    return _assign(sorted(found), declared)


def _declared(pod: Pod) -> list[tuple[int, str | None]]:
    return [(int(port["containerPort"]), port.get("name") or None) for _, port in podview.tcp_ports(pod)]


def _assign(numbers: list[int], declared: list[tuple[int, str | None]]) -> tuple[McpPort, ...]:
    listens = [names.SIDECAR_PORT, *range(names.FURTHER_PORTS, names.FURTHER_PORTS + MAX_SERVERS)]
    assigned: list[McpPort] = []
    for number, listen in zip(numbers, listens, strict=False):
        called = dict.fromkeys(name for declared_number, name in declared if declared_number == number and name)
        assigned.append(McpPort(number, tuple(called), listen))
    return tuple(assigned)
