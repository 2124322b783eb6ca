"""Policies that were parsed a moment ago. Hundreds of expressions take a third of a second to compile: what the webhook
compiled beside the event loop is not compiled again on it when the watch brings the same policy.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict

from pydantic import ValidationError

from toolpolicy.policy.errors import Problem
from toolpolicy.policy.load import load_object
from toolpolicy.policy.model import Metadata, Policy
from toolpolicy.policy.shapes import mapping
from toolpolicy_operator.canonical import digest
from toolpolicy_operator.kube import Object

MOST = 32
"""Policies that are kept; most of them are the store's anyway."""

_lock = threading.Lock()
_kept: OrderedDict[str, Policy] = OrderedDict()
"""By the digest of what a verdict depends on: any pod may ask the webhook, and can put nothing here but the truth."""


def keep(manifest: Object, policy: Policy) -> None:
    """Remember the policy that a manifest is; from any thread."""
    key = _key(manifest)
    with _lock:
        _kept[key] = policy
        _kept.move_to_end(key)
        while len(_kept) > MOST:
            _kept.popitem(last=False)


def load(manifest: Object, file: str) -> tuple[Policy | None, list[Problem]]:
    """As :func:`toolpolicy.policy.load.load_object`, of a manifest that has apiVersion, kind, metadata and spec and
    nothing else; only valid ones are remembered.
    """
    with _lock:
        known = _kept.get(_key(manifest))
    if known is not None:
        try:
            metadata = Metadata.model_validate(manifest["metadata"])
        except ValidationError:
            return load_object(manifest, file)
        return known.model_copy(update={"metadata": metadata}), []
    policy, problems = load_object(manifest, file)
    if policy is not None:
        keep(manifest, policy)
    return policy, problems


def _key(manifest: Object) -> str:
    metadata = mapping(manifest.get("metadata"))
    named = [manifest.get("apiVersion"), manifest.get("kind"), metadata.get("namespace"), metadata.get("name")]
    return digest(json.dumps([*named, manifest.get("spec")], sort_keys=True, separators=(",", ":")).encode())
