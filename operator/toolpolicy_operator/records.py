"""What the operator remembers of the cluster's objects: as little as its decisions need, so that thousands of pods are
megabytes. Pure: from an object as the API sends it to a frozen record.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, cast

from toolpolicy.policy.errors import Problem
from toolpolicy.policy.model import Policy
from toolpolicy_operator import names, parsed
from toolpolicy_operator.binding import Binding, bound, stand_in
from toolpolicy_operator.canonical import digest
from toolpolicy_operator.kube import POLICIES_API, Object

Labels = Mapping[str, str]
_OURS = f"{names.GROUP}/"
_POD_LABELS_ENV = "TOOLPOLICY_POD_LABELS"
_OF_PODS = frozenset(
    {
        names.INJECTED_ANNOTATION,
        names.INTERCEPTION_ANNOTATION,
        names.SERVERS_ANNOTATION,
        names.NAMESPACE_LABELS_ANNOTATION,
        names.INELIGIBLE_ANNOTATION,
        names.RULES_ANNOTATION,
    }
)
"""What is remembered of a pod's annotations: who writes pods could fill the operator's memory with others."""


class Kind(StrEnum):
    """The kinds that the operator watches."""

    TOOL_POLICY = "ToolPolicy"
    CLUSTER_TOOL_POLICY = "ClusterToolPolicy"
    NAMESPACE = "Namespace"
    POD = "Pod"
    RULES = "ConfigMap"
    """Only those named ``toolpolicy-rules``."""


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A ToolPolicy or ClusterToolPolicy. ``policy`` is None where it is invalid; ``problems`` then say why, and
    ``binding`` is what is in force in its place. Both are one policy where it is valid.
    """

    kind: str
    namespace: str | None
    name: str
    uid: str
    version: int
    generation: int
    policy: Policy | None = field(repr=False)
    binding: Binding = field(repr=False)
    problems: tuple[Problem, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    annotations: Labels = field(default_factory=dict[str, str], repr=False)
    written: str = ""
    """When its spec was written last (RFC 3339, to the second), by its managed fields; empty where they don't say."""

    @property
    def key(self) -> tuple[str | None, str]:
        return self.namespace, self.name

    @property
    def manifest(self) -> bytes:
        """As it goes to the sidecars, canonical JSON."""
        return self.binding.manifest

    @property
    def digest(self) -> str:
        return self.binding.digest

    @property
    def reference(self) -> Object:
        """An ObjectReference, for Events."""
        found = {"apiVersion": POLICIES_API, "kind": self.kind, "name": self.name, "uid": self.uid}
        return {**found, "namespace": self.namespace} if self.namespace else found


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    name: str
    uid: str
    version: int
    labels: Labels
    terminating: bool = False

    @property
    def key(self) -> tuple[str | None, str]:
        return None, self.name


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller of a pod."""

    api_version: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class PodRecord:
    """``annotations`` are ours alone; ``admitted_labels`` those that the pod had when it was injected, else None."""

    namespace: str
    name: str
    uid: str
    version: int
    labels: Labels
    annotations: Labels
    node: str | None
    phase: str
    ready: bool
    owner: Owner | None
    injected: bool
    deleting: bool
    created: str
    admitted_labels: Labels | None = None
    host_network: bool = False

    @property
    def key(self) -> tuple[str | None, str]:
        return self.namespace, self.name

    @property
    def ended(self) -> bool:
        """All its containers have ended for good: nothing of it is to be protected."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def guarded(self) -> bool:
        """A sidecar runs in it, or may: the rules of its namespace must stay."""
        return self.injected and not self.ended

    @property
    def admitted_in(self) -> str | None:
        """The labels of its namespace at admission, as JSON; None where no sidecar runs or none were noted."""
        return self.annotations.get(names.NAMESPACE_LABELS_ANNOTATION) if self.guarded else None

    @property
    def opted_out(self) -> bool:
        return not self.injected and self.labels.get(names.INJECTION_LABEL) == names.DISABLED

    @property
    def reference(self) -> Object:
        """An ObjectReference, for Events."""
        return {"apiVersion": "v1", "kind": "Pod", "namespace": self.namespace, "name": self.name, "uid": self.uid}


@dataclass(frozen=True, slots=True)
class RulesRecord:
    """The ConfigMap ``toolpolicy-rules`` of a namespace, its contents as digests; the index in full."""

    namespace: str
    uid: str
    version: int
    digests: Mapping[str, str]
    """``sha256:…`` of each key's content."""
    index: bytes = field(default=b"", repr=False)
    annotations: Labels = field(default_factory=dict[str, str])
    owned: bool = False
    """It carries the owner reference to its namespace, and no label."""
    foreign: bool = False
    """Some field of its content belongs to another manager."""
    terminating: bool = False

    @property
    def key(self) -> tuple[str | None, str]:
        return self.namespace, names.RULES_CONFIGMAP


Record = PolicyRecord | NamespaceRecord | PodRecord | RulesRecord


def record(kind: Kind, obj: Object, known: Record | None = None) -> Record:
    """The record of an object. ``known`` spares parsing a policy again whose generation is the same."""
    match kind:
        case Kind.TOOL_POLICY | Kind.CLUSTER_TOOL_POLICY:
            return policy_record(kind, obj, known if isinstance(known, PolicyRecord) else None)
        case Kind.NAMESPACE:
            return namespace_record(obj)
        case Kind.POD:
            return pod_record(obj)
        case Kind.RULES:
            return rules_record(obj)


def identity(obj: Object) -> tuple[str, int, tuple[str | None, str]]:
    """(uid, version, (namespace, name)) of any object. API servers' versions are numbers that grow (KEP-5504)."""
    metadata = _mapping(obj.get("metadata"))
    text = str(metadata.get("resourceVersion") or "0")
    version = int(text) if text.isdecimal() else 0
    return str(metadata.get("uid") or ""), version, (metadata.get("namespace") or None, str(metadata.get("name") or ""))


def policy_record(kind: Kind, obj: Object, known: PolicyRecord | None = None) -> PolicyRecord:
    uid, version, (namespace, name) = identity(obj)
    metadata = _mapping(obj.get("metadata"))
    generation = int(metadata.get("generation") or 0)
    status, annotations = _mapping(obj.get("status")), _ours(metadata)
    if known is not None and (known.uid, known.generation) == (uid, generation):
        return PolicyRecord(
            known.kind, namespace, name, uid, version, generation, known.policy, known.binding, known.problems,
            status, annotations, known.written,
        )  # fmt: skip
    meta: Object = {"name": name, "uid": uid, "generation": generation}
    if namespace:
        meta["namespace"] = namespace
    manifest: Object = {"apiVersion": POLICIES_API, "kind": kind.value, "metadata": meta, "spec": obj.get("spec")}
    policy, problems = parsed.load(manifest, f"{kind.value} {namespace + '/' if namespace else ''}{name}")
    if policy is not None:
        binding = bound(policy, manifest)
    elif known is not None and known.uid == uid and not known.binding.stand_in:
        binding = known.binding
    else:
        binding = stand_in(manifest)
    return PolicyRecord(
        kind.value, namespace, name, uid, version, generation, policy, binding, tuple(problems),
        status, annotations, _written(metadata),
    )  # fmt: skip


def namespace_record(obj: Object) -> NamespaceRecord:
    uid, version, (_, name) = identity(obj)
    metadata = _mapping(obj.get("metadata"))
    terminating = bool(metadata.get("deletionTimestamp")) or _mapping(obj.get("status")).get("phase") == "Terminating"
    return NamespaceRecord(name, uid, version, _texts(metadata.get("labels")), terminating)


def pod_record(obj: Object) -> PodRecord:
    uid, version, (namespace, name) = identity(obj)
    metadata, spec, status = _mapping(obj.get("metadata")), _mapping(obj.get("spec")), _mapping(obj.get("status"))
    sidecar = next((c for c in _items(spec.get("initContainers")) if c.get("name") == names.SIDECAR_CONTAINER), None)
    return PodRecord(
        namespace=namespace or "",
        name=name,
        uid=uid,
        version=version,
        labels=_texts(metadata.get("labels")),
        annotations={k: v for k, v in _ours(metadata).items() if k in _OF_PODS},
        node=spec.get("nodeName") or None,
        phase=str(status.get("phase") or "Pending"),
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in _items(status.get("conditions"))),
        owner=_controller(metadata),
        injected=sidecar is not None,
        deleting=bool(metadata.get("deletionTimestamp")),
        created=str(metadata.get("creationTimestamp") or ""),
        admitted_labels=_admitted_labels(sidecar) if sidecar is not None else None,
        host_network=bool(spec.get("hostNetwork")),
    )


