"""Pods for a node: a real MCP server of notes with its Service, and a client that calls it."""

from __future__ import annotations

import json
import subprocess
from typing import Any, cast

from cluster import images
from cluster.control import ControlPlane

Object = dict[str, Any]


def server(namespace: str) -> Object:
    """Pod ``notes``: the MCP server of ``tests/fixtures/pods/server.py``."""
    container: Object = {
        "command": ["python3", "/opt/mcp/server.py"],
        "ports": [{"name": "mcp", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8000}, "periodSeconds": 1},
    }
    return _pod(namespace, "notes", container)


def client(namespace: str) -> Object:
    """Pod ``client``, which waits to be told what to call."""
    return _pod(namespace, "client", {"command": ["/bin/sleep", "100000"]})


def service(namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "notes", "namespace": namespace},
        "spec": {"selector": {"app": "notes"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }


def _pod(namespace: str, name: str, container: Object) -> Object:
    container |= {"name": name, "image": images.MCP, "imagePullPolicy": "Never"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
    }


class Client:
    """Pod ``client``, told what to call."""

    def __init__(self, node: ControlPlane, namespace: str) -> None:
        self.node = node
        self.namespace = namespace

    def call(self, url: str, *arguments: str) -> dict[str, Any]:
        """What the client saw."""
        done = self.node.kubectl(*self._command(url, *arguments))
        return cast(dict[str, Any], json.loads(done.stdout.splitlines()[-1]))

    def until_allowed(self, url: str, tool: str, arguments: str) -> subprocess.Popen[str]:
        """A client that calls until it may; returns once it is at it."""
        kubectl = [str(self.node.programs / "kubectl"), f"--kubeconfig={self.node.kubeconfig}"]
        command = [*kubectl, *self._command(url, tool, arguments, "--until", "allowed", "--seconds", "60")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "waiting" in process.stdout.readline()
        return process

    def reaches(self, address: str, port: int) -> bool:
        """Whether a connection is made within two seconds."""
        program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
        command = ["exec", "client", "-n", self.namespace, "--", "python3", "-c", program, address, str(port)]
        return self.node.kubectl(*command, check=False).returncode == 0

    def _command(self, url: str, *arguments: str) -> list[str]:
        return ["exec", "client", "-n", self.namespace, "--", "python3", "/opt/mcp/client.py", url, *arguments]
