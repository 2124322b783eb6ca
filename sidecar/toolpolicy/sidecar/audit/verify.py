"""Checks an audit log: that every record is as it was written, in its order, and that none is missing."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolpolicy.sidecar.audit import chain

MAX_FINDINGS = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``line`` is 1-based (0: the log as a whole); ``what`` a stable kebab-case word."""

    line: int
    what: str
    message: str
    file: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """A published head: at least 12 hex digits of the MAC of record ``seq``."""

    seq: int
    mac: str
    chain: str | None = None


@dataclass(slots=True)
class ChainState:
    """What is known of one chain after its last line."""

    seq: int
    mac: str
    known: bool = True
    """False after a line that can't be trusted: its MAC can't be compared with the next one's ``prev``."""
    key: chain.Mac | None = None
    """The key it was written under; None: none that is known, so that its records can't be checked."""
    heads: dict[int, str] = field(default_factory=dict[int, str])


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """``records`` is how many were found whole; ``lost`` how many the log itself says it could not write."""

    records: int
    lost: int
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    heads: dict[str, tuple[int, str]]

    @property
    def ok(self) -> bool:
        return not self.findings


class Verifier:
    """Takes the lines of one or more files, in the order they were written, and finds out what happened to them."""

    def __init__(self, keys: Sequence[bytes], heads: Sequence[Head] = ()) -> None:
        self._keys = [chain.Mac(k) for k in keys]
        self._heads = heads
        self._wanted = {h.seq for h in heads}
        self._chains: dict[str, ChainState] = {}
        self._records = 0
        self._lost = 0
        self._findings: list[Finding] = []
        self._notes: list[Finding] = []
        self._garbage: tuple[int, int] | None = None
        self._file = ""
        self._line = 0

    def file(self, name: str, lines: Iterable[bytes]) -> None:
        """Read one file's lines (with their line feeds)."""
        self._flush_garbage()
        self._file, self._line = name, 0
        before, records = len(self._findings), 0
        for line in lines:
            self._line += 1
            records += self._take(line)
        if not records and self._line > 1:
            del self._findings[before:]
            self._garbage = None
            self._find("garbage", f"this is no audit log: none of its {self._line:,} lines is an audit record", 1)

    def _take(self, line: bytes) -> bool:
        """Whether the line is a record."""
        record = chain.parse(line.removesuffix(b"\n"))
        if record is None or not line.endswith(b"\n"):
            self._flush_garbage()
            self._garbage = (self._line, len(line.rstrip(b"\n")))
            return False
        if self._garbage is not None and record.kind == "start" and record.fields.get("torn") == self._garbage[1]:
            at, size = self._garbage
            self._garbage = None
            self._notes.append(
                Finding(at, "torn", f"cut off after {size} bytes; the next start of the sidecar says so", self._file)
            )
        self._flush_garbage()
        state = self._chains.get(record.chain)
        if state is None:
            state = self._chains[record.chain] = self._begin(record)
        if state.key is None:
            state.seq, state.mac = record.seq, record.mac
        else:
            self._check(record, state, state.key)
        return True

    def _begin(self, record: chain.Record) -> ChainState:
        """A chain's first line: it names its key; where that line is gone, the key that fits is the one."""
        wanted = record.fields.get("keyId") if record.kind == "start" else None
        for key in self._keys:
            if key.key_id == wanted or (wanted is None and key.of(record.body) == record.mac):
                return ChainState(0, chain.GENESIS, key=key)
        if wanted is None:
            return ChainState(0, chain.GENESIS, key=self._keys[0])
        self._find("wrong-key", f"this chain was written under another key (id {wanted!s:.40}): give it with --key")
        return ChainState(0, chain.GENESIS)

    def _check(self, record: chain.Record, state: ChainState, key: chain.Mac) -> None:
        genuine = hmac.compare_digest(key.of(record.body), record.mac)
        if not genuine:
            self._find("edited", f"record {record.seq} was changed after it was written: its MAC does not fit")
        else:
            self._records += 1
            lost = record.fields.get("lost") if record.kind == "gap" else None
            if isinstance(lost, int):
                self._lost += lost
                since = record.fields.get("since")
                message = f"{lost} records could not be written since {since}: {record.fields.get('error')}"
                self._notes.append(Finding(self._line, "gap", message, self._file))
        if record.seq <= state.seq:
            self._find("out-of-order", f"record {record.seq} stands behind record {state.seq}: moved or written twice")
            return
        missing = record.seq - state.seq - 1
        if missing:
            where = (
                "the log begins later: give the earlier file first" if not state.seq else "removed, or moved elsewhere"
            )
            span = f"{state.seq + 1}" if missing == 1 else f"{state.seq + 1} to {record.seq - 1}"
            self._find("missing", f"record{'s' if missing > 1 else ''} {span} missing before this line ({where})")
        elif genuine and state.known and record.prev != state.mac:
            self._find("replaced", f"record {record.seq} does not follow the record that stands before it")
        state.seq, state.mac, state.known = record.seq, record.mac, genuine
        if record.seq in self._wanted and genuine:
            state.heads[record.seq] = record.mac

    def _flush_garbage(self) -> None:
        if self._garbage is not None:
            line, size = self._garbage
            self._garbage = None
            self._find("garbage", f"no audit record ({size} bytes)", line)

    def _find(self, what: str, message: str, line: int | None = None) -> None:
        if len(self._findings) < MAX_FINDINGS:
            self._findings.append(Finding(self._line if line is None else line, what, message, self._file))

    def result(self) -> VerifyResult:
        """Everything found, the published heads included."""
        if self._garbage is not None:
            line, size = self._garbage
            self._garbage = None
            self._find("torn", f"the log ends in a line cut off after {size} bytes", line)
        if not self._chains and not self._findings:
            self._find("empty", "there is not one audit record", 0)
        for head in self._heads:
            self._check_head(head)
        heads = {name: (s.seq, s.mac) for name, s in self._chains.items()}
        return VerifyResult(self._records, self._lost, tuple(self._findings), tuple(self._notes), heads)

    def _check_head(self, head: Head) -> None:
        states: list[ChainState] = [s for n, s in self._chains.items() if head.chain in (None, n)]
        if any(s.heads.get(head.seq, "").startswith(head.mac) for s in states):
            return
        last = max((s.seq for s in states), default=0)
        if last < head.seq:
            message = f"the log ends at record {last}, record {head.seq} was published: "
            message += f"{head.seq - last} cut off the end"
            self._find("truncated", message, 0)
        else:
            self._find("rewritten", f"record {head.seq} is not the one that was published", 0)


