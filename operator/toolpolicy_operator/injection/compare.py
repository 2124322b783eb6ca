"""Whether a pod's sidecar is what toolpolicy injects, and which field is not.

Tolerated, because admission itself does it or it changes nothing that is promised:

- ``resources`` (LimitRange, VerticalPodAutoscaler), ``claims`` apart, and ``imagePullPolicy: Always``
  (AlwaysPullImages); a pod that comes with a sidecar may only raise what that is given;
- credentials that a cloud's identity webhook puts into every container: variables ``AWS_…``, ``AZURE_…``,
  ``GOOGLE_…``, and mounts below /var/run/secrets that are not ours.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Any, cast

from toolpolicy_operator import names
from toolpolicy_operator.injection import podview
from toolpolicy_operator.injection.containers import API_TOKEN_PATH, DYNAMIC, TOKEN_PATH
from toolpolicy_operator.injection.plan import Pod
from toolpolicy_operator.injection.podview import Object

TOLD_LABELS = frozenset({"TOOLPOLICY_POD_LABELS", "TOOLPOLICY_NAMESPACE_LABELS"})
"""Labels at admission, which others may have changed since: what they select is compared, not they."""
IDENTITY_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_")
SECRETS = "/var/run/secrets/"
_QUANTITY = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?)(m|[kMGT]?|[KMGT]i)")
_SUFFIXES = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("KMGT", 1)
}
_ABSENT = object()


def altered(expected: Pod, actual: Pod, *, dynamic: bool = False) -> str | None:
    """The first difference, as ``FIELD is X, expected Y``; None if there is none.

    ``dynamic`` leaves out what follows from policies, labels and other containers, which may have changed between two
    admissions of one pod; it compares what is ours alone.
    """
    found = [*_our_containers(expected, actual, dynamic), *_our_volumes(expected, actual)]
    if not dynamic:
        found = [*_their_containers(expected, actual), *found, _misplaced(actual), *_annotations(expected, actual)]
    return next((difference for difference in found if difference), None)


def _our_containers(expected: Pod, actual: Pod, dynamic: bool) -> Iterable[str | None]:
    wanted = {str(c.get("name")): c for c in podview.init_containers(expected)}
    for name in (names.REDIRECT_CONTAINER, names.SIDECAR_CONTAINER):
        found = [(p, c) for p, c in podview.all_containers(actual) if c.get("name") == name]
        if not found:
            missing = name in wanted and not (dynamic and name == names.REDIRECT_CONTAINER)
            yield f"spec.initContainers lacks {name}" if missing else None
            continue
        path, container = found[0]
        if len(found) > 1 or not path.startswith("spec.initContainers"):
            yield f"{found[-1][0]}.name is {name}, expected no such container there"
        elif name in wanted:
            yield _difference(
                _compared(wanted[name], wanted[name], dynamic), _compared(container, wanted[name], dynamic), path
            )
        elif not dynamic:
            yield f"{path}.name is {name}, expected no such container"


def _compared(container: Object, expected: Object, dynamic: bool) -> Object:
    """The container without what is tolerated; lists whose order means nothing by name."""
    kept = {k: v for k, v in container.items() if k != "resources"}
    kept["claims"] = podview.child(container, "resources").get("claims")  # a device comes with mounts and variables
    if kept.get("imagePullPolicy") == "Always":
        kept["imagePullPolicy"] = expected.get("imagePullPolicy")
    left_out = DYNAMIC if dynamic else TOLD_LABELS
    variables = _by("name", podview.listed(container, "env"))
    mounts = _by("mountPath", podview.listed(container, "volumeMounts"))
    kept["env"] = {n: e for n, e in variables.items() if n not in left_out and not n.startswith(IDENTITY_VARIABLES)}
    kept["volumeMounts"] = {n: m for n, m in mounts.items() if not _foreign_secret(str(m.get("mountPath")))}
    if dynamic:
        kept.pop("ports", None)
        kept.pop("args", None)
    return kept


def _by(key: str, items: Iterable[Object]) -> dict[str, Object]:
    """Which of two of one name counts depends on the runtime: a second one stands for itself, and is one too many."""
    found: dict[str, Object] = {}
    for item in items:
        name = str(item.get(key))
        found[f"{name} (again)" if name in found else name] = item
    return found


def keep(container: Object, before: Object) -> None:
    """Give ``container``, in place, what is tolerated on ``before``, the same container as it was found."""
    container["resources"] = _raised(podview.child(container, "resources"), podview.child(before, "resources"))
    if before.get("imagePullPolicy") == "Always":
        container["imagePullPolicy"] = "Always"
    variables = [e for e in podview.listed(before, "env") if str(e.get("name")).startswith(IDENTITY_VARIABLES)]
    mounts = [m for m in podview.listed(before, "volumeMounts") if _foreign_secret(str(m.get("mountPath")))]
    if variables:
        container["env"] = [*podview.listed(container, "env"), *variables]
    if mounts:
        container["volumeMounts"] = [*podview.listed(container, "volumeMounts"), *mounts]


def _raised(ours: Object, found: Object) -> Object:
    """Requests and limits that were added to ours or are higher: who wrote the pod can't starve its sidecar."""
    merged = dict(ours)
    for section in ("requests", "limits"):
        amounts = found.get(section)
        if not isinstance(amounts, dict):
            continue
        least = podview.child(ours, section)
        more = {
            k: v for k, v in cast("Object", amounts).items() if k not in least or _quantity(v) > _quantity(least[k])
        }
        if more:
            merged[section] = {**least, **more}
    return merged


