"""One content is one sequence of bytes, and has one digest."""

from __future__ import annotations

import hashlib
import json


def canonical(value: object) -> bytes:
    """JSON without spaces, its keys in order: the same content is the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(raw: bytes) -> str:
    """``sha256:`` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()
