"""A pod that comes with a sidecar may hold anything in it: the answer is always a row of the table, never a fault."""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.pods import DEFAULTS, ENABLED, NAMESPACE, Object, pod, policy
from toolpolicy_operator.admission import podshape
from toolpolicy_operator.admission.review import BadReview
from toolpolicy_operator.injection.plan import Plan, make_plan
from toolpolicy_operator.injection.pod import examine, inject, treat, verify

PROBE: Object = {"httpGet": {"path": "/healthz", "port": 8000, "httpHeaders": [{"name": "X", "value": "y"}]}}


def plan_of(interception: str) -> Plan:
    return make_plan([policy(interception=interception)], NAMESPACE, ENABLED, DEFAULTS)


def injected(interception: str = "Redirect") -> Object:
    given_pod = pod()
    given_pod["spec"]["containers"][0]["livenessProbe"] = copy.deepcopy(PROBE)
    return copy.deepcopy(inject(given_pod, plan_of(interception)))


def sidecar_of(given_pod: Object) -> Object:
    return next(c for c in given_pod["spec"]["initContainers"] if c["name"] == "toolpolicy-sidecar")


def asking(question: Any) -> Object:
    """A pod whose TOOLPOLICY_PROBES says of its probe what ``question`` is."""
    found = injected()
    variable = next(e for e in sidecar_of(found)["env"] if e["name"] == "TOOLPOLICY_PROBES")
    variable["value"] = json.dumps({"app/liveness": question})
    return found


def answered(given_pod: Object, plan: Plan) -> None:
    """None of them raises, and what they make can be written."""
    for answer in (treat, verify):
        json.dumps(answer(given_pod, plan).pod).encode()
    examine(given_pod, plan)


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
names_of_fields = st.sampled_from(["name", "value", "port", "path", "limits", "memory", "mountPath"]) | st.text(
    max_size=4
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names_of_fields, inner, max_size=3),
    max_leaves=6,
)
questions = st.fixed_dictionaries(
    {"type": st.sampled_from(["http", "tcp", "grpc"]), "port": st.just(8000) | values},
    optional={
        "path": st.sampled_from(["/healthz", "\ud800", "/$$"]) | values,
        "scheme": values,
        "service": values,
        "headers": values | st.lists(st.fixed_dictionaries({"name": values, "value": values}), max_size=2),
    },
)


@given(questions | values)
@example({"type": "http", "port": 8000, "path": "/", "headers": "abc"})
@example({"type": "http", "port": 8000, "path": "/", "headers": [{"name": 5}]})
@example({"type": "http", "port": 8000, "path": "\ud800"})
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_probes_are_said_to_ask(question: Any) -> None:
    answered(asking(question), plan_of("Redirect"))


@pytest.mark.parametrize("headers", ["abc", [5], [{"name": 5}], [{"name": "X", "value": 1}], {"name": "X"}])
def test_headers_that_no_probe_has_are_not_given_to_the_sidecar(headers: Any) -> None:
    given_pod = asking({"type": "http", "port": 8000, "path": "/", "headers": headers})
    made = treat(given_pod, plan_of("Redirect"))
    assert "TOOLPOLICY_PROBES" not in [e["name"] for e in sidecar_of(made.pod)["env"]]


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    members: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        members = list(cast("dict[Any, Any]", value).items())
    elif isinstance(value, list):
        members = list(enumerate(cast("list[Any]", value)))
    return [path, *(p for key, member in members for p in paths(member, (*path, key)))]


@pytest.mark.parametrize("interception", ["Redirect", "Port"])
@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_changed_in_an_injected_pod(interception: str, data: st.DataObject) -> None:
    changed = injected(interception)
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from([p for p in paths(changed) if p]))
        place: Any = changed
        for key in above:
            place = place[key]
        if data.draw(st.booleans()):
            del place[last]
        else:
            place[last] = data.draw(values)
    try:
        podshape.check(changed)
    except BadReview:
        return
    answered(changed, plan_of(interception))
