"""The guard on a real API server: each attempt is refused where the guard is, and passes where it is not."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.control import ControlPlane
from support import guarded, install
from support.guarded import INJECTED, PLAIN, World, token_request
from toolpolicy_operator.kube import ApiError, Object

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("guard")]

MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
APPLY, JSON_PATCH = "application/apply-patch+yaml", "application/json-patch+json"
CORE = "/api/v1/namespaces/{ns}"
RULES, POD = f"{CORE}/configmaps/toolpolicy-rules", f"{CORE}/pods/injected"
POLICIES = "/apis/toolpolicy.dev/v1alpha1/namespaces/{ns}/toolpolicies"


@dataclass(frozen=True)
class Attempt:
    """``{ns}`` in the path is the namespace; ``otherwise`` is the status where nothing guards."""

    what: str
    method: str
    path: str
    body: Any = None
    kind: str = "application/json"
    says: str = ""
    who: tuple[str, ...] = ("edit", "pod")
    otherwise: int = 200


def ours(**values: str | None) -> Object:
    return {"metadata": {"annotations": {f"toolpolicy.dev/{k.replace('_', '-')}": v for k, v in values.items()}}}


def image(name: str) -> Object:
    return {"spec": {"initContainers": [{"name": name, "image": "evil.invalid/x:1"}]}}


def pod(name: str, **metadata: Any) -> Object:
    made = copy.deepcopy(PLAIN)
    made["metadata"] = {"name": name, **metadata}
    return made


def with_projected(audience: str) -> Object:
    made = pod("projecting")
    source = {"serviceAccountToken": {"audience": audience, "path": "token"}}
    made["spec"]["volumes"] = [{"name": "t", "projected": {"sources": [source]}}]
    return made


def debugging(**container: Any) -> Object:
    new = {"name": "debug", "image": "registry.invalid/debug:1", **container}
    return {"spec": {"ephemeralContainers": [new]}}


HARMLESS: Object = {"securityContext": {"runAsUser": 65532, "allowPrivilegeEscalation": False}}
ALONE = "written by the toolpolicy operator alone"
ADMITTED = "say how the pod was admitted"
DEBUG = f"{POD}/ephemeralcontainers"
EXEC = f"{POD}/exec?command=id&stdout=true&container="
DEBUGGING = "a debugging container in a pod with toolpolicy's sidecar"
ADMIN = ("admin",)

ATTEMPTS = [
    Attempt("edit the rules", "PATCH", RULES, {"data": {"index.json": "{}", "x": "y"}}, MERGE, ALONE),
    Attempt("put another CA", "PATCH", RULES, {"data": {"control-ca.crt": "MINE"}}, MERGE, ALONE),
    Attempt("replace the rules", "PATCH", RULES, [{"op": "remove", "path": "/data"}], JSON_PATCH, ALONE),
    Attempt("freeze the rules", "PATCH", RULES, {"immutable": True}, MERGE, ALONE),
    Attempt("label the rules", "PATCH", RULES, {"metadata": {"labels": {"a": "b"}}}, MERGE, ALONE),
    Attempt("put a finalizer", "PATCH", RULES, {"metadata": {"finalizers": ["x.dev/y"]}}, MERGE, ALONE),
    Attempt("delete the rules", "DELETE", RULES, says=ALONE),
    Attempt("delete all ConfigMaps", "DELETE", f"{CORE}/configmaps", says=ALONE),
    Attempt(
        "apply over the rules",
        "PATCH",
        RULES,
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "toolpolicy-rules"}, "data": {"x": "y"}},
        APPLY,
        ALONE,
    ),
    Attempt("even as administrator", "PATCH", RULES, {"data": {"x": "y"}}, MERGE, ALONE, ADMIN),
    Attempt(
        "make what looks generated",
        "POST",
        "/apis/networking.k8s.io/v1/namespaces/{ns}/networkpolicies",
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "n", "labels": {"app.kubernetes.io/managed-by": "toolpolicy-operator"}},
            "spec": {"podSelector": {}},
        },
        says=ALONE,
    ),
    Attempt("touch the pod", "PATCH", POD, ours(rules="x"), MERGE, "written by the toolpolicy operator alone"),
    Attempt("end the touching", "PATCH", POD, ours(rules=None), MERGE, ALONE),
    Attempt("deny the injection", "PATCH", POD, ours(injected=None), MERGE, ADMITTED),
    Attempt("lie about labels", "PATCH", POD, ours(namespace_labels="{}"), MERGE, ADMITTED),
    Attempt("add one of ours", "PATCH", POD, ours(ineligible="no"), MERGE, ADMITTED),
    Attempt("add one to another pod", "PATCH", f"{CORE}/pods/plain", ours(injected="1"), MERGE, ADMITTED),
    Attempt(
        "opt out while running",
        "PATCH",
        POD,
        {"metadata": {"labels": {"toolpolicy.dev/injection": "disabled"}}},
        MERGE,
        "counts when a pod is created",
    ),
    Attempt("another sidecar", "PATCH", POD, image("toolpolicy-sidecar"), STRATEGIC, "can't be changed in a pod"),
    Attempt("another redirect", "PATCH", POD, image("toolpolicy-redirect"), STRATEGIC, "can't be changed in a pod"),
    Attempt("by the status", "PATCH", f"{POD}/status", ours(injected=None), MERGE, ADMITTED, ADMIN),
    Attempt("debug as root", "PATCH", DEBUG, debugging(), STRATEGIC, DEBUGGING, ADMIN),
    Attempt(
        "debug as the sidecar",
        "PATCH",
        DEBUG,
        debugging(securityContext={"runAsUser": 15771}),
        STRATEGIC,
        DEBUGGING,
        ADMIN,
    ),
    Attempt(
        "debug with capabilities",
        "PATCH",
        DEBUG,
        debugging(securityContext={**HARMLESS["securityContext"], "capabilities": {"add": ["NET_ADMIN"]}}),
        STRATEGIC,
        DEBUGGING,
        ADMIN,
    ),
    Attempt(
        "debug with setuid programs",
        "PATCH",
        DEBUG,
        debugging(securityContext={"runAsUser": 65532}),
        STRATEGIC,
        DEBUGGING,
        ADMIN,
    ),
    Attempt(
        "debug privileged",
        "PATCH",
        DEBUG,
        debugging(securityContext={"runAsUser": 65532, "privileged": True}),
        STRATEGIC,
        DEBUGGING,
        ADMIN,
    ),
    Attempt(
        "debug beside the sidecar",
        "PATCH",
        DEBUG,
        debugging(**HARMLESS, targetContainerName="toolpolicy-sidecar"),
        STRATEGIC,
        DEBUGGING,
        ADMIN,
    ),
    Attempt(
        "debug with its volumes",
        "PATCH",
        DEBUG,
        debugging(**HARMLESS, volumeMounts=[{"name": "toolpolicy-rules", "mountPath": "/x"}]),
        STRATEGIC,
        DEBUGGING,
        ADMIN,
    ),
    Attempt("run in the sidecar", "POST", f"{EXEC}toolpolicy-sidecar", says="no commands can be run", otherwise=400),
    Attempt(
        "attach to the sidecar",
        "POST",
        f"{POD}/attach?stdout=true&container=toolpolicy-sidecar",
        says="no commands can be run",
        otherwise=400,
    ),
    Attempt(
        "a token of ours",
        "POST",
        f"{CORE}/serviceaccounts/mcp/token",
        token_request("toolpolicy.dev"),
        says="get them from the kubelet",
    ),
    Attempt(
        "a token of ours among others",
        "POST",
        f"{CORE}/serviceaccounts/mcp/token",
        token_request("a", "toolpolicy.dev"),
        says="get them from the kubelet",
    ),
    Attempt(
        "a pod that says it is injected",
        "POST",
        f"{CORE}/pods",
        pod("p", annotations={"toolpolicy.dev/injected": "1"}),
        says="at a pod's admission",
    ),
    Attempt("a pod with our token", "POST", f"{CORE}/pods", with_projected("toolpolicy.dev"), says="sidecar alone"),
    Attempt(
        "a policy's status",
        "PATCH",
        f"{POLICIES}/policy/status",
        {"status": {"observedGeneration": 9}},
        MERGE,
        "can't be written",
        ADMIN,
    ),
    # The operator's token
    Attempt("its image", "PATCH", POD, image("toolpolicy-sidecar"), STRATEGIC, "can't be changed", ("operator",)),
    Attempt("the server's image", "PATCH", POD, image("setup"), STRATEGIC, "nothing of a pod but", ("operator",)),
    Attempt(
        "a label", "PATCH", POD, {"metadata": {"labels": {"x": "y"}}}, MERGE, "nothing of a pod but", ("operator",)
    ),
    Attempt(
        "an annotation of others",
        "PATCH",
        POD,
        {"metadata": {"annotations": {"own": "2"}}},
        MERGE,
        "nothing of a pod but",
        ("operator",),
    ),
    Attempt(
        "an owner",
        "PATCH",
        POD,
        {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y"}]}},
        MERGE,
        "nothing of a pod but",
        ("operator",),
    ),
    Attempt("how it was admitted", "PATCH", POD, ours(injected=None), MERGE, ADMITTED, ("operator",)),
]
PASSING = [
    Attempt("the rules", "PATCH", RULES, {"data": {"x": "y"}}, MERGE, who=("operator",)),
    Attempt("the touching", "PATCH", POD, ours(rules="r2"), MERGE, who=("operator",)),
    Attempt(
        "a status",
        "PATCH",
        f"{POLICIES}/policy/status",
        {"status": {"observedGeneration": 9}},
        MERGE,
        who=("operator",),
    ),
    Attempt("a write that changes nothing", "PATCH", RULES, {"data": {"index.json": "{}"}}, MERGE, who=ADMIN),
    Attempt("another ConfigMap", "PATCH", f"{CORE}/configmaps/other", {"data": {"a": "2"}}, MERGE),
    Attempt("an annotation of one's own", "PATCH", POD, {"metadata": {"annotations": {"own": "2"}}}, MERGE),
    Attempt("a label of one's own", "PATCH", POD, {"metadata": {"labels": {"app": "x"}}}, MERGE),
    Attempt("another container's image", "PATCH", POD, image("setup"), STRATEGIC),
    Attempt("a pod", "POST", f"{CORE}/pods", pod("p2")),
    Attempt("a pod that opts out", "POST", f"{CORE}/pods", pod("p3", labels={"toolpolicy.dev/injection": "disabled"})),
    Attempt("a pod with another token", "POST", f"{CORE}/pods", with_projected("vault")),
    Attempt("another token", "POST", f"{CORE}/serviceaccounts/mcp/token", token_request("vault")),
    Attempt("a command in the server", "POST", f"{EXEC}server", otherwise=400),
    Attempt("debugging", "PATCH", DEBUG, debugging(**HARMLESS), STRATEGIC, who=ADMIN),
    Attempt(
        "debugging another pod", "PATCH", f"{CORE}/pods/plain/ephemeralcontainers", debugging(), STRATEGIC, who=ADMIN
    ),
    Attempt("the deletion of the pod", "DELETE", POD),
    Attempt(
        "a token for the kubelet's sidecar", "PATCH", f"{POD}/status", {"status": {"message": "x"}}, MERGE, who=ADMIN
    ),
]


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane) -> Generator[World]:
    made = guarded.build(control_plane)
    objects = install.guard(made.suffix, (made.guarded, made.enabled), made.operator_namespace)
    guarded.apply(control_plane, objects)
    asyncio.run(guarded.in_force(made))
    yield made
    for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy", "clusterrolebinding", "clusterrole"):
        listed = [d["metadata"]["name"] for d in objects if d["kind"].lower() == kind]
        if kind.startswith("cluster"):
            listed = [f"toolpolicy-operator-{made.suffix}"]
        control_plane.kubectl("delete", "--ignore-not-found", kind, *listed, check=False)
    for namespace in (made.guarded, made.open, made.operator_namespace, made.enabled):
        control_plane.kubectl("delete", "namespace", namespace, "--wait=false", check=False)


async def outcome(world: World, attempt: Attempt, who: str, namespace: str) -> tuple[int, str]:
    user = f"pod@{namespace}" if who == "pod" else who
    try:
        await world.ask(user, attempt.method, attempt.path.format(ns=namespace), attempt.body, kind=attempt.kind)
    except ApiError as error:
        return error.status, error.message
    return 200, ""


@pytest.mark.asyncio
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=[a.what for a in ATTEMPTS])
async def test_refused_where_guarded_and_only_there(world: World, attempt: Attempt) -> None:
    for who in attempt.who:
        status, message = await outcome(world, attempt, who, world.open)
        assert status == attempt.otherwise, f"without the guard, as {who}: {message}"
        status, message = await outcome(world, attempt, who, world.guarded)
        assert (status, attempt.says in message) == (403, True), f"as {who}: {status} {message}"


@pytest.mark.asyncio
@pytest.mark.parametrize("attempt", PASSING, ids=[a.what for a in PASSING])
async def test_what_is_nobodys_harm_passes(world: World, attempt: Attempt) -> None:
    for who in attempt.who:
        status, message = await outcome(world, attempt, who, world.guarded)
        assert status == attempt.otherwise, f"as {who}: {message}"


def _with_token(volume: str, container: str) -> Object:
    """The pod as it is injected, with a volume of our token that a container mounts."""
    made = copy.deepcopy(INJECTED)
    del made["spec"]["serviceAccountName"]
    source = {"serviceAccountToken": {"audience": "toolpolicy.dev", "path": "token"}}
    made["spec"]["volumes"].append({"name": volume, "projected": {"sources": [source]}})
    for each in made["spec"]["containers"] + made["spec"]["initContainers"]:
        if each["name"] == container:
            each["volumeMounts"] = [*each.get("volumeMounts", []), {"name": volume, "mountPath": "/t"}]
    return made


def _without_sidecar(pod_: Object) -> Object:
    return {
        **pod_,
        "spec": {k: v for k, v in pod_["spec"].items() if k not in ("initContainers", "serviceAccountName")},
    }


@pytest.mark.asyncio
async def test_where_pods_are_injected_only_the_sidecar_gets_its_token(world: World) -> None:
    path = f"/api/v1/namespaces/{world.enabled}/pods"
    await world.ask("admin", "POST", path, _with_token("toolpolicy-token", "toolpolicy-sidecar"))
    refused = [
        (_with_token("mine", "toolpolicy-sidecar"), "for toolpolicy's sidecar alone"),
        (_with_token("toolpolicy-token", "server"), "the volume toolpolicy-token is for"),
        (_with_token("toolpolicy-token", "setup"), "the volume toolpolicy-token is for"),
        (_without_sidecar(INJECTED), "and there is none"),
        (_without_sidecar(_with_token("toolpolicy-token", "")), "and there is none"),
    ]
    for body, says in refused:
        with pytest.raises(ApiError, match=says):
            await world.ask("admin", "POST", path, body)


@pytest.mark.asyncio
async def test_the_operator_evicts_pods_only_where_pods_are_injected(world: World) -> None:
    def eviction(namespace: str) -> Attempt:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "plain", "namespace": namespace}}
        return Attempt("evict", "POST", f"{CORE}/pods/plain/eviction", body)

    guarded.apply(world.plane, [PLAIN], world.enabled)
    for who, namespace in (("operator", world.open), ("operator", world.enabled), ("admin", world.guarded)):
        assert await outcome(world, eviction(namespace), who, namespace) == (200, ""), f"{who} in {namespace}"
    status, message = await outcome(world, eviction(world.guarded), "operator", world.guarded)
    assert (status, "may evict pods only in namespaces" in message) == (403, True), message


@pytest.mark.asyncio
async def test_the_kubelet_gets_the_sidecar_its_token(world: World) -> None:
    """What a node may ask for is NodeRestriction's business; the guard must not be what refuses it."""
    path = f"{CORE}/serviceaccounts/mcp/token".format(ns=world.guarded)
    with pytest.raises(ApiError) as refused:
        await world.ask("node", "POST", path, token_request("toolpolicy.dev"))
    assert "get them from the kubelet" not in refused.value.message


