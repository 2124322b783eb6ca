"""The kubelet's probes and hooks of an MCP port go to the sidecar's admin port, which asks the server itself.

Redirected probes would reach the sidecar and be judged as calls; past it, a dead server still has to fail its probe.
What the sidecar asks is told to it as JSON in ``TOOLPOLICY_PROBES``, by ``<container>/<probe>``:

    {"app/liveness": {"type": "http", "port": 8000, "path": "/healthz", "scheme": "HTTP",
                      "headers": [{"name": "X", "value": "y"}], "timeout": 1},
     "app/readiness": {"type": "tcp", "port": 8000, "timeout": 1},
     "app/startup": {"type": "grpc", "port": 8000, "service": "ready", "timeout": 1}}

The probe's own periods and thresholds stay as they are. ``postStart`` and ``preStop`` hooks with httpGet are treated
likewise. A probe with a ``host`` of its own is not one of the pod, and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import quote

from toolpolicy_operator import names
from toolpolicy_operator.injection import checks, podview
from toolpolicy_operator.injection.podview import Object

HOOK_TIMEOUT = 30
"""Seconds; a hook has no timeout of its own, only the pod's grace period."""
_AS_IT_IS = "".join(chr(code) for code in range(0x21, 0x7F))
"""What is sent of a path without percent-encoding: all that is printable, so that a query stays one."""
_PROBES = {"livenessProbe": "liveness", "readinessProbe": "readiness", "startupProbe": "startup"}


def rewrite(pod: Object, numbers: frozenset[int]) -> dict[str, Any]:
    """Lead every probe of the ports ``numbers`` to the admin port, in place; returns what they asked."""
    asked: dict[str, Any] = {}
    for _, container in podview.running_containers(pod):
        for name, handler, timeout in _handlers(container):
            question = _question(container, handler, numbers, timeout)
            if question is None:
                continue
            key = f"{container['name']}/{name}"
            asked[key] = question
            for kind in ("httpGet", "tcpSocket", "grpc"):
                handler.pop(kind, None)
            handler["httpGet"] = {"path": f"/probe/{key}", "port": names.ADMIN_PORT, "scheme": "HTTP"}
    return asked


def restore(pod: Object, asked: dict[str, Any]) -> None:
    """Undo :func:`rewrite`, in place. What is not as it would have written it stays."""
    for _, container in podview.running_containers(pod):
        for name, handler, _ in _handlers(container):
            key = f"{container['name']}/{name}"
            request = podview.child(handler, "httpGet")
            question = asked.get(key)
            if request.get("path") != f"/probe/{key}" or request.get("port") != names.ADMIN_PORT or not question:
                continue
            kind, original = _original(question)
            if kind:
                del handler["httpGet"]
                handler[kind] = original


def _handlers(container: Object) -> Iterator[tuple[str, Object, int]]:
    """The probes and hooks of a container: what they are called, the object with the handler, seconds to answer."""
    for field, name in _PROBES.items():
        probe = podview.child(container, field)
        if probe:
            yield name, probe, int(probe.get("timeoutSeconds") or 1)
    for hook in checks.HOOKS:
        handler = podview.child(podview.child(container, "lifecycle"), hook)
        if handler:
            yield hook, handler, HOOK_TIMEOUT


def _question(container: Object, handler: Object, numbers: frozenset[int], timeout: int) -> dict[str, Any] | None:
    kind = next((kind for kind in ("httpGet", "tcpSocket", "grpc") if handler.get(kind)), None)
    if kind is None:
        return None
    request: Object = handler[kind]
    port = checks.port_number(container, request.get("port"))
    if port not in numbers or request.get("host"):
        return None
    if kind == "tcpSocket":
        return {"type": "tcp", "port": port, "timeout": timeout}
    if kind == "grpc":
        return {"type": "grpc", "port": port, "service": request.get("service") or "", "timeout": timeout}
    headers = [{"name": h.get("name", ""), "value": h.get("value", "")} for h in podview.listed(request, "httpHeaders")]
    return {
        "type": "http",
        "port": port,
        "path": quote(str(request.get("path") or "/"), safe=_AS_IT_IS),
        "scheme": request.get("scheme") or "HTTP",
        "headers": headers,
        "timeout": timeout,
    }


def _original(question: Object) -> tuple[str | None, Object]:
    """The handler that asked this; None for what no handler asks. The variable it is read from may hold anything."""
    port, path = question.get("port"), _text(question.get("path"))
    service, scheme = _text(question.get("service") or ""), question.get("scheme") or "HTTP"
    headers = _headers(question.get("headers") or [])
    if not isinstance(port, int) or isinstance(port, bool):
        return None, {}
    match question.get("type"):
        case "tcp":
            return "tcpSocket", {"port": port}
        case "grpc" if service is not None:
            return "grpc", {"port": port, "service": service}
        case "http" if path is not None and headers is not None and scheme in ("HTTP", "HTTPS"):
            request: Object = {"path": path, "port": port, "scheme": scheme}
            return "httpGet", {**request, "httpHeaders": headers} if headers else request
        case _:
            return None, {}


def _headers(value: object) -> list[Object] | None:
    """A list of name and value; None for anything else."""
    if not isinstance(value, list):
        return None
    found: list[Object] = []
    for item in cast("list[object]", value):
        header = cast("Object", item) if isinstance(item, dict) else Object()
        name, text = _text(header.get("name")), _text(header.get("value"))
        if name is None or text is None:
            return None
        found.append({"name": name, "value": text})
    return found


def _text(value: object) -> str | None:
    """A text that UTF-8 can carry: JSON can write half a surrogate pair."""
    return value if isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value) else None
