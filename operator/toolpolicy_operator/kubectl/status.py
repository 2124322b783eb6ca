"""``kubectl toolpolicy status``: what is enforced, who lags, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from toolpolicy.cli.output import InputError, echo, emit_json, output_option, printable, table
from toolpolicy.policy.duration import format_duration
from toolpolicy_operator.kube import Api
from toolpolicy_operator.kubectl.access import POLICY_TYPES, ask, bare, target, target_options
from toolpolicy_operator.kubectl.completion import policy_names
from toolpolicy_operator.kubectl.gather import Snapshot, snapshot
from toolpolicy_operator.kubectl.standing import PolicyLine, as_json, index_entries, policy_line
from toolpolicy_operator.kubectl.waiting import DEFAULT, WaitCommand, seconds, until
from toolpolicy_operator.records import Kind
from toolpolicy_operator.standing import NEEDS_RESTART
from toolpolicy_operator.workloads import count, restart_commands

_COLOURS = {"True": "green", "False": "red", "Unknown": "yellow"}


@click.command(
    cls=WaitCommand,
    epilog="""Examples:
  kubectl toolpolicy status
  kubectl toolpolicy status imaging -n agents --wait=2m
  kubectl toolpolicy status imaging -n agents
  kubectl toolpolicy status -A -o wide
  kubectl toolpolicy status -A -o json | jq '.policies[] | select(.good | not) | .name'

