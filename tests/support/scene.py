"""A namespace with policies, rules and pods, as an operator would leave it, and ``kubectl toolpolicy`` run on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner, Result

from cluster.control import ControlPlane
from toolpolicy_operator import configmap, names
from toolpolicy_operator.injection.plan import Defaults, make_plan
from toolpolicy_operator.injection.pod import inject
from toolpolicy_operator.kube import Object
from toolpolicy_operator.kubectl.verbs import main as plugin
from toolpolicy_operator.records import Kind, NamespaceRecord, PolicyRecord, policy_record

ROOT = Path(__file__).parents[2]
RULES = [
    {"name": "read", "action": "Allow", "match": {"categories": ["Read"]}},
    {"name": "no", "action": "Deny", "match": {"tools": ["delete_*"]}, "reason": "deleting is off", "hide": True},
]
APP = {"app": "mcp"}


class Scene:
    """A namespace with policies, rules and pods, as an operator would leave it."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace

    def kubectl(self, *arguments: str, obj: Object | None = None) -> Object:
        done = self.plane.kubectl(
            *arguments, "-n", self.namespace, "-o", "json", stdin=None if obj is None else json.dumps(obj)
        )
        return json.loads(done.stdout)

    def enable(self) -> None:
        self.plane.kubectl("label", "namespace", self.namespace, f"{names.INJECTION_LABEL}={names.ENABLED}")

    def policy(self, name: str = "imaging", **spec: Any) -> PolicyRecord:
        obj = {
            "apiVersion": "toolpolicy.dev/v1alpha1",
            "kind": "ToolPolicy",
            "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": APP}, "rules": RULES, **spec},
        }
        return policy_record(Kind.TOOL_POLICY, self.kubectl("apply", "-f", "-", obj=obj))

    def rules(self, *policies: PolicyRecord, revision: str = "3-17") -> None:
        space = NamespaceRecord(
            self.namespace, self.kubectl("get", "namespace", self.namespace)["metadata"]["uid"], 1, {}
        )
        found = configmap.manifest(configmap.contents(policies, None), space, (3, revision), 3, None)
        del found["metadata"]["resourceVersion"]
        self.kubectl("apply", "-f", "-", obj=found)

    def pod(self, name: str, *policies: PolicyRecord, told: str = "3-17", spec: Object | None = None,
            labels: dict[str, str] | None = None) -> None:  # fmt: skip
        """A running pod, injected for ``policies`` if there are any."""
        container = {"name": "server", "image": "mcp:1", "ports": [{"name": "mcp", "containerPort": 8000}]}
        obj: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels or APP},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 0, **(spec or {})},
        }
        if policies:
            enabled = {names.INJECTION_LABEL: names.ENABLED}
            chosen = [p.policy for p in policies if p.policy is not None]
            obj = inject(obj, make_plan(chosen, self.namespace, enabled, Defaults("0.1.0", "sidecar:1")))
            obj["metadata"]["annotations"][names.RULES_ANNOTATION] = told
        self.kubectl("create", "-f", "-", obj=obj)
        ready = [{"type": "Ready", "status": "True"}]
        status = json.dumps({"status": {"phase": "Running", "conditions": ready}})
        self.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", status)

    def status(self, found: PolicyRecord, enforced: str, reason: str, message: str = "as told", **extra: Any) -> None:
        at = "2026-01-01T00:00:00Z"
        conditions = [
            {"type": kind, "status": status, "reason": word, "message": text, "lastTransitionTime": at}
            for kind, status, word, text in (
                ("Accepted", "True", "Accepted", "the policy is valid: 2 rules"),
                ("Enforced", enforced, reason, message),
            )
        ]
        status = {"observedGeneration": found.generation, "conditions": conditions, "rules": 2, **extra}
        patch = json.dumps({"status": status})
        self.kubectl("patch", "tp", found.name, "--subresource=status", "--type=merge", "-p", patch)

    def run(self, *arguments: str, kubeconfig: Path | None = None, namespace: bool = True) -> Result:
        where = ["-n", self.namespace] if namespace else []
        flags = [*arguments, *where, "--kubeconfig", str(kubeconfig or self.plane.kubeconfig)]
        return CliRunner().invoke(plugin, flags)

    def viewer(self) -> Path:
        """Someone with no more than ``view`` in the namespace, as manifests/install aggregates it."""
        user = f"viewer-{self.namespace}"
        documents = yaml.safe_load_all((ROOT / "manifests" / "install" / "rbac.yaml").read_text())
        [role] = [d for d in documents if d["metadata"]["name"] == "toolpolicy-view"]
        own = {"apiVersion": role["apiVersion"], "kind": "Role", "metadata": {"name": "read"}, "rules": role["rules"]}
        self.kubectl("create", "-f", "-", obj=own)
        self.plane.kubectl("create", "rolebinding", "a", "--role=read", f"--user={user}", "-n", self.namespace)
        self.plane.kubectl("create", "rolebinding", "b", "--clusterrole=view", f"--user={user}", "-n", self.namespace)
        return self.plane.kubeconfig_for(user)
