"""``kubectl toolpolicy explain``: why a pod is injected or not, and how a call to it is decided."""

from __future__ import annotations

from typing import Any

import click

from toolpolicy.cli.explain import answer, call_options, describe
from toolpolicy.cli.output import InputError, echo, emit_json, output_option, printable
from toolpolicy_operator import names
from toolpolicy_operator.kube import Api, ApiError, Object, api_path
from toolpolicy_operator.kubectl.access import POD_TYPES, ask, bare, target, target_options
from toolpolicy_operator.kubectl.completion import pod_names
from toolpolicy_operator.kubectl.gather import Snapshot, snapshot
from toolpolicy_operator.kubectl.loaded import RulesUnreadable, loaded
from toolpolicy_operator.kubectl.podstory import PodStory, tell
from toolpolicy_operator.workloads import count


@click.group(
    epilog="""Examples:
  kubectl toolpolicy explain pod imaging-0 -n agents
  kubectl toolpolicy explain call --pod imaging-0 --tool delete_image_set"""
)
def command() -> None:
    """Say why a pod is injected or not, or how a call to it is decided."""


@command.command(
    "pod",
    epilog="""Examples:
  kubectl toolpolicy explain pod imaging-0 -n agents
  kubectl toolpolicy explain pod imaging-0 -o json | jq -r .reason

Exit codes: 0 the pod has the sidecar; 1 it has not; 2 usage, or no answer of the cluster.""",
)
@click.argument("name", shell_complete=pod_names)
@output_option("text", "json")
@target_options
def pod_command(name: str, output: str) -> int:
    """Say whether the pod NAME has the sidecar, why or why not, and which policies select it.

    The reasons are those of the operator's own table, which admission, events, metrics and status use alike.
    """
    found, pod = _read(name)
    story = tell(pod, found.store)
    if output == "json":
        emit_json({**story.as_json(), "unread": found.unread})
    else:
        _print(found, story)
    return 0 if story.injected else 1


def _read(name: str) -> tuple[Snapshot, Object]:
    name = bare(name, POD_TYPES)
    where = target()
    namespace = where.in_namespace()

    async def read(api: Api) -> tuple[Snapshot, Object]:
        try:
            pod = await api.get(api_path("v1", "pods", namespace, name))
        except ApiError as error:
            if not error.not_found:
                raise
            await snapshot(api, namespace)  # says so where the namespace is what is missing
            raise InputError(f"no pod {name} in namespace {namespace}: see kubectl get pods -n {namespace}") from None
        return await snapshot(api, namespace), pod

    return ask(where, read)


def _print(found: Snapshot, story: PodStory) -> None:
    verdict = click.style("has the sidecar", fg="green") if story.injected else click.style("no sidecar", fg="red")
    echo(f"{click.style(f'pod {story.namespace}/{story.name}', bold=True)}: {verdict} ({story.reason})")
    for text in story.lines:
        echo(f"  {printable(text)}")
    echo(f"{count(len(story.selecting), 'policy selects', 'policies select')} it" + (":" if story.selecting else ""))
    for text in story.selecting:
        echo(f"  {printable(text)}")
    if story.missing:
        echo("not selected by:")
    for text in story.missing:
        echo(f"  {printable(text)}")
    for text in found.unread:
        echo(f"note: {text}", err=True)


@command.command(
    "call",
    epilog="""Examples:
  kubectl toolpolicy explain call --pod imaging-0 --tool delete_image_set
  kubectl toolpolicy explain call --pod imaging-0 -n agents --tool start_export --args '{"uri": "s3://b/x"}'
  kubectl toolpolicy explain call --pod imaging-0 --method resources/read --principal alice --group admins -o json

Exit codes: 0 the call is allowed; 1 it is not; 2 usage, or no answer of the cluster.""",
)
@click.option("--pod", required=True, metavar="NAME", shell_complete=pod_names, help="The MCP server's pod.")
@call_options
@target_options
def call_command(*, pod: str, **options: Any) -> int:
    """Show how a call to a pod's MCP server is decided, by the evaluator that its sidecar runs.

    Decided by the rules that are written in the pod's namespace, for the policies that select this pod. Says so where
    the sidecar has not reported them yet. Limits are those of a first call.
    """
    call = describe(**options)
    found, manifest = _read(pod)
    story = tell(manifest, found.store)
    if not story.injected:
        echo(f"pod {story.namespace}/{story.name} has no sidecar ({story.reason}): nothing judges its calls", err=True)
        echo(f"see: kubectl toolpolicy explain pod {story.name} -n {story.namespace}", err=True)
        return 1
    record = found.store.pod(story.namespace, story.name)
    assert record is not None
    data = ask(target(), lambda api: _rules(api, story.namespace))
    try:
        rules = loaded(data, record, found)
    except RulesUnreadable as error:
        raise InputError(str(error)) from None
    if options["output"] == "text":
        echo(f"by the rules of {story.namespace}, revision {rules.revision}")
    for text in rules.warnings:
        echo(f"{click.style('warning:', fg='yellow', bold=True)} {printable(text)}", err=True)
    about = {"namespace": story.namespace, "pod": story.name, "revision": rules.revision, "warnings": rules.warnings}
    return answer(rules.policies, call, about=about, **options)


async def _rules(api: Api, namespace: str) -> Object:
    """The ConfigMap with the rules; its contents, where the store keeps digests."""
    try:
        return await api.get(api_path("v1", "configmaps", namespace, names.RULES_CONFIGMAP))
    except ApiError as error:
        if not error.not_found:
            raise
        raise InputError(
            f"namespace {namespace} has no ConfigMap {names.RULES_CONFIGMAP}: its sidecars have no rules and deny "
            "every call. Is the operator running? kubectl -n toolpolicy-system get pods"
        ) from None