def verify(lines: Iterable[bytes], key: bytes | Sequence[bytes], heads: Sequence[Head] = ()) -> VerifyResult:
    """Check the lines (with their line feeds) of one log under one key, or several."""
    verifier = Verifier([key] if isinstance(key, bytes) else key, heads)
    verifier.file("", lines)
    return verifier.result()


def parse_head(text: str) -> Head:
    """``SEQ:MAC`` or ``CHAIN:SEQ:MAC``; of the MAC at least 12 hex digits. Raises ValueError."""
    parts = text.split(":")
    if len(parts) in (2, 3) and parts[-2].isascii() and parts[-2].isdigit() and len(parts[-2]) < 20:
        mac = parts[-1].lower()
        if 12 <= len(mac) <= 64 and all(c in "0123456789abcdef" for c in mac):
            return Head(int(parts[-2]), mac, parts[0] if len(parts) == 3 else None)
    raise ValueError("expected SEQ:MAC, such as 1042:9f86d081884c (12 hex digits of the MAC or more)")


def as_json(result: VerifyResult) -> dict[str, Any]:
    """For ``-o json``."""
    return {
        "ok": result.ok,
        "records": result.records,
        "lost": result.lost,
        "findings": [{"file": f.file, "line": f.line, "what": f.what, "message": f.message} for f in result.findings],
        "notes": [{"file": f.file, "line": f.line, "what": f.what, "message": f.message} for f in result.notes],
        "heads": {c: {"seq": seq, "mac": mac} for c, (seq, mac) in result.heads.items()},
    }