def rules_record(obj: Object) -> RulesRecord:
    uid, version, (namespace, _) = identity(obj)
    metadata, data = _mapping(obj.get("metadata")), _texts(obj.get("data"))
    contents = {key: text.encode() for key, text in data.items()}
    for key, text in _texts(obj.get("binaryData")).items():
        contents[key] = base64.b64decode(text)
    owners = _items(metadata.get("ownerReferences"))
    return RulesRecord(
        namespace=namespace or "",
        uid=uid,
        version=version,
        digests={key: digest(raw) for key, raw in contents.items()},
        index=contents.get(names.INDEX_KEY, b""),
        annotations=_ours(metadata),
        owned=[o.get("kind") for o in owners] == ["Namespace"] and not metadata.get("labels"),
        foreign=_foreign(metadata),
        terminating=bool(metadata.get("deletionTimestamp")),
    )


def _written(metadata: Object) -> str:
    times = [
        str(entry.get("time") or "")
        for entry in _items(metadata.get("managedFields"))
        if "f:spec" in _mapping(entry.get("fieldsV1"))
    ]
    return max(times, default="")


def _foreign(metadata: Object) -> bool:
    """Another manager owns data, which server-side apply would leave in place."""
    return any(
        (entry.get("manager"), entry.get("operation")) != (names.FIELD_MANAGER, "Apply")
        and any(part in _mapping(entry.get("fieldsV1")) for part in ("f:data", "f:binaryData"))
        for entry in _items(metadata.get("managedFields"))
    )


