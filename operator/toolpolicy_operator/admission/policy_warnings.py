"""What a user is told about a policy that is valid and will not work as meant, in the answer to ``kubectl apply``.

Pure: from the policy, the store and a list of Services to texts. The API server passes on 256 characters of a warning
and 4 KiB of all (KEP-1693); the command that helps comes early in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from toolpolicy.policy.model import LabelSelector, Mode, Policy
from toolpolicy.policy.selection import matches
from toolpolicy.policy.settings import interception
from toolpolicy.policy.shapes import items, mapping
from toolpolicy_operator import names
from toolpolicy_operator.kube import Object
from toolpolicy_operator.records import NamespaceRecord, PodRecord
from toolpolicy_operator.store import Store, covers
from toolpolicy_operator.workloads import count, named, restart_commands

LONGEST = 256
MOST = 15
POD_SECURITY = "pod-security.kubernetes.io/enforce"
Services = Mapping[str, Sequence[Object]]
"""Services by namespace, as far as they were asked for."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What a policy is about at this moment."""

    policy: Policy
    namespaces: tuple[NamespaceRecord, ...]
    enabled: tuple[NamespaceRecord, ...]
    pods: tuple[PodRecord, ...]
    """Selected, not ended and not being deleted, whether their namespace is enabled or not."""


def reach(policy: Policy, store: Store) -> Reach:
    """The namespaces and pods that the policy selects; a namespace that is not known yet is left out."""
    own = policy.metadata.namespace
    spaces = [n for n in store.namespaces() if (n.name == own if own is not None else covers(policy, n.labels))]
    spaces = sorted((n for n in spaces if not n.terminating), key=lambda n: n.name)
    pods = [
        pod
        for space in spaces
        for pod in sorted(store.pods_in(space.name), key=lambda p: p.name)
        if not pod.ended and not pod.deleting and matches(policy.spec.selector, pod.labels)
    ]
    return Reach(policy, tuple(spaces), tuple(n for n in spaces if store.injection_enabled(n.labels)), tuple(pods))


def warnings(found: Reach, store: Store, services: Services, further: Sequence[str] = ()) -> list[str]:
    """Every warning, the gravest first, cut to what the API passes on. ``further`` are those of the policy alone."""
    told = [
        *_namespaces(found),
        *_pods(found),
        *_restarts(found),
        *_services(found, store, services),
        *_limits(found),
        *further,
    ]
    cut = [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in told]
    return cut if len(cut) <= MOST else [*cut[: MOST - 1], f"and {len(cut) - MOST + 1} more: `toolpolicy check FILE`"]


def port_namespaces(found: Reach, store: Store) -> list[str]:
    """Namespaces where calls come to the sidecar by its port, so that what Services name as target matters."""
    return [n.name for n in found.enabled if _by_port(found.policy, store, n)]


def _namespaces(found: Reach) -> Iterator[str]:
    enable = f"{names.INJECTION_LABEL}={names.ENABLED}"
    own = found.policy.metadata.namespace
    if own is not None:
        if found.namespaces and not found.enabled:
            yield (
                f"namespace {own} is not enabled for injection, so nothing is enforced: "
                f"kubectl label namespace {own} {enable}"
            )
        return
    if not found.namespaces:
        yield "spec.namespaceSelector: no namespace has these labels yet, so nothing is enforced"
        return
    enabled = {n.name for n in found.enabled}
    busy = {pod.namespace for pod in found.pods}
    missed = [n.name for n in found.namespaces if n.name not in enabled and (n.name in busy or not found.enabled)]
    if missed:
        which = " ".join(missed[:3])
        yield (
            f"nothing is enforced in {named(missed)}, not enabled for injection: "
            f"kubectl label namespace {which} {enable}"
        )


def _pods(found: Reach) -> Iterator[str]:
    if not found.namespaces or found.pods:
        return
    own = found.policy.metadata.namespace
    where = f"namespace {own}" if own is not None else f"the {count(len(found.namespaces), 'selected namespace')}"
    selector = _labels(found.policy.spec.selector)
    yield f"spec.selector: no pod of {where} matches{f' {selector}' if selector else ''} yet"


