"""The webhooks of pods: a mutating one that injects, a validating one that sees to it that what is stored is guarded.

What is selected comes from the store, without a request to the API server. Where the store selects nothing, or says
that the namespace is not enabled although the API server asks, policies and namespace are read once, within a second:
one ``kubectl apply`` may create namespace, policy and pod faster than any watch tells. A failure of that refuses.

Nothing is written and nothing remembered for a request, so a dry run is one like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from toolpolicy.policy.model import Policy
from toolpolicy_operator import names
from toolpolicy_operator.admission import jsonpatch, podshape, review
from toolpolicy_operator.admission.review import BadReview, Object, Request, Review
from toolpolicy_operator.injection import checks, guardrails, podview
from toolpolicy_operator.injection.eligibility import Eligibility, Reason
from toolpolicy_operator.injection.plan import Defaults, Plan, make_plan
from toolpolicy_operator.injection.pod import Injection, restore, treat, verify

LOOKUP_SECONDS = 1.0
UNSELECTED = (Reason.NO_POLICY, Reason.OPTED_OUT)
"""Rows of the table that leave a pod of an enabled namespace as it is."""
WRITTEN_SECONDS = 3.0
"""How long a pod waits for its policies to be written; with the lookup less than the webhook's own deadline."""


class Selection(Protocol):
    """What the store is asked."""

    def policies_for(
        self, namespace: str, labels: Mapping[str, str], namespace_labels: Mapping[str, str]
    ) -> Sequence[Policy]:
        """The policies that select a pod."""
        ...

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        """Empty for a namespace that is not known (yet): every real one has labels."""
        ...


class Rules(Protocol):
    """What is known of the rules that pods mount."""

    async def missing(self, namespace: str, policies: Sequence[Policy], within: float) -> Sequence[Policy]:
        """Those that a pod of the namespace would not find."""
        ...


class LookupFailed(Exception):
    """Policies or namespace could not be read; the message says why."""


