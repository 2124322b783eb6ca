"""What a user did, from the API server's audit log, beside what RBAC lets it do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support.install import Object


@dataclass(frozen=True, order=True)
class Privilege:
    """``resource`` with its subresource (``pods/eviction``) and group (``leases.coordination.k8s.io``)."""

    verb: str
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


@dataclass(frozen=True)
class Use:
    """What a user asked for; ``denied`` are those that RBAC refused."""

    done: frozenset[Privilege]
    denied: frozenset[Privilege]


def used(audit_log: Path, user: str) -> Use:
    """From every event of the log that is this user's. Requests for no resource (discovery) are left out."""
    done: set[Privilege] = set()
    denied: set[Privilege] = set()
    for line in audit_log.read_text().splitlines():
        event: Object = json.loads(line)
        if event["user"]["username"] != user or "objectRef" not in event:
            continue
        reference: dict[str, str] = event["objectRef"]
        privilege = Privilege(
            event["verb"],
            _name(reference.get("resource", ""), reference.get("subresource", ""), reference.get("apiGroup", "")),
        )
        answer: dict[str, int] = event.get("responseStatus") or {}
        code = answer.get("code", 0)
        (denied if code == 403 else done).add(privilege)
        if code == 201 and event["verb"] == "patch":
            done.add(Privilege("create", privilege.resource))
    return Use(frozenset(done), frozenset(denied))


def granted(objects: Iterable[Object], name: str) -> frozenset[Privilege]:
    """By the Roles and ClusterRoles of that name."""
    roles = (o for o in objects if o["kind"] in ("Role", "ClusterRole") and o["metadata"]["name"] == name)
    return frozenset(privilege for role in roles for rule in role["rules"] for privilege in _of_rule(rule))


def _of_rule(rule: Object) -> Iterator[Privilege]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                plural, _, sub = resource.partition("/")
                yield Privilege(verb, _name(plural, sub, group))


def _name(resource: str, subresource: str, group: str) -> str:
    whole = resource + (f"/{subresource}" if subresource else "")
    return f"{whole}.{group}" if group else whole
