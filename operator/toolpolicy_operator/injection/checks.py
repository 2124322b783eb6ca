"""The conditions of the truth table in ``eligibility.py``, one function a row: None, or what was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolpolicy_operator import names
from toolpolicy_operator.injection import podview
from toolpolicy_operator.injection.plan import FORBIDS_REDIRECT, SYSTEM_NAMESPACES, Plan, Pod
from toolpolicy_operator.injection.podview import Object
from toolpolicy_operator.injection.ports import Ambiguous, McpPort, NotFound, Resolved, TooMany, resolve

MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
MESH_CONTAINERS = {
    "istio-proxy": "Istio",
    "istio-init": "Istio",
    "istio-validation": "Istio",
    "linkerd-proxy": "Linkerd",
    "linkerd-init": "Linkerd",
    "linkerd-network-validator": "Linkerd",
    "consul-dataplane": "Consul",
    "consul-connect-inject-init": "Consul",
    "kuma-sidecar": "Kuma",
    "kuma-init": "Kuma",
}
MESH_ANNOTATIONS = {
    "sidecar.istio.io/status": "Istio",
    "ambient.istio.io/redirection": "Istio's ambient mode",
    "linkerd.io/proxy-version": "Linkerd",
    "consul.hashicorp.com/connect-inject-status": "Consul",
    "kuma.io/sidecar-injected": "Kuma",
}
HOOKS = ("postStart", "preStop")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


@dataclass(frozen=True, slots=True)
class Facts:
    """A pod, its plan, and the ports found for it."""

    pod: Pod
    plan: Plan
    resolved: Resolved

    @property
    def servers(self) -> tuple[McpPort, ...]:
        return self.resolved if isinstance(self.resolved, tuple) else ()

    @property
    def numbers(self) -> frozenset[int]:
        return frozenset(server.number for server in self.servers)


def gather(pod: Pod, plan: Plan) -> Facts:
    return Facts(pod, plan, resolve(pod, plan.ports))


def system_namespace(facts: Facts) -> str | None:
    namespace = facts.plan.namespace
    return namespace if namespace in (*SYSTEM_NAMESPACES, facts.plan.defaults.operator_namespace) else None


def namespace_not_enabled(facts: Facts) -> str | None:
    return None if facts.plan.enabled else facts.plan.namespace


def no_policy(facts: Facts) -> str | None:
    return None if facts.plan.policies else ""


def static_pod(facts: Facts) -> str | None:
    return "" if MIRROR_ANNOTATION in podview.annotations_of(facts.pod) else None


def _asks_to_opt_out(facts: Facts) -> bool:
    return podview.labels_of(facts.pod).get(names.INJECTION_LABEL) == names.DISABLED


def opt_out_not_allowed(facts: Facts) -> str | None:
    if not _asks_to_opt_out(facts) or facts.plan.opt_out_allowed:
        return None
    if facts.plan.opt_out_forbidden_by:
        return f"ClusterToolPolicy {facts.plan.opt_out_forbidden_by} forbids it: remove the label"
    return f"namespace {facts.plan.namespace} is not labelled {names.OPT_OUT_LABEL}={names.OPT_OUT_ALLOWED}"


def opted_out(facts: Facts) -> str | None:
    return "" if _asks_to_opt_out(facts) else None


def name_taken(facts: Facts) -> str | None:
    return our_name(facts.pod) or _borrowed(facts.pod)


def our_name(pod: Pod) -> str | None:
    """The first container or volume with a name of toolpolicy's own, and its field."""
    for path, container in podview.all_containers(pod):
        if container.get("name") in podview.OUR_CONTAINERS:
            return f"{path}.name {container['name']}"
    for index, volume in enumerate(podview.listed(podview.spec(pod), "volumes")):
        if volume.get("name") in podview.OUR_VOLUMES:
            return f"spec.volumes[{index}].name {volume['name']}"
    return None


def _borrowed(pod: Pod) -> str | None:
    """A container that mounts one of our volumes, although it isn't there yet: it would share it with the sidecar."""
    for path, container in podview.all_containers(pod):
        for index, mount in enumerate(podview.listed(container, "volumeMounts")):
            if mount.get("name") in podview.OUR_VOLUMES:
                return f"{path}.volumeMounts[{index}].name {mount['name']}"
    return None


def host_network(facts: Facts) -> str | None:
    return "" if podview.spec(facts.pod).get("hostNetwork") else None


