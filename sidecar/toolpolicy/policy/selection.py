"""Which policies of a set select this pod: the operator writes one ConfigMap for a namespace, each sidecar takes its
own.

A policy selects the pod by its labels at admission *or* now, so that a label change never releases a running pod.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from toolpolicy.policy.model import ClusterToolPolicy, LabelRequirement, LabelSelector, Policy

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pod:
    """What selectors are matched against. ``now`` is None where the labels of the running pod aren't known.

    ``namespace_labels`` is None where somebody else has matched them: the operator puts a ClusterToolPolicy into a
    namespace's set because it selects that namespace, now or at the admission of a pod still running.
    """

    namespace: str
    admitted: Labels = field(default_factory=dict[str, str])
    now: Labels | None = None
    namespace_labels: Labels | None = field(default_factory=dict[str, str])


def selects(policy: Policy, labels: Labels, namespace: str, namespace_labels: Labels | None) -> bool:
    """True if the policy applies to a pod with these labels in this namespace (``namespace_labels``: see Pod)."""
    if isinstance(policy, ClusterToolPolicy):
        if namespace_labels is not None and not matches(policy.spec.namespace_selector, namespace_labels):
            return False
    elif policy.metadata.namespace != namespace:
        return False
    return matches(policy.spec.selector, labels)


def select(policies: Sequence[Policy], pod: Pod | None) -> list[Policy]:
    """The policies that apply to the pod; all of them where there is no pod (standalone)."""
    if pod is None:
        return list(policies)
    label_sets = (pod.admitted,) if pod.now is None else (pod.admitted, pod.now)
    return [
        p for p in policies if any(selects(p, labels, pod.namespace, pod.namespace_labels) for labels in label_sets)
    ]


def matches(selector: LabelSelector, labels: Labels) -> bool:
    """Kubernetes' label selector: all of it must hold; an empty one matches everything; NotIn holds for an absent
    label.
    """
    if any(labels.get(k) != v for k, v in selector.match_labels.items()):
        return False
    return all(_holds(r, labels) for r in selector.match_expressions)


def _holds(requirement: LabelRequirement, labels: Labels) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None


def parse_labels(text: str) -> dict[str, str]:
    """Labels as the downward API writes them, ``key="value"`` a line, or as a JSON object. Raises ValueError."""
    if text.lstrip().startswith("{"):
        value = json.loads(text)
        if not all(isinstance(v, str) for v in value.values()):
            raise ValueError("expected a JSON object of strings")
        return dict(value)
    labels: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        key, separator, quoted = line.partition("=")
        try:
            value = json.loads(quoted)
        except ValueError:
            value = None
        if not separator or not key or not isinstance(value, str):
            raise ValueError(f'line {number}: expected key="value"')
        labels[key] = value
    return labels
