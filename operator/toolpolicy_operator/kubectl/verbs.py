"""The top of the plugin's command line."""

from __future__ import annotations

import click

from toolpolicy.cli import Verbs

VERBS = {
    "status": "Policies with their pods: what is enforced, who lags, and why.",
    "explain": "Why a pod is injected or not; how a call to it is decided.",
    "check": "Ask the API server what it would say of manifests, without applying them.",
}


class Plugin(Verbs):
    verbs = VERBS
    package = "toolpolicy_operator.kubectl"


@click.command(
    "kubectl toolpolicy",
    cls=Plugin,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  kubectl toolpolicy status -A
  kubectl toolpolicy explain pod imaging-0 -n agents
  kubectl toolpolicy explain call --pod imaging-0 --tool delete_image_set
  kubectl toolpolicy check -f policy.yaml

\b
Exit codes: 0 ok, 1 the answer is no, 2 usage, bad input, or no answer of the cluster.""",
)
@click.version_option(package_name="toolpolicy")
def main() -> None:
    """See what policies do for the MCP servers of a cluster.

    Needs no more than the role `view` in the namespace (and, for `check`, the right to create policies).
    """
