"""The canonical form of JSON values (RFC 8785, JCS) and its digest: what the audit records and what approvals are
bound to.

Every call needs the digest, so it is made by the standard library's C encoder where that already gives JCS, byte for
byte: sorted keys, no blanks, the same escapes. Two things differ and take the slow way: floats (ECMAScript's spelling)
and keys beyond the Basic Multilingual Plane (sorted by UTF-16 code units). Integers beyond 2**53, which JCS can't
express, are written with all their digits, so that two different calls never share a digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from json import JSONEncoder
from typing import Any, cast

_encode = JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False).encode
_EMPTY = "sha256:" + hashlib.sha256(b"{}").hexdigest()


def canonical(value: Any) -> bytes:
    """The canonical bytes of a parsed JSON value. NaN and infinities raise ValueError; strict parsing lets none in."""
    text = _encode(value) if _is_plain(value) else _slow(value)
    return text.encode("utf-8", "surrogatepass")


def digest(arguments: Mapping[str, Any]) -> str:
    """``sha256:<hex>`` of the canonical form."""
    if not arguments:
        return _EMPTY
    return "sha256:" + hashlib.sha256(canonical(arguments)).hexdigest()


def _is_plain(value: object) -> bool:
    """True if the C encoder's output is canonical: no float, no key that UTF-16 sorts otherwise than code points do."""
    kind = type(value)
    if kind is dict:
        for key, item in cast("dict[str, object]", value).items():
            if not key.isascii() and max(key) > "\uffff":
                return False
            kind = type(item)
            if kind is str or kind is int or kind is bool or item is None:
                continue
            if kind is float or not _is_plain(item):
                return False
        return True
    if kind is list:
        for item in cast("list[object]", value):
            kind = type(item)
            if kind is str or kind is int or kind is bool or item is None:
                continue
            if kind is float or not _is_plain(item):
                return False
        return True
    return kind is not float


def _slow(value: Any) -> str:
    if isinstance(value, dict):
        items = sorted(cast("dict[str, Any]", value).items(), key=lambda kv: kv[0].encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_encode(k)}:{_slow(v)}" for k, v in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_slow, cast("list[Any]", value))) + "]"
    if isinstance(value, float):
        import rfc8785

        return rfc8785.dumps(value).decode("ascii")
    return _encode(value)
