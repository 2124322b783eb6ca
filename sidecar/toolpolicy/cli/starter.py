"""A first policy for a server, from what it lists: reads allowed, destructive tools and those that run whatever they
are given denied, the rest limited.

The text is written by hand and not dumped, because its comments are half of its worth. Names come from the server, so
every one is quoted where YAML could take it for something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolpolicy.cli.listing import Listing
from toolpolicy.cli.output import printable
from toolpolicy.policy.classify import Classification, classify, raise_by_annotations
from toolpolicy.policy.documents import unsafe_character
from toolpolicy.policy.matching import valid_glob
from toolpolicy.policy.model import Category, Risk
from toolpolicy.policy.schemas import SchemaFault, compile_declared
from toolpolicy.policy.types import ToolInfo

NAMES_A_RULE = 200
"""Below the 256 that a rule may name."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./]*(?:-[A-Za-z0-9_./]+)*\Z")
_TAKEN = frozenset(("y", "n", "yes", "no", "true", "false", "on", "off", "null"))
_HIGH = (Risk.HIGH, Risk.CRITICAL)


@dataclass(frozen=True, slots=True)
class Scanned:
    """One tool with its class. ``raised``: the server's annotations made it stricter than its name."""

    tool: ToolInfo
    found: Classification
    raised: bool


def scanned(tools: Iterable[ToolInfo]) -> list[Scanned]:
    """The tools with category and risk, by category and name."""
    order = list(Category)
    result: list[Scanned] = []
    for tool in tools:
        by_name = classify(tool.name)
        found = raise_by_annotations(by_name, tool.annotations)
        result.append(Scanned(tool, found, found != by_name))
    return sorted(result, key=lambda each: (order.index(each.found.category), each.tool.name))


def starter_policy(listing: Listing, source: str, name: str | None = None) -> str:
    """The manifest as YAML. ``source``: what was scanned, for the first line; ``name``: else the server's."""
    tools = [each for each in scanned(listing.tools) if _nameable(each.tool.name)]
    left_out = len(listing.tools) - len(tools)
    counts = ", ".join(
        f"{sum(each.found.category is category for each in tools)} {category.value}" for category in Category
    )
    name = _slug(name or listing.name or "mcp-server")
    server = f" ({printable(listing.name)} {printable(listing.version)})".replace(" )", ")") if listing.name else ""
    lines = [
        f"# A starter policy for {printable(source)[:200]}{server[:200]}",
        f"# {len(tools)} tools: {counts}.",
        "# Category and risk come from the tools' names, raised by what the server says of them. Read this before",
        "# you use it: `toolpolicy check` validates it, `toolpolicy explain` shows what it does to a call.",
    ]
    if left_out:
        lines.append(f"# {left_out} tools have names that no rule can state (control characters, '*', or very long).")
    lines += [
        "apiVersion: toolpolicy.dev/v1alpha1",
        "kind: ToolPolicy",
        f"metadata: {{name: {_quoted(name)}}}",
        "spec:",
        "  # The pods this is for. `toolpolicy proxy` has none: there every policy of the file counts.",
        f"  selector: {{matchLabels: {{app: {_quoted(name)}}}}}",
        "  # What no rule allows is denied: a tool that the server gets later waits here until somebody looks at it.",
        "  defaultAction: Deny",
        "  rules:",
    ]
    return "\n".join([*lines, *_rules(tools)]) + "\n"


