"""Laws of injection, over pods of every kind."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.pods import DEFAULTS, ENABLED, NAMESPACE, Object, policy
from toolpolicy_operator.admission.jsonpatch import difference
from toolpolicy_operator.injection.plan import make_plan
from toolpolicy_operator.injection.pod import restore, treat, verify

PORTS = st.sampled_from([80, 8000, 8080, 9000, 15771, 15772])
NAMES = st.sampled_from(["mcp", "web", "https", "metrics", "toolpolicy-0"])
WHERE = st.one_of(PORTS, NAMES)


def sometimes(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Object]:
    return st.fixed_dictionaries({}, optional=fields)


HANDLERS: Any = st.one_of(
    sometimes(path=st.text(max_size=8), scheme=st.sampled_from(["HTTP", "HTTPS"]), host=st.just("h"), port=WHERE).map(
        lambda request: {"httpGet": {"port": 8000, **request}}
    ),
    WHERE.map(lambda port: {"tcpSocket": {"port": port}}),
    PORTS.map(lambda port: {"grpc": {"port": port}}),
    st.just({"exec": {"command": ["true"]}}),
)
SECURITY: Any = sometimes(
    runAsUser=st.sampled_from([0, 1000, 15771]), capabilities=st.just({"add": ["NET_ADMIN"]}), privileged=st.booleans()
)


def container(name: st.SearchStrategy[str]) -> st.SearchStrategy[Object]:
    port = st.fixed_dictionaries({"containerPort": PORTS}, optional={"name": NAMES, "protocol": st.just("UDP")})
    return st.fixed_dictionaries(
        {"name": name, "image": st.just("x")},
        optional={
            "ports": st.lists(port, max_size=3),
            "livenessProbe": HANDLERS,
            "readinessProbe": HANDLERS,
            "startupProbe": HANDLERS,
            "lifecycle": sometimes(preStop=HANDLERS, postStart=HANDLERS),
            "securityContext": SECURITY,
            "restartPolicy": st.just("Always"),
        },
    )


CONTAINERS: Any = st.lists(
    container(st.sampled_from("abcdefgh")), min_size=1, max_size=3, unique_by=lambda c: c["name"]
)
INIT: Any = st.lists(
    container(st.sampled_from(["i", "j", "istio-init", "toolpolicy-sidecar"])),
    max_size=2,
    unique_by=lambda c: c["name"],
)
ANNOTATIONS: Any = st.dictionaries(
    st.sampled_from(["toolpolicy.dev/injected", "toolpolicy.dev/ineligible", "example.com/a"]),
    st.sampled_from(["0.0.9", "x", "0.1.0"]),
)
METADATA: Any = st.fixed_dictionaries(
    {"name": st.just("server"), "namespace": st.just(NAMESPACE), "labels": st.just({"app": "mcp"})},
    optional={"annotations": ANNOTATIONS},
)
VOLUMES: Any = [{"name": "data", "emptyDir": {}}]
SPEC: Any = st.fixed_dictionaries(
    {"containers": CONTAINERS},
    optional={
        "initContainers": INIT,
        "hostNetwork": st.booleans(),
        "volumes": st.just(VOLUMES),
        "securityContext": SECURITY,
        "terminationGracePeriodSeconds": st.integers(0, 60),
    },
)
PODS: Any = st.fixed_dictionaries({"metadata": METADATA, "spec": SPEC})
SPECS: Any = st.fixed_dictionaries(
    {
        "server": sometimes(port=st.sampled_from([8000, 9000, "mcp", "web"])),
        "interception": st.sampled_from(["Auto", "Port", "Redirect"]),
        "ineligible": st.sampled_from(["Refuse", "Warn"]),
        "mode": st.sampled_from(["Enforce", "Audit"]),
    }
)
POLICIES: Any = st.lists(SPECS, min_size=1, max_size=2).map(
    lambda specs: [policy(f"p{index}", **spec) for index, spec in enumerate(specs)]
)
LABELS: Any = st.sampled_from([ENABLED, ENABLED | {"pod-security.kubernetes.io/enforce": "restricted"}])


@given(PODS, POLICIES, LABELS)
def test_injecting_twice_is_injecting_once_and_ends_as_it_is_asked_for(pod: Any, policies: Any, labels: Any) -> None:
    plan = make_plan(policies, NAMESPACE, labels, DEFAULTS)
    before = copy.deepcopy(pod)
    once = treat(pod, plan)
    assert pod == before
    if once.eligibility.refused:
        return
    assert treat(once.pod, plan) == once
    assert verify(once.pod, plan).eligibility == once.eligibility


@given(PODS, POLICIES, LABELS)
def test_what_was_injected_can_be_taken_back_without_changing_what_would_be_injected(
    pod: Any, policies: Any, labels: Any
) -> None:
    plan = make_plan(policies, NAMESPACE, labels, DEFAULTS)
    once = treat(pod, plan)
    if once.eligibility.eligible:
        assert treat(restore(once.pod), plan) == once


@given(PODS, POLICIES, LABELS)
def test_the_order_of_policies_does_not_matter(pod: Any, policies: Any, labels: Any) -> None:
    there, back = (make_plan(p, NAMESPACE, labels, DEFAULTS) for p in (policies, policies[::-1]))
    assert treat(pod, there) == treat(pod, back)


@given(PODS, POLICIES, LABELS)
def test_a_patch_makes_of_the_pod_what_it_should_be(pod: Any, policies: Any, labels: Any) -> None:
    from support.pods import apply

    after = treat(pod, make_plan(policies, NAMESPACE, labels, DEFAULTS)).pod
    patched = copy.deepcopy(pod)
    for operation in difference(pod, after):
        apply(patched, operation)
    assert patched == after
