"""The truth table, its documentation, and the ports that policies mean."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from support.pods import DEFAULTS, ENABLED, GOLDEN, NAMESPACE, Object, pod, policy
from toolpolicy_operator import names
from toolpolicy_operator.injection import reference
from toolpolicy_operator.injection.eligibility import OTHER_REASONS, TABLE, Effect, Reason, decide
from toolpolicy_operator.injection.plan import Plan, make_plan
from toolpolicy_operator.injection.pod import NotInjected, examine, inject, restore, treat
from toolpolicy_operator.injection.ports import Ambiguous, McpPort, NotFound, TooMany, resolve

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "injection.md"


def plan(*policies: Any, labels: Any = ENABLED) -> Plan:
    return make_plan(policies or (policy(),), NAMESPACE, labels, DEFAULTS)


def ports(*declared: tuple[str | None, int]) -> Object:
    entries = [{"containerPort": number} | ({"name": name} if name else {}) for name, number in declared]
    return pod(containers=[{"name": "app", "image": "x", "ports": entries}])


def numbers(given: Object, *stated: Any) -> Any:
    found = resolve(given, stated)
    return tuple(port.number for port in found) if isinstance(found, tuple) else found


def test_every_reason_is_of_the_table_or_explained_beside_it() -> None:
    listed = [row.reason for row in TABLE] + [reason for reason, _ in OTHER_REASONS]
    assert sorted(listed) == sorted(Reason)
    assert len(set(listed)) == len(listed)


def test_every_row_has_a_golden_pod() -> None:
    texts = [p.read_text() for p in GOLDEN.iterdir() if not p.name.endswith(".in.yaml")]
    seen = {text.removeprefix("# ").split(":")[0] for text in texts}
    assert {row.reason for row in TABLE} - seen == {Reason.TOO_MANY_PORTS}


def test_the_documentation_has_the_table_as_it_is() -> None:
    page = PAGE.read_text()
    assert reference.updated(page) == page, "run: python -m toolpolicy_operator.injection.reference"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.reason)
def test_every_message_says_what_to_do(row: Any) -> None:
    words = ("run ", "remove", "choose", "label", "compare", "add ", "name it", "serve ", "state ", "narrow", "leave")
    assert row.effect is Effect.INJECT or row.reason is Reason.OPT_OUT_NOT_ALLOWED or any(w in row.cure for w in words)


@pytest.mark.parametrize(
    ("stated", "declared", "expected"),
    [
        ([None], [("mcp", 8000), ("web", 8080)], (8000,)),
        ([None], [(None, 8000)], (8000,)),
        ([None], [("web", 8080), (None, 8000)], Ambiguous((8000, 8080))),
        ([None], [], NotFound(None)),
        (["web"], [("mcp", 8000), ("web", 8080)], (8080,)),
        (["other"], [("mcp", 8000)], NotFound("other")),
        ([8080], [("mcp", 8000)], (8080,)),
        ([None, 8080], [("mcp", 8000)], (8000, 8080)),
        ([None, 8080], [("a", 1), ("b", 2)], (8080,)),
        ([9000, "mcp", 8080], [("mcp", 8000)], (8000, 8080, 9000)),
        (list(range(1, 18)), [], TooMany(tuple(range(1, 18)))),
    ],
)
def test_which_ports_the_policies_mean(stated: Any, declared: Any, expected: Any) -> None:
    assert numbers(ports(*declared), *stated) == expected


def test_one_name_for_two_numbers_is_ambiguous() -> None:
    given = pod(
        containers=[
            {"name": "a", "image": "x", "ports": [{"name": "mcp", "containerPort": 1}]},
            {"name": "b", "image": "x", "ports": [{"name": "mcp", "containerPort": 2}]},
        ]
    )
    assert resolve(given, (None,)) == Ambiguous((1, 2), "mcp")


def test_a_port_of_an_init_container_that_ends_is_none() -> None:
    given = pod(
        containers=[{"name": "a", "image": "x"}],
        initContainers=[{"name": "i", "image": "x", "ports": [{"containerPort": 8000}]}],
    )
    assert resolve(given, (None,)) == NotFound(None)
    given["spec"]["initContainers"][0]["restartPolicy"] = "Always"
    assert resolve(given, (None,)) == (McpPort(8000, (), names.SIDECAR_PORT),)


def test_further_servers_get_further_ports_beside_the_admin_port() -> None:
    found = resolve(ports(), tuple(range(8000, 8016)))
    assert isinstance(found, tuple)
    listens = [port.listen for port in found]
    assert listens[:3] == [15771, 15773, 15774]
    assert names.ADMIN_PORT not in listens
    assert len(set(listens)) == 16


@pytest.mark.parametrize("security", [None, "privileged", "baseline", "restricted"])
@pytest.mark.parametrize("wanted", ["Auto", "Redirect", "Port"])
def test_interception_follows_from_policy_and_pod_security(security: str | None, wanted: str) -> None:
    labels = ENABLED | ({"pod-security.kubernetes.io/enforce": security} if security else {})
    found = decide(pod(), plan(policy(interception=wanted), labels=labels))
    forbidden = security in ("baseline", "restricted")
    if wanted == "Redirect" and forbidden:
        assert found.reason is Reason.REDIRECT_FORBIDDEN
        return
    injected = inject(pod(), plan(policy(interception=wanted), labels=labels))
    expected = "Port" if wanted == "Port" or forbidden else "Redirect"
    assert injected["metadata"]["annotations"][names.INTERCEPTION_ANNOTATION] == expected


OPT_OUT = {names.INJECTION_LABEL: "disabled", "app": "mcp"}


@pytest.mark.parametrize(
    ("allowed", "forbidden", "mode", "reason", "refused"),
    [
        (True, False, "Enforce", Reason.OPTED_OUT, False),
        (False, False, "Enforce", Reason.OPT_OUT_NOT_ALLOWED, True),
        (True, True, "Enforce", Reason.OPT_OUT_NOT_ALLOWED, True),
        (False, False, "Audit", Reason.OPT_OUT_NOT_ALLOWED, False),
        (True, True, "Audit", Reason.OPTED_OUT, False),
    ],
)
def test_opting_out(allowed: bool, forbidden: bool, mode: str, reason: Reason, refused: bool) -> None:
    given = pod()
    given["metadata"]["labels"] = dict(OPT_OUT)
    labels = ENABLED | ({names.OPT_OUT_LABEL: "allowed"} if allowed else {})
    more = [policy("baseline", "ClusterToolPolicy", optOut="Forbidden", mode=mode)] if forbidden else []
    found = decide(given, plan(policy(mode=mode), *more, labels=labels))
    assert (found.reason, found.refused) == (reason, refused)


def test_what_warn_does_not_soften() -> None:
    given = pod(volumes=[{"name": "toolpolicy-tmp", "emptyDir": {}}])
    found = decide(given, plan(policy(ineligible="Warn")))
    assert (found.reason, found.refused) == (Reason.NAME_TAKEN, True)
    assert not decide(pod(hostNetwork=True), plan(policy(ineligible="Warn"))).refused


def test_inject_says_why_not() -> None:
    with pytest.raises(NotInjected, match="HostNetwork: ") as refused:
        inject(pod(hostNetwork=True), plan())
    assert refused.value.eligibility.reason is Reason.HOST_NETWORK


def test_the_cluster_decides_where_the_namespace_says_nothing() -> None:
    from dataclasses import replace

    silent = {"kubernetes.io/metadata.name": NAMESPACE}
    assert not make_plan([policy()], NAMESPACE, silent, DEFAULTS).enabled
    opted = replace(DEFAULTS, default_injection=True)
    assert make_plan([policy()], NAMESPACE, silent, opted).enabled
    assert not make_plan([policy()], NAMESPACE, {names.INJECTION_LABEL: "disabled"}, opted).enabled


def test_a_stored_pod_is_examined_with_the_same_words() -> None:
    assert examine(pod(), plan()).reason is Reason.SELECTED
    assert examine(inject(pod(), plan()), plan()).reason is Reason.INJECTED
    assert examine(pod(hostNetwork=True), plan()).reason is Reason.HOST_NETWORK
    changed = inject(pod(), plan())
    changed["spec"]["initContainers"][1]["image"] = "other"
    assert examine(changed, plan()).reason is Reason.ALTERED


def test_what_an_older_version_injected_is_replaced_and_taken_back() -> None:
    fresh = inject(pod(), plan())
    older = copy.deepcopy(fresh)
    older["metadata"]["annotations"][names.INJECTED_ANNOTATION] = "0.0.9"
    older["spec"]["initContainers"][1] |= {"image": "old/sidecar:0.0.9", "command": ["toolpolicy-sidecar"]}
    older["spec"]["initContainers"][1]["env"].append({"name": "TOOLPOLICY_OF_THEN", "value": "1"})
    older["spec"]["volumes"][3]["emptyDir"] = {}
    assert treat(older, plan()).pod == fresh
    assert restore(older) == pod()
    assert examine(older, plan()).message == "the sidecar was injected by toolpolicy 0.0.9"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "1", '{"app/liveness": 1}', '{"app/liveness": {"type": "http", "port": [], "path": 1}}', "[" * 5000],
)
def test_probes_that_a_hostile_pod_claims_are_not_believed(text: str) -> None:
    given = inject(pod(), plan())
    given["metadata"]["annotations"][names.INJECTED_ANNOTATION] = "0.0.9"
    given["spec"]["containers"][0]["livenessProbe"] = {"httpGet": {"path": "/probe/app/liveness", "port": 15772}}
    given["spec"]["initContainers"][1]["env"].insert(0, {"name": "TOOLPOLICY_PROBES", "value": text})
    assert treat(given, plan()).eligibility.eligible


@pytest.mark.parametrize(
    ("owner", "labels", "expected"),
    [
        (("ReplicaSet", "web-7d4b9c6f5"), {"pod-template-hash": "7d4b9c6f5"}, "web"),
        (("ReplicaSet", "web"), {}, "web"),
        (("Job", "nightly-29401560"), {}, "nightly"),
        (("Job", "import-2024"), {}, "import-2024"),
        (("StatefulSet", "imaging"), {}, "imaging"),
        (("Rollout", "imaging"), {}, "imaging"),
        (None, {}, "server"),
    ],
)
def test_a_server_is_called_after_its_workload(owner: Any, labels: Any, expected: str) -> None:
    given = pod()
    given["metadata"]["labels"] |= labels
    if owner:
        given["metadata"]["ownerReferences"] = [{"kind": owner[0], "name": owner[1], "controller": True}]
    env = inject(given, plan())["spec"]["initContainers"][1]["env"]
    assert {"name": "TOOLPOLICY_SERVER_NAME", "value": f"{NAMESPACE}/{expected}"} in env
