"""What `manifests/install` promises, and that it says the same names as the program."""

from __future__ import annotations

from typing import Any

import pytest

from support import install
from support.install import Object
from toolpolicy_operator import names
from toolpolicy_operator.settings import parse

OPERATOR = f"system:serviceaccount:{names.SYSTEM_NAMESPACE}:toolpolicy-operator"


def of_kind(*kinds: str) -> list[Object]:
    return [d for d in install.documents() if d["kind"] in kinds]


def one(kind: str) -> Object:
    (found,) = of_kind(kind)
    return found


def webhooks() -> list[tuple[str, Object]]:
    configurations = of_kind("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
    return [(c["kind"], w) for c in configurations for w in c["webhooks"]]


def test_every_webhook_fails_closed_in_five_seconds_and_leaves_the_cluster_its_way_back() -> None:
    assert len(webhooks()) == 4
    for kind, webhook in webhooks():
        if kind.startswith("Mutating") and webhook["name"].startswith("policies"):
            continue  # asks for better words only
        assert (webhook["failurePolicy"], webhook["timeoutSeconds"], webhook["sideEffects"]) == ("Fail", 5, "None")
        assert "caBundle" not in webhook["clientConfig"], "the operator writes it, Argo CD would take it away"
        if webhook["name"].startswith("pods"):
            expressions = {e["key"]: e for e in webhook["namespaceSelector"]["matchExpressions"]}
            assert expressions[names.INJECTION_LABEL]["values"] == [names.ENABLED]
            excluded = expressions["kubernetes.io/metadata.name"]
            assert excluded["operator"] == "NotIn"
            assert {*excluded["values"]} == {"kube-system", names.SYSTEM_NAMESPACE}


def test_pods_are_mutated_when_they_are_created_and_again_after_others() -> None:
    (webhook,) = [w for k, w in webhooks() if k.startswith("Mutating") and w["name"].startswith("pods")]
    assert webhook["reinvocationPolicy"] == "IfNeeded"
    (rule,) = webhook["rules"]
    assert (rule["operations"], rule["resources"]) == (["CREATE"], ["pods"])


def test_no_webhook_stands_between_a_kubelet_and_its_status() -> None:
    for _, webhook in webhooks():
        resources = {r for rule in webhook["rules"] for r in rule["resources"]}
        assert not resources & {"*", "*/*", "pods/*", "pods/status", "pods/binding", "pods/eviction"}


def test_updates_of_pods_ask_nobody_since_the_guard_confines_them() -> None:
    (webhook,) = [w for k, w in webhooks() if k.startswith("Validating") and w["name"].startswith("pods")]
    asked = {(o, r) for rule in webhook["rules"] for o in rule["operations"] for r in rule["resources"]}
    assert asked == {("CREATE", "pods"), ("UPDATE", "pods/ephemeralcontainers")}
    (policy,) = [d for d in of_kind("ValidatingAdmissionPolicy") if d["metadata"]["name"] == "toolpolicy-pods"]
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert (rule["operations"], rule["resources"][0]) == (["UPDATE"], "pods")


def test_every_policy_of_the_guard_is_bound_denies_and_fails_closed() -> None:
    policies = {d["metadata"]["name"]: d for d in of_kind("ValidatingAdmissionPolicy")}
    bindings = {d["spec"]["policyName"]: d["spec"] for d in of_kind("ValidatingAdmissionPolicyBinding")}
    assert policies.keys() == bindings.keys()
    for name, policy in policies.items():
        assert policy["spec"]["failurePolicy"] == "Fail"
        assert bindings[name] == {"policyName": name, "validationActions": ["Deny"]}
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]:
            assert "resourceNames" not in rule, "the name is empty when a collection is deleted"
        for condition in policy["spec"].get("matchConditions", []):
            assert "namespaceObject" not in condition["expression"], "it is empty there"


def test_the_guard_says_the_names_of_the_program() -> None:
    text = (install.INSTALL / "guard.yaml").read_text()
    said = [
        names.RULES_CONFIGMAP, names.RULES_ANNOTATION, names.INJECTED_ANNOTATION, names.INJECTION_LABEL,
        names.OPT_OUT_LABEL, names.SIDECAR_CONTAINER, names.REDIRECT_CONTAINER, str(names.SIDECAR_UID),
        names.TOKEN_AUDIENCE, names.FIELD_MANAGER, OPERATOR, f"{names.GROUP}/",
    ]  # fmt: skip
    assert [name for name in said if name not in text] == []


