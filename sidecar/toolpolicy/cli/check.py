"""``toolpolicy check``: everything that is wrong with policies, and what of them can never apply."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click

from toolpolicy.cli.output import (
    InputError,
    echo,
    emit_json,
    output_option,
    policy_files,
    printable,
    read_bytes,
    read_text,
)
from toolpolicy.policy.check import findings
from toolpolicy.policy.errors import Problem
from toolpolicy.policy.load import Located, duplicates, load_located

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command(
    epilog="""Examples:
  toolpolicy check policy.yaml
  toolpolicy check policies/ --strict --tools tools.json
  kubectl get toolpolicies -A -o yaml | toolpolicy check -
  toolpolicy check policy.yaml --upstream http://127.0.0.1:8000/mcp

Exit codes: 0 all policies are valid; 1 a policy has an error (or a warning, with --strict); 2 usage, or a file that
can't be read."""
)
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIR|-...")
@click.option(
    "--tools", "tools_file", metavar="FILE", help="Names of the server's tools: one a line, or a tools/list answer."
)
@click.option("--upstream", metavar="URL", help="Ask this MCP server for its tools.")
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@output_option("text", "json", "github")
def command(files: tuple[str, ...], tools_file: str | None, upstream: str | None, strict: bool, output: str) -> None:
    """Check policies, and say everything that is wrong with them: file, line, column, field, and what was expected.

    Warnings tell what can never apply, such as a rule that a Deny shadows, or, with --tools or --upstream, a name that
    no tool of the server has. `-o github` prints annotations for GitHub Actions.
    """
    if tools_file is not None and upstream is not None:
        raise click.UsageError("give --tools or --upstream, not both")
    paths = policy_files(files)
    tools = _tools(tools_file, upstream)
    policies, problems = _read(paths)
    for each in policies:
        problems += [each.problem(f.path, f.message, f.code, f.severity) for f in findings(each.policy, tools)]
    problems = sorted(set(problems))
    counts = {severity: sum(p.severity == severity for p in problems) for severity in _COLOURS}
    _PRINTERS[output](paths, policies, problems, counts)
    click.get_current_context().exit(1 if counts["error"] or (strict and counts["warning"]) else 0)


def _read(paths: Sequence[str]) -> tuple[list[Located], list[Problem]]:
    policies: list[Located] = []
    problems: list[Problem] = []
    for path in paths:
        found, faults = load_located(read_bytes(path), "<stdin>" if path == "-" else path)
        policies += found
        problems += faults
    return policies, problems + duplicates([(each.file, each.policy) for each in policies])


def _tools(file: str | None, upstream: str | None) -> Collection[str] | None:
    if file is not None:
        return tool_names(file)
    if upstream is None:
        return None
    from toolpolicy.cli.listing import list_tools

    return frozenset(tool.name for tool in list_tools(upstream, None))


def tool_names(file: str) -> frozenset[str]:
    """Names in a file: a ``tools/list`` answer, a list (JSON or YAML), or one a line (of a table the first column)."""
    text = read_text(file)
    if text.lstrip().startswith(("{", "[", "- ", "tools:")):
        from toolpolicy.cli.listing import read_tools

        names = frozenset(tool.name for tool in read_tools(file))
    else:
        lines = (line.partition("\t")[0].strip() for line in text.splitlines())
        names = frozenset(line for line in lines if line and not line.startswith("#"))
    if not names:
        raise InputError(f"{file} names no tool: expected one name a line, or a tools/list answer")
    return names


def _summary(paths: Sequence[str], policies: Sequence[Located], counts: dict[str, int]) -> str:
    def plural(count: int, word: str, many: str = "") -> str:
        return f"{count} {word if count == 1 else many or word + 's'}"

    found = ", ".join(plural(count, severity) for severity, count in counts.items() if count) or "no problems"
    where = f"{plural(len(policies), 'valid policy', 'valid policies')} in {plural(len(paths), 'file')}"
    return f"{where}: {found}"


def _print_text(
    paths: Sequence[str], policies: Sequence[Located], problems: Sequence[Problem], counts: dict[str, int]
) -> None:
    for problem in problems:
        word = f"{problem.severity}:"
        echo(printable(str(problem)).replace(word, click.style(word, fg=_COLOURS[problem.severity], bold=True), 1))
    echo(click.style(_summary(paths, policies, counts), bold=True, fg="red" if counts["error"] else "green"))


def _print_json(
    paths: Sequence[str], policies: Sequence[Located], problems: Sequence[Problem], counts: dict[str, int]
) -> None:
    described = [
        {
            "file": each.file,
            "kind": each.policy.kind,
            "namespace": each.policy.metadata.namespace,
            "name": each.policy.metadata.name,
            "rules": len(each.policy.spec.rules),
        }
        for each in policies
    ]
    told = [
        {
            "file": problem.file,
            "line": problem.line,
            "column": problem.column,
            "path": problem.path,
            "severity": problem.severity,
            "code": problem.code,
            "message": problem.message,
        }
        for problem in problems
    ]
    totals = {f"{severity}s": count for severity, count in counts.items()}
    emit_json({"files": list(paths), "policies": described, "problems": told, **totals})


def _print_github(
    paths: Sequence[str], policies: Sequence[Located], problems: Sequence[Problem], counts: dict[str, int]
) -> None:
    """Workflow commands of GitHub Actions; a value may hold none of the characters that separate them."""
    kinds = {"error": "error", "warning": "warning", "note": "notice"}
    for problem in problems:
        place = f"file={_escape(problem.file)},line={max(problem.line, 1)},col={max(problem.column, 1)}"
        at = f"{problem.path}: " if problem.path else ""
        message = _escape(at + problem.message, data=True)
        echo(f"::{kinds[problem.severity]} {place},title={_escape(problem.code)}::{message}")
    echo(_summary(paths, policies, counts))


def _escape(text: str, *, data: bool = False) -> str:
    text = printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text if data else text.replace(":", "%3A").replace(",", "%2C")


_PRINTERS = {"text": _print_text, "json": _print_json, "github": _print_github}
