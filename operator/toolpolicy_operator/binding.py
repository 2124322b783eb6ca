"""What is in force for a policy that the operator can't read: never nothing, since that would open its pods.

Admission refuses an invalid policy, so one that is stored came in while the webhook was not in force, was written for
another version of toolpolicy, or was valid for an operator before an upgrade. It keeps binding:

- as it was valid last, if this operator saw that (or the rules of a namespace still hold it);
- else as a stand-in that selects the same pods and denies every call: what it says of pods, ports and mode counts
  wherever it can be read by itself, and where its selector can't, it selects everything in its reach.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from toolpolicy.policy.load import load_object
from toolpolicy.policy.model import ClusterToolPolicy, Mode, Policy, ToolPolicy
from toolpolicy_operator.canonical import canonical, digest
from toolpolicy_operator.kube import Object

READABLE = ("selector", "namespaceSelector", "server", "mode", "interception", "ineligible", "optOut")
"""What a stand-in takes over from the spec, each field that is valid by itself."""


@dataclass(frozen=True, slots=True)
class Binding:
    """``policy`` as it is in force, and as it goes to the sidecars: canonical JSON and its digest."""

    policy: Policy
    manifest: bytes = field(repr=False)
    digest: str
    stand_in: bool = False


def bound(policy: Policy, manifest: Object, *, stand_in: bool = False) -> Binding:
    raw = canonical(manifest)
    return Binding(policy, raw, digest(raw), stand_in)


def stand_in(manifest: Object) -> Binding:
    """The stand-in of an invalid manifest, whose ``apiVersion``, ``kind`` and ``metadata`` are ours."""
    given = manifest.get("spec")
    spec = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    kept: Object = {"selector": {}}
    for name in READABLE:
        if name in spec:
            policy, problems = load_object({**manifest, "spec": {"selector": {}, name: spec[name]}}, "")
            if policy is not None and not problems:
                kept[name] = spec[name]
    kept["defaultAction"] = "Deny"
    complete: Object = {**manifest, "spec": kept}
    kind = ClusterToolPolicy if manifest.get("kind") == "ClusterToolPolicy" else ToolPolicy
    return bound(kind.model_validate(complete), complete, stand_in=True)


def in_place(binding: Binding) -> str:
    """For people: what is in force in place of an invalid policy."""
    if not binding.stand_in:
        return f"generation {binding.policy.metadata.generation} stays in force"
    if binding.policy.spec.mode is Mode.AUDIT:
        return "it is in Audit and denies nothing"
    return "every call to the pods that it selects is denied"
