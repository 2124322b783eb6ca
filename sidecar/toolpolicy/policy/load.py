"""From the text of a manifest to policies, with every error of it in one run.

Three kinds of check follow each other and none hides another: the text (``documents.py``), the fields (the models of
``model.py``), and what fields mean together (``semantics.py``: expressions, schemas, selectors, rules that contradict
themselves). No I/O happens here; callers read files and pass their names for the messages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import ValidationError

from toolpolicy.policy import documents
from toolpolicy.policy.documents import Document, Path, Place
from toolpolicy.policy.errors import PolicyError, Problem
from toolpolicy.policy.explained import Explained, explain_errors, nearest, spell
from toolpolicy.policy.model import API_VERSION, ClusterToolPolicy, Policy, ToolPolicy
from toolpolicy.policy.semantics import check_spec
from toolpolicy.policy.shapes import items, mapping

KINDS: Mapping[str, type[ToolPolicy] | type[ClusterToolPolicy]] = {
    "ToolPolicy": ToolPolicy,
    "ClusterToolPolicy": ClusterToolPolicy,
}
MAX_POLICY = 64 * 1024
"""Bytes of one policy as compact JSON, without what Kubernetes adds (status, most of the metadata)."""


@dataclass(frozen=True, slots=True)
class Located:
    """An accepted policy, and where in its file the things are that it says."""

    policy: Policy
    file: str
    document: Document
    base: Path

    def problem(self, path: Path, message: str, code: str, severity: str) -> Problem:
        """A problem at ``path`` of the policy, or at the nearest thing above it that the file has."""
        place = self.document.place((*self.base, *path))
        return Problem(self.file, place.line, place.column, spell(path), message, severity, code)


def load_text(text: str | bytes, file: str) -> tuple[list[Policy], list[Problem]]:
    """Read one or many documents, YAML or JSON. Returns the policies without an error, and every problem of the file.

    ``file`` is only named in the problems. Never raises on any input.
    """
    found, problems = load_located(text, file)
    return [each.policy for each in found], problems


def load_located(text: str | bytes, file: str) -> tuple[list[Located], list[Problem]]:
    """As :func:`load_text`, and says where the policies are, for findings that come later."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return [], [_not_utf8(text, error, file)]
    policies: list[Located] = []
    problems: list[Problem] = []
    for document in documents.read(text):
        for policy, found in _accept_document(document, file):
            problems += found
            if policy is not None:
                policies.append(policy)
    problems += _twice(policies)
    return policies, sorted(set(problems))


def load_object(manifest: dict[str, Any], file: str) -> tuple[Policy | None, list[Problem]]:
    """Check one manifest that was parsed already (an admission request, a ConfigMap's JSON); problems have no lines."""
    faults = list(_unsafe_values(manifest))
    if faults:
        return None, sorted({Problem(file, 0, 0, spell(p), message, code=code) for p, message, code in faults})
    policy, found = _accept(json.loads(json.dumps(manifest)))  # tuples and the like become what JSON would have made
    return policy, sorted({Problem(file, 0, 0, spell(e.path), e.message, code=e.code) for e in found})


def require(text: str | bytes, file: str) -> list[Policy]:
    """The policies of ``text``; raises :class:`PolicyError` with every error if there is one."""
    policies, problems = load_text(text, file)
    if problems:
        raise PolicyError(problems)
    return policies


def identity(policy: Policy) -> tuple[str, str | None, str]:
    """(kind, namespace, name): what names a policy in a cluster."""
    return policy.kind, policy.metadata.namespace, policy.metadata.name


def duplicates(policies: Sequence[tuple[str, Policy]]) -> list[Problem]:
    """Problems for policies (each with its file) that another file has too: in a cluster one would replace the other.

    Those of one file alone are found when it is loaded.
    """
    first: dict[tuple[str, str | None, str], str] = {}
    found: list[Problem] = []
    for file, policy in policies:
        key = identity(policy)
        if first.setdefault(key, file) != file:
            message = f"{_full_name(policy)} is also in {first[key]}"
            found.append(Problem(file, 0, 0, "metadata.name", message, code="duplicate-policy"))
    return found


