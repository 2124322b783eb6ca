"""Two namespaces that hold the same, one of them guarded: what the guard refuses in one must pass in the other."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml

from cluster.control import ControlPlane
from cluster.fixtures import create_namespace
from support import install
from toolpolicy_operator.kube import Api, ApiError, Object

DEADLINE = 60.0
SIDECAR = {
    "name": "toolpolicy-sidecar",
    "image": "registry.invalid/toolpolicy/sidecar:1",
    "restartPolicy": "Always",
    "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "128Mi"}},
    "volumeMounts": [{"name": "toolpolicy-rules", "mountPath": "/etc/toolpolicy/rules"}],
}
INJECTED: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "injected",
        "labels": {"app": "mcp"},
        "annotations": {
            "toolpolicy.dev/injected": "0.1.0",
            "toolpolicy.dev/namespace-labels": '{"team":"a"}',
            "toolpolicy.dev/rules": "r1",
            "own": "1",
        },
    },
    "spec": {
        "serviceAccountName": "mcp",
        "terminationGracePeriodSeconds": 0,
        "initContainers": [
            {"name": "setup", "image": "registry.invalid/setup:1"},
            {"name": "toolpolicy-redirect", "image": "registry.invalid/toolpolicy/sidecar:1"},
            SIDECAR,
        ],
        "containers": [{"name": "server", "image": "registry.invalid/server:1"}],
        "volumes": [{"name": "toolpolicy-rules", "configMap": {"name": "toolpolicy-rules"}}],
    },
}
PLAIN: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "plain", "annotations": {"own": "1"}},
    "spec": {"containers": [{"name": "main", "image": "registry.invalid/main:1"}]},
}


@dataclass
class World:
    """``guarded`` and ``open`` are namespaces, ``enabled`` is a guarded one whose pods are injected. Users are ``edit``
    (a person with the built-in role), ``pod`` (the MCP pod's own ServiceAccount, with the same), ``operator`` and
    ``admin``.
    """

    plane: ControlPlane
    suffix: str
    guarded: str
    open: str
    operator_namespace: str
    enabled: str
    kubeconfigs: dict[str, Path] = field(default_factory=dict[str, Path])

    async def ask(
        self, who: str, method: str, path: str, body: Any = None, *, kind: str = "application/json", dry: bool = True
    ) -> Object:
        """One request as a user, as a dry run if not said otherwise; raises ApiError."""
        async with await Api.connect(self.kubeconfigs[who]) as api:
            path, _, query = path.partition("?")
            params = dict(parse_qsl(query))
            connect = path.endswith(("/exec", "/attach"))
            if method != "GET" and not connect:
                params |= {"fieldManager": "test", **({"dryRun": "All"} if dry else {})}
            if kind == "application/apply-patch+yaml":
                params["force"] = "true"
            return await api.request(method, path, body, params=params, content_type=kind)

    @property
    def operator(self) -> str:
        return f"system:serviceaccount:{self.operator_namespace}:toolpolicy-operator"


def build(plane: ControlPlane) -> World:
    """Both namespaces, filled, and the users; the guard is not there yet."""
    suffix = uuid.uuid4().hex[:8]
    world = World(plane, suffix, f"guarded-{suffix}", f"open-{suffix}", f"operator-{suffix}", f"enabled-{suffix}")
    create_namespace(plane, world.enabled, **{"toolpolicy.dev/injection": "enabled"})
    for namespace in (world.guarded, world.open, world.operator_namespace):
        create_namespace(plane, namespace)
    apply(plane, install.rbac(suffix, world.operator_namespace))
    for namespace in (world.guarded, world.open):
        fill(plane, namespace, suffix)
    world.kubeconfigs = {
        "admin": plane.kubeconfig,
        "edit": plane.kubeconfig_for(f"dev-{suffix}"),
        "node": plane.kubeconfig_for("system:node:node-1", ["system:nodes"]),
        "operator": with_token(plane, world.operator_namespace, "toolpolicy-operator"),
    }
    for namespace in (world.guarded, world.open):
        world.kubeconfigs[f"pod@{namespace}"] = with_token(plane, namespace, "mcp")
    return world


def fill(plane: ControlPlane, namespace: str, suffix: str) -> None:
    policy: Object = {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ToolPolicy",
        "spec": {"selector": {}, "rules": []},
    }
    subjects = [{"kind": "User", "name": f"dev-{suffix}"}, {"kind": "ServiceAccount", "name": "mcp"}]
    for subject in subjects[:1]:
        subject["apiGroup"] = "rbac.authorization.k8s.io"
    objects: list[Object] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mcp"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "edit"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": subjects,
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "toolpolicy-rules"},
            "data": {"index.json": "{}", "control-ca.crt": "PEM"},
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}, "data": {"a": "1"}},
        {**policy, "metadata": {"name": "policy", "labels": {"guard": suffix} if "guarded" in namespace else {}}},
        INJECTED,
        PLAIN,
    ]
    apply(plane, objects, namespace)


def apply(plane: ControlPlane, objects: list[Object], namespace: str = "") -> None:
    where = [f"--namespace={namespace}"] if namespace else []
    plane.kubectl("apply", "--server-side", *where, "-f", "-", stdin=yaml.safe_dump_all(objects))


def with_token(plane: ControlPlane, namespace: str, account: str) -> Path:
    """A kubeconfig with a token of a ServiceAccount, as a thief of it would have."""
    token = plane.kubectl("create", "token", account, f"--namespace={namespace}").stdout.strip()
    cluster: Mapping[str, Any] = {"server": plane.url, "certificate-authority": str(plane.ca)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = plane.folder / f"token-{namespace}-{account}.json"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path


async def in_force(world: World) -> None:
    """Return when each of the policies refuses: the API server takes a moment to read new ones."""
    ns, path = world.guarded, "/api/v1/namespaces"
    merge = "application/merge-patch+json"
    lying = {**PLAIN, "metadata": {"name": "q", "annotations": {"toolpolicy.dev/x": ""}}}
    probes: list[tuple[str, str, Any, str]] = [
        ("PATCH", f"{path}/{ns}/configmaps/toolpolicy-rules", {"data": {"x": "y"}}, merge),
        ("PATCH", f"{path}/{ns}/pods/injected", {"metadata": {"annotations": {"toolpolicy.dev/rules": "x"}}}, merge),
        ("POST", f"{path}/{ns}/pods", lying, ""),
        ("POST", f"{path}/{ns}/pods/injected/exec?container=toolpolicy-sidecar&command=x&stdout=1", None, ""),
        ("POST", f"{path}/{ns}/serviceaccounts/mcp/token", token_request("toolpolicy.dev"), ""),
        (
            "PATCH",
            f"/apis/toolpolicy.dev/v1alpha1/namespaces/{ns}/toolpolicies/policy/status",
            {"status": {"observedGeneration": 7}},
            merge,
        ),
    ]
    end = time.monotonic() + DEADLINE
    for method, where, body, kind in probes:
        while not await _refused(world, method, where, body, kind or "application/json"):
            if time.monotonic() > end:
                raise AssertionError(f"not refused within {DEADLINE:.0f} s: {method} {where}")


def token_request(*audiences: str) -> Object:
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": list(audiences)}}


async def _refused(world: World, method: str, path: str, body: Any, kind: str) -> bool:
    try:
        await world.ask("admin", method, path, body, kind=kind)
    except ApiError as error:
        return error.status == 403
    return False
