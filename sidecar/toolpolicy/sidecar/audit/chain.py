"""The form that log and verifier share: how one line is sealed and taken apart again.

A line is one JSON object in ASCII. Its last two members are ``prev``, the MAC of the record before (64 zeros in the
first), and ``mac``, the HMAC-SHA256 of the line's bytes up to there. ``prev`` being under the MAC chains the records:
to change, drop, move or insert one without the key shows. What cutting off the end leaves is whole by itself: only a
published head shows that.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any, cast

GENESIS = "0" * 64
SEAL = b',"mac":"'
_TAIL = len(SEAL) + 64 + 2
MAX_LINE = 1024 * 1024
"""Bytes: nothing longer is written, and a verifier reads no further."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line taken apart; ``body`` is what the MAC is over."""

    chain: str
    seq: int
    kind: str
    prev: str
    mac: str
    body: bytes
    fields: dict[str, Any]


class Mac:
    """HMAC-SHA256 (RFC 2104) under one key, hashed in once: half the cost of ``hmac.digest`` on a line."""

    __slots__ = ("_inner", "_outer", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in block))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in block))

    def of(self, body: bytes) -> str:
        """The MAC as 64 hex digits."""
        inner = self._inner.copy()
        inner.update(body)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest()

    @property
    def key_id(self) -> str:
        """Tells two keys apart and says nothing about them: for the message that another key is needed."""
        return self.of(b"toolpolicy audit key id")[:12]

    def derive(self, purpose: bytes) -> bytes:
        """A key for another purpose, which says nothing about this one."""
        return hmac.digest(self.key, purpose, "sha256")


def seal(mac: Mac, body: str) -> tuple[bytes, str]:
    """The finished line of a body (ASCII, without its closing brace), and its MAC."""
    raw = body.encode("ascii")
    code = mac.of(raw)
    return raw + SEAL + code.encode("ascii") + b'"}\n', code


def parse(line: bytes) -> Record | None:
    """A line (without its line feed) taken apart; None if it is no audit record at all."""
    if not len(line) > _TAIL or not line.startswith(b"{") or line[-_TAIL : -_TAIL + len(SEAL)] != SEAL:
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    chain, seq, kind = fields.get("chain"), fields.get("seq"), fields.get("kind")
    prev, mac = fields.get("prev"), fields.get("mac")
    if not (isinstance(chain, str) and isinstance(kind, str) and isinstance(prev, str) and isinstance(mac, str)):
        return None
    if not isinstance(seq, int) or isinstance(seq, bool) or seq < 1 or mac.encode() != line[-66:-2]:
        return None
    return Record(chain, seq, kind, prev, mac, line[:-_TAIL], fields)