def _rules(tools: Sequence[Scanned]) -> list[str]:
    secret = [each for each in tools if each.found.category is Category.READ and each.found.risk in _HIGH]
    reads = [each for each in tools if each.found.category is Category.READ and each not in secret]
    blind = [each for each in tools if each.found.category is Category.EXECUTE and each.found.risk is Risk.CRITICAL]
    doing = [each for each in tools if each.found.category in (Category.WRITE, Category.EXECUTE) and each not in blind]
    money = [each for each in tools if each.found.category is Category.FINANCIAL]
    deadly = [each for each in tools if each.found.category is Category.DESTRUCTIVE]
    lines = [
        "  # Looking is free.",
        *_examples(reads),
        "  - name: read-freely",
        "    match: {categories: [Read], risks: [Low, Medium]}",
        "    action: Allow",
    ]
    lines += _limited("read-secrets", secret, 10, "60s", "These read what opens other doors: few at a time.")
    lines += _limited("change-a-little", doing, 30, "60s", "These change things or run them: by name, with a limit.")
    lines += _limited("spend-a-little", money, 5, "1h", "These are about money. Consider `action: RequireApproval`.")
    lines += _denied("not-before-a-look", blind)
    lines += [
        "  # What destroys is off, and agents don't see it in tools/list.",
        *_examples(deadly),
        "  - name: never-destroy",
        "    match: {categories: [Destructive]}",
        "    action: Deny",
        "    reason: Destructive tools are off for agents; ask a human to do it",
        "    hide: true",
    ]
    return lines


def _denied(rule: str, tools: Sequence[Scanned]) -> list[str]:
    """Tools that run whatever they are given: off, by name, so that one can be taken out after a look."""
    lines: list[str] = []
    for number, start in enumerate(range(0, len(tools), NAMES_A_RULE), 1):
        lines += [
            "  # These run whatever they are given (a command, code, a query). To allow one after a look, take its",
            "  # name out here, and write a rule that says what it may be given.",
            f"  - name: {rule}" + (f"-{number}" if number > 1 else ""),
            "    match:",
            "      tools:",
            *(f"      - {_quoted(each.tool.name)}" for each in tools[start : start + NAMES_A_RULE]),
            "    action: Deny",
            "    reason: This tool runs whatever it is given; nobody has looked yet at what agents may give it",
        ]
    return lines


def _examples(tools: Sequence[Scanned]) -> list[str]:
    if not tools:
        return ["  # (none today)"]
    shown = ", ".join(printable(each.tool.name) for each in tools[:6])
    return [f"  # {len(tools)} today: {shown}{', …' if len(tools) > 6 else ''}"]


def _limited(rule: str, tools: Sequence[Scanned], most: int, window: str, why: str) -> list[str]:
    """Allow rules with a limit; a tool whose schema can be checked is checked against it."""
    declared = [each.tool.name for each in tools if _checkable(each.tool)]
    free = [each.tool.name for each in tools if not _checkable(each.tool)]
    lines: list[str] = []
    for part, names, schema in ((rule, declared, True), (f"{rule}-unchecked", free, False)):
        for number, start in enumerate(range(0, len(names), NAMES_A_RULE), 1):
            lines.append(f"  # {why}" + ("" if schema else " The server states no usable schema for them."))
            lines.append(f"  - name: {part}" + (f"-{number}" if number > 1 else ""))
            lines.append("    match:")
            lines.append("      tools:")
            lines += [f"      - {_quoted(name)}" for name in names[start : start + NAMES_A_RULE]]
            lines.append("    action: Allow")
            lines.append(f"    rateLimit: {{max: {most}, window: {window}, per: Session}}")
            if schema:
                lines.append("    arguments: Declared  # as the server's own inputSchema says")
    return lines


def _checkable(tool: ToolInfo) -> bool:
    if tool.input_schema is None:
        return False
    try:
        compile_declared(tool.input_schema)
    except SchemaFault:
        return False
    return True


def _nameable(name: str) -> bool:
    return "*" not in name and valid_glob(name) and unsafe_character(name) is None


def _quoted(name: str) -> str:
    if _PLAIN.match(name) and name.lower() not in _TAKEN:
        return name
    return json.dumps(name, ensure_ascii=False)


def _slug(name: str) -> str:
    """A Kubernetes name made of the server's."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-")
    return slug or "mcp-server"
