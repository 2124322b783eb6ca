"""``toolpolicy test``: table tests of policies, for CI."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from toolpolicy.cli.cases import load_cases
from toolpolicy.cli.casework import Outcome, run_file
from toolpolicy.cli.junit import junit
from toolpolicy.cli.output import InputError, echo, emit_json, output_option, printable, report


@click.command(
    epilog="""Examples:
  toolpolicy test policy-test.yaml
  toolpolicy test tests/*.yaml --junit report.xml
  toolpolicy test policy-test.yaml --case 'export*'

A test file:
  apiVersion: toolpolicy.dev/v1alpha1
  kind: ToolPolicyTest
  policies: [policy.yaml]
  cases:
  - name: deletes are off
    call: {tool: delete_image_set, principal: {id: alice}}
    expect: {action: Deny, reason: off for agents, visible: false}"""
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--case", "pattern", default="*", metavar="GLOB", help="Only cases with such a name.")
@click.option("--junit", "report_file", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit XML.")
@click.option("-v", "--verbose", is_flag=True, help="Also name the cases that pass.")
@output_option("text", "json")
def command(*, files: tuple[str, ...], pattern: str, report_file: Path | None, verbose: bool, output: str) -> int:
    """Run the cases in each FILE against the policies that it names, with the evaluator that enforces them.

    A case has its own counters and clock. One that fails shows what was expected, what came, and the explanation of
    the call. Exits with 0 if all pass, 1 if one fails, 2 if a file can't be used.
    """
    started = time.monotonic()
    outcomes = _run(files, pattern)
    if not outcomes:
        raise InputError(f"no case is named like {pattern!r}: the name must match as a whole, * stands for any text")
    if report_file is not None:
        _write(report_file, junit(outcomes, time.monotonic() - started))
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if output == "json":
        emit_json(_as_json(outcomes))
    else:
        _show(outcomes, verbose)
        summary = f"{len(outcomes) - len(failed)} passed, {len(failed)} failed"
        echo(click.style(summary, fg="red" if failed else "green", bold=True))
    return 1 if failed else 0


def _run(files: Sequence[str], pattern: str) -> list[Outcome]:
    loaded = [load_cases(path) for path in dict.fromkeys(files)]
    problems = [problem for _, found in loaded for problem in found]
    if problems:
        report(problems)
        raise InputError(f"{len(problems)} error{'s' if len(problems) > 1 else ''} in the tests: see above")
    return [
        outcome
        for documents, _ in loaded
        for document in documents
        for outcome in run_file(document, lambda name: fnmatchcase(name, pattern))
    ]


def _show(outcomes: Sequence[Outcome], verbose: bool) -> None:
    for outcome in outcomes:
        name = printable(outcome.name)
        if outcome.passed:
            if verbose:
                echo(f"{click.style('ok', fg='green')}   {name}")
            continue
        where = f" ({outcome.where})" if outcome.where else ""
        echo(f"{click.style('FAIL', fg='red', bold=True)} {outcome.file}:{outcome.line}: {name}{where}")
        for what, wanted, got in outcome.differences:
            echo(f"  {what}")
            echo(click.style(f"    - expected {printable(wanted)}", fg="green"))
            echo(click.style(f"    + got      {printable(got)}", fg="red"))
        for line in outcome.explanation.splitlines():
            echo(f"  | {printable(line)}")


def _as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "passed": sum(outcome.passed for outcome in outcomes),
        "failed": sum(not outcome.passed for outcome in outcomes),
        "cases": [
            {
                "name": outcome.name,
                "file": outcome.file,
                "line": outcome.line,
                "passed": outcome.passed,
                "where": outcome.where,
                "calls": outcome.calls,
                "differences": [
                    {"field": what, "expected": wanted, "got": got} for what, wanted, got in outcome.differences
                ],
                "explanation": outcome.explanation,
            }
            for outcome in outcomes
        ],
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}") from None
