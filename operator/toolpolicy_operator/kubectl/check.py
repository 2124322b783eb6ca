"""``kubectl toolpolicy check``: what the API server, with its webhooks, would say of manifests. Nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from toolpolicy.cli.output import InputError, echo, emit_json, output_option, policy_files, printable, read_bytes
from toolpolicy.policy import documents
from toolpolicy.policy.errors import Problem
from toolpolicy.policy.load import KINDS, load_text
from toolpolicy.policy.shapes import items, mapping
from toolpolicy_operator.kube import Api, ApiError, Object, policy_path
from toolpolicy_operator.kubectl.access import ask, target, target_options
from toolpolicy_operator.kubectl.gather import INSTALL

MANAGER = "kubectl-toolpolicy"
EDITOR = "toolpolicy-edit"
"""The ClusterRole of manifests/install that grants a dry run of writing policies."""
_VERDICTS = {"created": "green", "configured": "green", "refused": "red"}


@dataclass(frozen=True, slots=True)
class Found:
    """A policy of a file."""

    file: str
    manifest: Object
    line: int

    @property
    def name(self) -> str:
        metadata = mapping(self.manifest.get("metadata"))
        return str(metadata.get("name") or metadata.get("generateName") or "(no name)")


@dataclass(slots=True)
class Verdict:
    """``verdict`` is created, configured or refused; ``errors`` are (field, message). ``namespace`` is where the policy
    goes: None of a ClusterToolPolicy.
    """

    found: Found
    namespace: str | None
    verdict: str
    errors: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    warnings: list[str] = field(default_factory=list[str])

    @property
    def title(self) -> str:
        place = f"{self.namespace}/" if self.namespace is not None else ""
        return f"{self.found.manifest.get('kind')} {place}{self.found.name}"


@click.command(
    epilog="""Examples:
  kubectl toolpolicy check -f policy.yaml
  kubectl toolpolicy check -f policies/ -n agents --strict
  kubectl get toolpolicies -A -o yaml | kubectl toolpolicy check -f -

