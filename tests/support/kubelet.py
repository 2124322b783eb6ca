"""A ConfigMap volume as the kubelet writes it: a new directory, one rename of ``..data``, then the rest."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def write(volume: Path, files: Mapping[str, bytes]) -> Path:
    """Make ``files`` the volume's content; returns the new payload directory."""
    volume.mkdir(exist_ok=True)
    data = volume / "..data"
    old = volume / data.readlink() if data.is_symlink() else None
    stamp = datetime.now(UTC).strftime("..%Y_%m_%d_%H_%M_%S.")
    new = Path(tempfile.mkdtemp(prefix=stamp, dir=volume))
    new.chmod(0o755)
    for name, content in files.items():
        (new / name).write_bytes(content)
    temporary = volume / "..data_tmp"
    temporary.symlink_to(new.name)
    temporary.rename(data)
    for name in files:
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(Path("..data") / name)
    for entry in list(volume.iterdir()):
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in files:
            entry.unlink()
    if old is not None:
        shutil.rmtree(old)
    return new


def policy(
    name: str = "imaging", tool: str = "search", namespace: str | None = "agents", **spec: Any
) -> dict[str, Any]:
    """A manifest that allows one tool."""
    rule = {"name": "one", "match": {"tools": [tool]}, "action": "Allow"}
    meta: dict[str, Any] = {"name": name, "uid": f"uid-{name}", "generation": 1}
    if namespace is not None:
        meta["namespace"] = namespace
    kind = "ToolPolicy" if namespace is not None else "ClusterToolPolicy"
    return {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": kind,
        "metadata": meta,
        "spec": {"selector": {}, "rules": [rule], **spec},
    }


def volume_files(policies: list[dict[str, Any]], epoch: int = 1, revision: str = "1-1") -> dict[str, bytes]:
    """The ConfigMap's data: the index and a key per policy."""
    files: dict[str, bytes] = {}
    entries: dict[str, Any] = {}
    for manifest in policies:
        meta = manifest["metadata"]
        key = f"{meta.get('namespace', 'cluster')}.{meta['name']}.json"
        files[key] = json.dumps(manifest).encode()
        entries[key] = {
            "digest": "sha256:" + hashlib.sha256(files[key]).hexdigest(),
            "kind": manifest["kind"],
            "name": meta["name"],
            "uid": meta["uid"],
            "generation": meta["generation"],
        }
        if "namespace" in meta:
            entries[key]["namespace"] = meta["namespace"]
    index = {
        "apiVersion": "toolpolicy.dev/v1alpha1",
        "kind": "RulesIndex",
        "epoch": epoch,
        "revision": revision,
        "policies": entries,
    }
    return {"index.json": json.dumps(index).encode(), **files}
