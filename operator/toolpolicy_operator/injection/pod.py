"""A pod with its sidecar: pure, and the same however often it is done."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, cast

from toolpolicy_operator import names
from toolpolicy_operator.injection import compare, containers, podview, probes
from toolpolicy_operator.injection.eligibility import Eligibility, Reason, decide
from toolpolicy_operator.injection.plan import Plan, Pod
from toolpolicy_operator.injection.podview import Object
from toolpolicy_operator.injection.ports import McpPort

WITHOUT = (
    "the pod arrived without its sidecar: a policy that is newer than its injection selects it, or another webhook "
    "removed all of it. Create it again"
)
UPGRADING = "another version checks it, as while the operator is upgraded. Create it again"
SELECTED = "the pod is older than its policy, or than the label of its namespace: restart it to protect it"


@dataclass(frozen=True, slots=True)
class Injection:
    """What becomes of a pod: ``pod`` is as it was where ``eligibility`` says no and nothing is to be noted on it."""

    eligibility: Eligibility
    pod: Pod


class NotInjected(ValueError):
    """The pod gets no sidecar; ``eligibility`` says why."""

    def __init__(self, eligibility: Eligibility) -> None:
        super().__init__(f"{eligibility.reason}: {eligibility.message}")
        self.eligibility = eligibility


def inject(pod: Pod, plan: Plan) -> Pod:
    """The pod with redirect container (for ``Redirect``), sidecar, volumes, probes and annotations.

    inject(inject(pod)) == inject(pod). Raises :class:`NotInjected`.
    """
    injection = treat(pod, plan)
    if not injection.eligibility.eligible:
        raise NotInjected(injection.eligibility)
    return injection.pod


def treat(pod: Pod, plan: Plan) -> Injection:
    """The table's answer for the pod and the pod as it should be; the pod that comes in is not changed.

    One that was injected by this version must carry just what this version injects, except for what follows from
    policies and other containers: that is written anew. What another version injected is replaced, and so is what was
    altered where nothing may be refused, because all policies are in Audit.
    """
    original = restore(pod)
    eligibility = decide(original, plan)
    if eligibility.eligible:
        expected = _injected(original, plan, eligibility.servers)
        if podview.annotations_of(pod).get(names.INJECTED_ANNOTATION) == plan.defaults.version:
            difference = compare.altered(expected, pod, dynamic=True)
            if difference and plan.enforced:
                return Injection(was_altered(difference, plan), pod)
            _keep_tolerated(expected, pod)
        return Injection(eligibility, expected)
    if eligibility.unprotected and not eligibility.refused and eligibility.reason is not Reason.STATIC_POD:
        _annotate(original, {names.INELIGIBLE_ANNOTATION: eligibility.reason.value})
        return Injection(eligibility, original)
    return Injection(eligibility, pod)


def verify(pod: Pod, plan: Plan) -> Injection:
    """The table's answer for a pod as it is going to be stored: one that is eligible must carry exactly what it should
    (``Altered`` otherwise).
    """
    original = restore(pod)
    eligibility = decide(original, plan)
    if not eligibility.eligible:
        return Injection(eligibility, pod)
    difference = compare.altered(_injected(original, plan, eligibility.servers), pod)
    if not difference:
        return Injection(eligibility, pod)
    version = podview.annotations_of(pod).get(names.INJECTED_ANNOTATION)
    if version == plan.defaults.version:
        return Injection(was_altered(difference, plan), pod)
    message = WITHOUT if version is None else f"toolpolicy {version} injected it and {UPGRADING}"
    return Injection(replace(was_altered(difference, plan), message=message), pod)


def examine(pod: Pod, plan: Plan) -> Eligibility:
    """The table's answer for a pod that is stored: ``Injected`` with its sidecar, ``Selected`` if it is eligible and
    has none, ``Altered`` if what it has is not what its version would have injected, as far as this one can tell.
    """
    eligibility = decide(restore(pod), plan)
    if not eligibility.eligible:
        return eligibility
    version = podview.annotations_of(pod).get(names.INJECTED_ANNOTATION)
    if version is None:
        return replace(eligibility, eligible=False, reason=Reason.SELECTED, message=SELECTED, unprotected=True)
    if version != plan.defaults.version:
        return replace(eligibility, message=f"the sidecar was injected by toolpolicy {version}")
    return treat(pod, plan).eligibility


def was_altered(difference: str, plan: Plan) -> Eligibility:
    message = (
        f"{difference}: another webhook changed what toolpolicy injects, or the pod was exported where other settings "
        "hold: create it without toolpolicy's containers, volumes and annotations"
    )
    return Eligibility(False, Reason.ALTERED, message, refused=plan.enforced, unprotected=True)


def restore(pod: Pod) -> Pod:
    """The pod without what an injection added to it, as a copy; a pod that carries no mark of one is as it was."""
    copy = cast("Pod", json.loads(json.dumps(pod)))
    noted = podview.annotations_of(copy)
    noted.pop(names.INELIGIBLE_ANNOTATION, None)
    if names.INJECTED_ANNOTATION in noted:
        sidecar = next((c for c in podview.init_containers(copy) if c.get("name") == names.SIDECAR_CONTAINER), Object())
        for name in (*podview.OUR_ANNOTATIONS, names.RULES_ANNOTATION):
            noted.pop(name, None)
        spec = podview.spec(copy)
        for field, ours in (("initContainers", podview.OUR_CONTAINERS), ("volumes", podview.OUR_VOLUMES)):
            if field in spec:
                spec[field] = [item for item in podview.listed(spec, field) if item.get("name") not in ours]
                if not spec[field]:
                    del spec[field]
        probes.restore(copy, _asked(sidecar))
        _give_names_back(copy, sidecar)
    if not noted:
        podview.metadata(copy).pop("annotations", None)
    return copy


def _injected(original: Pod, plan: Plan, servers: tuple[McpPort, ...]) -> Pod:
    pod = cast("Pod", json.loads(json.dumps(original)))
    asked = probes.rewrite(pod, frozenset(server.number for server in servers))
    if plan.interception == "Port":
        _take_names(pod, servers)
    spec = podview.spec(pod)
    ours = [containers.sidecar_container(original, plan, servers, asked)]
    if plan.interception == "Redirect":
        ours.insert(0, containers.redirect_container(original, plan, servers))
    spec["initContainers"] = [*ours, *podview.init_containers(pod)]
    spec["volumes"] = [*podview.listed(spec, "volumes"), *containers.volumes()]
    _annotate(pod, containers.marks(plan, servers))
    return pod


def _take_names(pod: Pod, servers: tuple[McpPort, ...]) -> None:
    """Containers give the names of their MCP ports to the sidecar, where Services then find them."""
    indices = {(name, server.number): index for index, (name, server) in enumerate(containers.taken_names(servers))}
    for _, port in podview.tcp_ports(pod):
        index = indices.get((port.get("name", ""), port["containerPort"]))
        if index is not None:
            port["name"] = containers.app_port_name(index)


def _give_names_back(pod: Pod, sidecar: Object) -> None:
    declared = [str(p.get("name")) for p in podview.listed(sidecar, "ports")]
    taken = [name for name in declared if name != containers.ADMIN_PORT_NAME]
    given = {containers.app_port_name(index): name for index, name in enumerate(taken)}
    for _, port in podview.tcp_ports(pod):
        name = given.get(str(port.get("name")))
        if name is not None:
            port["name"] = name


def _asked(sidecar: Object) -> dict[str, Any]:
    """What TOOLPOLICY_PROBES says; nothing if it can't be read."""
    for variable in podview.listed(sidecar, "env"):
        if variable.get("name") == "TOOLPOLICY_PROBES":
            try:
                value = json.loads(str(variable.get("value") or "{}").replace("$$", "$"))
            except (ValueError, RecursionError):
                return {}
            fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
            return {key: cast("Object", question) for key, question in fields.items() if isinstance(question, dict)}
    return {}


def _keep_tolerated(expected: Pod, actual: Pod) -> None:
    """Leave what other admission added to our containers: it would only add it again."""
    found = {str(c.get("name")): c for c in podview.init_containers(actual)}
    for container in podview.init_containers(expected):
        before = found.get(str(container.get("name")))
        if before is not None and container["name"] in podview.OUR_CONTAINERS:
            compare.keep(container, before)


def _annotate(pod: Pod, values: dict[str, str]) -> None:
    podview.metadata(pod).setdefault("annotations", {}).update(values)
