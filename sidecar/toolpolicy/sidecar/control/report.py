"""What a sidecar reports: the rules in force, policy by policy, why newer ones are not, what it knows of the server.

The format is ``docs/reference/control-api.md``; its bounds are kept here, so that a report is never refused for its
size: what does not fit is left out, tools first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

from toolpolicy import __version__
from toolpolicy.mcp.catalogue import ToolCatalogue
from toolpolicy.policy.classify import classify, raise_by_annotations
from toolpolicy.policy.compile import PolicySet
from toolpolicy.sidecar.rules import RulesStatus
from toolpolicy.sidecar.settings import Settings

MAX_BYTES = 256 * 1024
MAX_TOOLS = 2000
MAX_TOOL_NAME = 256
MAX_PROBLEMS = 50
MAX_PROBLEM = 2000
MAX_LISTENERS = 64
LOOK_SECONDS = 2.0
"""Between two looks at the pod's sockets."""

Listener = tuple[str, int]
"""Address and port."""


class RulesView(Protocol):
    @property
    def current(self) -> Any: ...
    @property
    def status(self) -> RulesStatus: ...


class AuditView(Protocol):
    @property
    def head(self) -> tuple[int, str]: ...
    @property
    def chain(self) -> str: ...


class Reporter:
    """Composes reports. ``listeners`` gives the sockets of the pod that the sidecar does not stand before."""

    def __init__(
        self,
        settings: Settings,
        rules: RulesView,
        catalogues: Sequence[ToolCatalogue],
        audit: AuditView,
        listeners: Callable[[], Iterable[Listener]] = tuple,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._catalogues = catalogues
        self._audit = audit
        self._listeners = listeners
        self._clock = clock
        self._heard: list[Listener] = []
        self._look_at = 0.0
        self._listed: tuple[tuple[int, ...], list[dict[str, str]]] = ((), [])

    def urgent(self) -> object:
        """What must not wait for the next report: compare it with what it was."""
        if self._clock() >= self._look_at:
            self._look()
        status = self._rules.status
        return status.revision, status.problems, tuple(self._heard)

    def _look(self) -> None:
        """Which sockets listen: a server starts after its sidecar, and may open one at any time. The table of sockets
        is as long as the pod has connections, so looking takes a thousandth of the time at most.
        """
        began = self._clock()
        self._heard = sorted(set(self._listeners()))[:MAX_LISTENERS]
        now = self._clock()
        self._look_at = now + max(LOOK_SECONDS, 1000 * (now - began))

    def compose(self) -> bytes:
        """The body of a report, as of now; at most :data:`MAX_BYTES`."""
        self._look()
        said, tools = self._said(), self._tools()
        while True:
            body = json.dumps({**said, "tools": tools}, separators=(",", ":")).encode()
            if len(body) <= MAX_BYTES or not tools:
                return body
            tools = tools[: len(tools) // 2]

    def _said(self) -> dict[str, Any]:
        settings, status, current = self._settings, self._rules.status, self._rules.current
        sequence, mac = self._audit.head
        return {
            "pod": {"namespace": settings.pod_namespace, "name": settings.pod_name, "uid": settings.pod_uid},
            "version": __version__,
            "revision": current.revision if current is not None else None,
            "epoch": current.epoch if current is not None else 0,
            "policies": _policies(cast(PolicySet, current.policies)) if current is not None else [],
            "problems": [problem[:MAX_PROBLEM] for problem in status.problems[:MAX_PROBLEMS]],
            "listeners": [{"address": a, "port": p} for a, p in self._heard],
            "state": settings.state.partition(":")[0],
            "audit": {"head": f"{sequence}:{mac}", "chain": self._audit.chain},
        }

    def _tools(self) -> list[dict[str, str]]:
        versions = tuple(catalogue.version for catalogue in self._catalogues)
        if versions != self._listed[0]:
            self._listed = (versions, self._classified())
        return self._listed[1]

    def _classified(self) -> list[dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for catalogue in self._catalogues:
            for name in catalogue.names():
                info = catalogue.get(name)
                if info is None or len(name) > MAX_TOOL_NAME or len(found) >= MAX_TOOLS:
                    continue
                known = raise_by_annotations(classify(name), info.annotations)
                found[name] = {"name": name, "category": known.category.value, "risk": known.risk.value}
        return [found[name] for name in sorted(found)]


def _policies(policies: PolicySet) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = []
    for policy in policies.policies:
        meta = policy.source.metadata
        said = {"kind": policy.source.kind, "namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
        loaded.append({k: v for k, v in {**said, "generation": meta.generation}.items() if v is not None})
    return loaded
