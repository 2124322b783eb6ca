"""``toolpolicy classify``: what tools do, from their names."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import click

from toolpolicy.cli.output import InputError, echo, emit_json, output_option, tsv
from toolpolicy.policy.classify import classify

MAX_LINE = 64 * 1024
"""Bytes of one line of standard input."""


@click.command(
    epilog="""Examples:
  toolpolicy classify get_or_create_user purgeQueue
  jq -r '.tools[].name' tools.json | toolpolicy classify - | sort -k2
  toolpolicy classify -o json send_command"""
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...|-")
@output_option("tsv", "json")
def command(names: tuple[str, ...], output: str) -> None:
    """Print name, category and risk of each tool NAME, or of the names on standard input, one a line.

    Categories are Read, Write, Execute, Destructive and Financial; a name that says nothing is Execute. Risks are Low,
    Medium, High and Critical. A policy sees the same, raised by what the server itself says of a tool.
    """
    rows = ((name, *_said(name)) for name in _names(names))
    if output == "json":
        emit_json([{"name": name, "category": category, "risk": risk} for name, category, risk in rows])
        return
    for row in rows:
        echo(tsv(row))


def _said(name: str) -> tuple[str, str]:
    found = classify(name)
    return found.category.value, found.risk.value


def _names(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name == "-":
            yield from _lines()
        else:
            yield name


def _lines() -> Iterator[str]:
    while line := sys.stdin.buffer.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise InputError(f"a line is longer than {MAX_LINE // 1024} KiB: give one name a line")
        name = line.decode("utf-8", "replace").strip("\r\n")
        if name.strip():
            yield name
