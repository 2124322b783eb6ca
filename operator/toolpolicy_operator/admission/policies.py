"""The webhook of ToolPolicies and ClusterToolPolicies: what ``toolpolicy check`` says, said by the API server.

A refusal lists every error at once. It is a ``Status`` of reason ``Invalid`` with one cause a problem, which kubectl
prints as ``* spec.rules[0].when: …``; other clients show the message, which holds the same lines.

The same answer serves two registrations, at one path. As a *mutating* webhook (that never changes anything) it is asked
before the API server compares the object with the CRD's schema, so that a user reads our words instead of the schema's;
as a *validating* one it is asked last, and sees what is stored. The API server passes on a warning once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from toolpolicy.policy.errors import Problem
from toolpolicy.policy.load import load_object
from toolpolicy.policy.model import Policy
from toolpolicy.policy.shapes import mapping
from toolpolicy_operator.admission.policy_warnings import Services, port_namespaces, reach, warnings
from toolpolicy_operator.admission.sizes import Sizes, near, too_large
from toolpolicy_operator.kube import ApiError, Object
from toolpolicy_operator.store import Store

Review = dict[str, Any]
ListServices = Callable[[str], Awaitable[Sequence[Object]]]
"""The Services of a namespace, from the API server; may raise :class:`ApiError`."""
SERVICES_SECONDS = 1.0
"""For all namespaces together: a warning is worth no more of the webhook's 5 s."""
SERVICES_NAMESPACES = 3
MAX_CAUSES = 50
"""Problems that one answer lists; a policy with more of them is not being edited by hand."""
MAX_CAUSE = 1024
"""Characters of one problem."""


async def validate_policy(
    review: Review, store: Store | None = None, list_services: ListServices | None = None
) -> Review:
    """An AdmissionReview (admission.k8s.io/v1) with a request in, one with the response out.

    Without ``store`` nothing is said about namespaces and pods; without ``list_services`` nothing about Services.
    """
    request = mapping(review.get("request"))
    admitted = _admissible(request)
    known: Services = {}
    if admitted[0] is not None and store is not None and list_services is not None:
        wanted = port_namespaces(reach(admitted[0], store), store)
        known = await _services(wanted[:SERVICES_NAMESPACES], list_services)
    return _judge(request, admitted, store, known)


def review_policy(review: Review, store: Store | None = None, services: Services | None = None) -> Review:
    """As :func:`validate_policy`, with everything that is needed at hand.

    A DELETE passes, and so does an update that leaves the spec as it is: labels and finalizers can be changed on a
    policy that an older version had accepted.
    """
    request = mapping(review.get("request"))
    return _judge(request, _admissible(request), store, services or {})


Admissible = tuple[Policy | None, list[Problem]]


def _judge(request: dict[str, Any], admitted: Admissible, store: Store | None, services: Services) -> Review:
    manifest = mapping(request.get("object"))
    policy, problems = admitted
    if request.get("operation") == "DELETE" or not manifest or _being_deleted(manifest):
        return allow(request)
    if policy is None:
        if not _same_spec(request):
            return refuse(request, problems)
        return allow(request, [f"still invalid, and not enforced: {p.path}: {p.message}"[:256] for p in problems[:5]])
    if store is None:
        return allow(request)
    sizes = Sizes.of(policy, _core(manifest), _old(request), store)
    if refused := too_large(sizes):
        return refuse(request, [Problem("", 0, 0, "spec", refused, code="too-large")])
    return allow(request, [*warnings(reach(policy, store), store, services), *near(sizes)])


def allow(request: dict[str, Any], said: Sequence[str] = ()) -> Review:
    """The review that lets the request pass, with warnings."""
    return _review({"uid": request.get("uid", ""), "allowed": True, **({"warnings": list(said)} if said else {})})


def refuse(request: dict[str, Any], problems: Sequence[Problem]) -> Review:
    """The review that refuses the request with every problem (422 Invalid)."""
    shown = [(p.path, p.message[:MAX_CAUSE]) for p in problems[:MAX_CAUSES]]
    if len(problems) > MAX_CAUSES:
        shown.append(("", f"and {len(problems) - MAX_CAUSES} more: `toolpolicy check FILE` lists them all"))
    kind = mapping(request.get("kind"))
    status = {
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "code": 422,
        "reason": "Invalid",
        "message": "\n".join(f"{path}: {message}" if path else message for path, message in shown),
        "details": {
            "name": request.get("name") or "",
            "group": kind.get("group", ""),
            "kind": kind.get("kind", ""),
            "causes": [
                {"reason": "FieldValueInvalid", "field": path or "spec", "message": message} for path, message in shown
            ],
        },
    }
    return _review({"uid": request.get("uid", ""), "allowed": False, "status": status})


def _review(response: dict[str, Any]) -> Review:
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def _admissible(request: dict[str, Any]) -> Admissible:
    """The policy of the request, or what is wrong with it. A manifest that was read from a file has no managed
    fields, and what the API server adds is no statement of the user's."""
    manifest = mapping(request.get("object"))
    metadata = {k: v for k, v in mapping(manifest.get("metadata")).items() if k != "managedFields"}
    if request.get("namespace") and "namespace" not in metadata:
        metadata["namespace"] = request["namespace"]
    if metadata.get("generateName") and not metadata.get("name"):
        metadata["name"] = request.get("name") or "generated"
    return load_object({**manifest, "metadata": metadata}, str(request.get("name") or "policy"))


def _core(manifest: dict[str, Any]) -> Object:
    """What of a manifest goes to the sidecars."""
    return {key: manifest.get(key) for key in ("apiVersion", "kind", "metadata", "spec")}


def _old(request: dict[str, Any]) -> Object | None:
    old = mapping(request.get("oldObject"))
    return _core(old) if request.get("operation") == "UPDATE" and old else None


def _being_deleted(manifest: dict[str, Any]) -> bool:
    return bool(mapping(manifest.get("metadata")).get("deletionTimestamp"))


def _same_spec(request: dict[str, Any]) -> bool:
    new, old = mapping(request.get("object")), mapping(request.get("oldObject"))
    return request.get("operation") == "UPDATE" and all(new.get(k) == old.get(k) for k in ("spec", "apiVersion"))


async def _services(namespaces: Sequence[str], list_services: ListServices) -> Services:
    """What can be had in time; a warning that is left out refuses nobody's policy."""
    found: dict[str, Sequence[Object]] = {}
    try:
        async with asyncio.timeout(SERVICES_SECONDS):
            for namespace in namespaces:
                found[namespace] = await list_services(namespace)
    except (ApiError, TimeoutError):
        pass
    return found
