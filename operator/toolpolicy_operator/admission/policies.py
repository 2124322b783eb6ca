"""The validating webhook of ToolPolicies and ClusterToolPolicies: what ``toolpolicy check`` says, said by the API server.

A refusal lists every error at once. It is a ``Status`` of reason ``Invalid`` with one cause a problem, which kubectl
prints as ``* spec.rules[0].when: …``; other clients show the message, which holds the same lines.

The same answer serves two registrations. As a *mutating* webhook (that never changes anything) it is asked before the
API server compares the object with the CRD's schema, so that a user reads our words instead of the schema's; as a
*validating* one it is asked last, and sees what is stored. Only the latter gives warnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toolpolicy.policy.errors import Problem
from toolpolicy.policy.load import load_object
from toolpolicy.policy.shapes import mapping

Review = dict[str, Any]
MAX_CAUSES = 50
"""Problems that one answer lists; a policy with more of them is not being edited by hand."""
MAX_CAUSE = 1024
"""Characters of one problem."""


def validate_policy(review: Review) -> Review:
    """An AdmissionReview (admission.k8s.io/v1) with a request in, one with the response out.

    A DELETE passes, and so does an update that leaves the spec as it is: labels and finalizers can be changed on a
    policy that an older version had accepted.
    """
    request = mapping(review.get("request"))
    manifest = mapping(request.get("object"))
    if request.get("operation") == "DELETE" or not manifest or _same_spec(request):
        return allow(request)
    policy, problems = load_object(_named(manifest, request), str(request.get("name") or "policy"))
    if policy is None:
        return refuse(request, problems)
    return allow(request)


def allow(request: dict[str, Any], warnings: Sequence[str] = ()) -> Review:
    """The review that lets the request pass."""
    said = {"warnings": list(warnings)} if warnings else {}
    return _review({"uid": request.get("uid", ""), "allowed": True, **said})


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
                {"reason": "FieldValueInvalid", "field": path, "message": message} for path, message in shown
            ],
        },
    }
    return _review({"uid": request.get("uid", ""), "allowed": False, "status": status})


def _review(response: dict[str, Any]) -> Review:
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def _same_spec(request: dict[str, Any]) -> bool:
    """An update of metadata alone, or the last one of an object that is being deleted."""
    if request.get("operation") != "UPDATE":
        return False
    new, old = mapping(request.get("object")), mapping(request.get("oldObject"))
    if mapping(new.get("metadata")).get("deletionTimestamp"):
        return True
    return new.get("spec") == old.get("spec") and new.get("apiVersion") == old.get("apiVersion")


def _named(manifest: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the name and namespace that it will have: ``generateName`` has none yet."""
    metadata = {**mapping(manifest.get("metadata"))}
    if metadata.get("generateName") and not metadata.get("name"):
        metadata["name"] = request.get("name") or "generated"
    return {**manifest, "metadata": metadata}
