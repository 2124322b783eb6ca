"""Whether the guard is in force: the ValidatingAdmissionPolicies of ``manifests/install/guard.yaml``.

The API server enforces them without us, and whoever may delete one lifts it. That must not go unseen: the operator
looks, logs and counts what is missing. It can neither make nor change them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from toolpolicy_operator.kube import ApiError, Object, api_path

log = logging.getLogger(__name__)

PROTECTS: Mapping[str, str] = {
    "toolpolicy-generated": "the rules of every namespace can be rewritten by whoever may write ConfigMaps there",
    "toolpolicy-pods": "the sidecar of a running pod can be replaced and its annotations falsified",
    "toolpolicy-new-pods": "pods of other namespaces can claim to be injected",
    "toolpolicy-exec": "commands can be run as the sidecar, past the redirection",
    "toolpolicy-tokens": "whoever may create tokens can report in a sidecar's name",
    "toolpolicy-status": "whoever may update policies' status can claim that they are enforced",
    "toolpolicy-evictions": "a stolen token of the operator can evict the pods of every namespace",
    "toolpolicy-namespaces": "whoever may edit a Namespace can switch its injection off",
}
"""Each policy (its binding has the same name), and what is possible without it."""
_REGISTRATION = "admissionregistration.k8s.io/v1"
INTERVAL = 300.0


class Kubernetes(Protocol):
    """What is needed of :class:`toolpolicy_operator.kube.Api`."""

    async def get(self, path: str) -> Object: ...


def fault(policy: Object | None, binding: Object | None) -> str:
    """Why a policy and its binding do not refuse what they should; empty if they do."""
    if policy is None:
        return "it is missing"
    if policy["spec"].get("failurePolicy", "Fail") != "Fail":
        return "its failurePolicy is not Fail"
    if binding is None:
        return "its binding is missing"
    spec: dict[str, Any] = binding["spec"]
    if "Deny" not in spec.get("validationActions", []):
        return "its binding does not Deny"
    if spec.get("matchResources"):
        return "its binding leaves something out (matchResources)"
    status: dict[str, Any] = policy.get("status") or {}
    checked: dict[str, Any] = status.get("typeChecking") or {}
    if checked.get("expressionWarnings"):
        return "this API server does not understand its expressions"
    return ""


async def faults(api: Kubernetes) -> dict[str, str]:
    """What is wrong with each policy that is not in force. Raises ApiError if the API server can't be asked."""
    found: dict[str, str] = {}
    for name in PROTECTS:
        policy = await _get(api, "validatingadmissionpolicies", name)
        binding = await _get(api, "validatingadmissionpolicybindings", name)
        wrong = fault(policy, binding)
        if wrong:
            found[name] = wrong
    return found


@dataclass
class Guard:
    """Looks every few minutes. ``missing`` is for metrics and ``/status``: policy to what is wrong with it."""

    api: Kubernetes
    interval: float = INTERVAL
    changed: Callable[[dict[str, str]], None] = lambda missing: None
    missing: dict[str, str] = field(default_factory=dict[str, str])

    async def run(self) -> None:
        """Until cancelled. An API server that does not answer changes nothing that is known."""
        while True:
            await self.look()
            await asyncio.sleep(self.interval)

    async def look(self) -> None:
        try:
            now = await faults(self.api)
        except ApiError as error:
            log.info("guard: it can't be seen whether it is in force: %s", error)
            return
        if now == self.missing:
            return
        for name in self.missing.keys() - now.keys():
            log.info("guard: ValidatingAdmissionPolicy %s is in force again", name)
        for name, wrong in now.items():
            if self.missing.get(name) != wrong:
                log.warning("guard: ValidatingAdmissionPolicy %s: %s; %s", name, wrong, PROTECTS[name])
        self.missing = now
        self.changed(now)


async def _get(api: Kubernetes, plural: str, name: str) -> Object | None:
    try:
        return await api.get(api_path(_REGISTRATION, plural, None, name))
    except ApiError as error:
        if error.status == 404:
            return None
        raise
