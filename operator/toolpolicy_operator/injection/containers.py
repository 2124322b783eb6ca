"""The containers and volumes that toolpolicy puts into a pod.

Every default that the API server would fill in is spelled out, so that what is written is what is found again: by a
second injection, by the validating webhook, and by ``kubectl diff``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from toolpolicy_operator import names
from toolpolicy_operator.injection import podview
from toolpolicy_operator.injection.plan import Plan, Pod
from toolpolicy_operator.injection.ports import McpPort

RULES_PATH = "/etc/toolpolicy/rules"
POD_PATH = "/etc/toolpolicy/pod"
TOKEN_PATH = "/var/run/secrets/toolpolicy"  # noqa: S105 - a directory
API_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a directory
"""Where the API server mounts the pod's API token into every container that has no mount there (ServiceAccount
admission). Ours have one, an empty directory: neither needs the Kubernetes API."""
TOKEN_SECONDS = 3600
ADMIN_PORT_NAME = "tp-admin"
DRAIN_SECONDS = 25
"""The sidecar's own default, for the default grace period of 30 s."""
DYNAMIC = frozenset(
    {
        "TOOLPOLICY_SERVERS",
        "TOOLPOLICY_POD_NAMESPACE",
        "TOOLPOLICY_POD_LABELS",
        "TOOLPOLICY_NAMESPACE_LABELS",
        "TOOLPOLICY_SERVER_NAME",
        "TOOLPOLICY_PROBES",
        "TOOLPOLICY_DRAIN_GRACE",
    }
)
"""Variables of the sidecar that follow from the pod, its namespace and its policies."""


def compact(value: object) -> str:
    """JSON without spaces, keys in order: the same value is the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def literal(text: str) -> str:
    """A variable's value that Kubernetes does not expand: ``$(NAME)`` stands for itself (API concept: dependent
    environment variables).
    """
    return text.replace("$", "$$")


def app_port_name(index: int) -> str:
    """The name that a container's port has once the sidecar took over its own (``Port`` interception)."""
    return f"toolpolicy-{index}"


def taken_names(servers: Sequence[McpPort]) -> list[tuple[str, McpPort]]:
    """The port names that the sidecar takes over, in the order of :func:`app_port_name`'s index."""
    return [(name, server) for server in servers for name in server.names]


def redirect_container(pod: Pod, plan: Plan, servers: Sequence[McpPort]) -> dict[str, Any]:
    """Writes the pod's redirection and ends. NET_ADMIN and nothing else; as root, since a capability that is added is
    effective for root alone (KEP-2763 is not there yet).
    """
    mapping = [f"{server.number}={server.listen}" for server in servers]
    return {
        "name": names.REDIRECT_CONTAINER,
        "image": plan.defaults.image,
        "imagePullPolicy": plan.defaults.image_pull_policy,
        "command": ["python3", "-m", "toolpolicy.sidecar.redirect"],
        "args": [*mapping, "--except-uid", str(names.SIDECAR_UID)],
        "resources": _resources(pod, plan.defaults.redirect_resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [_no_api_token()],
    }


def sidecar_container(pod: Pod, plan: Plan, servers: Sequence[McpPort], probes: Mapping[str, Any]) -> dict[str, Any]:
    """The enforcing proxy, a native sidecar (KEP-753), within the restricted Pod Security Standard."""
    return {
        "name": names.SIDECAR_CONTAINER,
        "image": plan.defaults.image,
        "imagePullPolicy": plan.defaults.image_pull_policy,
        "restartPolicy": "Always",
        "command": ["python3", "-m", "toolpolicy.sidecar"],
        "env": _environment(pod, plan, servers, probes),
        "ports": _ports(plan, servers),
        "resources": _resources(pod, plan.defaults.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": names.SIDECAR_UID,
            "runAsNonRoot": True,
            "runAsUser": names.SIDECAR_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # The pod's own containers start once this holds: rules are in force and the port is served.
        "startupProbe": _probe("/readyz", period=1, failures=120),
        "livenessProbe": _probe("/healthz", period=10, failures=6),
        "readinessProbe": _probe("/readyz", period=5, failures=2),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"mountPath": RULES_PATH, "name": names.RULES_VOLUME, "readOnly": True},
            {"mountPath": POD_PATH, "name": names.POD_VOLUME, "readOnly": True},
            {"mountPath": TOKEN_PATH, "name": names.TOKEN_VOLUME, "readOnly": True},
            {"mountPath": "/tmp", "name": names.TEMPORARY_VOLUME},  # noqa: S108 - a mount in the container
            _no_api_token(),
        ],
    }


