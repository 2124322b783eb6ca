"""Completion: of the command line by click, of names by the cluster, in the form that kubectl asks plugins for.

kubectl runs ``kubectl_complete-toolpolicy`` with the words after ``toolpolicy``, the last one unfinished, and reads one
candidate a line and a directive of its completion library at the end (``:4``: do not offer files instead).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem, ShellComplete

from toolpolicy_operator.kube import POLICIES_API, Api, ApiError, api_path
from toolpolicy_operator.kubectl.access import Target, ask, target

SECONDS = 2.0
_NO_FILES = ":4"
_FILES = ":0"


def main(words: Sequence[str]) -> None:
    """Print the candidates for the last of ``words``."""
    from toolpolicy_operator.kubectl.verbs import main as root

    before, last = list(words[:-1]), words[-1] if words else ""
    found = ShellComplete(root, {}, "kubectl toolpolicy", "").get_completions(before, last)
    for item in found:
        if item.type == "plain":
            click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(_FILES if any(item.type == "file" for item in found) else _NO_FILES)


def policy_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _names(ctx, incomplete, POLICIES_API, "toolpolicies")


def pod_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _names(ctx, incomplete, "v1", "pods")


def _names(ctx: click.Context, incomplete: str, api_version: str, plural: str) -> list[CompletionItem]:
    """Names in the namespace; none where the cluster does not say within two seconds."""
    with ctx.scope(cleanup=False):
        where: Target = target()

    async def read(api: Api) -> list[str]:
        with contextlib.suppress(ApiError):
            listed = await api.list(api_path(api_version, plural, where.in_namespace()), within=SECONDS)
            return [str(obj["metadata"]["name"]) for obj in listed]
        return []

    with contextlib.suppress(click.ClickException), contextlib.redirect_stderr(io.StringIO()):
        return [CompletionItem(name) for name in ask(where, read) if name.startswith(incomplete)]
    return []
