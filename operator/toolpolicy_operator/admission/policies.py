"""The webhook of ToolPolicies and ClusterToolPolicies: what ``toolpolicy check`` says, said by the API server.

A refusal lists every error at once. It is a ``Status`` of reason ``Invalid`` with one cause a problem, which kubectl
prints as ``* spec.rules[0].when: …``; other clients show the message, which holds the same lines.

The same answer serves two registrations, at one path. As a *mutating* webhook (that never changes anything) it is asked
before the API server compares the object with the CRD's schema, so that a user reads our words instead of the schema's;
as a *validating* one it is asked last, and sees what is stored. The API server passes on a warning once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, cast

from toolpolicy.policy.check import findings
from toolpolicy.policy.errors import Problem
from toolpolicy.policy.explained import spell
from toolpolicy.policy.load import load_object
from toolpolicy.policy.model import Policy
from toolpolicy.policy.shapes import mapping
from toolpolicy_operator import parsed
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
MAX_EXAMINED = 5
"""Policies that are examined or wait for it. The largest take a third of a second, and the webhook has five."""
_KEPT = 128 * 1024
"""Characters of a manifest that is remembered; larger ones are refused anyway."""


async def validate_policy(
    review: Review, store: Store | None = None, list_services: ListServices | None = None
) -> Review:
    """An AdmissionReview (admission.k8s.io/v1) with a request in, one with the response out.

    Without ``store`` nothing is said about namespaces and pods; without ``list_services`` nothing about Services.
    """
    request = mapping(review.get("request"))
    try:
        found = await _EXAMINER.examine(request)
    except Busy:
        return _later(request)
    known: Services = {}
    if found.policy is not None and store is not None and list_services is not None:
        wanted = port_namespaces(reach(found.policy, store), store)
        known = await _services(wanted[:SERVICES_NAMESPACES], list_services)
    return _judge(request, found, store, known)


def review_policy(review: Review, store: Store | None = None, services: Services | None = None) -> Review:
    """As :func:`validate_policy`, with everything that is needed at hand.

    A DELETE passes, and so does an update that leaves the spec as it is: labels and finalizers can be changed on a
    policy that an older version had accepted.
    """
    request = mapping(review.get("request"))
    return _judge(request, _examine(request), store, services or {})


@dataclass(frozen=True, slots=True)
class Examined:
    """What can be said of a manifest without a cluster. ``warnings`` are check's."""

    policy: Policy | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


class Busy(Exception):
    """So many policies wait to be examined that one more would not be in time."""


class Examiner:
    """Examines policies beside the event loop, one at a time: they would keep the interpreter from it, on which every
    pod is asked about, if there were more. One whose review has timed out before its turn is not examined.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "examine")
        self._asked: list[Future[Examined]] = []

    async def examine(self, request: dict[str, Any]) -> Examined:
        """What can be said of a request's manifest. Raises :class:`Busy`."""
        if not _to_be_judged(request):
            return Examined()
        self._asked = [each for each in self._asked if not each.done()]
        if len(self._asked) >= MAX_EXAMINED:
            raise Busy
        asked = self._worker.submit(_examine, request)
        self._asked.append(asked)
        return await asyncio.wrap_future(asked)


_EXAMINER = Examiner()
"""One for the process, whoever asks: it is the interpreter that they share."""


def _judge(request: dict[str, Any], found: Examined, store: Store | None, services: Services) -> Review:
    manifest = mapping(request.get("object"))
    if not _to_be_judged(request):
        return allow(request)
    if found.policy is None:
        if not _same_spec(request):
            return refuse(request, found.problems)
        told = [f"still invalid, and not enforced: {p.path}: {p.message}"[:256] for p in found.problems[:5]]
        return allow(request, told)
    if store is None:
        return allow(request)
    sizes = Sizes.of(found.policy, _core(manifest), _old(request), store)
    if refused := too_large(sizes):
        return refuse(request, [Problem("", 0, 0, "spec", refused, code="too-large")])
    return allow(request, warnings(reach(found.policy, store), store, services, [*near(sizes), *found.warnings]))


def _to_be_judged(request: dict[str, Any]) -> bool:
    manifest = mapping(request.get("object"))
    deleted = mapping(manifest.get("metadata")).get("deletionTimestamp")
    return bool(manifest) and request.get("operation") != "DELETE" and not deleted


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


def _later(request: dict[str, Any]) -> Review:
    """The review that refuses for now (503)."""
    message = "toolpolicy is examining other policies, and has not come to this one: try again in a few seconds"
    status = {"status": "Failure", "code": 503, "reason": "ServiceUnavailable", "message": message}
    return _review({"uid": request.get("uid", ""), "allowed": False, "status": status})


def _review(response: dict[str, Any]) -> Review:
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def _examine(request: dict[str, Any]) -> Examined:
    """The policy of the request, or what is wrong with it. A manifest that was read from a file has no managed
    fields, and what the API server adds is no statement of the user's.
    """
    if not _to_be_judged(request):
        return Examined()
    manifest = mapping(request.get("object"))
    metadata = manifest.get("metadata")
    if isinstance(metadata, dict):
        held = mapping(cast("object", metadata))
        metadata = {key: held[key] for key in ("name", "namespace", "labels") if key in held}
        if request.get("namespace"):
            metadata.setdefault("namespace", request["namespace"])
        if held.get("generateName") and not metadata.get("name"):
            metadata["name"] = request.get("name") or "generated"
    examined = {**{k: v for k, v in manifest.items() if k != "status"}, "metadata": metadata}
    raw = json.dumps(examined, separators=(",", ":"))
    return _examined(raw) if len(raw) <= _KEPT else _examined.__wrapped__(raw)


@lru_cache(maxsize=32)
def _examined(raw: str) -> Examined:
    """Both registrations ask about the same manifest, and those who apply it again do, too."""
    manifest: Object = json.loads(raw)
    policy, problems = load_object(manifest, "the policy")
    if policy is None:
        return Examined(None, tuple(problems))
    parsed.keep(manifest, policy)
    found = (f"{spell(f.path)}: {f.message}" for f in findings(policy, None) if f.severity == "warning")
    return Examined(policy, (), tuple(islice(found, MAX_CAUSES)))


def _core(manifest: dict[str, Any]) -> Object:
    """What of a manifest goes to the sidecars."""
    return {key: manifest.get(key) for key in ("apiVersion", "kind", "metadata", "spec")}


def _old(request: dict[str, Any]) -> Object | None:
    old = mapping(request.get("oldObject"))
    return _core(old) if request.get("operation") == "UPDATE" and old else None


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
