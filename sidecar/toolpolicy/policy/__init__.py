"""The policy language: reading, checking, compiling and deciding. No I/O.

What needs the CEL runtime is imported only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolpolicy.policy.classify import Classification, classify
from toolpolicy.policy.errors import PolicyError, Problem
from toolpolicy.policy.model import Category, ClusterToolPolicy, Policy, Risk, ToolPolicy

if TYPE_CHECKING:
    from toolpolicy.policy.load import load_object, load_text, require

_FROM_LOAD = frozenset({"load_object", "load_text", "require"})

__all__ = [
    "Category",
    "Classification",
    "ClusterToolPolicy",
    "Policy",
    "PolicyError",
    "Problem",
    "Risk",
    "ToolPolicy",
    "classify",
    "load_object",
    "load_text",
    "require",
]


def __getattr__(name: str) -> Any:
    if name in _FROM_LOAD:
        from toolpolicy.policy import load  # noqa: PLC0415

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
