"""Label selectors that no object can satisfy. A policy that selects nothing protects nothing, and says so too late."""

from __future__ import annotations

from collections.abc import Iterator

from toolpolicy.policy.documents import Path
from toolpolicy.policy.explained import Explained
from toolpolicy.policy.shapes import items, mapping, texts


def check_selector(value: object, path: Path) -> Iterator[Explained]:
    """Errors of one selector as its manifest has it; keys and values themselves are the models' matter."""
    selector = mapping(value)
    labels = mapping(selector.get("matchLabels"))
    allowed: dict[str, set[str]] = {key: {text} for key, text in labels.items() if isinstance(text, str)}
    absent: dict[str, Path] = {}
    present = set(allowed)
    excluded: dict[str, set[str]] = {}
    for key in labels:
        if key.count("/") == 1 and len(key.split("/")[0]) > 253:
            yield Explained(
                (*path, "matchLabels", key), "a label key's prefix has at most 253 characters", "selector", at_key=True
            )
    for index, item in enumerate(items(selector.get("matchExpressions"))):
        where = (*path, "matchExpressions", index)
        requirement = mapping(item)
        key, operator, values = requirement.get("key"), requirement.get("operator"), texts(requirement.get("values"))
        if not isinstance(key, str):
            continue
        if operator in ("In", "NotIn") and not requirement.get("values"):
            yield Explained(
                where, f"{operator} needs values: with none of them it selects nothing or everything", "selector"
            )
            continue
        if operator in ("Exists", "DoesNotExist") and values:
            yield Explained((*where, "values"), f"{operator} takes no values", "selector", at_key=True)
        if operator == "In":
            allowed[key] = allowed[key] & set(values) if key in allowed else set(values)
            present.add(key)
        elif operator == "NotIn":
            excluded.setdefault(key, set()).update(values)
        elif operator == "Exists":
            present.add(key)
        elif operator == "DoesNotExist":
            absent[key] = where
    yield from _contradictions(path, allowed, excluded, present, absent)


def _contradictions(
    path: Path, allowed: dict[str, set[str]], excluded: dict[str, set[str]], present: set[str], absent: dict[str, Path]
) -> Iterator[Explained]:
    for key, where in absent.items():
        if key in present:
            message = f"selects nothing: the label {key[:80]} must be there and must not"
            yield Explained(where, message, "selector")
    for key, values in allowed.items():
        if not values - excluded.get(key, set()):
            message = f"selects nothing: no value of the label {key[:80]} satisfies all conditions"
            yield Explained(path, message, "selector")