def volumes() -> list[dict[str, Any]]:
    """What the sidecar reads; the ConfigMap is not optional: without rules the pod waits, and an Event says for
    what.
    """
    labels = {"path": "labels", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}}
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    return [
        {"name": names.RULES_VOLUME, "configMap": {"name": names.RULES_CONFIGMAP, "defaultMode": 0o444}},
        {"name": names.POD_VOLUME, "downwardAPI": {"defaultMode": 0o444, "items": [labels]}},
        {"name": names.TOKEN_VOLUME, "projected": {"defaultMode": 0o444, "sources": [{"serviceAccountToken": token}]}},
        {"name": names.TEMPORARY_VOLUME, "emptyDir": {"sizeLimit": "64Mi"}},
    ]


def marks(plan: Plan, servers: Sequence[McpPort]) -> dict[str, str]:
    return {
        names.INJECTED_ANNOTATION: plan.defaults.version,
        names.INTERCEPTION_ANNOTATION: plan.interception,
        names.SERVERS_ANNOTATION: ",".join(str(server.number) for server in servers),
        names.NAMESPACE_LABELS_ANNOTATION: compact(dict(plan.namespace_labels)),
    }


def _environment(pod: Pod, plan: Plan, servers: Sequence[McpPort], probes: Mapping[str, Any]) -> list[dict[str, Any]]:
    values: dict[str, str] = {
        "TOOLPOLICY_ADMIN": f":{names.ADMIN_PORT}",
        "TOOLPOLICY_RULES": RULES_PATH,
        "TOOLPOLICY_RULES_INDEX": "required",
        "TOOLPOLICY_POD_NAMESPACE": plan.namespace,
        "TOOLPOLICY_POD_LABELS": compact(podview.labels_of(pod)),
        "TOOLPOLICY_POD_LABELS_FILE": f"{POD_PATH}/labels",
        "TOOLPOLICY_NAMESPACE_LABELS": compact(dict(plan.namespace_labels)),
        "TOOLPOLICY_SERVER_NAME": f"{plan.namespace}/{podview.workload(pod)}",
        **plan.defaults.environment,
        "TOOLPOLICY_SERVERS": ",".join(f"{server.listen}={server.number}" for server in servers),
    }
    if probes:
        values["TOOLPOLICY_PROBES"] = compact(dict(probes))
    if plan.defaults.control_url:
        values["TOOLPOLICY_CONTROL_URL"] = plan.defaults.control_url
        values["TOOLPOLICY_CONTROL_TOKEN_FILE"] = f"{TOKEN_PATH}/token"
        values["TOOLPOLICY_CONTROL_CA_FILE"] = f"{RULES_PATH}/{names.CONTROL_CA_KEY}"
    grace = podview.spec(pod).get("terminationGracePeriodSeconds")
    if isinstance(grace, int) and grace < DRAIN_SECONDS + 5:
        values["TOOLPOLICY_DRAIN_GRACE"] = str(max(0, grace - 5))
    fixed = [{"name": name, "value": literal(value)} for name, value in sorted(values.items())]
    return [*fixed, _from_pod("TOOLPOLICY_POD_NAME", "metadata.name"), _from_pod("TOOLPOLICY_POD_UID", "metadata.uid")]


def _resources(pod: Pod, usual: Mapping[str, Any]) -> dict[str, Any]:
    """None of their own in a pod that has a budget as a whole (KEP-2837): they could be more than it allows."""
    return {} if podview.child(podview.spec(pod), "resources") else dict(usual)


def _ports(plan: Plan, servers: Sequence[McpPort]) -> list[dict[str, Any]]:
    admin = {"containerPort": names.ADMIN_PORT, "name": ADMIN_PORT_NAME, "protocol": "TCP"}
    if plan.interception == "Redirect":
        return [admin]
    taken = [{"containerPort": server.listen, "name": name, "protocol": "TCP"} for name, server in taken_names(servers)]
    return [*taken, admin]


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    """By HTTP on the admin port."""
    return {
        "failureThreshold": failures,
        "httpGet": {"path": path, "port": names.ADMIN_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "successThreshold": 1,
        "timeoutSeconds": 3,
    }


def _no_api_token() -> dict[str, Any]:
    return {"mountPath": API_TOKEN_PATH, "name": names.TEMPORARY_VOLUME, "readOnly": True}


def _from_pod(name: str, field: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": field}}}
