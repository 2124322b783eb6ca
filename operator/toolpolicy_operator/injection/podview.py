"""Looking into a pod: its containers, ports and probes, whatever of them is absent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from toolpolicy_operator import names

Object = dict[str, Any]
OUR_CONTAINERS = frozenset({names.REDIRECT_CONTAINER, names.SIDECAR_CONTAINER})
OUR_VOLUMES = frozenset({names.RULES_VOLUME, names.POD_VOLUME, names.TOKEN_VOLUME, names.TEMPORARY_VOLUME})
OUR_ANNOTATIONS = (
    names.INJECTED_ANNOTATION,
    names.INTERCEPTION_ANNOTATION,
    names.SERVERS_ANNOTATION,
    names.NAMESPACE_LABELS_ANNOTATION,
    names.INELIGIBLE_ANNOTATION,
)
"""Those that admission writes; ``toolpolicy.dev/rules`` is written while the pod runs."""

_GENERATED_JOB = re.compile(r"-\d{7,}$")
"""What a CronJob appends to the name of a Job: the scheduled time in minutes."""


def metadata(pod: Object) -> Object:
    return cast("Object", pod.get("metadata") or {})


def spec(pod: Object) -> Object:
    return cast("Object", pod.get("spec") or {})


def labels_of(pod: Object) -> dict[str, str]:
    return child(metadata(pod), "labels")


def annotations_of(pod: Object) -> dict[str, str]:
    return cast("dict[str, str]", metadata(pod).get("annotations") or {})


def child(parent: Object, key: str) -> Object:
    return cast("Object", parent.get(key) or {})


def listed(parent: Object, key: str) -> list[Object]:
    return cast("list[Object]", parent.get(key) or [])


def containers(pod: Object) -> list[Object]:
    return listed(spec(pod), "containers")


def init_containers(pod: Object) -> list[Object]:
    return listed(spec(pod), "initContainers")


def all_containers(pod: Object) -> Iterator[tuple[str, Object]]:
    """Every container with its field path, ephemeral ones included."""
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(listed(spec(pod), field)):
            yield f"spec.{field}[{index}]", container


def running_containers(pod: Object) -> Iterator[tuple[str, Object]]:
    """Those that run as long as the pod: containers, and native sidecars (KEP-753)."""
    for path, container in all_containers(pod):
        if path.startswith("spec.containers") or is_native_sidecar(container):
            yield path, container


def is_native_sidecar(container: Object) -> bool:
    return container.get("restartPolicy") == "Always"


def tcp_ports(pod: Object) -> Iterator[tuple[str, Object]]:
    """The declared TCP ports of the running containers, with their field path."""
    for path, container in running_containers(pod):
        for index, port in enumerate(listed(container, "ports")):
            if port.get("protocol", "TCP") == "TCP":
                yield f"{path}.ports[{index}]", port


def name_of(pod: Object) -> str:
    """The pod's name for a message; one that is generated has none yet at admission."""
    return str(metadata(pod).get("name") or f"{metadata(pod).get('generateName') or ''}*")


def workload(pod: Object) -> str:
    """The owning workload's name: the Deployment above a ReplicaSet, the CronJob above a Job, else the controller.

    A pod without one stands for itself, by its name's part that isn't generated.
    """
    owner = next((o for o in listed(metadata(pod), "ownerReferences") if o.get("controller")), None)
    if owner is None:
        generated = str(metadata(pod).get("generateName") or "")
        return generated.rstrip("-.") or str(metadata(pod).get("name") or "pod")
    name = str(owner.get("name") or "")
    if owner.get("kind") == "ReplicaSet":
        hashed = labels_of(pod).get("pod-template-hash")
        return name.removesuffix(f"-{hashed}") if hashed else name
    if owner.get("kind") == "Job":
        return _GENERATED_JOB.sub("", name)
    return name
