"""How pods are named to people: the workload that they belong to, and the command that recreates them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from toolpolicy_operator.records import PodRecord

_RESTARTABLE = ("Deployment", "StatefulSet", "DaemonSet")


def workload(pod: PodRecord) -> tuple[str, str]:
    """Kind and name of what a user would restart. A Deployment is known by the hash that its ReplicaSet's name ends
    with, and which the pod carries as a label."""
    owner = pod.owner
    if owner is None:
        return "Pod", pod.name
    stem = owner.name.removesuffix("-" + pod.labels.get("pod-template-hash", ""))
    if owner.kind == "ReplicaSet" and stem != owner.name:
        return "Deployment", stem
    return owner.kind, owner.name


def restart_commands(pods: Sequence[PodRecord]) -> list[str]:
    """The kubectl commands that recreate these pods, one a workload, each once. A pod that nothing recreates must be
    deleted and created by whoever made it."""
    commands: dict[str, None] = {}
    for pod in pods:
        kind, name = workload(pod)
        if kind in _RESTARTABLE:
            command = f"kubectl -n {pod.namespace} rollout restart {kind.lower()}/{name}"
        else:
            command = f"kubectl -n {pod.namespace} delete pod {pod.name}"
            command += " (and create it again)" if kind == "Pod" else ""
        commands[command] = None
    return list(commands)


def count(number: int, word: str, many: str = "") -> str:
    """``1 pod``, ``2 pods``."""
    return f"{number} {word if number == 1 else many or word + 's'}"


def named(things: Sequence[str], word: str = "") -> str:
    """``a, b and 3 more``, with ``word`` before them in its number."""
    shown = things[:3] if len(things) != 4 else things[:4]
    rest = len(things) - len(shown)
    if rest:
        text = f"{', '.join(shown)} and {rest} more"
    else:
        text = " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1] if shown else ""]))
    return f"{word}{'s' if len(things) > 1 else ''} {text}" if word else text