@pytest.mark.asyncio
async def test_a_namespace_leaves_injection_only_by_those_who_may_change_the_baseline(world: World) -> None:
    """Who may edit Namespaces, as self-service platforms allow, may switch injection on and not off."""
    plane = world.plane
    role = f"namespaces-{world.suffix}"
    rule = "--resource=namespaces", "--verb=get,update,patch,create"
    plane.kubectl("create", "clusterrole", role, *rule)
    plane.kubectl("create", "clusterrolebinding", role, f"--clusterrole={role}", f"--user=tenant-{world.suffix}")
    world.kubeconfigs["tenant"] = plane.kubeconfig_for(f"tenant-{world.suffix}")
    path = f"/api/v1/namespaces/{world.guarded}"

    def labels(**values: str | None) -> Object:
        return {"metadata": {"labels": {f"toolpolicy.dev/{k.replace('_', '-')}": v for k, v in values.items()}}}

    try:
        await world.ask("tenant", "PATCH", path, labels(injection="enabled"), kind=MERGE, dry=False)
        for loosening in (labels(injection=None), labels(injection="disabled"), labels(opt_out="allowed")):
            with pytest.raises(ApiError, match="only who may update ClusterToolPolicies"):
                await world.ask("tenant", "PATCH", path, loosening, kind=MERGE)
            await world.ask("admin", "PATCH", path, loosening, kind=MERGE)
        await world.ask("tenant", "PATCH", path, {"metadata": {"labels": {"team": "a"}}}, kind=MERGE)
        await world.ask("admin", "PATCH", path, labels(injection=None), kind=MERGE, dry=False)
    finally:
        plane.kubectl("delete", "clusterrolebinding,clusterrole", role, check=False)