def test_the_operator_may_read_each_policy_of_the_guard() -> None:
    role = next(d for d in of_kind("ClusterRole") if d["metadata"]["name"] == "toolpolicy-operator")
    (rule,) = [r for r in role["rules"] if "validatingadmissionpolicies" in r["resources"]]
    assert {*rule["resourceNames"]} == {d["metadata"]["name"] for d in of_kind("ValidatingAdmissionPolicy")}
    assert rule["verbs"] == ["get"]


def test_the_operator_has_no_wildcard_no_secrets_of_others_and_no_way_to_more_rights() -> None:
    for role in of_kind("ClusterRole", "Role"):
        if role["metadata"]["name"] != "toolpolicy-operator":
            continue
        for rule in role["rules"]:
            assert not {"*"} & {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not {"escalate", "bind", "impersonate"} & {*rule["verbs"]}
            assert rule["apiGroups"] != ["rbac.authorization.k8s.io"]
            if "secrets" in rule["resources"]:
                assert role["kind"] == "Role"
                assert rule.get("resourceNames") == [names.CA_SECRET] or rule["verbs"] == ["create"]
            if "configmaps" in rule["resources"]:
                assert rule["resourceNames"] == [names.RULES_CONFIGMAP]


def test_the_built_in_roles_get_to_read_policies_and_only_admin_to_write_them() -> None:
    for role in of_kind("ClusterRole"):
        labels: dict[str, str] = role["metadata"]["labels"]
        verbs = {v for r in role["rules"] for v in r["verbs"]}
        if "rbac.authorization.k8s.io/aggregate-to-view" in labels:
            assert verbs == {"get", "list", "watch"}
        assert "rbac.authorization.k8s.io/aggregate-to-edit" not in labels


def _container() -> Object:
    (container,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    return container


def test_the_deployment_starts_a_program_that_knows_its_flags_and_ports() -> None:
    replaced = [a.replace("$(POD_NAMESPACE)", "toolpolicy-system") for a in _container()["args"]]
    settings = parse([a.replace("$(POD_IP)", "10.0.0.1").replace("$(POD_NAME)", "p") for a in replaced], {})
    assert settings.namespace == names.SYSTEM_NAMESPACE
    ports = {p["name"]: p["containerPort"] for p in _container()["ports"]}
    listening = (settings.listen, settings.control_listen, settings.admin_listen)
    assert [int(address.rpartition(":")[2]) for address in listening] == [
        ports["webhooks"],
        ports["control"],
        ports["admin"],
    ]
    service = one("Service")
    assert settings.service == service["metadata"]["name"]
    assert settings.control_url.endswith(f":{service['spec']['ports'][1]['port']}")
    for _, webhook in webhooks():
        wanted = webhook["clientConfig"]["service"]
        assert (wanted["name"], wanted["namespace"]) == (service["metadata"]["name"], service["metadata"]["namespace"])
        assert wanted["port"] == service["spec"]["ports"][0]["port"]


def test_two_replicas_are_kept_apart_and_evicted_one_at_a_time() -> None:
    spec: dict[str, Any] = one("Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert spec["template"]["spec"]["affinity"]["podAntiAffinity"]
    assert one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    selectors = [one(kind)["spec"]["selector"] for kind in ("Deployment", "PodDisruptionBudget")]
    labels: dict[str, str] = spec["template"]["metadata"]["labels"]
    for selector in [*(s["matchLabels"] for s in selectors), one("Service")["spec"]["selector"]]:
        assert selector.items() <= labels.items()


@pytest.mark.parametrize("object_", install.documents(), ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_every_object_has_our_label_and_none_of_an_installer(object_: Object) -> None:
    assert object_["metadata"]["labels"]["app.kubernetes.io/name"] == "toolpolicy"
    assert "app.kubernetes.io/managed-by" not in object_["metadata"]["labels"]