def windows(facts: Facts) -> str | None:
    spec = podview.spec(facts.pod)
    by_name = podview.child(spec, "os").get("name") == "windows"
    by_selector = podview.child(spec, "nodeSelector").get("kubernetes.io/os") == "windows"
    return "" if by_name or by_selector else None


def untested_mesh(facts: Facts) -> str | None:
    for _, container in podview.all_containers(facts.pod):
        mesh = MESH_CONTAINERS.get(str(container.get("name")))
        if mesh:
            return mesh
    return next((mesh for key, mesh in MESH_ANNOTATIONS.items() if key in podview.annotations_of(facts.pod)), None)


def no_port(facts: Facts) -> str | None:
    if not isinstance(facts.resolved, NotFound):
        return None
    return f"a TCP port named {facts.resolved.asked}" if facts.resolved.asked else "a TCP port"


def ambiguous_port(facts: Facts) -> str | None:
    return _numbers(facts.resolved.numbers) if isinstance(facts.resolved, Ambiguous) else None


def too_many_ports(facts: Facts) -> str | None:
    return str(len(facts.resolved.numbers)) if isinstance(facts.resolved, TooMany) else None


def port_taken(facts: Facts) -> str | None:
    ours = {names.ADMIN_PORT, *(server.listen for server in facts.servers)}
    taken = sorted(ours & facts.numbers)
    if taken:
        return f"MCP port {taken[0]}"
    for path, port in podview.tcp_ports(facts.pod):
        if port.get("containerPort") in ours:
            return f"{path}.containerPort {port['containerPort']}"
    return None


def uid_taken(facts: Facts) -> str | None:
    """Of a container, or of the pod for the containers that say nothing themselves. A user that only the image states
    can't be seen here.
    """
    if podview.child(podview.spec(facts.pod), "securityContext").get("runAsUser") == names.SIDECAR_UID:
        return f"spec.securityContext.runAsUser {names.SIDECAR_UID}"
    for path, container in podview.all_containers(facts.pod):
        if podview.child(container, "securityContext").get("runAsUser") == names.SIDECAR_UID:
            return f"{path}.securityContext.runAsUser {names.SIDECAR_UID}"
    return None


def tls_ended_by_server(facts: Facts) -> str | None:
    for server in facts.servers:
        for name in server.names:
            if name == "https" or name.startswith("https-"):
                return f"port {server.number} is named {name}"
    for path, container in podview.running_containers(facts.pod):
        for field, request in http_requests(container):
            if request.get("scheme") == "HTTPS" and port_number(container, request.get("port")) in facts.numbers:
                return f"{path}.{field} asks the MCP port by HTTPS"
    return None


def redirect_forbidden(facts: Facts) -> str | None:
    if facts.plan.interception == "Redirect" and facts.plan.pod_security in FORBIDS_REDIRECT:
        return f"pod-security.kubernetes.io/enforce={facts.plan.pod_security}"
    return None


def unnamed_port(facts: Facts) -> str | None:
    if facts.plan.interception != "Port":
        return None
    return next((str(server.number) for server in facts.servers if not server.names), None)


def host_port(facts: Facts) -> str | None:
    if facts.plan.interception != "Port":
        return None
    for path, port in podview.tcp_ports(facts.pod):
        if port.get("hostPort") and port.get("containerPort") in facts.numbers:
            return f"{path}.hostPort {port['hostPort']}"
    return None


def http_requests(container: Object) -> Iterator[tuple[str, Object]]:
    """The httpGet requests that the kubelet makes of a container, with their field."""
    for probe in PROBES:
        request = podview.child(podview.child(container, probe), "httpGet")
        if request:
            yield f"{probe}.httpGet", request
    for hook in HOOKS:
        request = podview.child(podview.child(podview.child(container, "lifecycle"), hook), "httpGet")
        if request:
            yield f"lifecycle.{hook}.httpGet", request


def port_number(container: Object, port: object) -> int | None:
    """A probe's port as a number; a name is one of the container's own ports."""
    if isinstance(port, int):
        return port
    if isinstance(port, str) and port.isascii() and port.isdigit() and len(port) <= 5:
        return int(port)
    for declared in podview.listed(container, "ports"):
        if declared.get("name") == port:
            return int(declared["containerPort"])
    return None


def _numbers(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)