@pytest.mark.asyncio
async def test_a_guarded_namespace_can_be_deleted_and_owned_objects_are_collected(world: World) -> None:
    """The namespace controller deletes whole collections, the garbage collector what lost its owner."""
    plane = world.plane
    plane.kubectl("delete", "namespace", world.guarded, "--wait=false")
    end = time.monotonic() + 90
    while plane.kubectl("get", "namespace", world.guarded, check=False).returncode == 0:
        assert time.monotonic() < end, plane.kubectl("get", "namespace", world.guarded, "-o", "yaml").stdout
        time.sleep(0.2)


@pytest.mark.asyncio
async def test_the_operators_token_has_no_right_to_what_would_undo_the_guard(world: World) -> None:
    """The roles alone, without the guard: what a thief of the token is refused anywhere."""
    ns, o = world.open, world.operator_namespace
    registration = "/apis/admissionregistration.k8s.io/v1"
    denied: list[tuple[str, str, Any]] = [
        ("GET", f"/api/v1/namespaces/{ns}/secrets", None),
        ("GET", f"/api/v1/namespaces/{o}/secrets/other", None),
        ("DELETE", f"/api/v1/namespaces/{o}/secrets/toolpolicy-ca", None),
        ("PATCH", f"/api/v1/namespaces/{ns}/configmaps/other", {"data": {"a": "2"}}),
        ("POST", f"/api/v1/namespaces/{ns}/pods", PLAIN),
        ("DELETE", f"/api/v1/namespaces/{ns}/pods/injected", None),
        ("PATCH", f"/api/v1/namespaces/{ns}/pods/injected/ephemeralcontainers", debugging()),
        ("POST", f"/api/v1/namespaces/{ns}/pods/injected/exec?command=id&container=server", None),
        ("PATCH", f"/api/v1/namespaces/{ns}", {"metadata": {"labels": {"a": "b"}}}),
        ("POST", f"/api/v1/namespaces/{ns}/serviceaccounts/mcp/token", token_request("x")),
        ("PATCH", f"/apis/toolpolicy.dev/v1alpha1/namespaces/{ns}/toolpolicies/policy", {"spec": {"mode": "Audit"}}),
        ("DELETE", f"/apis/toolpolicy.dev/v1alpha1/namespaces/{ns}/toolpolicies/policy", None),
        ("PATCH", f"{registration}/validatingadmissionpolicies/toolpolicy-pods", {"spec": {"failurePolicy": "Ignore"}}),
        ("DELETE", f"{registration}/validatingadmissionpolicybindings/toolpolicy-pods", None),
        ("PATCH", f"{registration}/mutatingwebhookconfigurations/another", {"metadata": {"labels": {"a": "b"}}}),
        ("DELETE", f"{registration}/mutatingwebhookconfigurations/toolpolicy", None),
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", None),
    ]
    for method, path, body in denied:
        with pytest.raises(ApiError) as refused:
            await world.ask("operator", method, path, body, kind=MERGE if method == "PATCH" else "application/json")
        assert refused.value.status == 403, f"{method} {path}: {refused.value}"
        assert "cannot" in refused.value.message


@pytest.mark.asyncio
async def test_the_operator_makes_the_rules_by_server_side_apply_with_a_right_to_that_name_alone(world: World) -> None:
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "toolpolicy-rules"}, "data": {"a": "1"}}
    path = f"/api/v1/namespaces/{world.operator_namespace}/configmaps/toolpolicy-rules"
    await world.ask("operator", "PATCH", path, made, kind=APPLY, dry=False)
    other = json.loads(json.dumps(made).replace("toolpolicy-rules", "another"))
    with pytest.raises(ApiError, match="cannot"):
        await world.ask("operator", "PATCH", path.replace("toolpolicy-rules", "another"), other, kind=APPLY)


def test_the_injected_pod_of_these_tests_has_our_names() -> None:
    assert {c["name"] for c in INJECTED["spec"]["initContainers"]} >= {"toolpolicy-sidecar", "toolpolicy-redirect"}
