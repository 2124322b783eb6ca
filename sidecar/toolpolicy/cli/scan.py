"""``toolpolicy scan``: a server's tools with category and risk, and a starter policy for them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from toolpolicy.cli.listing import Listing, list_server
from toolpolicy.cli.mcpclient import REQUEST_TIMEOUT
from toolpolicy.cli.output import InputError, echo, emit_json, output_option, table
from toolpolicy.cli.starter import Scanned, scanned, starter_policy


def parse_headers(headers: Sequence[str]) -> dict[str, str]:
    """``Name: value`` texts as a mapping."""
    parsed: dict[str, str] = {}
    for header in headers:
        name, colon, value = header.partition(":")
        token = name.strip()
        if not colon or not token or not token.isascii() or any(c.isspace() or not c.isprintable() for c in token):
            raise InputError(f"--header {header[:80]!r}: expected 'Name: value'")
        if not value.isprintable():
            raise InputError(f"--header {token}: the value holds a line break or a control character")
        parsed[token] = value.strip()
    return parsed


@click.command(
    epilog="""Examples:
  toolpolicy scan --upstream http://127.0.0.1:8000/mcp
  toolpolicy scan --write policy.yaml -- npx -y @modelcontextprotocol/server-everything
  toolpolicy scan --upstream https://mcp.example.com/mcp --header "Authorization: Bearer $TOKEN" -o json"""
)
@click.option("--upstream", metavar="URL", help="The server's MCP endpoint (Streamable HTTP).")
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent with every request; repeatable."
)
@click.option("--write", type=click.Path(path_type=Path), metavar="FILE", help="Write the starter policy there.")
@click.option("--force", is_flag=True, help="Let --write replace a file.")
@click.option("--name", metavar="NAME", help="Name of the policy; default: the server's own.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=REQUEST_TIMEOUT, show_default=True,
    metavar="SECONDS", help="For each answer of the server.",
)  # fmt: skip
@output_option("text", "json", "yaml")
@click.argument("server", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def command(
    *,
    upstream: str | None,
    headers: tuple[str, ...],
    write: Path | None,
    force: bool,
    name: str | None,
    timeout: float,
    output: str,
    server: tuple[str, ...],
) -> None:
    """List the tools of a server with category and risk; with --write, make a starter policy of them.

    The server is one that runs at a URL, or the one that COMMAND starts, which speaks MCP on its standard input and
    output. -o yaml prints the policy instead of the list.
    """
    if write is not None and write.exists() and not force:
        raise InputError(f"{write} exists: give another name, or --force to replace it")
    listing = list_server(upstream, server, parse_headers(headers), timeout)
    found = scanned(listing.tools)
    policy = starter_policy(listing, upstream or shlex.join(server), name) if write or output == "yaml" else ""
    if output == "yaml":
        echo(policy.rstrip("\n"))
    elif output == "json":
        emit_json(_as_json(listing, found))
    else:
        _show(found)
    if write is not None:
        _write(write, policy)
        echo(f"wrote {write}: read it, then try `toolpolicy check {shlex.quote(str(write))}`", err=True)


def _show(found: Sequence[Scanned]) -> None:
    if not found:
        echo("the server has no tools", err=True)
        return
    rows = [
        (each.tool.name, each.found.category.value, each.found.risk.value, "annotations" if each.raised else "name")
        for each in found
    ]
    table(rows, ("TOOL", "CATEGORY", "RISK", "BY"))


def _as_json(listing: Listing, found: Sequence[Scanned]) -> dict[str, Any]:
    return {
        "server": {"name": listing.name, "version": listing.version, "revision": listing.revision},
        "tools": [
            {
                "name": each.tool.name,
                "category": each.found.category.value,
                "risk": each.found.risk.value,
                "raisedByAnnotations": each.raised,
                "annotations": dict(each.tool.annotations),
                "inputSchema": None if each.tool.input_schema is None else dict(each.tool.input_schema),
            }
            for each in found
        ],
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}") from None
