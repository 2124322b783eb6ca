"""Short ways to write policies, calls and catalogues in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from toolpolicy.policy.compile import PolicySet, compile_policies
from toolpolicy.policy.model import ClusterToolPolicy, Policy, ToolPolicy
from toolpolicy.policy.types import Call, Principal, ToolInfo

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
"""A Wednesday."""


def policy(
    *rules: Mapping[str, Any],
    name: str = "p",
    cluster: bool = False,
    mode: str = "Enforce",
    default: str = "Deny",
    uid: str | None = None,
    **spec: Any,
) -> Policy:
    """A policy of these rules (manifest spelling); rules without a name are r1, r2, …"""
    named = [{"name": f"r{index}", **rule} for index, rule in enumerate(rules, 1)]
    manifest: dict[str, Any] = {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ClusterToolPolicy" if cluster else "ToolPolicy",
        "metadata": {"name": name, "uid": uid, **({} if cluster else {"namespace": "agents"})},
        "spec": {"selector": {}, "mode": mode, "defaultAction": default, "rules": named, **spec},
    }
    return (ClusterToolPolicy if cluster else ToolPolicy).model_validate(manifest)


def allow(*tools: str, **rule: Any) -> dict[str, Any]:
    """A rule that allows tools, or without any every judged call."""
    return {"match": {"tools": tools} if tools else {}, "action": "Allow", **rule}


def deny(*tools: str, **rule: Any) -> dict[str, Any]:
    """A rule that denies."""
    return {**allow(*tools, **rule), "action": "Deny"}


def compiled(*policies: Policy) -> PolicySet:
    return compile_policies(policies)


def call(
    tool: str | None = "get_thing",
    arguments: Mapping[str, Any] | None = None,
    *,
    method: str | None = None,
    principal: str | Principal = "alice",
    identities: Sequence[str] | None = None,
    session: str | None = "s1",
    now: datetime = NOON,
    client: Mapping[str, str] | None = None,
    server: Mapping[str, str] | None = None,
) -> Call:
    who = Principal(principal, verified=True) if isinstance(principal, str) else principal
    return Call(
        method or "tools/call",
        who,
        now,
        tool if method is None else None,
        arguments or {},
        tuple(identities) if identities is not None else (who.id,),
        session,
        client or {},
        server if server is not None else {"name": "imaging", "namespace": "agents"},
    )


class Tools:
    """A catalogue."""

    def __init__(self, *tools: ToolInfo) -> None:
        self._tools = {tool.name: tool for tool in tools}

    @classmethod
    def named(cls, *names: str) -> Tools:
        """Tools without annotations or schema."""
        return cls(*map(ToolInfo, names))

    def get(self, name: str) -> ToolInfo | None:
        return self._tools.get(name)
