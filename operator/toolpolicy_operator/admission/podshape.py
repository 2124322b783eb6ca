"""Whether a pod has the shape that injection relies on. The API server has decoded it before, others have not."""

from __future__ import annotations

from typing import Any, cast

from toolpolicy_operator.admission.review import BadReview

MAP = {"*": str}
_REQUEST = {"port": (int, str), "path": str, "scheme": str, "host": str, "service": str, "httpHeaders": [MAP]}
_HANDLER = {"httpGet": _REQUEST, "tcpSocket": _REQUEST, "grpc": _REQUEST}
_PROBE = {**_HANDLER, "timeoutSeconds": int}
_SECURITY = {
    "runAsUser": int,
    "privileged": bool,
    "capabilities": {"add": [str], "drop": [str]},
}
_CONTAINER = {
    "name!": str,
    "restartPolicy": str,
    "targetContainerName": str,
    "ports": [{"containerPort!": int, "name": str, "protocol": str, "hostPort": int}],
    "env": [{"name!": str, "value": str}],
    "volumeMounts": [{"name!": str, "mountPath!": str}],
    "resources": {"requests": {"*": (int, str)}, "limits": {"*": (int, str)}},
    "securityContext": _SECURITY,
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "startupProbe": _PROBE,
    "lifecycle": {"postStart": _HANDLER, "preStop": _HANDLER},
}
_POD = {
    "metadata!": {
        "name": str,
        "generateName": str,
        "namespace": str,
        "labels": MAP,
        "annotations": MAP,
        "ownerReferences": [{"kind!": str, "name!": str, "controller": bool}],
    },
    "spec!": {
        "containers!": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "ephemeralContainers": [_CONTAINER],
        "volumes": [{"name!": str}],
        "hostNetwork": bool,
        "os": {"name": str},
        "nodeSelector": MAP,
        "securityContext": _SECURITY,
        "resources": {},
        "terminationGracePeriodSeconds": int,
    },
}


def check(pod: object) -> None:
    """Raises BadReview with the field that is wrong; fields that injection does not look at may be anything."""
    _check(pod, _POD, "object")


def _check(value: object, shape: Any, path: str) -> None:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise BadReview(f"{path}: expected an object")
        _members(cast("dict[Any, Any]", value), cast("dict[str, Any]", shape), path)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise BadReview(f"{path}: expected a list")
        for index, item in enumerate(cast("list[object]", value)):
            _check(item, shape[0], f"{path}[{index}]")
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        raise BadReview(f"{path}: expected {_called(shape)}")


def _members(value: dict[Any, Any], shape: dict[str, Any], path: str) -> None:
    if "*" in shape:
        for key, member in value.items():
            _check(key, str, f"{path} key")
            _check(member, shape["*"], f"{path}[{key}]")
        return
    for key, wanted in shape.items():
        name = key.removesuffix("!")
        member = value.get(name)
        if member is not None:
            _check(member, wanted, f"{path}.{name}")
        elif key.endswith("!"):
            raise BadReview(f"{path}.{name}: is missing")


def _called(shape: Any) -> str:
    names = {str: "a text", int: "a whole number", bool: "true or false"}
    return names.get(shape, "a whole number or a text")
