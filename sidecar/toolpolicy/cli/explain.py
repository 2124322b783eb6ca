"""``toolpolicy explain``: the decision for one call, and why, rule by rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import click

from toolpolicy.cli.listing import Tools, read_tools
from toolpolicy.cli.output import InputError, echo, emit_json, load_policies, output_option, read_text
from toolpolicy.policy.compile import compile_policies
from toolpolicy.policy.explain import as_json, explain, render
from toolpolicy.policy.limits import MemoryCounters
from toolpolicy.policy.model import Action, Policy
from toolpolicy.policy.types import Call, Principal

NO_TOOLS = "note: the server's schema is not known, so anything passes it: give what the server lists with --tools FILE"
NO_APPROVALS = "note: approval is not available here yet; until it is, such a call is denied (ApprovalUnavailable)"


def parse_time(text: str) -> datetime:
    """An RFC 3339 time, or an :class:`InputError`."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise InputError(f"{text[:80]!r} is not a time with a zone: expected one like 2026-01-31T09:30:00+01:00")
    return time


def parse_arguments(text: str) -> dict[str, Any]:
    """A JSON object given as it is, as ``@FILE``, or as ``-`` for standard input."""
    where = "--args"
    if text == "-" or text.startswith("@"):
        where = text.removeprefix("@")
        text = read_text(where)
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}: expected an object like '{{\"id\": 1}}'") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object: expected one like '{{\"id\": 1}}'")
    return cast("dict[str, Any]", value)


_F = TypeVar("_F", bound=Callable[..., Any])
_CALL_OPTIONS = (
    click.option("--tool", metavar="NAME", help="The tool that is called."),
    click.option(
        "--args", "arguments", default="{}", metavar="JSON|@FILE|-", help="The call's arguments; default: none."
    ),
    click.option("--method", default="tools/call", show_default=True, help="The MCP method."),
    click.option("--principal", default="anonymous", show_default=True, metavar="ID", help="Who is calling."),
    click.option("--group", "groups", multiple=True, metavar="NAME", help="A group of the principal; repeatable."),
    click.option("--service-account", metavar="NS/NAME", help="The principal is this ServiceAccount, verified."),
    click.option("--verified/--claimed", default=True, show_default=True, help="Whether the identity is verified."),
    click.option("--session", metavar="ID", help="The MCP session; default: none."),
    click.option("--time", "time", metavar="RFC3339", help="When; default: now."),
    click.option(
        "--tools", metavar="FILE", help="What the server lists (a tools/list result); default: the name alone."
    ),
    output_option("text", "json"),
)


def call_options(command: _F) -> _F:
    """The options that describe a call; :func:`describe` and :func:`answer` take them."""
    for option in reversed(_CALL_OPTIONS):
        command = option(command)
    return command


def describe(
    *,
    tool: str | None,
    arguments: str,
    method: str,
    principal: str,
    groups: tuple[str, ...],
    service_account: str | None,
    verified: bool,
    session: str | None,
    time: str | None,
    **others: Any,
) -> Call:
    """The call that the options describe. Raises :class:`InputError`, or click's own for what contradicts itself."""
    if (tool is None) == (method == "tools/call"):
        raise click.UsageError("give --tool NAME, or another --method than tools/call")
    return Call(
        method=method,
        principal=Principal(
            principal,
            kind="ServiceAccount" if service_account else "JWT" if verified else "Credential",
            verified=verified,
            groups=groups,
            service_account=service_account,
        ),
        now=parse_time(time) if time else datetime.now(UTC),
        tool=tool,
        arguments=parse_arguments(arguments),
        identities=(principal,),
        session=session,
    )


def answer(
    policies: Sequence[Policy],
    call: Call,
    *,
    tools: str | None,
    output: str,
    about: Mapping[str, Any] | None = None,
    **others: Any,
) -> int:
    """Prints how the call is decided; 0 if it is allowed, else 1. ``about`` is what JSON says besides."""
    catalogue = Tools(read_tools(tools)) if tools else Tools((), others=True)
    explanation = explain(compile_policies(policies), call, catalogue, MemoryCounters(), 0.0)
    if output == "json":
        emit_json({**(about or {}), **as_json(explanation)})
    else:
        echo(render(explanation))
        checks = [c for t in explanation.tiers for p in t.policies for r in p.rules for c in r.checks]
        if tools is None and any(check.kind == "declared" for check in checks):
            echo(NO_TOOLS)
        if explanation.decision.action is Action.REQUIRE_APPROVAL:
            echo(NO_APPROVALS)
    return 0 if explanation.decision.action is Action.ALLOW else 1


@click.command(
    epilog="""Examples:
  toolpolicy explain --policy policy.yaml --tool delete_image_set
  toolpolicy explain --policy policy.yaml --tool start_export --args '{"uri": "s3://b/x"}' --time 2026-01-31T09:30:00Z
  toolpolicy explain --policy policies/ --method resources/read --principal alice --group admins -o json"""
)
@click.option("--policy", "policies", multiple=True, required=True, metavar="FILE|DIR", help="Repeatable.")
@call_options
def command(*, policies: tuple[str, ...], **options: Any) -> int:
    """Show how a call is decided: which rules apply and why, what each validation and limit says, and the outcome.

    Every policy in the files applies, whatever its selector, as with `toolpolicy proxy`. Limits are those of a first
    call. Exits with 0 if the call is allowed, with 1 if it is not.
    """
    call = describe(**options)
    return answer(load_policies(policies), call, **options)