def _quantity(value: object) -> float:
    """A resource.Quantity as a number; less than any for what is none."""
    match = _QUANTITY.fullmatch(str(value))
    return float(match[1]) * _SUFFIXES[match[2]] if match else -1.0


def _foreign_secret(path: str) -> bool:
    """Strictly below /var/run/secrets, and neither ours nor above or below what is ours; as a mount written otherwise
    than in its normal form may be.
    """
    if not path.startswith(SECRETS) or posixpath.normpath(path) != path:
        return False
    ours = (TOKEN_PATH, API_TOKEN_PATH)
    return not any(f"{own}/".startswith(f"{path.rstrip('/')}/") or f"{path}/".startswith(f"{own}/") for own in ours)


def _our_volumes(expected: Pod, actual: Pod) -> Iterable[str | None]:
    wanted = {v.get("name"): v for v in podview.listed(podview.spec(expected), "volumes")}
    seen = {str(v.get("name")): (index, v) for index, v in enumerate(podview.listed(podview.spec(actual), "volumes"))}
    for name in sorted(podview.OUR_VOLUMES):
        if name not in seen:
            yield f"spec.volumes lacks {name}"
            continue
        index, volume = seen[name]
        yield _difference(wanted[name], volume, f"spec.volumes[{index}]")


def _misplaced(pod: Pod) -> str | None:
    """Containers that end before the redirection stands do no harm; one that stays would be reached past it."""
    found = [c.get("name") for c in podview.init_containers(pod)]
    ours = [name for name in found if name in podview.OUR_CONTAINERS]
    if ours != sorted(ours, key=(names.REDIRECT_CONTAINER, names.SIDECAR_CONTAINER).index):
        return f"spec.initContainers has {names.SIDECAR_CONTAINER} before {names.REDIRECT_CONTAINER}, expected after it"
    for index, container in enumerate(podview.init_containers(pod)):
        if container.get("name") in podview.OUR_CONTAINERS:
            return None
        if podview.is_native_sidecar(container):
            return f"spec.initContainers[{index}] starts before toolpolicy's containers, expected after them"
    return None


def _annotations(expected: Pod, actual: Pod) -> Iterable[str | None]:
    """Those of ours; the namespace's labels are compared by what they select."""
    for name in podview.OUR_ANNOTATIONS:
        wanted, found = podview.annotations_of(expected).get(name), podview.annotations_of(actual).get(name)
        if wanted != found and name != names.NAMESPACE_LABELS_ANNOTATION:
            yield f"metadata.annotations[{name}] is {_shown(found)}, expected {_shown(wanted)}"


def _their_containers(expected: Pod, actual: Pod) -> Iterable[str | None]:
    """Probes and the names of ports."""
    by_name = {str(c.get("name")): c for _, c in podview.all_containers(expected)}
    for path, container in podview.all_containers(actual):
        if container.get("name") not in podview.OUR_CONTAINERS:
            yield _difference(by_name.get(str(container.get("name"))), container, path)


def _difference(expected: Any, actual: Any, path: str) -> str | None:
    if isinstance(expected, dict) and isinstance(actual, dict):
        wanted, found = cast("Object", expected), cast("Object", actual)
        for key in sorted({*wanted, *found}):
            difference = _difference(wanted.get(key, _ABSENT), found.get(key, _ABSENT), f"{path}.{key}")
            if difference:
                return difference
        return None
    if isinstance(expected, list) and isinstance(actual, list):
        wanted_items, found_items = cast("list[Any]", expected), cast("list[Any]", actual)
        if len(wanted_items) == len(found_items):
            pairs = enumerate(zip(wanted_items, found_items, strict=True))
            return next((d for i, (w, f) in pairs if (d := _difference(w, f, f"{path}[{i}]"))), None)
    if expected == actual and isinstance(expected, bool) == isinstance(actual, bool):
        return None
    return f"{path} is {_shown(cast('object', actual))}, expected {_shown(cast('object', expected))}"


def _shown(value: object) -> str:
    if value is _ABSENT or value is None:
        return "absent"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