Exit codes: 0 every policy is in force in every pod that it selects; 1 one is not, or a pod is not up yet; 2 usage, or
no answer of the cluster.""",
)
@click.argument("name", required=False, metavar="[NAME]", shell_complete=policy_names)
@click.option("-A", "--all-namespaces", is_flag=True, help="Of every namespace.")
@click.option(
    "--wait",
    metavar="[=TIMEOUT]",
    callback=seconds,
    help=f"Wait until they are in force; a policy that is named also until it has a pod. Default: {DEFAULT}.",
)
@output_option("text", "wide", "json")
@target_options
def command(name: str | None, all_namespaces: bool, wait: float | None, output: str) -> int:
    """Show policies with their pods: what is enforced, which pods lag, and why.

    With NAME everything about one policy. A pod is Current once its sidecar has reported that the policy's generation
    is in force. Its RULES REVISION is the last one written since it started; `-` is the one it started with.
    """
    name = bare(name, POLICY_TYPES) if name is not None else None
    where = target()
    namespace = None if all_namespaces else where.in_namespace()

    def enough(found: Snapshot) -> bool:
        return all(line.good and (name is None or not line.idle) for line in _lines(found, name, namespace))

    async def read(api: Api) -> Snapshot:
        return await until(lambda: snapshot(api, namespace), enough, wait)

    found = ask(where, read)
    lines = _lines(found, name, namespace)
    if output == "json":
        emit_json({"policies": [as_json(line) for line in lines], "unread": found.unread})
    else:
        _print(found, lines, namespace, detailed=name is not None or output == "wide")
    if wait is not None and not enough(found):
        echo(f"not in force after {format_duration(wait)}", err=True)
        return 1
    return 0 if all(line.good for line in lines) else 1


def _lines(found: Snapshot, name: str | None, namespace: str | None) -> list[PolicyLine]:
    """Every policy, or those of the name; an InputError where there is none of it."""
    lines = [line for policy in found.policies if (line := policy_line(policy, found.store)) is not None]
    lines.sort(key=lambda line: (line.namespace or "", line.name))
    if name is None:
        return lines
    if named := [line for line in lines if line.name == name]:
        return named
    place = f"{_place(namespace)}: see kubectl toolpolicy status -A"
    raise InputError(f"no ToolPolicy or ClusterToolPolicy {name[:253]} {place}")


def _place(namespace: str | None) -> str:
    return f"in namespace {namespace}" if namespace is not None else "in any namespace"


def _print(found: Snapshot, lines: Sequence[PolicyLine], namespace: str | None, *, detailed: bool) -> None:
    for text in found.unread:
        echo(f"note: {text}", err=True)
    if not lines:
        echo(f"no policies {_place(namespace)}", err=True)
        return
    if not detailed:
        table([_row(line) for line in lines], _HEADERS)
        for text in dict.fromkeys(text for line in lines for text in _still_to_come(line)):
            echo(text, err=True)
        for line in [line for line in lines if not line.good][:5]:
            echo(f"see: kubectl toolpolicy status {line.name}" + _flag(line, namespace), err=True)
        return
    for number, line in enumerate(lines):
        if number:
            echo()
        for text in _details(found, line):
            echo(text)


_HEADERS = ["NAMESPACE", "POLICY", "MODE", "RULES", "GENERATION", "PODS", "INJECTED", "CURRENT", "ENFORCED", "REASON"]


def _row(line: PolicyLine) -> list[str]:
    counts = [str(line.counts.get(key, "-")) for key in ("selected", "injected", "current")]
    enforced = (str(line.enforced.get("status", "-")), str(line.enforced.get("reason", "-")))
    if not line.current:
        enforced = ("-", "NotObserved")
    which = line.namespace or "(cluster)"
    return [which, line.name, line.mode, str(line.rules), str(line.generation), *counts, *enforced]


def _details(found: Snapshot, line: PolicyLine) -> Iterator[str]:
    yield click.style(line.title, bold=True) + (
        f": {line.mode}, default {line.default}, {count(line.rules, 'rule')}, generation {line.generation}"
    )
    if not line.current:
        seen = "has not looked at it yet" if line.observed is None else f"has seen generation {line.observed} only"
        yield f"  the operator {seen}: is it running? kubectl -n toolpolicy-system get pods"
    for kind, condition in (("Accepted", line.accepted), ("Enforced", line.enforced)):
        if condition:
            said = str(condition.get("status"))
            yield (
                f"  {kind} {click.style(said, fg=_COLOURS.get(said))} ({condition.get('reason')}): "
                f"{printable(str(condition.get('message', '')))}"
            )
    yield from _rules(found, line)
    if line.pods:
        yield from _pods(line)
    yield from (f"  {text}" for text in _still_to_come(line))
    old = [pod for pod in found.store.pods() if (pod.namespace, pod.name) in _old(line)]
    for text in restart_commands(sorted(old, key=lambda pod: (pod.namespace, pod.name)))[:5]:
        yield f"  to bring the sidecar, as the policy wants it now, to pods without it: {text}"


def _rules(found: Snapshot, line: PolicyLine) -> Iterator[str]:
    for namespace, generation in sorted(line.programmed.items()):
        revision, _ = index_entries(found.store, namespace)
        has = "does not have the policy" if generation is None else f"has generation {generation}"
        late = " (not the newest)" if generation != line.generation else ""
        yield f"  rules of {namespace}: revision {revision or '-'} {has}{late}"


def _pods(line: PolicyLine) -> Iterator[str]:
    """A table of the pods, indented."""
    rows = [["POD", "PHASE", "SIDECAR", "RULES REVISION", "STATE"]]
    for pod in line.pods:
        name = pod.name if line.kind == Kind.TOOL_POLICY else f"{pod.namespace}/{pod.name}"
        rows.append([name, pod.phase, pod.sidecar, pod.rules, pod.state])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        text = "  ".join(printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield "  " + (click.style(text, bold=True) if number == 0 else text)


def _flag(line: PolicyLine, namespace: str | None) -> str:
    """Where to ask about one policy: a ClusterToolPolicy wherever was asked before."""
    where = line.namespace or namespace
    return f" -n {where}" if where is not None else " -A"


def _still_to_come(line: PolicyLine) -> Iterator[str]:
    for pod in line.pending[:5]:
        yield f"pod {pod.name} is {pod.phase}: kubectl describe pod {pod.name} -n {pod.namespace}"


def _old(line: PolicyLine) -> set[tuple[str, str]]:
    return {(pod.namespace, pod.name) for pod in line.pods if pod.state in NEEDS_RESTART}
