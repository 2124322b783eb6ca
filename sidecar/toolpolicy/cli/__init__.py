"""The ``toolpolicy`` command. Each verb is a module of this package with a click command named ``command``, imported when asked for."""

from __future__ import annotations

import importlib

import click

VERBS = {
    "proxy": "proxy",
    "check": "check",
    "test": "test",
    "explain": "explain",
    "scan": "scan",
    "classify": "classify",
    "schema": "schema",
    "audit": "audit",
    "completion": "completion",
}


class Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = VERBS.get(cmd_name)
        if module is None:
            return None
        return importlib.import_module(f"toolpolicy.cli.{module}").command


@click.command(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="toolpolicy")
def main() -> None:
    """Govern what AI agents may do through MCP servers."""
