"""What verbs share on their way in and out: reading policies, printing problems, tables, JSON and colours.

Names and texts that come from servers are printed through :func:`printable`: a terminal obeys control characters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from toolpolicy.policy.errors import Problem
from toolpolicy.policy.load import duplicates, load_text
from toolpolicy.policy.model import Category, Policy, Risk

MAX_INPUT = 16 * 1024 * 1024
"""Bytes of one file or of standard input."""
SUFFIXES = (".yaml", ".yml", ".json")

_F = TypeVar("_F", bound=Callable[..., Any])

COLOURS = {
    Category.READ: "green", Category.WRITE: "yellow", Category.EXECUTE: "magenta", Category.FINANCIAL: "red",
    Category.DESTRUCTIVE: "red", Risk.LOW: "green", Risk.MEDIUM: "yellow", Risk.HIGH: "magenta", Risk.CRITICAL: "red",
    "Allow": "green", "Deny": "red", "RequireApproval": "yellow",
}  # fmt: skip


class InputError(click.ClickException):
    """Bad input: exit code 2. The message ends with what to do."""

    exit_code = 2


def output_option(*formats: str) -> Callable[[_F], _F]:
    """``-o/--output``, the first format being the default; the parameter is ``output``."""
    return click.option(
        "-o", "--output", type=click.Choice(formats), default=formats[0], show_default=True, help="Form of the output."
    )


def printable(text: str) -> str:
    """``text`` on one line, control characters and the like escaped as in Python."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def coloured(word: str) -> str:
    """A category, risk or action in its colour, where there are colours."""
    return click.style(word, fg=COLOURS.get(word))


def echo(text: str = "", *, err: bool = False) -> None:
    """As ``click.echo``; a character that the terminal's encoding lacks is escaped instead of fatal."""
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)


def emit_json(value: Any) -> None:
    echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def tsv(cells: Iterable[str]) -> str:
    return "\t".join(printable(cell) for cell in cells)


def table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> None:
    """Columns as wide as their contents; cells may be coloured by being a category, risk or action."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *shown]) for i in range(len(headers))]
    for number, row in enumerate([list(headers), *shown]):
        padded = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)] + row[-1:]
        styled = [
            click.style(text, bold=True) if number == 0 else click.style(text, fg=COLOURS.get(cell))
            for text, cell in zip(padded, row, strict=True)
        ]
        echo("  ".join(styled))


def read_bytes(path: str | Path) -> bytes:
    """A file, or standard input for ``-``; an :class:`InputError` says why it can't be read."""
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_INPUT + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_INPUT + 1)
    except IsADirectoryError:
        raise InputError(f"{path} is a directory: name a file") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the name of the file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_INPUT:
        raise InputError(f"{path} is larger than {MAX_INPUT // 1024 // 1024} MiB: split it")
    return data


def read_text(path: str | Path) -> str:
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None


def policy_files(paths: Iterable[str | Path]) -> list[str]:
    """The files that ``paths`` name: a directory stands for its ``*.yaml``, ``*.yml`` and ``*.json``, in order."""
    found: list[str] = []
    for path in map(str, paths):
        try:
            directory = path != "-" and Path(path).is_dir()
        except (OSError, ValueError):
            directory = False
        if not directory:
            found.append(path)
            continue
        inside = sorted(str(p) for p in Path(path).iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
        if not inside:
            raise InputError(f"{path} holds no policy: expected files named *.yaml, *.yml or *.json")
        found += inside
    return found


def read_policies(paths: Iterable[str | Path]) -> tuple[list[Policy], list[Problem]]:
    """The policies of files and directories, and every problem of all of them."""
    policies: list[tuple[str, Policy]] = []
    problems: list[Problem] = []
    for path in policy_files(paths):
        loaded, found = load_text(read_bytes(path), "<stdin>" if path == "-" else path)
        policies += [(path, policy) for policy in loaded]
        problems += found
    problems += [p for p in duplicates(policies) if p not in problems]
    return [policy for _, policy in policies], sorted(set(problems))


def load_policies(paths: Iterable[str | Path]) -> list[Policy]:
    """As :func:`read_policies`; prints the problems and exits with 2 if one is an error."""
    policies, problems = read_policies(paths)
    report(problems)
    errors = sum(problem.severity == "error" for problem in problems)
    if errors:
        raise InputError(f"{errors} error{'s' if errors > 1 else ''} in the policy: see above")
    return policies


def report(problems: Iterable[Problem]) -> None:
    """One line a problem, on standard error."""
    for problem in problems:
        text = printable(str(problem))
        word = f"{problem.severity}:"
        colour = "red" if problem.severity == "error" else "yellow"
        echo(text.replace(word, click.style(word, fg=colour, bold=True), 1), err=True)
