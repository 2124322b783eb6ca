"""Least privilege, from what was seen: an audit log of the API server beside the rules that grant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

Event = Mapping[str, Any]
"""An event of audit.k8s.io/v1, level Metadata or more."""


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource; ``resource`` may have a subresource behind a slash. An empty ``name`` is every one."""

    group: str
    resource: str
    verb: str
    name: str = ""

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource}{group}{f' {self.name}' if self.name else ''}"


@dataclass(frozen=True)
class Findings:
    """``refused``: asked for and forbidden. ``unused``: granted, and nothing was done by it."""

    refused: Sequence[Right]
    unused: Sequence[Right]


def events(log: Path, user: str) -> list[Event]:
    """What ``user`` asked for. A last line that is still being written is left out."""
    found: list[Event] = []
    with log.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n") and user in line:
                event = cast(dict[str, Any], json.loads(line))
                if event["user"]["username"] == user:
                    found.append(event)
    return found


def granted(objects: Iterable[Mapping[str, Any]], account: str) -> list[Right]:
    """What Roles and ClusterRoles of ``objects`` grant to the ServiceAccount ``account`` that bindings there name."""
    documents = list(objects)
    roles: set[tuple[str, str]] = set()
    for binding in documents:
        if any(subject.get("name") == account for subject in binding.get("subjects", [])):
            roles.add((binding["roleRef"]["kind"], binding["roleRef"]["name"]))
    rights: set[Right] = set()
    for role in documents:
        if (role["kind"], role["metadata"]["name"]) in roles:
            for rule in role.get("rules", []):
                rights |= _expanded(rule)
    return sorted(rights)


def compare(asked: Iterable[Event], rights: Sequence[Right]) -> Findings:
    """What was refused, and what of ``rights`` was of no use."""
    refused: set[Right] = set()
    used: set[Right] = set()
    for event in asked:
        wanted = _wanted(event)
        if wanted and event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid":
            refused |= wanted
        else:
            used |= wanted
    unused = [right for right in rights if not any(_covers(right, one) for one in used)]
    return Findings(sorted(refused), unused)


def _expanded(rule: Mapping[str, Any]) -> set[Right]:
    return {
        Right(group, resource, verb, name)
        for group in rule.get("apiGroups", [])
        for resource in rule.get("resources", [])
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }


def _wanted(event: Event) -> set[Right]:
    """The rights that a request takes; none for what is no resource, such as discovery."""
    target = event.get("objectRef")
    if not target:
        return set()
    resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
    group, name = target.get("apiGroup", ""), target.get("name", "")
    rights = {Right(group, resource, event["verb"], name)}
    # Server-side apply of what is not there takes the right to create, which no event of its own tells.
    if event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201:
        rights.add(Right(group, resource, "create", name))
    return rights


def _covers(right: Right, wanted: Right) -> bool:
    same = (right.group, right.resource, right.verb) == (wanted.group, wanted.resource, wanted.verb)
    # A list of one name is granted by that name: it is in the field selector, which the log does not hold.
    return same and (not right.name or right.name == wanted.name or not wanted.name)
