"""The index of a mounted ``toolpolicy-rules`` ConfigMap: what belongs to the set, and that it is whole.

    {"apiVersion": "toolpolicy.dev/v1alpha1", "kind": "RulesIndex", "epoch": 3, "revision": "3-17",
     "policies": {"<key>": {"digest": "sha256:<hex of the file's bytes>", "kind": "ToolPolicy", "namespace": "agents",
                            "name": "imaging", "uid": "…", "generation": 4}}}

Each key is a file beside the index that holds the manifest as JSON. A field that is not known here was written by a
newer operator and may mean a restriction: it is an error, never passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from toolpolicy.policy.errors import Problem
from toolpolicy.policy.model import API_VERSION

INDEX = "index.json"
_FIELDS = {"apiVersion", "kind", "epoch", "revision", "policies"}
_ENTRY_FIELDS = {"digest", "kind", "namespace", "name", "uid", "generation"}
_KINDS = ("ToolPolicy", "ClusterToolPolicy")


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy of the set; ``namespace`` is None for a ClusterToolPolicy."""

    key: str
    digest: str
    kind: str
    namespace: str | None
    name: str
    uid: str | None
    generation: int | None


@dataclass(frozen=True, slots=True)
class Index:
    epoch: int
    revision: str
    entries: tuple[Entry, ...]


class IndexFault(ValueError):
    """An index or a file of it that can't be used; ``problems`` holds everything found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(str(p) for p in problems))
        self.problems = problems


def parse_index(raw: bytes) -> Index:
    """The index from its bytes. Raises :class:`IndexFault` with every problem."""
    try:
        document = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise IndexFault([_problem(INDEX, "", f"is not JSON: {error}")]) from error
    if not isinstance(document, dict):
        raise IndexFault([_problem(INDEX, "", "expected an object")])
    fields = cast("dict[str, Any]", document)
    found = [
        _problem(INDEX, f, "unknown field; this sidecar is older than the operator") for f in fields.keys() - _FIELDS
    ]
    if fields.get("apiVersion") != API_VERSION:
        found.append(_problem(INDEX, "apiVersion", f"expected {API_VERSION}, found {fields.get('apiVersion')!r:.60}"))
    if fields.get("kind") != "RulesIndex":
        found.append(_problem(INDEX, "kind", f"expected RulesIndex, found {fields.get('kind')!r:.60}"))
    epoch, revision, policies = fields.get("epoch"), fields.get("revision"), fields.get("policies")
    if not _is_count(epoch):
        found.append(_problem(INDEX, "epoch", "expected a whole number from 0"))
    if not isinstance(revision, str) or not 0 < len(revision) <= 128 or not revision.isprintable():
        found.append(_problem(INDEX, "revision", "expected a text of 1 to 128 characters"))
    entries: list[Entry] = []
    if isinstance(policies, dict):
        for key, value in cast("dict[str, Any]", policies).items():
            entry = _parse_entry(key, value, found)
            if entry is not None:
                entries.append(entry)
    else:
        found.append(_problem(INDEX, "policies", "expected an object"))
    if found:
        raise IndexFault(sorted(found))
    return Index(cast("int", epoch), cast("str", revision), tuple(entries))


def _parse_entry(key: str, value: Any, found: list[Problem]) -> Entry | None:
    path = f"policies[{key[:80]}]"
    before = len(found)
    if not key or key in (INDEX, ".", "..") or key.startswith("..") or not all(c.isalnum() or c in "-_." for c in key):
        found.append(_problem(INDEX, path, "is no key that a ConfigMap can have"))
    if not isinstance(value, dict):
        found.append(_problem(INDEX, path, "expected an object"))
        return None
    fields = cast("dict[str, Any]", value)
    found.extend(_problem(INDEX, f"{path}.{f}", "unknown field") for f in fields.keys() - _ENTRY_FIELDS)
    digest, kind, namespace, name = (fields.get(f) for f in ("digest", "kind", "namespace", "name"))
    uid, generation = fields.get("uid"), fields.get("generation")
    if not isinstance(digest, str) or not digest.startswith("sha256:") or len(digest) != 71:
        found.append(_problem(INDEX, f"{path}.digest", "expected sha256: and 64 hex digits"))
    if kind not in _KINDS:
        found.append(_problem(INDEX, f"{path}.kind", f"expected {' or '.join(_KINDS)}"))
    if not isinstance(name, str) or not name:
        found.append(_problem(INDEX, f"{path}.name", "expected a name"))
    if (kind == "ToolPolicy") != (isinstance(namespace, str) and bool(namespace)):
        found.append(
            _problem(INDEX, f"{path}.namespace", "expected a namespace for a ToolPolicy, none for a ClusterToolPolicy")
        )
    if uid is not None and not isinstance(uid, str):
        found.append(_problem(INDEX, f"{path}.uid", "expected a text"))
    if generation is not None and not _is_count(generation):
        found.append(_problem(INDEX, f"{path}.generation", "expected a whole number"))
    if len(found) > before:
        return None
    return Entry(key, cast("str", digest), cast("str", kind), namespace or None, cast("str", name), uid, generation)


def read_manifests(index: Index, read: Callable[[str], bytes]) -> list[tuple[Entry, Mapping[str, Any]]]:
    """Every manifest of the index, its bytes checked against the digest, its names against the entry.

    ``read`` gives a key's bytes or raises OSError. Raises :class:`IndexFault` with every problem.
    """
    found: list[Problem] = []
    manifests: list[tuple[Entry, Mapping[str, Any]]] = []
    for entry in index.entries:
        try:
            raw = read(entry.key)
        except OSError as error:
            found.append(_problem(entry.key, "", f"is in the index and can't be read: {error.strerror}"))
            continue
        if "sha256:" + hashlib.sha256(raw).hexdigest() != entry.digest:
            found.append(_problem(entry.key, "", "its content does not have the digest that the index gives"))
            continue
        try:
            manifest = json.loads(raw, object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            found.append(_problem(entry.key, "", f"is not JSON: {error}"))
            continue
        mismatch = _mismatch(entry, manifest)
        if mismatch:
            found.append(_problem(entry.key, mismatch, "differs from what the index says"))
        else:
            manifests.append((entry, _complete(entry, manifest)))
    if found:
        raise IndexFault(found)
    return manifests


def _mismatch(entry: Entry, manifest: Any) -> str | None:
    if not isinstance(manifest, dict):
        return "the manifest"
    fields = cast("dict[str, Any]", manifest)
    metadata = fields.get("metadata")
    if not isinstance(metadata, dict):
        return "metadata"
    meta = cast("dict[str, Any]", metadata)
    if fields.get("kind") != entry.kind:
        return "kind"
    if meta.get("name") != entry.name:
        return "metadata.name"
    if entry.kind == "ToolPolicy" and meta.get("namespace") != entry.namespace:
        return "metadata.namespace"
    for name, value in (("uid", entry.uid), ("generation", entry.generation)):
        if value is not None and meta.get(name, value) != value:
            return f"metadata.{name}"
    return None


def _complete(entry: Entry, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with uid and generation from the index, where it says neither."""
    known = {k: v for k, v in (("uid", entry.uid), ("generation", entry.generation)) if v is not None}
    return {**manifest, "metadata": {**known, **manifest["metadata"]}}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("an object has the same key twice")
    return fields


def _problem(file: str, path: str, message: str) -> Problem:
    return Problem(file, 0, 0, path, message, code="rules-index")