def _restarts(found: Reach) -> Iterator[str]:
    """Pods without a sidecar that would get one, were they created now."""
    enabled = {n.name for n in found.enabled}
    old = [p for p in found.pods if p.namespace in enabled and not p.injected and not p.opted_out]
    if not old:
        return
    many = f"{len(old)} of {count(len(found.pods), 'selected pod')}"
    verb = "runs" if len(old) == 1 else "run"
    if found.policy.spec.rollout == "Restart":
        yield f"{many} {verb} without the sidecar and will be evicted, a few at a time (spec.rollout: Restart)"
        return
    first, *others = restart_commands(old)
    yield f"{many} {verb} without the sidecar until restarted: {first}" + (
        f" (and {count(len(others), 'other workload')})" if others else ""
    )


def _services(found: Reach, store: Store, services: Services) -> Iterator[str]:
    """Services that lead past the sidecar: under Port interception it takes over the port's *name*."""
    for namespace in port_namespaces(found, store):
        pods = [pod for pod in found.pods if pod.namespace == namespace]
        for service in services.get(namespace, ()):
            for port in _numeric_targets(service, pods, found.policy):
                yield (
                    f"Service {namespace}/{mapping(service.get('metadata')).get('name')} targets port {port} by "
                    "number, which leads past the sidecar under Port interception: set targetPort to the port's name"
                )


def _numeric_targets(service: Object, pods: Sequence[PodRecord], policy: Policy) -> Iterator[int]:
    spec = mapping(service.get("spec"))
    wanted = mapping(spec.get("selector"))
    behind = [pod for pod in pods if wanted and all(pod.labels.get(k) == v for k, v in wanted.items())]
    labels = policy.spec.selector.match_labels
    if not behind and not (wanted and labels and all(labels.get(k) == v for k, v in wanted.items())):
        return
    served = {int(p) for pod in behind for p in _served(pod)}
    stated = policy.spec.server.port
    if isinstance(stated, int):
        served.add(stated)
    for item in items(spec.get("ports")):
        port = mapping(item)
        target = port.get("targetPort", port.get("port"))
        if isinstance(target, int) and (not served or target in served):
            yield target


def _served(pod: PodRecord) -> list[str]:
    return [p for p in pod.annotations.get(names.SERVERS_ANNOTATION, "").split(",") if p.isascii() and p.isdecimal()]


def _by_port(policy: Policy, store: Store, namespace: NamespaceRecord) -> bool:
    """Whether the pods of ``policy`` are intercepted by port, with all that other policies of the namespace state."""
    name = policy.metadata.name
    others = [r.policy for r in store.policies_of(namespace.name) if r.policy is not None]
    stated = interception([policy, *(p for p in others if (p.kind, p.metadata.name) != (policy.kind, name))])
    if stated == "Auto":
        return namespace.labels.get(POD_SECURITY) in ("baseline", "restricted")
    return stated == "Port"


def _limits(found: Reach) -> Iterator[str]:
    """Limits are counted in each pod's memory; how many times over they hold is the number of pods."""
    spec = found.policy.spec
    limited = [rule.name for rule in spec.rules if rule.rate_limit is not None]
    largest = max((sum(p.namespace == n.name for p in found.pods) for n in found.namespaces), default=0)
    if limited and largest > 1 and spec.mode is Mode.ENFORCE:
        yield (
            f"each of {largest} pods counts for itself, so a rateLimit can be used {largest} times over: "
            f"{named(limited, 'rule')}"
        )


def _labels(selector: LabelSelector) -> str:
    stated = [f"{key}={value}" for key, value in sorted(selector.match_labels.items())]
    stated += [f"{r.key} {r.operator} {','.join(r.values)}".rstrip() for r in selector.match_expressions]
    return ", ".join(stated[:3]) + (f" and {len(stated) - 3} more" if len(stated) > 3 else "")
