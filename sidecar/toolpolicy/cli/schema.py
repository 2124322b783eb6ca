"""``toolpolicy schema``: the policy language as JSON Schema, as CRDs, and as its reference."""

from __future__ import annotations

import json

import click

from toolpolicy.cli.output import echo
from toolpolicy.policy.schema import Kind, editor_schema

KINDS: tuple[Kind, ...] = ("ToolPolicy", "ClusterToolPolicy")


@click.command(
    epilog="""Examples:
  toolpolicy schema > toolpolicy.schema.json
  toolpolicy schema --kind ToolPolicy
  toolpolicy schema --format crd | kubectl apply -f -

An editor that knows the YAML language server reads the schema from a comment at the top of a policy:
  # yaml-language-server: $schema=toolpolicy.schema.json"""
)
@click.option("--kind", type=click.Choice(KINDS), help="Only this kind; without it both.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["json-schema", "crd", "reference"]),
    default="json-schema",
    show_default=True,
    help="JSON Schema (2020-12) for editors, CustomResourceDefinitions (YAML), or the reference (Markdown).",
)
@click.option("-o", "--output", type=click.Choice(["json"]), help="The CRDs as JSON (a List) instead of YAML.")
def command(kind: Kind | None, form: str, output: str | None) -> None:
    """Print the policy language: what a ToolPolicy or ClusterToolPolicy manifest may say."""
    kinds = KINDS if kind is None else (kind,)
    if form == "json-schema":
        echo(json.dumps(editor_schema(kinds), indent=2, ensure_ascii=False))
    elif form == "crd":
        _print_crds(kinds, as_json=output == "json")
    else:
        from toolpolicy.policy.reference import reference

        echo(reference().rstrip("\n"))


def _print_crds(kinds: tuple[Kind, ...], *, as_json: bool) -> None:
    from toolpolicy.policy.crd import crd, crd_yaml

    if as_json:
        manifests = [crd(kind) for kind in kinds]
        one = manifests[0] if len(manifests) == 1 else {"apiVersion": "v1", "kind": "List", "items": manifests}
        echo(json.dumps(one, indent=2, ensure_ascii=False))
        return
    echo("---\n".join(crd_yaml(kind) for kind in kinds).rstrip("\n"))
