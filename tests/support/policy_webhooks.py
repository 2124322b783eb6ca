"""The registration of the webhook of policies for one test: before and after the API server's own validation."""

from __future__ import annotations

import json
from typing import Any

from cluster.control import ControlPlane
from support.admission_server import Webhook
from toolpolicy_operator.kube import Object

_KINDS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
_TYPO: Object = {
    "apiVersion": "toolpolicy.dev/v1alpha1",
    "kind": "ToolPolicy",
    "metadata": {"name": "settle"},
    "spec": {"selector": {}, "ruels": []},
}


def register(plane: ControlPlane, namespace: str, hook: Webhook) -> None:
    """For the ToolPolicies of a namespace, and ClusterToolPolicies that carry the label ``test=NAMESPACE``.

    Returns once the API server asks: it learns of webhooks by a watch.
    """
    entry = {
        "clientConfig": hook.client_config("/validate/policies"),
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 10,
    }

    def about(resource: str, **selector: Any) -> Object:
        rule = {
            "apiGroups": ["toolpolicy.dev"],
            "apiVersions": ["v1alpha1"],
            "operations": ["CREATE", "UPDATE"],
            "resources": [resource],
        }
        return {"name": f"{resource}.toolpolicy.dev", "rules": [rule], **entry, **selector}

    webhooks = [
        about("toolpolicies", namespaceSelector={"matchLabels": {"kubernetes.io/metadata.name": namespace}}),
        about("clustertoolpolicies", objectSelector={"matchLabels": {"test": namespace}}),
    ]
    for kind in _KINDS:
        configuration = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": f"policies-{namespace}"},
            "webhooks": webhooks,
        }
        plane.kubectl("create", "-f", "-", stdin=json.dumps(configuration))
    _settle(plane, namespace)


def unregister(plane: ControlPlane, namespace: str) -> None:
    for kind in _KINDS:
        plane.kubectl("delete", kind.lower(), f"policies-{namespace}", check=False)


def _settle(plane: ControlPlane, namespace: str) -> None:
    said = ""
    for _ in range(100):
        done = plane.kubectl(
            "create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(_TYPO), check=False
        )
        said = done.stderr
        if "did you mean rules?" in said:
            return
    raise AssertionError(f"the webhook was not asked: {said}")
