"""pydantic's errors in the manifest's own words: what was expected at which field, which name was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from toolpolicy.policy.documents import Path
from toolpolicy.policy.fields import EXPECTED
from toolpolicy.policy.model import ClusterToolPolicy, ToolPolicy

_WORST_GUESS = 64
"""Longer words are not compared with known names, nor is more than the first hundred of them."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One error of a manifest. ``at_key``: the field's name is wrong, not its value.

    ``offset`` is a 1-based (line, column) inside a text, for an expression.
    """

    path: Path
    message: str
    code: str
    at_key: bool = False
    offset: tuple[int, int] | None = None


def spell(path: Path) -> str:
    """``spec.rules[2].when``; a key that is not a plain word is quoted: ``spec.categories["a.b"]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("_", "").isalnum() and part.isascii() and len(part) <= 64:
            text += f".{part}" if text else part
        else:
            short = part if len(part) <= 64 else part[:63] + "…"
            text += f'["{short}"]'
    return text


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known name that ``word`` probably means, or None. Case and ``_`` or ``-`` matter little."""
    if not isinstance(word, str) or not word or len(word) > _WORST_GUESS:
        return None
    folded = {name.lower(): name for name in known}
    plain = word.lower().replace("_", "").replace("-", "")
    close = difflib.get_close_matches(plain, folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def explain_errors(error: ValidationError, manifest: Mapping[str, Any]) -> list[Explained]:
    """Every error that pydantic found in ``manifest``, without those that only repeat another."""
    found: list[Explained] = []
    meant: set[Path] = set()
    for each in sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden"):
        kind, location = each["type"], each["loc"]
        at_key = location[-1:] == ("[key]",)
        path = location[:-1] if at_key else location
        value = path[-1] if at_key else _at(manifest, path)
        if value is None and kind != "missing" and path[:1] == ("spec",):
            continue  # null: said once, in its own words
        if kind == "too_short" and isinstance(value, list | dict) and value:
            continue  # items were left out because they are wrong themselves
        context = each.get("ctx", {})
        if kind == "missing":
            if path not in meant:
                found.append(Explained(path, _MISSING.get(path, "the field is missing"), "missing-field"))
        elif kind == "extra_forbidden":
            unknown, guess = _unknown(path, manifest, guess=len(found) < 100)
            found.append(unknown)
            if guess:
                meant.add((*path[:-1], guess))
        else:
            found.append(Explained(path, _message(kind, context, value), _CODES.get(kind, "wrong-value"), at_key))
    return found


_MISSING: dict[Path, str] = {
    ("metadata",): "the field is missing: a policy has a name, as in `metadata: {name: imaging}`",
    ("metadata", "name"): "the field is missing: a policy has a name",
    ("spec",): "the field is missing: it holds the policy itself",
    ("spec", "selector"): "the field is missing: it selects the pods, `selector: {}` all of the namespace",
}
_CODES = {
    "string_type": "wrong-type",
    "bool_type": "wrong-type",
    "int_type": "wrong-type",
    "float_type": "wrong-type",
    "dict_type": "wrong-type",
    "model_type": "wrong-type",
    "tuple_type": "wrong-type",
    "enum": "unknown-value",
    "literal_error": "unknown-value",
    "string_too_long": "too-long",
    "too_long": "too-long",
}


def _message(kind: str, context: Mapping[str, Any], value: Any) -> str:
    """What was expected, for one of pydantic's error types."""
    if kind in ("enum", "literal_error"):
        return _choice(str(context["expected"]), value)
    if kind == "string_pattern_mismatch":
        return f"expected {EXPECTED.get(str(context['pattern']), 'another form')}, not {show(value)}"
    if kind == "value_error":
        return f"{context['error']}, not {show(value)}"
    if kind == "string_type":
        hint = f': quote it: "{show(value)}"' if isinstance(value, int | float) else f", not {show(value)}"
        return f"expected a text{hint}"
    if kind in ("dict_type", "model_type"):
        return f"expected a mapping, not {show(value)}"
    if kind == "tuple_type":
        return f"expected a list, not {show(value)}" + (f": write [{show(value)}]" if isinstance(value, str) else "")
    simple = _SIMPLE.get(kind)
    if simple is None:
        return f"the value {show(value)} is not accepted"
    limit = next((context[name] for name in ("max_length", "min_length", "gt", "le") if name in context), "")
    if kind in ("string_too_long", "too_long", "string_too_short", "too_short"):
        return simple.format(limit=limit, actual=len(cast("str", value)))
    return f"{simple.format(limit=f'{limit:g}' if isinstance(limit, float) else limit)}, not {show(value)}"


