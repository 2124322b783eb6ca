"""The ConfigMap ``toolpolicy-rules`` of a namespace: its contents, whether what is there is already them, and sizes.

Pure. The format is ``toolpolicy.policy.rulesindex``. Neither epoch nor revision changes while the policies stay the
same: the same content is no write. The annotation ``toolpolicy.dev/epoch`` alone follows the Lease, so that a new
writer takes possession of every ConfigMap (its resourceVersion changes, and a write that an old writer still has under
way fails) without a reload in the pods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from toolpolicy.policy.load import load_object
from toolpolicy.policy.rulesindex import Index, IndexFault, parse_index
from toolpolicy_operator import names
from toolpolicy_operator.binding import Binding, bound
from toolpolicy_operator.canonical import canonical, digest
from toolpolicy_operator.kube import POLICIES_API, Object
from toolpolicy_operator.records import NamespaceRecord, PolicyRecord, RulesRecord

MAX_CONFIGMAP = 1024 * 1024
"""Bytes that a ConfigMap holds. Admission lets in less (``admission/sizes.py``); a namespace whose labels change may
still be reached by too many policies at once."""
ABSENT = "1"
"""As the resourceVersion of an apply: create it, and fail with a conflict if it exists (no ConfigMap is that old)."""
_LONGEST_KEY = 253


@dataclass(frozen=True)
class Contents:
    """What the ConfigMap should say: the index's entries and each key's bytes."""

    entries: Mapping[str, Object]
    files: Mapping[str, bytes]
    ca: str | None

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values())) + len(self.ca or "") + len(canonical(self.entries))

    def extras(self) -> dict[str, bytes]:
        """Every key but the index."""
        return {**self.files, **({names.CONTROL_CA_KEY: self.ca.encode()} if self.ca else {})}


@dataclass(frozen=True)
class Written:
    """The index of a ConfigMap as it is: None where it can't be read."""

    index: Index | None

    @property
    def revision(self) -> str | None:
        return self.index.revision if self.index is not None else None

    @property
    def epoch(self) -> int:
        return self.index.epoch if self.index is not None else 0


def key_of(record: PolicyRecord) -> str:
    """The key of a policy: ``toolpolicy.imaging.json``."""
    prefix = record.kind.lower()
    key = f"{prefix}.{record.name}.json"
    if len(key) <= _LONGEST_KEY:
        return key
    return f"{prefix}.{record.name[:160]}.{hashlib.sha256(record.name.encode()).hexdigest()[:32]}.json"


def contents(records: Iterable[PolicyRecord], ca: str | None) -> Contents:
    """The contents for these policies; of one that is invalid, what is in force in its place."""
    entries: dict[str, Object] = {}
    files: dict[str, bytes] = {}
    for record in records:
        key = key_of(record)
        entry: Object = {
            "digest": record.digest, "kind": record.kind, "name": record.name,
            "uid": record.uid, "generation": record.binding.policy.metadata.generation,
        }  # fmt: skip
        entries[key] = {**entry, "namespace": record.namespace} if record.namespace else entry
        files[key] = record.manifest
    return Contents(entries, files, ca)


def written(current: RulesRecord | None) -> Written:
    """The index that is there now."""
    try:
        return Written(parse_index(current.index) if current is not None and current.index else None)
    except IndexFault:
        return Written(None)


def older(record: PolicyRecord, current: RulesRecord | None) -> bool:
    """Whether the index that is there names another generation of this very policy."""
    index = written(current).index
    entries = index.entries if index is not None else ()
    return any(e.key == key_of(record) and e.uid == record.uid and e.generation != record.generation for e in entries)


def kept(record: PolicyRecord, obj: Object) -> Binding | None:
    """The policy as the ConfigMap has it; None where that is not valid, or not of this policy."""
    try:
        found: object = json.loads(obj["data"][key_of(record)])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    manifest = cast("Object", found)
    policy, _ = load_object(manifest, names.RULES_CONFIGMAP)
    mine = policy is not None and (policy.kind, policy.metadata.namespace, policy.metadata.name, policy.metadata.uid)
    if policy is None or mine != (record.kind, record.namespace, record.name, record.uid):
        return None
    return bound(policy, manifest)


def holds(wanted: Contents, current: RulesRecord) -> bool:
    """Whether the ConfigMap's data say precisely this already: every key whole, none besides, the index right."""
    found = written(current).index
    if found is None or current.foreign:
        return False
    expected = {key: digest(raw) for key, raw in wanted.extras().items()}
    expected[names.INDEX_KEY] = digest(document(wanted, found.epoch, found.revision))
    return expected == dict(current.digests)


def document(wanted: Contents, epoch: int, revision: str) -> bytes:
    """The index, canonical: one content is one sequence of bytes."""
    return canonical(
        {
            "apiVersion": POLICIES_API,
            "kind": "RulesIndex",
            "epoch": epoch,
            "revision": revision,
            "policies": dict(wanted.entries),
        }
    )


def manifest(
    wanted: Contents, namespace: NamespaceRecord, index: tuple[int, str], epoch: int, current: RulesRecord | None
) -> Object:
    """The ConfigMap to apply. ``index`` is the (epoch, revision) that its index says, ``epoch`` the writer's own.

    It carries the uid and resourceVersion of ``current``, or asks not to exist yet: a write of one who looked before
    someone else wrote fails with a conflict.
    """
    metadata: Object = {
        "name": names.RULES_CONFIGMAP,
        "namespace": namespace.name,
        "annotations": {names.EPOCH_ANNOTATION: str(epoch)},
        # An owner: it goes with the namespace, and Argo CD does not take it for an orphan.
        "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": namespace.name, "uid": namespace.uid}],
        "resourceVersion": str(current.version) if current is not None else ABSENT,
    }
    if current is not None:
        metadata["uid"] = current.uid
    data = {key: raw.decode() for key, raw in sorted(wanted.extras().items())}
    data[names.INDEX_KEY] = document(wanted, *index).decode()
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
