"""How the demo looks on a terminal. Colour only on one, and never where NO_COLOR is set."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

_COLOURS = {"green": "32", "red": "31", "yellow": "33", "bold": "1", "dim": "2", "cyan": "36"}
_LABEL = 9


def _fancy() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text: str, *colours: str) -> str:
    if not _fancy():
        return text
    return "".join(f"\x1b[{_COLOURS[colour]}m" for colour in colours) + text + "\x1b[0m"


def width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, 110)


def line(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def title(text: str) -> None:
    line()
    line(paint(text, "bold"))
    line()


def step(number: int, text: str) -> None:
    line()
    line(paint(f"{number}. {text}", "bold"))


def field(label: str, text: str, *colours: str, limit: int = 3) -> None:
    """``text`` beside its label, wrapped to at most ``limit`` lines."""
    lines = textwrap.wrap(" ".join(text.split()), width() - _LABEL - 3) or [""]
    if len(lines) > limit:
        lines = [*lines[: limit - 1], lines[limit - 1][: width() - _LABEL - 6].rstrip() + " …"]
    for number, part in enumerate(lines):
        head = f"{label if number == 0 else '':{_LABEL}}"
        line(f"   {paint(head, 'dim')}{paint(part, *colours) if colours else part}")


def arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in values.items())


@dataclass(frozen=True, slots=True)
class Call:
    """What was tried, what the agent was told, and the rules that decided."""

    tool: str
    arguments: dict[str, Any]
    told: str
    verdict: str
    rules: list[str]


def call(made: Call) -> None:
    refused = made.verdict != "Allow"
    line()
    field("agent", f"{made.tool}({arguments(made.arguments)})", "cyan", limit=2)
    field("told", made.told, *(["red"] if refused else []))
    decided_by = ", ".join(made.rules) or "the default"
    field("decided", f"{made.verdict} by {decided_by}", "red" if refused else "green")


def row(tried: str, told: str, decided: str, *, good: bool = False) -> None:
    """One of many equal calls, or the head above them."""
    text = f"   {'':{_LABEL}}{tried:<32} {told:<18} "
    line(paint(text, "cyan") + paint(decided, "green") if good else paint(text + decided, "dim"))


def block(label: str, lines: list[str]) -> None:
    """Text that keeps its own lines."""
    for number, text in enumerate(lines):
        head = f"{label if number == 0 else '':{_LABEL}}"
        line(f"   {paint(head, 'dim')}{text}")


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for number, row in enumerate([head, *rows]):
        cells = [
            f"{cell:<{w}}" if column == 0 else f"{cell:>{w}}"
            for column, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        text = "   " + "   ".join(cells)
        line(paint(text, "dim") if number == 0 else text)
