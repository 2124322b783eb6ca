"""`manifests/install` on a real API server: accepted whole, the same when applied again, and no danger to the cluster
while the operator is down.

The objects have fixed names, so these tests have a control plane of their own.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.control import Components, ControlPlane
from cluster.fixtures import create_namespace
from support import install
from support.install import Object
from toolpolicy_operator import pki
from toolpolicy_operator.certificates import Certificates, Options
from toolpolicy_operator.kube import Api
from toolpolicy_operator.rotation import Terms
from toolpolicy_operator.server import Addresses, Review, ReviewHandler, Served, Server
from toolpolicy_operator.tls import ReloadingContext

pytestmark = pytest.mark.slow

Own = tuple[ControlPlane, Components]
POLICY: Object = {
    "apiVersion": "toolpolicy.dev/v1alpha1",
    "kind": "ToolPolicy",
    "metadata": {"name": "p"},
    "spec": {"selector": {}, "rules": []},
}


def diff(plane: ControlPlane) -> tuple[int, str]:
    done = plane.kubectl("diff", "--server-side", "-k", install.INSTALL, check=False)
    return done.returncode, done.stdout + done.stderr


def pod(plane: ControlPlane, namespace: str, name: str) -> tuple[bool, str]:
    arguments = ("run", name, "--image=registry.invalid/x:1", f"--namespace={namespace}")
    done = plane.kubectl(*arguments, check=False)
    return done.returncode == 0, done.stderr


def enabled(plane: ControlPlane, name: str) -> None:
    create_namespace(plane, name, **{"toolpolicy.dev/injection": "enabled"})


@pytest.mark.asyncio
async def test_the_whole_installation(own_control_plane: Own, tmp_path: Path) -> None:
    """One control plane for what needs one of its own: booting it takes longer than the rest."""
    plane, _ = own_control_plane
    assert plane.kubectl("apply", "-k", install.INSTALL, "--dry-run=client").returncode == 0
    plane.kubectl("apply", "--server-side", "-k", install.INSTALL)
    assert diff(plane) == (0, "")
    dry = plane.kubectl("apply", "--server-side", "--dry-run=server", "-k", install.INSTALL)
    assert not dry.stderr, "no warning: not of Pod Security, not of a deprecated field"
    _restricted_pods_are_made(plane)
    _type_checks_are_clean(plane)
    await _what_the_operator_writes_is_no_difference(plane)
    await _cold_cluster(plane, tmp_path)


def _restricted_pods_are_made(plane: ControlPlane) -> None:
    """The Deployment's pods pass the restricted Pod Security of their own namespace."""
    wanted = ("wait", "deployment/toolpolicy-operator", "--namespace=toolpolicy-system", "--timeout=60s")
    plane.kubectl(*wanted, "--for=jsonpath={.status.unavailableReplicas}=2")


def _type_checks_are_clean(plane: ControlPlane) -> None:
    """The controller manager checks each expression against the types that it is for."""
    for document in install.documents("guard.yaml"):
        if document["kind"] == "ValidatingAdmissionPolicy":
            name = f"validatingadmissionpolicy/{document['metadata']['name']}"
            plane.kubectl("wait", name, "--timeout=60s", "--for=jsonpath={.status.observedGeneration}=1")
            assert plane.kubectl("get", name, "--output=jsonpath={.status.typeChecking}").stdout == "{}"