class Lookup(Protocol):
    """The same, from the API server itself, as of now."""

    async def read(self, namespace: str) -> tuple[Selection, Mapping[str, str]]:
        """The policies that are there, and the namespace's labels. Raises :class:`LookupFailed`."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """For metrics and events; of a dry run, too, which has no other effects: ``dry_run`` says so."""

    namespace: str
    pod: str
    eligibility: Eligibility
    operation: str
    dry_run: bool


Observer = Callable[[Decision], None]


async def mutate(
    body: Review,
    store: Selection,
    lookup: Lookup,
    defaults: Defaults,
    *,
    rules: Rules | None = None,
    observe: Observer | None = None,
) -> Review:
    """AdmissionReview of a pod's CREATE in; out the review that lets it pass, as it is or with the patch that injects
    the sidecar, or that refuses it with the reason. With ``rules`` a pod waits until they hold its policies.
    """
    try:
        request = _request(body)
        if request.operation != "CREATE" or request.subresource:
            return review.allowed(request.uid)
        plan, _ = await _plan(request, store, lookup, defaults)
    except BadReview as problem:
        return review.bad(body, problem)
    except LookupFailed as problem:
        return _unreadable(body, problem)
    injection = treat(request.object, plan)
    brought = names.INJECTED_ANNOTATION in podview.annotations_of(request.object)
    if brought and injection.eligibility.reason in UNSELECTED:
        # An older injection of a pod that was exported and is applied again; what else has our names is refused below.
        injection = Injection(injection.eligibility, restore(request.object))
    if injection.eligibility.eligible and rules is not None:
        missing = await rules.missing(plan.namespace, plan.policies, WRITTEN_SECONDS)
        if missing:
            injection = Injection(_not_written(missing[0]), request.object)
    _tell(observe, request, injection.eligibility)
    return _answer(request, injection, plan)


async def validate_pod(
    body: Review, store: Selection, lookup: Lookup, defaults: Defaults, *, observe: Observer | None = None
) -> Review:
    """The pod as it is going to be stored: one that is to be protected must carry just what toolpolicy injects.

    Of later changes those are refused that would open it: ephemeral containers with the sidecar's user or NET_ADMIN,
    our annotations, the images of our containers.
    """
    try:
        request = _request(body)
        if request.operation == "UPDATE":
            return _validate_update(request)
        if request.operation != "CREATE" or request.subresource:
            return review.allowed(request.uid)
        plan, selection = await _plan(request, store, lookup, defaults)
    except BadReview as problem:
        return review.bad(body, problem)
    except LookupFailed as problem:
        return _unreadable(body, problem)
    injection = verify(request.object, plan)
    posing = _posing(request.object) if injection.eligibility.reason in UNSELECTED else None
    if posing:
        injection = Injection(posing, request.object)
    if injection.eligibility.eligible:
        loosened = _loosened(request.object, plan, selection)
        if loosened:
            injection = Injection(loosened, request.object)
    _tell(observe, request, injection.eligibility)
    eligibility = injection.eligibility
    if eligibility.refused:
        return _refusal(request, eligibility)
    return review.allowed(request.uid, audit={"reason": eligibility.reason.value})


def _request(body: Review) -> Request:
    request = review.parse(body)
    if request.operation in ("CREATE", "UPDATE"):
        if request.kind not in ("", "Pod"):
            raise BadReview(f"expected a Pod, got {request.kind[:60]}: the webhook is configured for pods alone")
        podshape.check(request.object)
        if request.operation == "UPDATE":
            podshape.check(request.old)
        if not request.namespace:
            raise BadReview("the AdmissionReview's request has no namespace")
    return request


async def _plan(request: Request, store: Selection, lookup: Lookup, defaults: Defaults) -> tuple[Plan, Selection]:
    """What the store knows, unless that is nothing: then what the API server says now."""
    namespace, labels = request.namespace, podview.labels_of(request.object)
    about = store.namespace_labels(namespace)
    plan = make_plan(store.policies_for(namespace, labels, about), namespace, about, defaults)
    if about and plan.enabled and plan.policies:
        return plan, store
    try:
        async with asyncio.timeout(LOOKUP_SECONDS):
            found, about = await lookup.read(namespace)
    except TimeoutError:
        raise LookupFailed(f"no answer from the API server within {LOOKUP_SECONDS:g} s") from None
    return make_plan(found.policies_for(namespace, labels, about), namespace, about, defaults), found


def _answer(request: Request, injection: Injection, plan: Plan) -> Review:
    eligibility = injection.eligibility
    if eligibility.refused:
        return _refusal(request, eligibility)
    warnings: list[str] = []
    if eligibility.unprotected:
        warnings.append(f"toolpolicy: admitted without protection ({eligibility.reason}): {eligibility.message}")
    elif eligibility.eligible:
        warnings.extend(f"toolpolicy: {weakness}" for weakness in guardrails.weaknesses(request.object, plan))
    patch = jsonpatch.difference(request.object, injection.pod)
    return review.patched(request.uid, patch, warnings=warnings, audit={"reason": eligibility.reason.value})


def _refusal(request: Request, eligibility: Eligibility) -> Review:
    message = f"{eligibility.reason}: {eligibility.message} (pod {request.namespace}/{podview.name_of(request.object)})"
    audit = {"reason": eligibility.reason.value}
    if eligibility.reason is Reason.RULES_NOT_WRITTEN:
        return review.refused(request.uid, message, code=503, reason="ServiceUnavailable", audit=audit)
    return review.refused(request.uid, message, audit=audit)


def _not_written(policy: Policy) -> Eligibility:
    message = (
        f"{policy.kind} {policy.metadata.name} selects the pod and is not in the namespace's ConfigMap "
        f"{names.RULES_CONFIGMAP} yet, so the pod would start without it: try again; if it stays, see the policy's "
        "status and the operator's log"
    )
    return Eligibility(False, Reason.RULES_NOT_WRITTEN, message, refused=True, unprotected=True)


def _unreadable(body: Review, problem: LookupFailed) -> Review:
    message = f"toolpolicy: policies could not be read, so the pod is not admitted unguarded: {problem}. Try again"
    return review.refused(body["request"]["uid"], message, code=503, reason="ServiceUnavailable")


def _loosened(pod: Object, plan: Plan, selection: Selection) -> Eligibility | None:
    """What pod and namespace were labelled at admission, as the sidecar is told, must select all that their labels now
    do: it is what holds once they change.
    """
    told = guardrails.admitted_labels(pod)
    if told is None:
        message = "the labels at admission that the sidecar is told can't be read"
    elif told == (podview.labels_of(pod), plan.namespace_labels):
        return None
    else:
        kept = {(p.kind, p.metadata.name) for p in selection.policies_for(plan.namespace, *told)}
        missing = sorted({(p.kind, p.metadata.name) for p in plan.policies} - kept)
        if not missing:
            return None
        kind, name = missing[0]
        message = f"the labels were changed after injection, and {kind} {name} would not hold for good"
    return Eligibility(False, Reason.ALTERED, message, refused=plan.enforced, unprotected=True)


def _posing(pod: Object) -> Eligibility | None:
    """A pod that gets no sidecar must not bring one of its own: a label added later would have a policy select it, and
    its reports, by a genuine token of the pod, would pass for those of a sidecar.
    """
    found = checks.our_name(pod)
    if found is None:
        return None
    message = f"{found} is a name of toolpolicy's own, and this pod gets no sidecar: choose another"
    return Eligibility(False, Reason.NAME_TAKEN, message, refused=True)


def _validate_update(request: Request) -> Review:
    problem = guardrails.opened(request.old, request.object)
    if problem:
        return review.refused(request.uid, f"{problem} (pod {request.namespace}/{request.name})")
    return review.allowed(request.uid)


def _tell(observe: Observer | None, request: Request, eligibility: Eligibility) -> None:
    if observe is not None:
        pod = podview.name_of(request.object)
        observe(Decision(request.namespace, pod, eligibility, request.operation, request.dry_run))
