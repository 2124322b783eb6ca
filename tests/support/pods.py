"""Pods, namespaces and policies for the tests of injection, and the golden corpus of them."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from toolpolicy.policy.load import load_object
from toolpolicy.policy.model import Policy
from toolpolicy.policy.selection import selects
from toolpolicy_operator.admission.pods import LookupFailed, Selection
from toolpolicy_operator.injection.plan import Defaults, Plan, make_plan

GOLDEN = Path(__file__).parent.parent / "operator" / "golden"
Object = dict[str, Any]
DEFAULTS = Defaults(
    version="0.1.0",
    image="registry.example/toolpolicy-sidecar:0.1.0",
    control_url="https://toolpolicy-operator.toolpolicy-system.svc:9444",
)
NAMESPACE = "agents"
ENABLED = {"kubernetes.io/metadata.name": NAMESPACE, "toolpolicy.dev/injection": "enabled"}


def policy(name: str = "imaging", kind: str = "ToolPolicy", namespace: str = NAMESPACE, **spec: Any) -> Policy:
    """A valid policy that selects ``app: mcp``, as far as ``spec`` says nothing else."""
    metadata = {"name": name} | ({"namespace": namespace} if kind == "ToolPolicy" else {})
    manifest: Object = {"apiVersion": "toolpolicy.dev/v1alpha1", "kind": kind, "metadata": metadata}
    manifest["spec"] = {"selector": {"matchLabels": {"app": "mcp"}}, **spec}
    return _loaded(manifest)


def pod(**spec: Any) -> Object:
    """A pod with one container that serves MCP on 8000."""
    container = {"name": "app", "image": "example/app", "ports": [{"name": "mcp", "containerPort": 8000}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "server", "namespace": NAMESPACE, "labels": {"app": "mcp"}},
        "spec": {"containers": [container], **spec},
    }


@dataclass
class Policies:
    """A Selection, and a Lookup of itself that counts."""

    policies: Sequence[Policy] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: dict(ENABLED))
    namespace: str = NAMESPACE
    fault: LookupFailed | None = None
    reads: int = 0

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        return self.labels if name == self.namespace else {}

    def policies_for(
        self, namespace: str, labels: Mapping[str, str], namespace_labels: Mapping[str, str]
    ) -> list[Policy]:
        return [p for p in self.policies if selects(p, labels, namespace, namespace_labels)]

    async def read(self, namespace: str) -> tuple[Selection, Mapping[str, str]]:
        self.reads += 1
        if self.fault is not None:
            raise self.fault
        return self, self.namespace_labels(namespace)


@dataclass(frozen=True)
class Case:
    """A golden pair's input: the namespace and policies around a pod."""

    name: str
    namespace: Object
    policies: tuple[Policy, ...]
    manifests: tuple[Object, ...]
    pod: Object

    @property
    def labels(self) -> dict[str, str]:
        return cast("dict[str, str]", self.namespace["metadata"]["labels"])

    @property
    def plan(self) -> Plan:
        name = self.namespace["metadata"]["name"]
        labels = cast("dict[str, str]", self.pod["metadata"].get("labels") or {})
        selecting = [p for p in self.policies if selects(p, labels, name, self.labels)]
        return make_plan(selecting, name, self.labels, DEFAULTS)

    @property
    def store(self) -> Policies:
        return Policies(self.policies, self.labels, self.namespace["metadata"]["name"])


def cases() -> list[Case]:
    return [load_case(path) for path in sorted(GOLDEN.glob("*.in.yaml"))]


def load_case(path: Path) -> Case:
    """The documents of a file: at most one Namespace, policies (without one: the default policy), and the pod."""
    documents = [cast("Object", d) for d in yaml.safe_load_all(path.read_text()) if d]
    by_kind: dict[str, list[Object]] = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    namespace = (by_kind.get("Namespace") or [{"metadata": {"name": NAMESPACE, "labels": dict(ENABLED)}}])[0]
    manifests = [d for d in documents if d["kind"] in ("ToolPolicy", "ClusterToolPolicy")]
    if not any(d["kind"] == "ToolPolicy" for d in manifests) and "Namespace" not in by_kind and not manifests:
        manifests = [default_policy()]
    (pod_,) = by_kind["Pod"]
    pod_["metadata"].setdefault("namespace", namespace["metadata"]["name"])
    return Case(path.name.removesuffix(".in.yaml"), namespace, tuple(map(_loaded, manifests)), tuple(manifests), pod_)


def default_policy() -> Object:
    return {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": "imaging", "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": {"app": "mcp"}}},
    }


def _loaded(manifest: Object) -> Policy:
    found, problems = load_object(manifest, "test")
    assert found is not None, problems
    return found


def review(pod: Object, operation: str = "CREATE", old: Object | None = None, **request: Any) -> Object:
    """An AdmissionReview as the API server sends it."""
    namespace = pod.get("metadata", {}).get("namespace", NAMESPACE)
    asked: Object = {
        "uid": "8a7c0b12-0000-4000-8000-000000000001",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "operation": operation,
        "namespace": namespace,
        "name": pod.get("metadata", {}).get("name", ""),
        "userInfo": {"username": "alice", "groups": ["system:authenticated"]},
        "object": copy.deepcopy(pod),
        "oldObject": copy.deepcopy(old),
        "dryRun": False,
        **request,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}


def patched(review_: Object, answer: Object) -> Object:
    """The object of the request after the answer's patch."""
    response = answer["response"]
    assert response["allowed"], response
    document = copy.deepcopy(review_["request"]["object"])
    operations = cast("list[Object]", json.loads(base64.b64decode(response.get("patch", "W10="))))
    for operation in operations:
        apply(document, operation)
    return document


def apply(document: Any, operation: Object) -> None:
    """One operation of RFC 6902, in place."""
    parts = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
    parent: Any = document
    for part in parts[:-1]:
        parent = cast("list[Any]", parent)[int(part)] if isinstance(parent, list) else parent[part]
    last = parts[-1]
    if isinstance(parent, list):
        items = cast("list[Any]", parent)
        if operation["op"] == "add":
            items.insert(len(items) if last == "-" else int(last), operation["value"])
        elif operation["op"] == "remove":
            del items[int(last)]
        else:
            items[int(last)] = operation["value"]
    elif operation["op"] == "remove":
        del parent[last]
    else:
        assert operation["op"] == "add" or last in parent
        parent[last] = operation["value"]
