"""Who gets a sidecar, and why not: one truth table.

The first row that holds decides. Its reason is the word in events, metrics, status, ``kubectl toolpolicy explain pod``
and ``docs/reference/injection.md``; its message says what to do. What a row does:

- ``Leave``: the pod is not meant to be protected, or can't be kept from running; it is admitted as it is.
- ``Protect``: it can't be protected; refused, unless every selecting policy that is enforced says ``ineligible: Warn``.
- ``Refuse``: it must not exist as it is; refused, whatever ``ineligible`` says.
- ``Inject``: it gets the sidecar.

A pod that only policies in Audit select is never refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from toolpolicy_operator import names
from toolpolicy_operator.injection import checks
from toolpolicy_operator.injection.checks import Facts
from toolpolicy_operator.injection.plan import Plan, Pod
from toolpolicy_operator.injection.ports import McpPort


class Reason(StrEnum):
    """Why a pod was injected, left alone, or refused."""

    SYSTEM_NAMESPACE = "SystemNamespace"
    NAMESPACE_NOT_ENABLED = "NamespaceNotEnabled"
    NO_POLICY = "NoPolicy"
    STATIC_POD = "StaticPod"
    OPT_OUT_NOT_ALLOWED = "OptOutNotAllowed"
    OPTED_OUT = "OptedOut"
    NAME_TAKEN = "NameTaken"
    HOST_NETWORK = "HostNetwork"
    WINDOWS = "Windows"
    UNTESTED_MESH = "UntestedMesh"
    NO_PORT = "NoPort"
    AMBIGUOUS_PORT = "AmbiguousPort"
    TOO_MANY_PORTS = "TooManyPorts"
    PORT_TAKEN = "PortTaken"
    UID_TAKEN = "UidTaken"
    TLS_ENDED_BY_SERVER = "TLSEndedByServer"
    REDIRECT_FORBIDDEN = "RedirectForbidden"
    UNNAMED_PORT = "UnnamedPort"
    HOST_PORT = "HostPort"
    ALTERED = "Altered"
    RULES_NOT_WRITTEN = "RulesNotWritten"
    SELECTED = "Selected"
    """It is eligible, and has no sidecar yet."""
    INJECTED = "Injected"


class Effect(StrEnum):
    LEAVE = "Leave"
    PROTECT = "Protect"
    REFUSE = "Refuse"
    INJECT = "Inject"


@dataclass(frozen=True, slots=True)
class Row:
    """``test`` answers None where the row does not hold, else what was found (possibly nothing to add)."""

    reason: Reason
    effect: Effect
    when: str
    """For the documentation: when the row holds."""
    cure: str
    """What to do; ``{found}`` is what the test found."""
    test: Callable[[Facts], str | None]


TABLE: tuple[Row, ...] = (
    Row(
        Reason.SYSTEM_NAMESPACE,
        Effect.LEAVE,
        "the pod is in kube-system, kube-public, kube-node-lease or the operator's own namespace",
        "pods of {found} are never injected: run the MCP server in a namespace of its own",
        checks.system_namespace,
    ),
    Row(
        Reason.NAMESPACE_NOT_ENABLED,
        Effect.LEAVE,
        "the Namespace is not labelled `toolpolicy.dev/injection: enabled` (or is labelled `disabled`, where the "
        "operator injects by default)",
        f"the namespace is not enabled: kubectl label namespace {{found}} --overwrite {names.INJECTION_LABEL}=enabled",
        checks.namespace_not_enabled,
    ),
    Row(
        Reason.NO_POLICY,
        Effect.LEAVE,
        "no ToolPolicy of the namespace and no ClusterToolPolicy selects the pod",
        "no ToolPolicy or ClusterToolPolicy selects the pod: compare its labels with their spec.selector",
        checks.no_policy,
    ),
    Row(
        Reason.STATIC_POD,
        Effect.LEAVE,
        "the pod mirrors a static pod, which a kubelet runs from a file whatever the API server says",
        "static pods can't be injected: run the MCP server by a Deployment, StatefulSet or DaemonSet",
        checks.static_pod,
    ),
    Row(
        Reason.OPT_OUT_NOT_ALLOWED,
        Effect.REFUSE,
        "the pod is labelled `toolpolicy.dev/injection: disabled`, and its Namespace is not labelled "
        "`toolpolicy.dev/opt-out: allowed`, or a selecting ClusterToolPolicy says `optOut: Forbidden`",
        f"the pod asks to opt out by its label {names.INJECTION_LABEL}=disabled, and {{found}}",
        checks.opt_out_not_allowed,
    ),
    Row(
        Reason.OPTED_OUT,
        Effect.LEAVE,
        "the pod is labelled `toolpolicy.dev/injection: disabled`, and may be",
        f"the pod opted out: to protect it remove its label {names.INJECTION_LABEL}",
        checks.opted_out,
    ),
    Row(
        Reason.NAME_TAKEN,
        Effect.REFUSE,
        "a container or volume has a name that belongs to the sidecar, and was not injected",
        "{found} is a name of toolpolicy's own: choose another",
        checks.name_taken,
    ),
    Row(
        Reason.HOST_NETWORK,
        Effect.PROTECT,
        "`hostNetwork: true`: the port would be the node's, and so would the redirection",
        "hostNetwork: true shares the node's ports, which can't be intercepted: remove it",
        checks.host_network,
    ),
    Row(
        Reason.WINDOWS,
        Effect.PROTECT,
        "the pod is for Windows, by `os.name` or its node selector",
        "the sidecar runs on Linux only: run the MCP server on Linux",
        checks.windows,
    ),
    Row(
        Reason.UNTESTED_MESH,
        Effect.PROTECT,
        "a mesh's proxy is in the pod (Istio, Linkerd, Consul, Kuma), or its traffic goes to an ambient one",
        "{found} also takes the pod's traffic, and that combination is not tested: leave this pod out of the mesh",
        checks.untested_mesh,
    ),
    Row(
        Reason.NO_PORT,
        Effect.PROTECT,
        "no container declares a TCP port, or none of the name that `server.port` gives",
        "no container declares {found}: add it to the container's ports, or give spec.server.port a number",
        checks.no_port,
    ),
    Row(
        Reason.AMBIGUOUS_PORT,
        Effect.PROTECT,
        "several TCP ports are declared and none is named `mcp`, or containers declare one name for several ports",
        "any of the ports {found} could be the MCP server's: name it mcp, or give spec.server.port its number",
        checks.ambiguous_port,
    ),
    Row(
        Reason.TOO_MANY_PORTS,
        Effect.PROTECT,
        "the selecting policies state more than 16 ports",
        "the policies that select the pod state {found} ports, at most 16 are served: narrow their selectors",
        checks.too_many_ports,
    ),
    Row(
        Reason.PORT_TAKEN,
        Effect.PROTECT,
        "a container uses one of the sidecar's ports (15771 to 15773, further ones for further MCP ports)",
        "{found} is the sidecar's: choose another port",
        checks.port_taken,
    ),
    Row(
        Reason.UID_TAKEN,
        Effect.PROTECT,
        "a container runs as user 15771, whose packets are not redirected",
        "{found} is the sidecar's user, whose packets are not intercepted: choose another runAsUser",
        checks.uid_taken,
    ),
    Row(
        Reason.TLS_ENDED_BY_SERVER,
        Effect.PROTECT,
        "the MCP port is probed by HTTPS, or is named `https` or `https-…`",
        "{found}: calls are encrypted up to the server and can't be judged: serve plain HTTP in the pod",
        checks.tls_ended_by_server,
    ),
    Row(
        Reason.REDIRECT_FORBIDDEN,
        Effect.PROTECT,
        "a policy wants `interception: Redirect`, and the namespace enforces the baseline or restricted Pod Security "
        "Standard, which forbid NET_ADMIN",
        "interception: Redirect needs NET_ADMIN, which the namespace forbids by {found}: state interception: Port "
        "in all policies that select the pod, or enforce privileged",
        checks.redirect_forbidden,
    ),
    Row(
        Reason.UNNAMED_PORT,
        Effect.PROTECT,
        "interception is `Port`, and the MCP port has no name that the sidecar could take over",
        "interception is Port, and port {found} has no name to take over: name it (mcp) in the container, and let "
        "the Service's targetPort be that name",
        checks.unnamed_port,
    ),
    Row(
        Reason.HOST_PORT,
        Effect.PROTECT,
        "interception is `Port`, and the MCP port has a `hostPort`, which leads past the sidecar",
        "{found} leads past the sidecar where interception is Port: remove it",
        checks.host_port,
    ),
    Row(
        Reason.INJECTED,
        Effect.INJECT,
        "otherwise",
        "the sidecar was injected",
        lambda facts: "",
    ),
)

OTHER_REASONS: tuple[tuple[Reason, str], ...] = (
    (
        Reason.SELECTED,
        "a running pod is eligible and has no sidecar: it is older than its policy, or than the label of its "
        "namespace. Restart it",
    ),
    (
        Reason.ALTERED,
        "a pod carries a sidecar that is not what toolpolicy injects, named by its field: another webhook, or a hand, "
        "changed it. Refused",
    ),
    (
        Reason.RULES_NOT_WRITTEN,
        "after 3 s a policy that selects the pod was not in the namespace's rules yet, so the pod would have started "
        "without it. Refused; a controller tries again",
    ),
)
"""Reasons that no row of the table gives, and what they mean."""


@dataclass(frozen=True, slots=True)
class Eligibility:
    """``refused`` is what admission does with the pod; ``unprotected``: it was to be protected, and won't be."""

    eligible: bool
    reason: Reason
    message: str
    refused: bool = False
    unprotected: bool = False
    servers: tuple[McpPort, ...] = ()


def decide(pod: Pod, plan: Plan) -> Eligibility:
    """The table's answer for a pod that carries nothing of ours."""
    facts = checks.gather(pod, plan)
    for row in TABLE:
        found = row.test(facts)
        if found is None:
            continue
        if row.effect is Effect.INJECT:
            return Eligibility(True, row.reason, row.cure, servers=facts.servers)
        wanted = row.effect in (Effect.PROTECT, Effect.REFUSE)
        refused = plan.refuse_ineligible if row.effect is Effect.PROTECT else plan.enforced
        message = row.cure.replace("{found}", found)
        unprotected = wanted or row.reason is Reason.STATIC_POD
        return Eligibility(False, row.reason, message, wanted and refused, unprotected)
    raise AssertionError("the table's last row always holds")
