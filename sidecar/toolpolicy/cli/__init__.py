"""The ``toolpolicy`` command. A verb is a module here with a click command named ``command``, imported when asked for.

What all verbs share is decided in this file: exit codes (0 ok, 1 the answer is no, 2 usage or bad input, 130
interrupted, 141 the reader went away), errors as one line that says what to do, never a traceback.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

VERBS: dict[str, str] = {
    "proxy": "Put a policy in front of an MCP server, over HTTP or stdio.",
    "check": "Validate policies, and warn of rules that can never apply.",
    "test": "Run table tests of policies.",
    "explain": "Show the decision for one call, and why, rule by rule.",
    "scan": "List a server's tools with category and risk, and write a starter policy.",
    "classify": "Say what tools do, from their names.",
    "schema": "Print the JSON Schema of policies, for editors.",
    "audit": "Verify an audit log.",
    "completion": "Print the shell completion script.",
}
"""Each verb with its line in ``--help``, which therefore imports none of them."""

NO, USAGE, INTERRUPTED, READER_GONE = 1, 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE
_OWN_EPILOG = "\b\n"


class Verbs(click.Group):
    """The top of the command line: finds verbs, and is the one place where their errors end."""

    verbs: Mapping[str, str] = VERBS
    package = "toolpolicy.cli"
    """Where the verbs' modules are."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        command: click.Command = importlib.import_module(f"{self.package}.{cmd_name}").command
        return _keep_epilog(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(self.verbs.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.verbs and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0].lower(), self.verbs, n=1, cutoff=0.5)
            meant = f": did you mean '{near[0]}'?" if near else f": the verbs are {', '.join(self.verbs)}"
            raise click.UsageError(f"unknown verb '{args[0][:80]}'{meant}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run one verb and exit. A verb may return its exit code, or nothing for 0."""
        extra["standalone_mode"] = False
        extra.setdefault("prog_name", self.name)
        try:
            code = super().main(args, *rest, **extra)
            _flush()
        except click.exceptions.Exit as done:
            code = done.exit_code
        except click.ClickException as error:
            code = _complain(error)
        except (click.Abort, KeyboardInterrupt):
            code = INTERRUPTED
        except BrokenPipeError:
            _silence()
            code = READER_GONE
        except Exception as error:  # noqa: BLE001 - the process's edge
            code = _internal(error)
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would make it exit code 1, which here means "no"
            _silence()
            ctx.exit(READER_GONE)


def _keep_epilog(command: click.Command) -> click.Command:
    """Examples stand in the epilog, and keep their lines as written."""
    if command.epilog and not command.epilog.startswith(_OWN_EPILOG):
        paragraphs = textwrap.dedent(command.epilog).strip("\n").split("\n\n")
        command.epilog = "\n\n".join(_OWN_EPILOG + paragraph for paragraph in paragraphs)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _keep_epilog(inner)
    return command


def _complain(error: click.ClickException) -> int:
    """``error: …`` and what to do, on standard error."""
    message = error.format_message()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(message, err=True, color=_colour(sys.stderr))
        return USAGE
    if message:
        click.echo(f"{click.style('error:', fg='red')} {message}", err=True, color=_colour(sys.stderr))
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "toolpolicy"
        click.echo(f"try: {path} --help", err=True)
    return error.exit_code if error.exit_code != NO or isinstance(error, Refusal) else USAGE


class Refusal(click.ClickException):
    """The answer is no: exit code 1. Every other click exception is a usage error or bad input: 2."""

    exit_code = NO


def _internal(error: Exception) -> int:
    if os.environ.get("TOOLPOLICY_DEBUG"):
        traceback.print_exc()
    else:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        click.echo(f"error: internal error: {said}", err=True)
        click.echo(
            "this is a fault in toolpolicy: please report it with the trace that TOOLPOLICY_DEBUG=1 shows", err=True
        )
    return USAGE


def _flush() -> None:
    sys.stdout.flush()


def _silence() -> None:
    """Nobody reads standard output any more: what is left must not fail at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def _colour(stream: Any) -> bool | None:
    """True or False where the environment says so (no-color.org, force-color.org), else None: as the terminal can."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR") not in (None, "", "0"):
        return True
    return None if stream.isatty() and os.environ.get("TERM") != "dumb" else False


@click.command(
    "toolpolicy",
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_OWN_EPILOG
    + """Examples:
  toolpolicy scan --upstream http://127.0.0.1:8000/mcp --write policy.yaml
  toolpolicy check policy.yaml
  toolpolicy proxy --policy policy.yaml --upstream http://127.0.0.1:8000/mcp

\b
Exit codes: 0 ok, 1 the answer is no, 2 usage or bad input.""",
)
@click.version_option(package_name="toolpolicy")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Govern what AI agents may do through MCP servers."""
    ctx.color = _colour(sys.stdout)