_SIMPLE = {
    "bool_type": "expected true or false",
    "float_type": "expected a number",
    "int_type": "expected a whole number",
    "finite_number": "expected a finite number",
    "greater_than": "expected a number above {limit}",
    "less_than_equal": "expected at most {limit}",
    "string_too_long": "has {actual} characters, at most {limit} are accepted",
    "string_too_short": "the text is empty",
    "too_long": "has {actual} items, at most {limit} are accepted",
    "too_short": "it is empty: name at least one",
}


_MEANT = {
    **dict.fromkeys(("user", "client", "caller", "agent", "identity", "subject", "account"), "Principal"),
    **dict.fromkeys(("pod", "service", "workload", "deployment", "global"), "Server"),
    **dict.fromkeys(("block", "forbid", "reject", "refuse"), "Deny"),
    **dict.fromkeys(("permit", "accept", "pass"), "Allow"),
    **dict.fromkeys(("approve", "approval", "ask"), "RequireApproval"),
    **dict.fromkeys(("dryrun", "warn", "monitor", "observe"), "Audit"),
}
"""What a value of another language stands for here, where spelling does not tell."""


def _choice(expected: str, value: Any) -> str:
    choices = [part.split(":")[-1].strip(" '>") for part in expected.replace(" or ", ", ").split(", ")]
    other = _MEANT.get(value.lower()) if isinstance(value, str) else None
    guess = other if other in choices else nearest(value, choices)
    meant = f": did you mean {guess}?" if guess else ""
    return f"expected {', '.join(choices[:-1])} or {choices[-1]}, not {show(value)}{meant}"


def _unknown(path: Path, manifest: Mapping[str, Any], *, guess: bool) -> tuple[Explained, str | None]:
    fields = fields_at(path[:-1], str(manifest.get("kind", "ToolPolicy")))
    name = str(path[-1])
    meant = nearest(name, fields) if guess else None
    if not guess:
        return Explained(path, "unknown field", "unknown-field", at_key=True), None
    hint = f": did you mean {meant}?" if meant else f": expected one of {', '.join(fields)}"
    short = name if len(name) <= 64 else name[:63] + "…"
    return Explained(path, f"unknown field {short!r}{hint}", "unknown-field", at_key=True), meant


def fields_at(path: Path, kind: str) -> list[str]:
    """The names of the fields that the mapping at ``path`` may have."""
    model: type[BaseModel] | None = ClusterToolPolicy if kind == "ClusterToolPolicy" else ToolPolicy
    for part in path:
        if isinstance(part, int):
            continue
        if model is None:
            return []
        annotation = next((i.annotation for n, i in model.model_fields.items() if part in (n, i.alias)), None)
        model = _model_in(annotation)
    if model is None:
        return []
    return [info.alias or name for name, info in model.model_fields.items()]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in inner if model is not None), None)


def _at(manifest: Any, path: Path) -> Any:
    for part in path:
        if isinstance(manifest, Mapping) and part in manifest:
            manifest = cast("Mapping[Any, Any]", manifest)[part]
        elif isinstance(manifest, list) and isinstance(part, int) and part < len(cast("list[Any]", manifest)):
            manifest = cast("list[Any]", manifest)[part]
        else:
            return None
    return manifest


def show(value: Any) -> str:
    """A value of a manifest, short enough for a message."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"
