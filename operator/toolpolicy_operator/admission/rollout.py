"""Who writes ``rollout: Restart`` has pods evicted, so that is for those who may evict pods themselves.

Asked by SubjectAccessReview when a policy with it is created or its spec is changed: in the policy's namespace, for a
ClusterToolPolicy in all of them. No answer is no.
"""

from __future__ import annotations

from typing import Any, Protocol

from toolpolicy.policy.shapes import items, mapping
from toolpolicy_operator.admission import review as reviews
from toolpolicy_operator.kube import ApiError, Object

Review = dict[str, Any]
PATH = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
SECONDS = 2.0


class Creates(Protocol):
    async def create(self, path: str, obj: Object, *, within: float) -> Object: ...


def asks(request: Object) -> bool:
    """Whether this request makes or changes a policy that has pods restarted."""
    if request.get("operation") not in ("CREATE", "UPDATE") or request.get("subResource"):
        return False
    spec, before = mapping(mapping(request.get("object")).get("spec")), mapping(request.get("oldObject")).get("spec")
    return spec.get("rollout") == "Restart" and spec != before


def access_review(request: Object) -> Object:
    """The question: may this user evict pods where the policy applies?"""
    user = mapping(request.get("userInfo"))
    attributes: Object = {"verb": "create", "resource": "pods", "subresource": "eviction"}
    namespace = request.get("namespace")
    if namespace:
        attributes["namespace"] = namespace
    spec: Object = {"resourceAttributes": attributes, "user": user.get("username") or ""}
    spec["groups"] = [g for g in items(user.get("groups")) if isinstance(g, str)]
    if user.get("uid"):
        spec["uid"] = user["uid"]
    if mapping(user.get("extra")):
        spec["extra"] = user["extra"]
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}


async def check(review: Review, api: Creates) -> Review | None:
    """The refusal, or None where nothing is to be said against the request."""
    request = mapping(review.get("request"))
    if not asks(request):
        return None
    where = f"in namespace {request['namespace']}" if request.get("namespace") else "in all namespaces"
    uid = str(request.get("uid") or "")
    try:
        answer = await api.create(PATH, access_review(request), within=SECONDS)
    except ApiError as error:
        message = f"spec.rollout: whether you may evict pods {where} could not be asked: {error}. Try again"
        return reviews.refused(uid, message, code=503, reason="ServiceUnavailable")
    if mapping(answer.get("status")).get("allowed") is True:
        return None
    user = mapping(request.get("userInfo")).get("username") or "the user"
    message = (
        f"spec.rollout: Restart evicts pods, and {user} may not create pods/eviction {where}: "
        "leave rollout at Manual, or ask for the right"
    )
    return reviews.refused(uid, message)
