"""The webhooks of pods, review in and review out."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from typing import Any, cast

import pytest

from support.pods import DEFAULTS, ENABLED, NAMESPACE, Object, Policies, patched, pod, policy, review
from toolpolicy_operator.admission.pods import Decision, LookupFailed, mutate, validate_pod
from toolpolicy_operator.injection.eligibility import Reason

pytestmark = pytest.mark.asyncio


async def ask(review_: Object, store: Policies, lookup: Policies | None = None, **more: Any) -> Object:
    return (await mutate(review_, store, lookup or store, DEFAULTS, **more))["response"]


async def check(review_: Object, store: Policies, lookup: Policies | None = None) -> Object:
    return (await validate_pod(review_, store, lookup or store, DEFAULTS))["response"]


async def injected(store: Policies, given: Object | None = None) -> Object:
    asked = review(given or pod())
    return patched(asked, await mutate(asked, store, store, DEFAULTS))


async def test_a_selected_pod_is_injected_without_asking_the_api_server() -> None:
    store = Policies([policy()])
    final = await injected(store)
    assert [c["name"] for c in final["spec"]["initContainers"]] == ["toolpolicy-redirect", "toolpolicy-sidecar"]
    assert (await check(review(final), store))["allowed"]
    assert store.reads == 0


async def test_the_patch_adds_and_says_the_reason_to_the_audit_log() -> None:
    asked = review(pod())
    answer = await mutate(asked, Policies([policy()]), Policies(), DEFAULTS)
    assert answer["response"]["patchType"] == "JSONPatch"
    assert answer["response"]["auditAnnotations"] == {"reason": "Injected"}
    assert answer["response"]["uid"] == asked["request"]["uid"]


async def test_a_pod_that_the_store_does_not_select_is_looked_up_once() -> None:
    lookup = Policies([policy()])
    response = await ask(review(pod()), Policies([]), lookup)
    assert response["patch"]
    assert lookup.reads == 1


async def test_a_namespace_that_the_store_does_not_know_is_looked_up() -> None:
    lookup = Policies([policy()])
    assert (await ask(review(pod()), Policies([policy()], labels={}), lookup))["patch"]
    assert lookup.reads == 1


async def test_a_namespace_that_was_just_enabled_is_looked_up() -> None:
    stale = Policies([policy()], labels={"kubernetes.io/metadata.name": NAMESPACE})
    assert (await ask(review(pod()), stale, Policies([policy()])))["patch"]


async def test_a_pod_that_nothing_selects_passes_untouched() -> None:
    response = await ask(review(pod()), Policies([]))
    assert response["allowed"]
    assert "patch" not in response
    assert response["auditAnnotations"] == {"reason": "NoPolicy"}


@pytest.mark.parametrize("operation", [mutate, validate_pod])
async def test_policies_that_can_not_be_read_refuse(operation: Any) -> None:
    broken = Policies(fault=LookupFailed("LIST /apis/…: connection refused"))
    response = (await operation(review(pod()), Policies([]), broken, DEFAULTS))["response"]
    assert not response["allowed"]
    assert response["status"]["code"] == 503
    assert "policies could not be read" in response["status"]["message"]
    assert "connection refused" in response["status"]["message"]


async def test_a_lookup_that_hangs_refuses_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Policies):
        async def read(self, namespace: str) -> Any:
            await asyncio.Event().wait()

    monkeypatch.setattr("toolpolicy_operator.admission.pods.LOOKUP_SECONDS", 0.01)
    response = await ask(review(pod()), Policies([]), Hanging())
    assert response["status"]["code"] == 503


async def test_an_ineligible_pod_is_refused_with_the_reason_and_the_cure() -> None:
    response = await ask(review(pod(hostNetwork=True)), Policies([policy()]))
    assert not response["allowed"]
    assert response["status"]["code"] == 403
    assert response["status"]["message"].startswith("HostNetwork: ")
    assert "agents/server" in response["status"]["message"]


@pytest.mark.parametrize("spec", [{"ineligible": "Warn"}, {"mode": "Audit"}])
async def test_an_ineligible_pod_is_admitted_with_a_warning_where_policies_say_so(spec: Any) -> None:
    store = Policies([policy(**spec)])
    asked = review(pod(hostNetwork=True))
    answer = await mutate(asked, store, store, DEFAULTS)
    final = patched(asked, answer)
    assert final["metadata"]["annotations"] == {"toolpolicy.dev/ineligible": "HostNetwork"}
    assert answer["response"]["warnings"][0].startswith("toolpolicy: admitted without protection (HostNetwork)")
    assert (await check(review(final), store))["allowed"]


async def test_a_dry_run_is_answered_like_any_other_and_said_to_be_one() -> None:
    seen: list[Decision] = []
    response = await ask(review(pod(), dryRun=True), Policies([policy()]), observe=seen.append)
    assert response["patch"]
    assert [(d.dry_run, d.eligibility.reason, d.namespace, d.pod) for d in seen] == [
        (True, Reason.INJECTED, NAMESPACE, "server")
    ]


async def test_a_selected_pod_that_arrives_without_its_sidecar_is_refused() -> None:
    response = await check(review(pod()), Policies([policy()]))
    assert not response["allowed"]
    assert response["status"]["message"].startswith("Altered: the pod arrived without its sidecar")


async def test_a_pod_that_another_version_injected_a_moment_ago_is_to_be_created_again() -> None:
    store = Policies([policy()])
    final = await injected(store)
    newer = replace(DEFAULTS, version="0.2.0", image="registry.example/toolpolicy-sidecar:0.2.0")
    response = (await validate_pod(review(final), store, store, newer))["response"]
    assert response["status"]["message"].startswith("Altered: toolpolicy 0.1.0 injected it")


async def test_a_replica_that_has_not_heard_of_the_policy_looks_it_up_before_it_lets_a_pod_pass() -> None:
    response = await check(review(pod()), Policies([]), Policies([policy()]))
    assert not response["allowed"]


def strip(final: Object) -> None:
    del final["spec"]["initContainers"]


def image(final: Object) -> None:
    final["spec"]["initContainers"][1]["image"] = "example/evil"


def no_redirect(final: Object) -> None:
    del final["spec"]["initContainers"][0]


def other_port(final: Object) -> None:
    final["spec"]["initContainers"][0]["args"][0] = "8001=15771"


def variable(final: Object) -> None:
    final["spec"]["initContainers"][1]["env"].append({"name": "PYTHONPATH", "value": "/evil"})


def rules(final: Object) -> None:
    final["spec"]["volumes"][0]["configMap"]["name"] = "mine"


def over_rules(final: Object) -> None:
    final["spec"]["initContainers"][1]["volumeMounts"].append({"name": "x", "mountPath": "/etc/toolpolicy/rules/x"})


def privileged(final: Object) -> None:
    final["spec"]["initContainers"][1]["securityContext"]["privileged"] = True


def first(final: Object) -> None:
    final["spec"]["initContainers"].insert(0, {"name": "early", "image": "x", "restartPolicy": "Always"})


def swapped(final: Object) -> None:
    final["spec"]["initContainers"].reverse()


def uid(final: Object) -> None:
    final["spec"]["containers"][0]["securityContext"] = {"runAsUser": 15771}


def annotation(final: Object) -> None:
    del final["metadata"]["annotations"]["toolpolicy.dev/servers"]


def mark(final: Object) -> None:
    del final["metadata"]["annotations"]["toolpolicy.dev/injected"]


def twice(final: Object) -> None:
    final["spec"]["containers"].append(copy.deepcopy(final["spec"]["initContainers"][1]))


def probe(final: Object) -> None:
    final["spec"]["containers"][0]["livenessProbe"] = {"tcpSocket": {"port": 8000}}


def released(final: Object) -> None:
    sidecar = final["spec"]["initContainers"][1]
    next(e for e in sidecar["env"] if e["name"] == "TOOLPOLICY_POD_LABELS")["value"] = '{"app":"other"}'


def secrets_over(final: Object) -> None:
    final["spec"]["initContainers"][1]["volumeMounts"].append({"name": "x", "mountPath": "/var/run/secrets"})


def variable_again(final: Object) -> None:
    final["spec"]["initContainers"][1]["env"].insert(0, {"name": "TOOLPOLICY_RULES", "value": "/evil"})


def labels_again(final: Object) -> None:
    final["spec"]["initContainers"][1]["env"].append({"name": "TOOLPOLICY_POD_LABELS", "value": "{}"})


def mount_again(final: Object) -> None:
    final["spec"]["initContainers"][1]["volumeMounts"].insert(0, {"name": "x", "mountPath": "/etc/toolpolicy/rules"})


def borrowed(final: Object) -> None:
    final["spec"]["containers"][0]["volumeMounts"] = [{"name": "toolpolicy-tmp", "mountPath": "/shared"}]


CHANGES = [
    (variable_again, "spec.initContainers[1].env.TOOLPOLICY_RULES"),
    (labels_again, "spec.initContainers[1].env.TOOLPOLICY_POD_LABELS (again)"),
    (mount_again, "spec.initContainers[1].volumeMounts./etc/toolpolicy/rules"),
    (borrowed, "NameTaken: spec.containers[0].volumeMounts[0].name toolpolicy-tmp"),
    (strip, "spec.initContainers lacks toolpolicy-redirect"),
    (image, "spec.initContainers[1].image is 'example/evil'"),
    (no_redirect, "spec.initContainers lacks toolpolicy-redirect"),
    (other_port, "spec.initContainers[0].args[0] is '8001=15771'"),
    (variable, "spec.initContainers[1].env.PYTHONPATH"),
    (rules, "spec.volumes[0].configMap.name is 'mine'"),
    (over_rules, "spec.initContainers[1].volumeMounts./etc/toolpolicy/rules/x"),
    (privileged, "spec.initContainers[1].securityContext.privileged is True"),
    (first, "spec.initContainers[0] starts before toolpolicy's containers"),
    (swapped, "toolpolicy-sidecar before toolpolicy-redirect"),
    (uid, "UidTaken"),
    (annotation, "metadata.annotations[toolpolicy.dev/servers] is absent"),
    (mark, "NameTaken"),
    (twice, "toolpolicy-sidecar"),
    (probe, "spec.containers[0].livenessProbe"),
    (released, "ToolPolicy imaging would not hold for good"),
    (secrets_over, "volumeMounts./var/run/secrets"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
async def test_what_another_webhook_changes_is_refused_by_its_field(change: Any, said: str) -> None:
    store = Policies([policy()])
    final = await injected(store)
    change(final)
    response = await check(review(final), store)
    assert not response["allowed"]
    assert said in response["status"]["message"]


@pytest.mark.parametrize(
    "path", ["/toolpolicy", "//toolpolicy", "/./toolpolicy/token", "/x/../toolpolicy", "/toolpolicy/", "/x/"]
)
async def test_no_spelling_of_a_path_puts_a_mount_over_the_token(path: str) -> None:
    store = Policies([policy()])
    final = await injected(store)
    mount = {"name": "x", "mountPath": f"/var/run/secrets{path}"}
    final["spec"]["initContainers"][1]["volumeMounts"].append(mount)
    for asked in (await check(review(final), store), await ask(review(final), store)):
        assert asked["status"]["message"].startswith("Altered: ")


async def test_who_writes_a_pod_can_not_starve_its_sidecar_nor_give_it_devices() -> None:
    store = Policies([policy()])
    final = await injected(store)
    ours = copy.deepcopy(final)
    resources = {"limits": {"memory": "1Mi"}, "requests": {"memory": "1Ki", "cpu": "1"}}
    final["spec"]["initContainers"][1]["resources"] = resources
    kept = (await injected(store, final))["spec"]["initContainers"][1]["resources"]
    assert kept == {"limits": {"memory": "256Mi"}, "requests": {"memory": "96Mi", "cpu": "1"}}
    ours["spec"]["initContainers"][1]["resources"]["claims"] = [{"name": "gpu"}]
    assert "claims" in (await check(review(ours), store))["status"]["message"]
    assert "claims" in (await ask(review(ours), store))["status"]["message"]


def limits(final: Object) -> None:
    for container in final["spec"]["initContainers"]:
        container["resources"]["limits"]["cpu"] = "1"


def pull(final: Object) -> None:
    for container in final["spec"]["initContainers"]:
        container["imagePullPolicy"] = "Always"


def credentials(final: Object) -> None:
    mount = {"name": "aws", "mountPath": "/var/run/secrets/eks.amazonaws.com/serviceaccount", "readOnly": True}
    final["spec"]["volumes"].append({"name": "aws", "emptyDir": {}})
    for container in final["spec"]["initContainers"]:
        container.setdefault("env", []).append({"name": "AWS_ROLE_ARN", "value": "arn:aws:iam::1:role/x"})
        container["volumeMounts"].append(mount)


def agent(final: Object) -> None:
    final["spec"]["initContainers"].insert(0, {"name": "vault-agent-init", "image": "vault"})


def label(final: Object) -> None:
    final["metadata"]["labels"]["team"] = "imaging"


@pytest.mark.parametrize("change", [limits, pull, credentials, agent, label], ids=lambda change: change.__name__)
async def test_what_admission_ordinarily_adds_is_tolerated_and_kept(change: Any) -> None:
    store = Policies([policy()])
    final = await injected(store)
    change(final)
    assert (await check(review(final), store))["allowed"]
    again = await injected(store, final)
    assert (await check(review(again), store))["allowed"]
    assert await injected(store, again) == again


@pytest.mark.parametrize("change", [image, privileged, rules, variable], ids=lambda change: change.__name__)
async def test_a_second_admission_refuses_what_was_changed_after_the_first(change: Any) -> None:
    store = Policies([policy()])
    final = await injected(store)
    change(final)
    response = await ask(review(final), store)
    assert response["status"]["message"].startswith("Altered: ")


async def test_a_container_that_another_webhook_adds_after_us_has_its_probes_rewritten_the_second_time() -> None:
    store = Policies([policy()])
    final = await injected(store)
    final["spec"]["containers"].append(
        {"name": "late", "image": "x", "readinessProbe": {"httpGet": {"path": "/", "port": 8000}}}
    )
    again = await injected(store, final)
    assert again["spec"]["containers"][1]["readinessProbe"]["httpGet"]["path"] == "/probe/late/readiness"
    assert (await check(review(again), store))["allowed"]


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ({"securityContext": {"runAsUser": 15771}}, "runs as user 15771"),
        ({"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}, "the capability NET_ADMIN"),
        ({"securityContext": {"capabilities": {"add": ["CAP_net_admin"]}}}, "the capability NET_ADMIN"),
        ({"securityContext": {"capabilities": {"add": ["ALL"]}}}, "the capability ALL"),
        ({"securityContext": {"privileged": True}}, "privileged"),
        ({}, None),
    ],
)
async def test_ephemeral_containers_that_could_go_around_are_refused(container: Object, said: str | None) -> None:
    store = Policies([policy()])
    old = await injected(store)
    new = copy.deepcopy(old)
    new["spec"]["ephemeralContainers"] = [{"name": "debugger", "image": "busybox", **container}]
    response = await check(review(new, "UPDATE", old, subResource="ephemeralcontainers"), store)
    assert response["allowed"] is (said is None)
    assert said is None or said in response["status"]["message"]


async def test_an_update_of_annotations_or_images_of_ours_is_refused_and_any_other_is_not() -> None:
    store = Policies([policy()])
    old = await injected(store)
    for change in (image, annotation, mark):
        new = copy.deepcopy(old)
        change(new)
        assert not (await check(review(new, "UPDATE", old), store))["allowed"]
    new = copy.deepcopy(old)
    new["metadata"]["labels"] = {}
    new["metadata"]["annotations"]["toolpolicy.dev/rules"] = "3-17"
    new["spec"]["containers"][0]["image"] = "example/app:2"
    assert (await check(review(new, "UPDATE", old), store))["allowed"]


BAD: list[tuple[Any, str]] = [
    ({}, "expected an AdmissionReview"),
    ({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1"}, "admission.k8s.io/v1"),
    ({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}, "no request"),
    (review(pod()) | {"request": []}, "no request"),
    (review(pod(), uid=None), "no uid"),
    (review(pod(), object="pod"), "object is not an object"),
    (review({"metadata": {}}), "object.spec: is missing"),
    (review(cast("Object", {"metadata": {"labels": []}, "spec": {}})), "object.metadata.labels"),
    (review(pod(containers={})), "object.spec.containers: expected a list"),
    (review(pod(containers=["x"])), "object.spec.containers[0]: expected an object"),
    (review(pod(containers=[{"name": 1}])), "object.spec.containers[0].name: expected a text"),
    (
        review(pod(containers=[{"name": "a", "ports": [{"containerPort": "8000"}]}])),
        "containers[0].ports[0].containerPort: expected a whole number",
    ),
    (
        review(pod(containers=[{"name": "a", "livenessProbe": {"httpGet": {"port": True}}}])),
        "livenessProbe.httpGet.port: expected a whole number or a text",
    ),
    (review(pod(), kind={"kind": "Service"}), "expected a Pod, got Service"),
]


@pytest.mark.parametrize(("body", "said"), BAD)
@pytest.mark.parametrize("operation", [mutate, validate_pod])
async def test_what_is_no_review_of_a_pod_is_answered_with_what_is_wrong(operation: Any, body: Any, said: str) -> None:
    store = Policies([policy()])
    response = (await operation(body, store, store, DEFAULTS))["response"]
    assert not response["allowed"]
    assert response["status"]["code"] == 400
    assert said in response["status"]["message"]


async def test_other_operations_pass() -> None:
    store = Policies([policy()])
    for operation in ("DELETE", "CONNECT", "UPDATE"):
        assert "patch" not in await ask(review(pod(), operation, pod()), store)
    assert ENABLED
