"""What `manifests/install` holds, changed so that a test may use it beside others: webhooks reached by URL, policies
bound to one namespace only, names of the test's own.
"""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any, cast

import yaml

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "manifests" / "install"

Object = dict[str, Any]


def documents(*names: str) -> list[Object]:
    """The objects of these files of manifests/install; of all that its kustomization lists if none is named."""
    listed = cast(list[str], yaml.safe_load((INSTALL / "kustomization.yaml").read_text())["resources"])
    files = [INSTALL / name for name in names or listed]
    return [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]


def webhooks_by_url(
    url: str, ca: str, suffix: str, *, namespaces: tuple[str, ...] = (), operator_namespace: str = ""
) -> list[Object]:
    """Both webhook configurations, named ``toolpolicy-SUFFIX``, asking ``url`` (https://HOST:PORT), trusting ``ca``
    (PEM). With ``namespaces`` they concern only those, so that tests in parallel leave each other alone; an
    ``operator_namespace`` takes the place of toolpolicy-system among the excluded ones.
    """
    configurations = copy.deepcopy(documents("webhooks.yaml"))
    for configuration in configurations:
        configuration["metadata"]["name"] += f"-{suffix}"
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            bundle = base64.b64encode(ca.encode()).decode()
            webhook["clientConfig"] = {"url": url + path, "caBundle": bundle}
            webhook["name"] = webhook["name"].replace("toolpolicy.dev", f"{suffix}.toolpolicy.dev")
            _only(webhook.setdefault("namespaceSelector", {}), namespaces, operator_namespace)
    return configurations


def _only(selector: Object, namespaces: tuple[str, ...], operator_namespace: str) -> None:
    expressions: list[Object] = selector.setdefault("matchExpressions", [])
    for expression in expressions:
        if operator_namespace and "toolpolicy-system" in expression["values"]:
            expression["values"] = ["kube-system", operator_namespace]
    if namespaces:
        expressions.append({"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(namespaces)})


def guard(suffix: str, namespaces: tuple[str, ...], operator_namespace: str) -> list[Object]:
    """The ValidatingAdmissionPolicies and their bindings, named ``NAME-SUFFIX``, for these namespaces only, where the
    operator of ``operator_namespace`` counts as the operator. Objects outside namespaces concern them if they carry the
    label ``guard=SUFFIX``.
    """
    found = renamed(documents("guard.yaml"), suffix, operator_namespace)
    for document in found:
        if document["kind"].endswith("Binding"):
            document["spec"]["policyName"] += f"-{suffix}"
            here = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(namespaces)}
            resources: Object = {"namespaceSelector": {"matchExpressions": [here]}}
            document["spec"]["matchResources"] = resources
            if document["metadata"]["name"].startswith("toolpolicy-status"):
                document["spec"]["matchResources"] = {"objectSelector": {"matchLabels": {"guard": suffix}}}
    return found


def rbac(suffix: str, operator_namespace: str) -> list[Object]:
    """The operator's ServiceAccount in ``operator_namespace`` with what it may do; roles for users are left out."""
    wanted = [d for d in documents("rbac.yaml") if d["metadata"]["name"] == "toolpolicy-operator"]
    found = renamed(wanted, suffix, operator_namespace)
    for document in found:
        if "roleRef" in document and document["roleRef"]["kind"] == "ClusterRole":
            document["roleRef"]["name"] += f"-{suffix}"
    return found


def renamed(objects: list[Object], suffix: str, operator_namespace: str) -> list[Object]:
    """The same with ``-SUFFIX`` behind the names of what is in no namespace, in another namespace than
    toolpolicy-system.
    """
    text = yaml.safe_dump_all(objects, width=1_000_000).replace("toolpolicy-system", operator_namespace)
    found: list[Object] = list(yaml.safe_load_all(text))
    for document in found:
        if "namespace" not in document["metadata"]:
            document["metadata"]["name"] += f"-{suffix}"
    return found
