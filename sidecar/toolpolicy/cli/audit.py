"""``toolpolicy audit``: check that an audit log is as it was written, and read it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import click

from toolpolicy.cli.output import InputError, coloured, echo, emit_json, output_option, printable
from toolpolicy.policy.duration import parse_duration
from toolpolicy.policy.matching import glob_matches
from toolpolicy.sidecar.audit import chain
from toolpolicy.sidecar.audit.keys import KeyFault, default_path, parse_key, read_key
from toolpolicy.sidecar.audit.verify import Finding, Head, Verifier, VerifyResult, as_json, parse_head


@click.group()
def command() -> None:
    """Check and read the audit log: one line of JSON per decision, chained so that damage shows."""


class HeadType(click.ParamType[Head]):
    name = "SEQ:MAC"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Head:
        try:
            return value if isinstance(value, Head) else parse_head(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@command.command(
    short_help="Check that every record is as it was written.",
    epilog="""Examples:
  toolpolicy audit verify audit.log
  toolpolicy audit verify audit.log.1 audit.log --key /etc/toolpolicy/audit.key
  toolpolicy audit verify audit.log --head 1042:9f86d081884c -o json""",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...|-")
@click.option("--key", "keys", multiple=True, metavar="FILE", help="Key file; several where the key was changed.")
@click.option(
    "--head", "heads", multiple=True, type=HeadType(), help="A head published by the sidecar: /status shows it."
)
@output_option("text", "json")
def verify(files: tuple[str, ...], keys: tuple[str, ...], heads: tuple[Head, ...], output: str) -> None:
    """Check every record of FILEs, named in the order they were written (- for standard input).

    Finds records that were changed, removed, moved or inserted. Records cut off the end are only found with --head,
    since what is left is whole by itself. The key is that of the sidecar: from --key, else TOOLPOLICY_AUDIT_KEY, else
    the one that `toolpolicy proxy` made. Exits with 0 if all is well, 1 if not, 2 if it can't be told.
    """
    verifier = Verifier(_keys(keys), heads)
    for name in files:
        with _opened(name) as file:
            verifier.file("<stdin>" if name == "-" else name, _lines(file))
    result = verifier.result()
    if output == "json":
        emit_json(as_json(result))
    else:
        _print(result, len(files) > 1)
    sys.exit(0 if result.ok else 1)


def _print(result: VerifyResult, several: bool) -> None:
    def where(finding: Finding) -> str:
        if not finding.line:
            return ""
        return f"{printable(finding.file)}:{finding.line}: " if several else f"line {finding.line}: "

    for note in result.notes:
        echo(f"{where(note)}{click.style('note', fg='yellow')}: {printable(note.message)}")
    for finding in result.findings:
        echo(f"{where(finding)}{click.style(finding.what, fg='red', bold=True)}: {printable(finding.message)}")
    for name, (seq, mac) in result.heads.items():
        echo(f"chain {printable(name)} ends at record {seq}, head {seq}:{mac[:24]}")
    verdict = click.style("whole", fg="green") if result.ok else click.style("damaged", fg="red", bold=True)
    lost = f", {result.lost} that the sidecar could not write" if result.lost else ""
    found = "1 finding" if len(result.findings) == 1 else f"{len(result.findings)} findings"
    echo(f"{verdict}: {result.records} records as they were written{lost}, {found}")


@command.command(
    epilog="""Examples:
  toolpolicy audit show audit.log --action Deny --since 1h
  toolpolicy audit show audit.log --tool 'delete_*' -o json"""
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...|-")
@click.option("--tool", metavar="NAME|GLOB", help="Only calls of tools with this name; * stands for anything.")
@click.option(
    "--action", type=click.Choice(["Allow", "Deny", "RequireApproval"]), help="Only decisions with this action."
)
@click.option("--since", metavar="TIME", help="Only records since then: a duration ago (1h), or a time (RFC 3339).")
@output_option("text", "json")
def show(files: tuple[str, ...], tool: str | None, action: str | None, since: str | None, output: str) -> None:
    """Print decisions, one a line. Nothing is verified: use `toolpolicy audit verify` for that."""
    earliest = _time(since) if since else ""
    for name in files:
        with _opened(name) as file:
            for fields in _decisions(_lines(file)):
                if tool is not None and not glob_matches(tool, str(fields.get("tool", ""))):
                    continue
                if (action and fields.get("action") != action) or str(fields.get("time", "")) < earliest:
                    continue
                echo(json.dumps(fields, ensure_ascii=False) if output == "json" else _line(fields))


def _decisions(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        record = chain.parse(line.removesuffix(b"\n"))
        if record is not None and record.kind == "decision":
            yield record.fields


def _line(fields: dict[str, Any]) -> str:
    def text(name: str) -> str:
        return printable(str(fields.get(name, "")))

    principal = fields.get("principal")
    who = cast("dict[str, Any]", principal).get("id", "") if isinstance(principal, dict) else ""
    rules = ",".join(map(str, cast("list[Any]", fields["rules"]))) if isinstance(fields.get("rules"), list) else ""
    what = text("tool") or text("method")
    would = f" (would deny: {len(fields['wouldDeny'])})" if isinstance(fields.get("wouldDeny"), list) else ""
    reason = f": {text('reason')}" if fields.get("reason") else ""
    action = coloured(text("action"))
    return f"{text('time')}  {action}  {what}  {printable(str(who))}  {text('code')} {printable(rules)}{reason}{would}"


def _keys(paths: Sequence[str]) -> list[bytes]:
    try:
        if paths:
            return [read_key(Path(p), create=False) for p in paths]
        value = os.environ.get("TOOLPOLICY_AUDIT_KEY")
        if value:
            return [parse_key(value.encode(), "TOOLPOLICY_AUDIT_KEY")]
        path = Path(os.environ.get("TOOLPOLICY_AUDIT_KEY_FILE") or default_path(os.environ))
        return [read_key(path, create=False)]
    except KeyFault as error:
        raise InputError(f"{error}; name the key's file with --key") from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their line feed, none held longer than a record may be."""
    while line := file.readline(chain.MAX_LINE + 1):
        yield line


@contextmanager
def _opened(name: str) -> Generator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 -- closed below; a plain with would also catch the caller's errors
    except OSError as error:
        raise InputError(f"{name} can't be read: {error.strerror}") from None
    with file:
        yield file


def _time(text: str) -> str:
    """A duration ago or an RFC 3339 time, in the form in which records have it (their times compare as text)."""
    try:
        moment = datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            message = f"--since {text}: expected a duration such as 1h, or a time such as 2026-01-31T08:00:00Z"
            raise click.UsageError(message) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