Exit codes: 0 all would be accepted; 1 one is refused (or warned of, with --strict); 2 usage, or no answer."""
)
@click.option(
    "-f", "--filename", "files", multiple=True, required=True, metavar="FILE|DIR|-", help="Repeatable.",
    type=click.Path(allow_dash=True),
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@output_option("text", "json")
@target_options
def command(files: tuple[str, ...], strict: bool, output: str) -> int:
    """Ask the API server what it would say of the policies in files: a dry run of creating or replacing each.

    Beyond `toolpolicy check` this sees the cluster: whether the namespace is enabled, which pods match and need a
    restart, how full the namespace's rules are. Needs the right to create and update the policies. Those that name no
    namespace go to that of -n; one that names another is refused, as `kubectl apply` does.
    """
    found, broken, others = _read(files)
    for each in others:
        echo(f"note: {each} is left out: not a policy", err=True)
    if not found and not broken:
        raise InputError(f"no policy in {', '.join(files)}: expected a ToolPolicy or a ClusterToolPolicy")
    where = target()
    namespace = where.in_namespace()

    async def judge(api: Api) -> list[Verdict]:
        return [_elsewhere(each, where.namespace) or await _judge(api, each, namespace) for each in found]

    verdicts = ask(where, judge, EDITOR) if found else []
    if output == "json":
        emit_json(_as_json(verdicts, broken))
    else:
        _print(verdicts, broken)
    bad = broken or any(v.verdict == "refused" or (strict and v.warnings) for v in verdicts)
    return 1 if bad else 0


def _read(files: Sequence[str]) -> tuple[list[Found], list[Problem], list[str]]:
    """The policies of the files, what keeps a text from being read at all, and what else is in them."""
    found: list[Found] = []
    broken: list[Problem] = []
    others: list[str] = []
    for path in policy_files(files):
        name, raw = ("<stdin>" if path == "-" else path), read_bytes(path)
        try:
            parsed = documents.read(raw.decode("utf-8"))
        except UnicodeDecodeError:
            broken += load_text(raw, name)[1]
            continue
        for document in parsed:
            broken += [Problem(name, f.place.line, f.place.column, "", f.message, code=f.code) for f in document.faults]
            if not document.complete or document.faults:
                continue
            held = mapping(document.value)
            listed = isinstance(held.get("items"), list) and str(held.get("kind", "")).endswith("List")
            for index, item in enumerate(items(held.get("items")) if listed else [document.value]):
                manifest = mapping(item)
                line = document.place(("items", index) if listed else ()).line
                if manifest.get("kind") in KINDS:
                    found.append(Found(name, manifest, line))
                else:
                    others.append(f"{manifest.get('kind', 'a document')} ({name}:{line})")
    return found, broken, others


def _elsewhere(found: Found, asked: str | None) -> Verdict | None:
    """The refusal of a policy of another namespace than ``-n`` asks for, as kubectl apply refuses it."""
    own = mapping(found.manifest.get("metadata")).get("namespace")
    if asked is None or not own or own == asked or found.manifest.get("kind") != "ToolPolicy":
        return None
    message = f"the file says namespace {own}, and -n says {asked}: pass -n {own}, or no -n"
    return Verdict(found, str(own), "refused", [("metadata.namespace", message)])


async def _judge(api: Api, found: Found, namespace: str) -> Verdict:
    """A dry run of creating the policy, or of replacing the one that is there."""
    kind = str(found.manifest["kind"])
    metadata = {k: v for k, v in mapping(found.manifest.get("metadata")).items() if k not in _SERVERS_OWN}
    manifest = {k: v for k, v in found.manifest.items() if k != "status"} | {"metadata": metadata}
    space = str(metadata.get("namespace") or namespace) if kind == "ToolPolicy" else None
    if space is not None:
        metadata["namespace"] = space
    verdict = Verdict(found, space, "created")
    api.warned = verdict.warnings.append
    dry: dict[str, Any] = {"dryRun": "All", "fieldValidation": "Strict", "fieldManager": MANAGER}
    try:
        there = await _existing(api, kind, space, metadata.get("name"))
        if there is None:
            await api.create(policy_path(kind, space, "x").rpartition("/")[0], manifest, **dry)
        else:
            verdict.verdict = "configured"
            metadata["resourceVersion"] = mapping(there["metadata"])["resourceVersion"]
            await api.update(policy_path(kind, space, str(metadata["name"])), manifest, **dry)
    except ApiError as error:
        if error.status not in (400, 404, 409, 413, 422) and not _denied(error):
            raise
        verdict.verdict = "refused"
        verdict.errors = _errors(error)
    return verdict


_SERVERS_OWN = frozenset({"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink"})


async def _existing(api: Api, kind: str, namespace: str | None, name: Any) -> Object | None:
    if not isinstance(name, str) or not name or "/" in name or "%" in name:
        return None
    try:
        return await api.get(policy_path(kind, namespace, name))
    except ApiError as error:
        if not error.not_found:
            raise
    try:
        await api.list(policy_path(kind, namespace, "x").rpartition("/")[0], limit="1")
    except ApiError as error:
        if error.not_found:
            raise InputError(f"this cluster does not know {kind}: {INSTALL}") from None
        if not error.forbidden:
            raise
    return None


def _denied(error: ApiError) -> bool:
    """A refusal by an admission plugin, which a Forbidden of the user's own rights is not."""
    return error.forbidden and "denied" in error.message and "is forbidden: User" not in error.message


def _errors(error: ApiError) -> list[tuple[str, str]]:
    causes = items(mapping(error.answer.get("details")).get("causes"))
    told = [(str(c.get("field") or ""), str(c.get("message") or "")) for c in map(mapping, causes)]
    return told or [("", str(error.answer.get("message") or error.message))]


def _print(verdicts: Sequence[Verdict], broken: Sequence[Problem]) -> None:
    for problem in broken:
        echo(f"{click.style('error:', fg='red', bold=True)} {printable(str(problem))}")
    for each in verdicts:
        would = "is refused" if each.verdict == "refused" else f"would be {each.verdict}"
        place = f"{each.found.file}:{each.found.line}"
        echo(f"{printable(place)}: {printable(each.title)} {click.style(would, fg=_VERDICTS[each.verdict])}")
        for path, message in each.errors:
            text = printable(f"{path}: {message}" if path else message)
            echo(f"  {click.style('error:', fg='red', bold=True)} {text}")
        for message in each.warnings:
            echo(f"  {click.style('warning:', fg='yellow', bold=True)} {printable(message)}")


def _as_json(verdicts: Sequence[Verdict], broken: Sequence[Problem]) -> Object:
    return {
        "policies": [
            {
                "file": each.found.file,
                "line": each.found.line,
                "kind": each.found.manifest["kind"],
                "namespace": each.namespace,
                "name": mapping(each.found.manifest.get("metadata")).get("name"),
                "verdict": each.verdict,
                "errors": [{"path": path, "message": message} for path, message in each.errors],
                "warnings": each.warnings,
            }
            for each in verdicts
        ],
        "unreadable": [{"file": p.file, "line": p.line, "column": p.column, "message": p.message} for p in broken],
    }