def _controller(metadata: Object) -> Owner | None:
    for owner in _items(metadata.get("ownerReferences")):
        if owner.get("controller"):
            values = (str(owner.get(k) or "") for k in ("apiVersion", "kind", "name", "uid"))
            return Owner(*values)
    return None


def _admitted_labels(sidecar: Object) -> Labels | None:
    for variable in _items(sidecar.get("env")):
        if variable.get("name") == _POD_LABELS_ENV:
            return labels_from_json(str(variable.get("value") or ""))
    return None


@lru_cache(maxsize=1024)
def labels_from_json(text: str) -> Labels | None:
    """Labels from a JSON object; None for anything else."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _texts(cast("object", value)) if isinstance(value, dict) else None


def _ours(metadata: Object) -> Labels:
    return {k: v for k, v in _texts(metadata.get("annotations")).items() if k.startswith(_OURS)}


def _texts(value: object) -> dict[str, str]:
    return {k: v for k, v in _mapping(value).items() if isinstance(v, str)}


def _mapping(value: object) -> Object:
    return cast("Object", value) if isinstance(value, dict) else {}


def _items(value: object) -> Sequence[Object]:
    return (
        [cast("Object", v) for v in cast("list[object]", value) if isinstance(v, dict)]
        if isinstance(value, list)
        else []
    )
