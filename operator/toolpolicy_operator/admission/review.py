"""The envelope of an admission webhook: AdmissionReview (admission.k8s.io/v1) to typed request, and answers to it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolpolicy.policy.shapes import mapping, texts

Review = dict[str, Any]
Object = dict[str, Any]
API_VERSION = "admission.k8s.io/v1"
MAX_WARNING = 256
"""Characters of one warning that the API server passes on."""


class BadReview(ValueError):
    """What came is no review that can be judged; the message says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """``object`` is empty for DELETE, ``old`` for CREATE."""

    uid: str
    operation: str
    kind: str
    subresource: str
    namespace: str
    name: str
    object: Object
    old: Object
    dry_run: bool
    user: str
    groups: tuple[str, ...]


def parse(review: object) -> Request:
    """The request of a review. Raises :class:`BadReview`."""
    fields = mapping(review)
    if fields.get("kind") != "AdmissionReview" or fields.get("apiVersion") != API_VERSION:
        raise BadReview(f"expected an AdmissionReview of {API_VERSION}")
    request = mapping(fields.get("request"))
    if not request:
        raise BadReview("the AdmissionReview has no request")
    missing = [name for name in ("uid", "operation") if not isinstance(request.get(name), str) or not request[name]]
    if missing:
        raise BadReview(f"the AdmissionReview's request has no {' and no '.join(missing)}")
    for name in ("object", "oldObject"):
        if not isinstance(request.get(name), dict | None):
            raise BadReview(f"the AdmissionReview's {name} is not an object")
    user = mapping(request.get("userInfo"))
    return Request(
        uid=request["uid"],
        operation=request["operation"],
        kind=_text(mapping(request.get("kind")).get("kind")),
        subresource=_text(request.get("subResource")),
        namespace=_text(request.get("namespace")),
        name=_text(request.get("name")),
        object=mapping(request.get("object")),
        old=mapping(request.get("oldObject")),
        dry_run=request.get("dryRun") is True,
        user=_text(user.get("username")),
        groups=tuple(texts(user.get("groups"))),
    )


def allowed(uid: str, *, warnings: Sequence[str] = (), audit: Mapping[str, str] | None = None) -> Review:
    return _answer(uid, {"allowed": True}, warnings, audit)


def patched(
    uid: str, patch: Sequence[Object], *, warnings: Sequence[str] = (), audit: Mapping[str, str] | None = None
) -> Review:
    """Allowed, with a JSON patch (RFC 6902); an empty one is left out."""
    if not patch:
        return allowed(uid, warnings=warnings, audit=audit)
    encoded = base64.b64encode(json.dumps(list(patch), separators=(",", ":")).encode()).decode()
    return _answer(uid, {"allowed": True, "patchType": "JSONPatch", "patch": encoded}, warnings, audit)


def refused(
    uid: str, message: str, *, code: int = 403, reason: str = "Forbidden", audit: Mapping[str, str] | None = None
) -> Review:
    return _answer(uid, {"allowed": False, "status": {"code": code, "reason": reason, "message": message}}, (), audit)


def bad(review: object, problem: BadReview) -> Review:
    """The refusal of what can't be judged: 400."""
    uid = mapping(mapping(review).get("request")).get("uid")
    return refused(uid if isinstance(uid, str) else "", str(problem), code=400, reason="BadRequest")


def _answer(uid: str, fields: Object, warnings: Sequence[str], audit: Mapping[str, str] | None) -> Review:
    response: Object = {"uid": uid, **fields}
    if warnings:
        response["warnings"] = [shorten(warning) for warning in warnings]
    if audit:
        response["auditAnnotations"] = dict(audit)
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


def shorten(warning: str) -> str:
    return warning if len(warning) <= MAX_WARNING else warning[: MAX_WARNING - 3] + "..."


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