def _twice(policies: Sequence[Located]) -> list[Problem]:
    first: dict[tuple[str, str | None, str], Problem] = {}
    found: list[Problem] = []
    for each in policies:
        key = identity(each.policy)
        problem = each.problem(("metadata", "name"), "", "duplicate-policy", "error")
        if key in first:
            message = f"{_full_name(each.policy)} is twice in this file: first on line {first[key].line}"
            found.append(replace(problem, message=message))
        first.setdefault(key, problem)
    return found


def _full_name(policy: Policy) -> str:
    kind, namespace, name = identity(policy)
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _not_utf8(text: bytes, error: UnicodeDecodeError, file: str) -> Problem:
    before = text[: error.start]
    line = before.count(b"\n") + 1
    column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
    encoding = "UTF-16" if text[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
    message = f"not UTF-8 (byte 0x{text[error.start]:02x}): save the file as UTF-8, it seems to be {encoding}"
    return Problem(file, line, column, "", message, code="encoding")


def _accept_document(document: Document, file: str) -> Iterator[tuple[Located | None, list[Problem]]]:
    """One document is one policy, or the ``List`` of many that kubectl prints."""
    faults = [
        Problem(file, f.place.line, f.place.column, spell(f.path), f.message, code=f.code) for f in document.faults
    ]
    if not document.complete:
        yield None, faults
        return
    for base, value in _items(document.value):
        policy, found = _accept(value)
        problems: list[Problem] = []
        for error in found:
            path = (*base, *error.path)
            if not any(path[:length] in document.doubtful for length in range(len(base), len(path) + 1)):
                problems.append(_placed(error, path, document, file))
        good = policy is not None and not faults
        yield (Located(policy, file, document, base) if policy and good else None), [*faults, *problems]


def _items(value: Any) -> Iterable[tuple[Path, Any]]:
    held = mapping(value)
    if held.get("kind") in ("List", "ToolPolicyList", "ClusterToolPolicyList"):
        return [(("items", index), item) for index, item in enumerate(items(held.get("items")))]
    return [((), value)]


def _placed(error: Explained, path: Path, document: Document, file: str) -> Problem:
    place = document.place(path, key=error.at_key)
    line, column = _inside(place, error) if error.offset and not error.at_key else (place.line, place.column)
    return Problem(file, line, column, spell(path), error.message, code=error.code)


def _inside(place: Place, error: Explained) -> tuple[int, int]:
    """The place of a fault inside a text, where the text stands in the file as it is."""
    line, column = error.offset or (1, 1)
    if place.style == "|":
        return place.line + line, 1
    if place.style == ">" or line > 1:
        return place.line, place.column
    return place.line, place.column + column - 1 + (1 if place.style else 0)


def _accept(manifest: Any) -> tuple[Policy | None, list[Explained]]:
    if not isinstance(manifest, dict):
        return None, [Explained((), "expected a ToolPolicy or a ClusterToolPolicy, as a mapping", "not-a-policy")]
    held = mapping(cast("object", manifest))
    kind, errors = _kind(held)
    if kind is None:
        return None, errors
    errors += _nulls(held)
    errors += _size(held)
    policy: Policy | None = None
    shown = {name: value for name, value in held.items() if name != "status"}
    if named := mapping(held.get("metadata")):  # nulls are common there, and Kubernetes drops them
        shown["metadata"] = {name: value for name, value in named.items() if value is not None}
    try:
        policy = KINDS[kind].model_validate(
            {**shown, "kind": kind, "apiVersion": API_VERSION}, by_alias=True, by_name=False
        )
    except ValidationError as error:
        errors += explain_errors(error, shown)
    except RecursionError:
        errors.append(Explained((), "nested too deeply", "too-deep"))
    errors += check_spec(held)
    if policy is None and not errors:
        errors.append(Explained((), "the policy is not valid", "invalid"))
    return (None if errors else policy), errors


def _kind(manifest: dict[str, Any]) -> tuple[str | None, list[Explained]]:
    """The kind that the manifest has, or seems to have; None where it is something else altogether."""
    errors: list[Explained] = []
    kind = manifest.get("kind")
    if kind == "ToolPolicyTest":
        said = "this is a test, no policy: run it with `toolpolicy test`, and keep it out of a directory of policies"
        return None, [Explained(("kind",), said, "test-file")]
    guess = kind if isinstance(kind, str) and kind in KINDS else nearest(kind, KINDS)
    if guess != kind or kind is None:
        wanted = " or ".join(KINDS)
        said = f"the kind {kind!r} is not known here" if isinstance(kind, str) else "the kind is missing"
        meant = f": did you mean {guess}?" if guess else f": expected {wanted}"
        errors.append(Explained(("kind",), said + meant, "unknown-kind"))
    version = manifest.get("apiVersion")
    if version != API_VERSION and (guess or kind is None):
        said = f"expected {API_VERSION}" + (f", not {version[:80]!r}" if isinstance(version, str) else "")
        errors.append(Explained(("apiVersion",), said, "unknown-version"))
    if guess is None and kind is None and "rules" in mapping(manifest.get("spec")):
        guess = "ToolPolicy"
    return guess, errors


def _nulls(manifest: dict[str, Any]) -> list[Explained]:
    """Fields that are there without a value: Kubernetes would drop them in silence. A JSON Schema may hold nulls."""
    found: list[Explained] = []
    stack: list[tuple[Path, Any]] = [((), {"spec": manifest.get("spec", {})})]
    while stack:
        path, value = stack.pop()
        if value is None:
            message = "the field has no value: give it one, or leave the field out"
            found.append(Explained(path, message, "null", at_key=isinstance(path[-1], str)))
        elif isinstance(value, dict) and not (
            len(path) >= 2 and path[-1] == "schema" and path[-3:-2] == ("validations",)
        ):
            stack += [((*path, key), item) for key, item in cast("dict[str, Any]", value).items()]
        elif isinstance(value, list) and len(path) < 8:
            stack += [((*path, index), item) for index, item in enumerate(cast("list[Any]", value))]
    return found


def _size(manifest: dict[str, Any]) -> list[Explained]:
    named = {k: v for k, v in mapping(manifest.get("metadata")).items() if k in ("name", "namespace")}
    core = {**{k: v for k, v in manifest.items() if k != "status"}, "metadata": named}
    size = len(json.dumps(core, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    if size <= MAX_POLICY:
        return []
    message = f"the policy is {size} bytes as JSON, at most {MAX_POLICY}: split it, several policies may select a pod"
    return [Explained((), message, "too-large")]


def _unsafe_values(manifest: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """What :mod:`documents` refuses in a text, for a value that never was one."""
    stack: list[tuple[Path, Any]] = [((), manifest)]
    while stack:
        path, value = stack.pop()
        if len(path) > documents.MAX_DEPTH:
            yield path[:8], f"nested more than {documents.MAX_DEPTH} deep", "too-deep"
        elif isinstance(value, str):
            if unsafe := documents.unsafe_character(value):
                yield path, unsafe, "character"
        elif isinstance(value, dict):
            for key, item in cast("dict[Any, Any]", value).items():
                if not isinstance(key, str):
                    yield path, "a key must be a text", "key"
                elif unsafe := documents.unsafe_character(key):
                    yield path, f"in a key: {unsafe}", "key"
                else:
                    stack.append(((*path, key), item))
        elif isinstance(value, list | tuple):
            stack += [((*path, index), item) for index, item in enumerate(cast("list[Any]", value))]
        elif isinstance(value, float) and not math.isfinite(value):
            yield path, "expected a finite number", "number"
        elif value is not None and not isinstance(value, bool | int | float):
            yield path, f"{type(value).__name__} is not a value that JSON knows", "wrong-type"
