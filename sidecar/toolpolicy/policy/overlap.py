"""Whether one match contains another, as far as that can be known without the server.

Says yes only where it is certain: a tool's category may still be raised by the server's annotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolpolicy.policy.classify import Classification, classify
from toolpolicy.policy.matching import glob_matches
from toolpolicy.policy.model import Category, Match, Rule
from toolpolicy.policy.plan import possible_classes
from toolpolicy.policy.risk import DEFAULT_RISK

TOOLS_CALL = "tools/call"
Overrides = Mapping[str, Category]


def glob_contains(outer: str, inner: str) -> bool:
    """Whether every name that ``inner`` matches is one of ``outer``'s: its ``*`` must fall into one there."""
    return glob_matches(outer, inner) if "*" in outer else outer == inner


def covers(outer: Match, inner: Match, overrides: Overrides) -> bool:
    """Whether every call that ``inner`` matches is matched by ``outer`` too."""
    if not _around(outer, inner):
        return False
    if outer.tools and not inner.tools and "*" not in outer.tools:
        return False
    if all(_tool_inside(outer, inner, tool, overrides) for tool in inner.tools) and inner.tools:
        return True
    named = not outer.tools or all(any(glob_contains(o, i) for o in outer.tools) for i in inner.tools)
    return named and _subset(inner.categories, outer.categories) and _subset(inner.risks, outer.risks)


def covered_tools(outer: Match, inner: Match, overrides: Overrides) -> list[int]:
    """Which of ``inner.tools`` are entirely inside ``outer``."""
    if not _around(outer, inner):
        return []
    return [index for index, tool in enumerate(inner.tools) if _tool_inside(outer, inner, tool, overrides)]


def cannot_apply(rule: Rule) -> str | None:
    """Why no call can match: the named tools are of none of the categories or risks, whatever annotations say."""
    match = rule.match
    if not match.tools or any("*" in tool for tool in match.tools) or not (match.categories or match.risks):
        return None
    for tool in match.tools:
        for found in possible_classes(classify(tool)):
            if (not match.categories or found.category in match.categories) and (
                not match.risks or found.risk in match.risks
            ):
                return None
    return "the named tools are of none of these categories or risks: unless spec.categories says so, nothing matches"


def _around(outer: Match, inner: Match) -> bool:
    """Methods and principals of ``outer`` contain those of ``inner``."""
    if outer.principals is not None and outer.principals != inner.principals:
        return False
    inner_calls_only = _tool_calls_only(inner)
    if _about_tools(outer) and not inner_calls_only:
        return False
    if not outer.methods:
        return True
    methods = (TOOLS_CALL,) if inner_calls_only else inner.methods
    return bool(methods) and all(any(glob_contains(o, i) for o in outer.methods) for i in methods)


def _about_tools(match: Match) -> bool:
    return bool(match.tools or match.categories or match.risks)


def _tool_calls_only(match: Match) -> bool:
    return _about_tools(match) or match.methods == (TOOLS_CALL,)


def _subset(inner: Sequence[str], outer: Sequence[str]) -> bool:
    return not outer or (bool(inner) and set(inner) <= set(outer))


def _tool_inside(outer: Match, inner: Match, tool: str, overrides: Overrides) -> bool:
    """Whether all calls that ``inner`` matches of one name or glob are inside ``outer``."""
    if outer.tools and not any(glob_contains(pattern, tool) for pattern in outer.tools):
        return False
    if not outer.categories and not outer.risks:
        return True
    if "*" in tool:
        return _subset(inner.categories, outer.categories) and _subset(inner.risks, outer.risks)
    stated = overrides.get(tool)
    classes = {Classification(stated, DEFAULT_RISK[stated])} if stated else possible_classes(classify(tool))
    return all(
        (not outer.categories or found.category in outer.categories) and (not outer.risks or found.risk in outer.risks)
        for found in classes
    )
