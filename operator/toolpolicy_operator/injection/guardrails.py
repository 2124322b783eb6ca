"""What weakens the interception of a pod that has its sidecar: said at its admission, refused afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from toolpolicy.policy.shapes import texts
from toolpolicy_operator import names
from toolpolicy_operator.injection import podview
from toolpolicy_operator.injection.plan import Plan, Pod
from toolpolicy_operator.injection.podview import Object

OPENING = ("ALL", "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE")
"""Capabilities with which a container of the pod can undo the redirection, or reach into the sidecar."""


def weaknesses(pod: Pod, plan: Plan) -> Iterator[str]:
    """What the pod's author should know: these containers are trusted not to go around the sidecar."""
    for path, container in podview.all_containers(pod):
        if container.get("name") in podview.OUR_CONTAINERS:
            continue
        power = _power(container)
        if power:
            yield f"{path} has {power}, with which it can undo the interception of its own pod"
    if podview.spec(pod).get("shareProcessNamespace"):
        yield "shareProcessNamespace: true lets root in the pod's containers see into the sidecar"


def opened(old: Pod, new: Pod) -> str | None:
    """What an update of an injected pod would open; None if nothing."""
    if names.INJECTED_ANNOTATION not in podview.annotations_of(old):
        return None
    for name in podview.OUR_ANNOTATIONS:
        if podview.annotations_of(old).get(name) != podview.annotations_of(new).get(name):
            return f"metadata.annotations[{name}] is written at admission and can't be changed"
    images = {path: c.get("image") for path, c in _ours(old)}
    for path, container in _ours(new):
        if images.get(path) != container.get("image"):
            return f"{path}.image can't be changed: delete the pod, so that it is injected anew"
    before = {c.get("name") for c in podview.listed(podview.spec(old), "ephemeralContainers")}
    for index, container in enumerate(podview.listed(podview.spec(new), "ephemeralContainers")):
        if container.get("name") not in before:
            problem = _ephemeral(container)
            if problem:
                return f"spec.ephemeralContainers[{index}] {problem}"
    return None


def admitted_labels(pod: Pod) -> tuple[dict[str, str], dict[str, str]] | None:
    """The labels of pod and namespace at admission that the sidecar is told; None if they can't be read."""
    told: dict[str, dict[str, str] | None] = {}
    for container in podview.init_containers(pod):
        if container.get("name") == names.SIDECAR_CONTAINER:
            told = {str(v.get("name")): _labels(str(v.get("value") or "")) for v in podview.listed(container, "env")}
    of_pod, of_namespace = told.get("TOOLPOLICY_POD_LABELS"), told.get("TOOLPOLICY_NAMESPACE_LABELS")
    noted = _labels(podview.annotations_of(pod).get(names.NAMESPACE_LABELS_ANNOTATION, ""))
    return None if of_pod is None or of_namespace is None or noted != of_namespace else (of_pod, of_namespace)


def _labels(text: str) -> dict[str, str] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else None
    return fields if fields is not None and all(isinstance(v, str) for v in fields.values()) else None


def _ours(pod: Pod) -> Iterator[tuple[str, Object]]:
    for path, container in podview.all_containers(pod):
        if container.get("name") in podview.OUR_CONTAINERS:
            yield path, container


def _ephemeral(container: Object) -> str | None:
    user = podview.child(container, "securityContext").get("runAsUser")
    if user == names.SIDECAR_UID:
        return f"runs as user {user}, the sidecar's, whose packets are not intercepted: choose another"
    power = _power(container)
    return f"has {power}, with which it can undo the interception: debug a pod without a sidecar" if power else None


def _power(container: Object) -> str | None:
    context = podview.child(container, "securityContext")
    if context.get("privileged"):
        return "privileged: true"
    capabilities = texts(podview.child(context, "capabilities").get("add"))
    added = {capability.upper().removeprefix("CAP_") for capability in capabilities}
    return next((f"the capability {name}" for name in OPENING if name in added), None)
