"""toolpolicy in a test cluster: ``manifests/install`` as it stands, but for the operator, which is a process of this
machine that the API server and pods reach by address.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, cast

import yaml

from cluster import images
from cluster.control import ControlPlane
from support.processes import Program
from support.servers import free_port
from tools import environments

INSTALL = environments.ROOT / "manifests" / "install"
NAMESPACE = "toolpolicy-system"
ACCOUNT = "toolpolicy-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
READY_DEADLINE = 90.0


class Operator:
    """A running operator with the rights that ``manifests/install/rbac.yaml`` gives it, and no others."""

    def __init__(self, plane: ControlPlane, image: str = images.SIDECAR, *arguments: str) -> None:
        self.plane = plane
        self.host = plane.host
        self.user = USER
        self.webhooks, self.control, self.admin = free_port(), free_port(), free_port()
        install(plane, f"https://{self.host}:{self.webhooks}")
        self.command = [
            sys.executable,
            "-m",
            "toolpolicy_operator",
            f"--kubeconfig={account_kubeconfig(plane)}",
            f"--image={image}",
            "--image-pull-policy=Never",
            f"--listen={self.host}:{self.webhooks}",
            f"--control-listen={self.host}:{self.control}",
            f"--admin-listen=127.0.0.1:{self.admin}",
            f"--control-url=https://{self.host}:{self.control}",
            f"--dns-names={self.host}",
            *arguments,
        ]
        self.program = Program(self.command, name="operator")

    def __enter__(self) -> Self:
        try:
            self.program.wait_until(self._ready, "readiness", READY_DEADLINE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.program.stop()
        uninstall(self.plane)

    def _ready(self) -> bool:
        """Ready by its own word, and trusted by the API server."""
        if not get(f"http://127.0.0.1:{self.admin}/readyz"):
            return False
        said = self.plane.kubectl("get", "mutatingwebhookconfiguration", "toolpolicy", "-o", "json").stdout
        return all("caBundle" in hook["clientConfig"] for hook in json.loads(said)["webhooks"])


def install(plane: ControlPlane, url: str) -> None:
    """Apply what ``manifests/install`` holds, with webhooks at ``url``."""
    objects = by_url(documents("namespace.yaml", "rbac.yaml", "guard.yaml", "webhooks.yaml"), url)
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=listed(objects))


def uninstall(plane: ControlPlane) -> None:
    """Take away what would refuse pods of a cluster that has no operator."""
    kinds = "mutatingwebhookconfiguration,validatingwebhookconfiguration"
    plane.kubectl("delete", kinds, "toolpolicy", "--ignore-not-found", check=False)


def documents(*names: str) -> list[dict[str, Any]]:
    """The objects of files of ``manifests/install``."""
    found: list[dict[str, Any]] = []
    for name in names:
        found += cast(Iterable[dict[str, Any]], yaml.safe_load_all((INSTALL / name).read_text()))
    return found


def by_url(objects: list[dict[str, Any]], url: str) -> list[dict[str, Any]]:
    """Webhook configurations that name a Service, naming ``url`` instead."""
    for obj in objects:
        for hook in obj.get("webhooks", []):
            service = hook["clientConfig"].pop("service")
            hook["clientConfig"]["url"] = f"{url}{service['path']}"
    return objects


def listed(objects: list[dict[str, Any]]) -> str:
    """One JSON document of many objects, for ``kubectl apply -f -``."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def account_kubeconfig(plane: ControlPlane) -> Path:
    """A kubeconfig by which one is the operator's ServiceAccount."""
    token = plane.kubectl("create", "token", ACCOUNT, f"--namespace={NAMESPACE}", "--duration=12h").stdout.strip()
    path = plane.folder / f"{ACCOUNT}.kubeconfig"
    path.touch(mode=0o600)
    config = json.loads(plane.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json").stdout)
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path.write_text(json.dumps(config))
    return path


def get(url: str) -> bool:
    """Whether ``url`` answers 200."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