async def _what_the_operator_writes_is_no_difference(plane: ControlPlane) -> None:
    token = plane.kubectl("create", "token", "toolpolicy-operator", "--namespace=toolpolicy-system").stdout.strip()
    kubeconfig = plane.folder / "operator.json"
    user = {"name": "u", "user": {"token": token}}
    cluster = {"name": "c", "cluster": {"server": plane.url, "certificate-authority": str(plane.ca)}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config: dict[str, Any] = {"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}
    kubeconfig.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
    async with await Api.connect(kubeconfig) as api:
        certificates = Certificates(api, ReloadingContext(), Options(Terms(("127.0.0.1",))), lambda: True)
        await certificates.refresh()
        assert certificates.problem == "", "with the rights of its own ServiceAccount"
        await certificates.refresh()
    found = json.loads(plane.kubectl("get", "mutatingwebhookconfiguration/toolpolicy", "-o", "json").stdout)
    assert all(w["clientConfig"]["caBundle"] for w in found["webhooks"])
    assert diff(plane) == (0, "")
    plane.kubectl("apply", "--server-side", "-k", install.INSTALL)
    after = json.loads(plane.kubectl("get", "mutatingwebhookconfiguration/toolpolicy", "-o", "json").stdout)
    assert after["webhooks"] == found["webhooks"]


async def _cold_cluster(plane: ControlPlane, tmp_path: Path) -> None:
    """The operator does not answer: who is blocked, what they read, and that all goes on when it is back."""
    enabled(plane, "agents")
    create_namespace(plane, "others")
    plane.kubectl("label", "namespace", "kube-system", "toolpolicy-system", "toolpolicy.dev/injection=enabled")
    refused, message = pod(plane, "agents", "p")
    assert not refused
    assert 'failed calling webhook "pods.toolpolicy.dev"' in message
    assert "toolpolicy-operator" in message, "the name of what to look at"
    for namespace in ("others", "kube-system", "default"):
        assert pod(plane, namespace, "p") == (True, "")
    made = plane.kubectl("create", "token", "toolpolicy-operator", "-n", "toolpolicy-system", check=False)
    assert made.returncode == 0
    plane.kubectl("delete", "pod", "--all", "--namespace=toolpolicy-system", "--wait=false")
    _restricted_pods_are_made(plane)
    done = plane.kubectl("apply", "--namespace=agents", "-f", "-", stdin=json.dumps(POLICY), check=False)
    assert "failed calling webhook" in done.stderr
    _pods_that_run_are_left_to_themselves(plane)
    # A Deployment's controller tries on: when the operator is back its pods come without anybody's doing.
    plane.kubectl("create", "deployment", "waiting", "--image=registry.invalid/x:1", "--namespace=agents")
    selector = ("--namespace=agents", "--timeout=60s", "deployment/waiting")
    plane.kubectl("wait", *selector, "--for=condition=ReplicaFailure")
    now = datetime.now(UTC)
    authority = pki.new_authority(now, timedelta(days=1))
    tls = ReloadingContext()
    tls.use(pki.new_leaf(authority, ["127.0.0.1"], now, timedelta(hours=1)))
    paths = ("/mutate/pods", "/validate/pods", "/validate/policies")
    handlers: dict[str, ReviewHandler] = dict.fromkeys(paths, _allow)
    server = Server(Served(handlers, _ready, _metrics), tls)
    await server.start(Addresses("127.0.0.1:0", "", ""))
    try:
        await asyncio.to_thread(_come_back, plane, server.ports["webhooks"], authority.certificate)
    finally:
        await server.close()


def _pods_that_run_are_left_to_themselves(plane: ControlPlane) -> None:
    """Labels, finalizers and deletions need no operator; what would open a pod is refused without it."""
    plane.kubectl("label", "namespace", "others", "toolpolicy.dev/injection=enabled")
    end = time.monotonic() + 60
    while pod(plane, "others", "q")[0]:
        assert time.monotonic() < end, "the API server does not ask about the namespace"
        plane.kubectl("delete", "pod", "q", "--namespace=others", "--force")
    of_it = ("pod", "p", "--namespace=others")
    plane.kubectl("label", *of_it, "a=b")
    for finalizers in (["example.com/job"], None):
        plane.kubectl("patch", *of_it, "--type=merge", "-p", json.dumps({"metadata": {"finalizers": finalizers}}))
    for change in (("annotate", *of_it, "toolpolicy.dev/injected=1"), ("annotate", *of_it, "toolpolicy.dev/rules=1")):
        done = plane.kubectl(*change, check=False)
        assert "toolpolicy-pods" in done.stderr, done.stderr
    plane.kubectl("delete", *of_it)


def _come_back(plane: ControlPlane, port: int, ca: str) -> None:
    """The same configurations with a URL: this control plane has no nodes, so no Service leads anywhere."""
    configurations = install.webhooks_by_url(f"https://127.0.0.1:{port}", ca, "")
    for configuration in configurations:
        configuration["metadata"]["name"] = "toolpolicy"
        for webhook in configuration["webhooks"]:
            webhook["name"] = webhook["name"].replace("..", ".")
        plane.kubectl("replace", "-f", "-", stdin=json.dumps(configuration))
    plane.kubectl("wait", "--for=jsonpath={.status.unavailableReplicas}=1", "deployment/waiting", "--namespace=agents")
    wanted = "--for=jsonpath={.status.replicas}=1"
    plane.kubectl("wait", wanted, "deployment/waiting", "--namespace=agents", "--timeout=100s")
    plane.kubectl("apply", "--namespace=agents", "-f", "-", stdin=json.dumps(POLICY))


def _allow(review: Review) -> Review:
    response = {"uid": review["request"]["uid"], "allowed": True}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def _ready() -> tuple[bool, Object]:
    return True, {}


def _metrics(accept: str) -> tuple[bytes, str]:
    return b"", "text/plain"
