"""What the policies that select a pod, its namespace and the operator's settings come to for that one pod."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from toolpolicy.policy import settings
from toolpolicy.policy.model import Mode, Policy
from toolpolicy_operator import names
from toolpolicy_operator.store import injection_enabled

Pod = dict[str, Any]
"""A core/v1 Pod, as JSON."""
Labels = Mapping[str, str]
Interception = Literal["Redirect", "Port"]

POD_SECURITY_LABEL = "pod-security.kubernetes.io/enforce"
"""KEP-2579: the Pod Security Standard that a namespace enforces."""
FORBIDS_REDIRECT = ("baseline", "restricted")
"""The standards that forbid NET_ADMIN."""
SYSTEM_NAMESPACES = ("kube-system", "kube-public", "kube-node-lease")


def _sidecar_resources() -> dict[str, Any]:
    return {"limits": {"memory": "256Mi"}, "requests": {"cpu": "10m", "memory": "96Mi"}}


def _redirect_resources() -> dict[str, Any]:
    return {"limits": {"memory": "128Mi"}, "requests": {"cpu": "10m", "memory": "32Mi"}}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the operator's settings say of every sidecar."""

    version: str
    image: str
    image_pull_policy: str = "IfNotPresent"
    control_url: str = ""
    default_injection: bool = False
    """Whether a namespace that says nothing is enabled."""
    operator_namespace: str = names.SYSTEM_NAMESPACE
    pod_security: str = "privileged"
    """The Pod Security Standard that the API server enforces where a namespace does not say."""
    resources: Mapping[str, Any] = field(default_factory=_sidecar_resources)
    redirect_resources: Mapping[str, Any] = field(default_factory=_redirect_resources)
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further ``TOOLPOLICY_`` settings of every sidecar."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Made by :func:`make_plan`. ``ports`` are those that policies state; None stands for one that states none."""

    namespace: str
    namespace_labels: Labels
    policies: tuple[Policy, ...]
    defaults: Defaults
    enabled: bool
    ports: tuple[int | str | None, ...]
    interception: Interception
    pod_security: str
    enforced: bool
    """Some policy is not in Audit."""
    refuse_ineligible: bool
    opt_out_allowed: bool
    opt_out_forbidden_by: str | None
    """The ClusterToolPolicy that forbids it."""


def make_plan(policies: Sequence[Policy], namespace: str, namespace_labels: Labels, defaults: Defaults) -> Plan:
    """The plan of one pod. ``policies`` are those that select it; their order does not matter."""
    stated = {policy.spec.server.port for policy in policies}
    security = namespace_labels.get(POD_SECURITY_LABEL, defaults.pod_security)
    wanted = settings.interception(policies)
    forbidding = sorted(p.metadata.name for p in policies if not settings.opt_out_allowed([p]))
    return Plan(
        namespace=namespace,
        namespace_labels=namespace_labels,
        policies=tuple(policies),
        defaults=defaults,
        enabled=injection_enabled(namespace_labels, defaults.default_injection),
        ports=tuple(sorted(stated, key=lambda port: (port is not None, str(port)))),
        interception=("Port" if security in FORBIDS_REDIRECT else "Redirect") if wanted == "Auto" else wanted,
        pod_security=security,
        enforced=any(policy.spec.mode is Mode.ENFORCE for policy in policies),
        refuse_ineligible=settings.ineligible(policies) == "Refuse",
        opt_out_allowed=namespace_labels.get(names.OPT_OUT_LABEL) == names.OPT_OUT_ALLOWED and not forbidding,
        opt_out_forbidden_by=forbidding[0] if forbidding else None,
    )
