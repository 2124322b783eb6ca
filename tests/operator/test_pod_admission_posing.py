"""A pod that is not injected can't pose as one: its own "sidecar" would report, with a genuine token of the pod, that a
policy is in force which a label added later has select it.
"""

from __future__ import annotations

import copy

import pytest

from support.pods import DEFAULTS, Object, Policies, patched, pod, policy, review
from toolpolicy_operator import names
from toolpolicy_operator.admission.pods import mutate, validate_pod

pytestmark = pytest.mark.asyncio
LIAR: Object = {"name": "toolpolicy-sidecar", "image": "registry.example/liar:1", "restartPolicy": "Always"}
TOKEN: Object = {"name": "toolpolicy-token", "projected": {"sources": []}}
OPTED_OUT = {names.INJECTION_LABEL: names.DISABLED}


async def admitted(given: Object, store: Policies) -> tuple[Object, Object]:
    """The pod after the mutating webhook, and the answer of the validating one to it."""
    asked = review(given)
    final = patched(asked, await mutate(asked, store, store, DEFAULTS))
    return final, (await validate_pod(review(final), store, store, DEFAULTS))["response"]


def posing(*, annotated: bool = False, **spec: object) -> Object:
    found = pod(**spec)
    if annotated:
        found["metadata"]["annotations"] = {names.INJECTED_ANNOTATION: DEFAULTS.version}
    return found


@pytest.mark.parametrize("spec", [{"initContainers": [LIAR]}, {"volumes": [TOKEN]}])
async def test_names_of_ours_are_refused_where_no_policy_selects_the_pod(spec: Object) -> None:
    _, answer = await admitted(posing(**copy.deepcopy(spec)), Policies([]))
    assert not answer["allowed"]
    assert answer["status"]["message"].startswith("NameTaken: spec.")


async def test_they_are_refused_of_a_pod_that_opts_out() -> None:
    given = posing(initContainers=[copy.deepcopy(LIAR)])
    given["metadata"]["labels"] |= OPTED_OUT
    labels = {**Policies([]).namespace_labels("agents"), names.OPT_OUT_LABEL: names.OPT_OUT_ALLOWED}
    _, answer = await admitted(given, Policies([policy()], labels=labels))
    assert not answer["allowed"]


async def test_what_claims_to_be_injected_is_stripped_of_it() -> None:
    final, answer = await admitted(posing(annotated=True, initContainers=[copy.deepcopy(LIAR)]), Policies([]))
    assert answer["allowed"]
    assert "initContainers" not in final["spec"]
    assert "annotations" not in final["metadata"]


async def test_an_injected_pod_that_is_applied_again_without_its_policy_loses_its_sidecar() -> None:
    original = pod()
    injected, _ = await admitted(original, Policies([policy()]))
    final, answer = await admitted(injected, Policies([]))
    assert answer["allowed"]
    assert final == original
