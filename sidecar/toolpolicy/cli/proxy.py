"""``toolpolicy proxy``: a policy in front of an MCP server, without a cluster."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import click

from toolpolicy.cli.output import InputError, echo, printable
from toolpolicy.policy.explained import nearest

EPILOG = """\b
Examples:
  toolpolicy proxy --policy p.yaml --upstream http://127.0.0.1:8000/mcp
  toolpolicy proxy --policy p.yaml -- uvx awslabs.healthimaging-mcp-server
  toolpolicy proxy --policy policies/ --listen 127.0.0.1:0 --audit audit.jsonl -- ./server
  toolpolicy proxy --policy p.yaml --listen stdio --audit audit.jsonl -- ./server

With --listen stdio it takes the place of the server's command in a desktop client's configuration. Edit the policy
while it runs: the next call obeys. Every other setting: --set NAME=VALUE, or the variable TOOLPOLICY_NAME.
"""


@click.command(epilog=EPILOG)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    required=True,
    type=click.Path(),
    metavar="FILE|DIR",
    help="Policies to enforce: files (repeat the option) or one directory.",
)
@click.option("--upstream", metavar="URL", help="The MCP server: http://HOST:PORT/PATH, https://…, or unix:SOCKET.")
@click.option(
    "--listen",
    metavar="HOST:PORT|stdio",
    help="Where to serve MCP. Port 0 takes a free one.  [default: 127.0.0.1:8080]",
)
@click.option(
    "--admin", metavar="HOST:PORT|none", help="Where health and metrics are served.  [default: 127.0.0.1:9901]"
)
@click.option("--audit", metavar="FILE|-|none", help="Where audit lines go; - is stdout.  [default: -]")
@click.option("--audit-key", type=click.Path(dir_okay=False), metavar="FILE", help="The key that chains the audit.")
@click.option("--shared", is_flag=True, help="One process of COMMAND for all sessions, instead of one each.")
@click.option("--set", "more", multiple=True, metavar="NAME=VALUE", help="Any other setting, such as max_body=8Mi.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def command(  # noqa: PLR0917 -- as click passes them
    policies: tuple[str, ...],
    upstream: str | None,
    listen: str | None,
    admin: str | None,
    audit: str | None,
    audit_key: str | None,
    shared: bool,
    more: tuple[str, ...],
    command: tuple[str, ...],
) -> None:
    """Enforce policies in front of an MCP server: one at --upstream, or COMMAND over stdio."""
    from toolpolicy.sidecar.serve import Running, StartFault, serve

    if bool(upstream) == bool(command):
        raise click.UsageError("give either --upstream URL or -- COMMAND…")
    if shared and not command:
        raise click.UsageError("--shared goes with -- COMMAND…")
    given = {"upstream": upstream, "listen": listen, "admin": admin, "audit": audit, "audit_key_file": audit_key}
    if listen == "stdio":
        given["audit"] = audit or str(Path.cwd() / "toolpolicy-audit.jsonl")
        given["admin"] = admin or "none"
    settings = _settings({name: value for name, value in given.items() if value is not None}, more)

    def ready(running: Running) -> None:
        scheme = "https" if running.tls else "http"
        unix = running.address.startswith("unix:")
        where = running.address if unix else f"{scheme}://{running.address}{running.path}"
        names = ", ".join(map(printable, running.policies))
        admin_at = f", admin on http://{running.admin}" if running.admin else ""
        echo(f"toolpolicy: serving {where if listen != 'stdio' else 'stdio'}, policies {names}{admin_at}", err=True)

    try:
        code = asyncio.run(serve(settings, policies=policies, command=command, shared=shared, insist=True, ready=ready))
    except StartFault as fault:
        raise InputError(str(fault)) from None
    except KeyboardInterrupt:
        code = 130
    click.get_current_context().exit(code)


def _settings(given: dict[str, str], more: tuple[str, ...]) -> Any:
    """Options over ``--set`` over the environment over the defaults."""
    from toolpolicy.sidecar.settings import FIELDS, PREFIX, SettingsError, from_environ, variable

    names = {field.name for field in FIELDS}
    environ = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    for item in more:
        name, separator, value = item.partition("=")
        name = name.strip().lower().removeprefix("toolpolicy_")
        if not separator:
            raise click.UsageError(f"--set {item}: expected NAME=VALUE")
        if name not in names:
            guess = nearest(name, names)
            hint = f"did you mean {guess}?" if guess else "docs/reference/settings.md has them all"
            raise click.UsageError(f"--set {item}: no such setting; {hint}")
        environ[variable(name)] = value
    for name, value in given.items():
        environ[variable(name)] = "" if name == "admin" and value == "none" else value
    try:
        return from_environ(environ)
    except SettingsError as fault:
        raise InputError(str(fault)) from None
