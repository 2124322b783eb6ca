"""What is looked at, and changed, in the server's answers: tool lists by their shape, and the tasks a caller comes to
own.

A message is parsed only if the bytes could hold one of the keys in question. That test is sound: a JSON key made of
ASCII letters is written literally or with ``\\u00XX`` escapes, and a string can't span lines. Answers are read
leniently (a client may be lenient), unlike requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from toolpolicy.mcp import methods
from toolpolicy.mcp.catalogue import ToolCatalogue, encode, filter_tools, looks_like_tools_list
from toolpolicy.policy.compile import PolicySet
from toolpolicy.policy.decide import next_boundary, visible
from toolpolicy.policy.types import Call
from toolpolicy.sidecar.interfaces import Identity, RuleSource
from toolpolicy.sidecar.sessions import Owners

log = logging.getLogger(__name__)

_ESCAPE = b"\\u00"
_TOOLS = b'"tools"'
_TASK = b'"taskId"'
PRIVATE = "toolpolicy-list-"
"""How the ids of the sidecar's own requests begin."""
_PRIVATE = PRIVATE.encode()


class Unreadable(Exception):
    """An answer that may hold a tool list and can't be read: it must not be handed on."""


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom an answer is. ``session`` is the one that counts for policies; ``client`` a label."""

    identity: Identity
    session: str | None
    client: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Sight:
    """What all lenses share. ``list_ttl`` in seconds."""

    rules: RuleSource
    catalogue: ToolCatalogue
    tasks: Owners
    server: Mapping[str, str]
    list_ttl: float
    private: dict[str, asyncio.Future[dict[str, Any]]] = field(
        default_factory=dict[str, "asyncio.Future[dict[str, Any]]"]
    )
    """Requests of the sidecar's own, by id, whose answers come on a client's legacy stream."""
    clock: Callable[[], float] = time.monotonic

    def policies(self) -> PolicySet | None:
        current = self.rules.current
        return None if current is None else cast(PolicySet, current.policies)


class Lens:
    """Looks at the answers for one caller. Rules are taken as they are when an answer comes, not when the stream was
    opened.
    """

    __slots__ = ("_caller", "_sight", "_tasks")

    def __init__(self, sight: Sight, caller: Caller) -> None:
        self._sight = sight
        self._caller = caller
        self._tasks = caller.identity.principal.verified

    def wants(self, data: bytes) -> bool:
        """Whether ``data`` (whole lines) could hold a message that has to be looked at."""
        return _TOOLS in data or _ESCAPE in data or (self._tasks and _TASK in data) or _PRIVATE in data

    def look(self, payload: bytes) -> bytes | None:
        """One JSON-RPC message, or batch. The bytes to send in its place (empty: nothing), None to leave it.

        Raises :class:`Unreadable`.
        """
        try:
            value: Any = json.loads(payload)
        except (ValueError, RecursionError):
            raise Unreadable("the MCP server's answer is not JSON") from None
        if isinstance(value, dict) and self._is_private(cast(dict[str, Any], value)):
            return b""
        items: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
        changed = False
        for item in items:
            if isinstance(item, dict):
                changed |= self._message(cast(dict[str, Any], item))
        if not changed:
            return None
        return encode(value)

    def _is_private(self, message: dict[str, Any]) -> bool:
        """The answer to a request of our own: it is not the client's."""
        key = message.get("id")
        waiting = self._sight.private.get(key) if isinstance(key, str) else None
        if waiting is None:
            return False
        if not waiting.done():
            waiting.set_result(message)
        return True

    def _message(self, message: dict[str, Any]) -> bool:
        result = message.get("result")
        if not isinstance(result, dict):
            return False
        result = cast(dict[str, Any], result)
        if self._tasks:
            self._own_task(result)
        if not looks_like_tools_list(message):
            return False
        self._sight.catalogue.observe(result)
        filtered = self._filter(result)
        if filtered is None:
            return False
        message["result"] = filtered
        return True

    def _filter(self, result: dict[str, Any]) -> dict[str, Any] | None:
        policies = self._sight.policies()
        if policies is None:
            return filter_tools(result, _nothing, 0)
        if not policies.enforced:
            return None
        now = datetime.now(UTC)
        return filter_tools(result, self.visibility(policies, now), self._ttl(policies, now))

    def visible(self, policies: PolicySet, names: Iterable[str], now: datetime) -> set[str]:
        """Those of ``names`` that this caller may see."""
        if not policies.enforced:
            return set(names)
        sees = self.visibility(policies, now)
        return {name for name in names if sees(name)}

    def visibility(self, policies: PolicySet, now: datetime) -> Callable[[str], bool]:
        """Whether this caller may see a tool under ``policies``."""
        catalogue = self._sight.catalogue
        call = Call(
            methods.CALL,
            self._caller.identity.principal,
            now,
            identities=self._caller.identity.identities,
            session=self._caller.session,
            client=self._caller.client,
            server=self._sight.server,
        )
        return lambda name: visible(policies, call, name, catalogue)

    def _ttl(self, policies: PolicySet, now: datetime) -> int:
        ttl = self._sight.list_ttl
        boundary = next_boundary(policies, now)
        if boundary is not None:
            ttl = min(ttl, max(0.0, boundary - now.timestamp()))
        return int(ttl * 1000)

    def _own_task(self, result: dict[str, Any]) -> None:
        task = result.get("task")
        holder = cast(dict[str, Any], task) if isinstance(task, dict) else result
        task_id = holder.get("taskId")
        if isinstance(task_id, str) and len(task_id) <= 512:
            self._sight.tasks.bind(task_id, self._caller.identity.principal, self._sight.clock())


def _nothing(_: str) -> bool:
    return False
