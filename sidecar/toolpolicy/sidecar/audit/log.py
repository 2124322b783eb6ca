"""The audit log: one line of JSON per decision, each chained to the one before by an HMAC.

A record is made of prebuilt pieces (principal, session and rule recur from call to call) and JSON's own C string
escaping, so that no control character or line feed of a caller can break a line, and handed to the operating system
before the call goes on. Nothing secret enters it: no Authorization, a session id only as a keyed hash, arguments only
where a policy asks.

A line that could not be written makes :meth:`ChainedAuditLog.record` False, and ``onAuditFailure`` decides about the
call. Once writing works again a ``gap`` record says how many are missing. The chain goes on over restarts, from the
file's last line.
"""

from __future__ import annotations

import errno
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from json import JSONEncoder
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from toolpolicy.policy.types import Decision, Principal, RuleRef, WouldDeny
from toolpolicy.sidecar.audit import chain
from toolpolicy.sidecar.audit.redact import redact
from toolpolicy.sidecar.audit.sinks import AuditUnwritable, FileSink, Sink, StreamSink, Written
from toolpolicy.sidecar.interfaces import AuditEntry

log = logging.getLogger(__name__)

MAX_TEXT = 2048
"""Characters kept of a reason."""
MAX_NAME = 256
"""Characters kept of a tool, method, request id or client name: what a caller sent, so bounded."""
MAX_ARGUMENTS = 64 * 1024
"""Bytes of full arguments; larger ones are left as their digest, and the record says so."""
_REMEMBERED = 4096
_OPENING = b'{"time":"'
_DIGEST = ',"argumentsDigest":"'
_QUOTE = '"'

_encode = JSONEncoder(separators=(",", ":"), check_circular=False).encode


class ChainedAuditLog:
    """Implements ``interfaces.AuditLog``. ``clock`` gives nanoseconds since 1970.

    ``head`` is (sequence, MAC) of the last record written: publish it where the log's writer can't change it.
    """

    def __init__(self, sink: Sink, key: bytes, clock: Callable[[], int] = time.time_ns) -> None:
        self.records = 0
        self.failures = 0
        self.last_error = ""
        self._sink = sink
        self._key = chain.Mac(key)
        self._sessions_key = chain.Mac(self._key.derive(b"toolpolicy session ids"))
        self._clock = clock
        self._chain = secrets.token_hex(8)
        self._seq = 0
        self._mac: str = chain.GENESIS
        self._lost = 0
        self._lost_since = ""
        self._second = -1
        self._second_text = ""
        self._principals: dict[int, tuple[Principal, str]] = {}
        self._rules: dict[int, tuple[RuleRef, str]] = {}
        self._clients: dict[int, tuple[Mapping[str, str], str]] = {}
        self._sessions: dict[str, str] = {}
        self._decisions: dict[str, tuple[tuple[RuleRef, ...], tuple[object, ...], str, str]] = {}
        """By tool: what its last decision was, and how that is written."""
        self._revision = ("", ',"revision":"","forwarded":')
        self._begin()

    @property
    def head(self) -> tuple[int, str]:
        return self._seq, self._mac

    @property
    def chain(self) -> str:
        """The id of the chain: it changes when a log is begun anew."""
        return self._chain

    @property
    def failing(self) -> bool:
        """True while lines are being lost."""
        return self._lost > 0

    def record(self, entry: AuditEntry) -> bool:
        """Write one decision. True once the line is with the operating system."""
        if self._lost and not self._close_gap():
            self._lost += 1
            self.failures += 1
            return False
        return self._append(self._decision(entry))

    def _append(self, members: str) -> bool:
        seq = self._seq + 1
        body = f'{{"time":"{self._time()}","chain":"{self._chain}","seq":{seq},{members},"prev":"{self._mac}"'
        line, mac = chain.seal(self._key, body)
        written = self._sink.write(line)
        if written is Written.YES:
            self._seq, self._mac = seq, mac
            self.records += 1
            return True
        if written is Written.LATER:
            self._seq, self._mac = seq, mac
        self._note_failure(lost=written is Written.NO)
        return False

    def _note_failure(self, *, lost: bool) -> None:
        self.failures += 1
        self.last_error = self._sink.error
        if lost:
            if not self._lost:
                self._lost_since = self._time()
                log.error("the audit can't be written: %s", self.last_error)
            self._lost += 1

    def _close_gap(self) -> bool:
        lost, since = self._lost, self._lost_since
        members = f'"kind":"gap","lost":{lost},"since":"{since}","error":{quote(self.last_error[:MAX_TEXT])}'
        self._lost = 0
        if self._append(members):
            log.warning("the audit is written again; %d records are missing since %s", lost, since)
            return True
        self._lost, self._lost_since = lost, since
        self.failures -= 1  # the gap record itself is no lost decision
        return False

    def _decision(self, entry: AuditEntry) -> str:
        digest, request_id, arguments, extra = entry.arguments_digest, entry.request_id, "", ""
        if entry.revision is not self._revision[0]:
            self._revision = (entry.revision, f',"revision":{quote(entry.revision)},"forwarded":')
        if entry.arguments is not None:
            arguments = _arguments(entry)
        if entry.extra:
            extra = f',"extra":{_encode(dict(entry.extra))}'
        return (
            f"{self._what(entry)}{self._who(entry)}"
            f"{'' if digest is None else _DIGEST + digest + _QUOTE}{arguments}"
            f"{'' if request_id is None else _request_id(request_id)}"
            f"{self._revision[1]}{'true' if entry.forwarded else 'false'}{extra}"
        )

    def _what(self, entry: AuditEntry) -> str:
        """What was decided on what: mostly the same as for the last call of this tool."""
        d, tool = entry.decision, entry.tool
        if d.reason or d.would_deny or tool is None or len(tool) > MAX_NAME:
            return self._decided(entry)
        known = self._decisions.get(tool)
        if (
            known is not None
            and known[0] is d.rules
            and known[1] == (d.action, d.code, d.category, d.risk)
            and known[2] == entry.method
        ):
            return known[3]
        text = self._decided(entry)
        _remember(self._decisions, tool, (d.rules, (d.action, d.code, d.category, d.risk), entry.method, text))
        return text

    def _decided(self, entry: AuditEntry) -> str:
        d = entry.decision
        parts = [f'"kind":"decision","action":"{d.action}","code":"{d.code}"']
        if d.reason:
            parts.append(f',"reason":{quote(d.reason[:MAX_TEXT])}')
        if d.rules:
            parts.append(f',"rules":[{",".join([self._rule(r) for r in d.rules])}]')
        if d.would_deny:
            parts.append(f',"wouldDeny":[{",".join([self._would_deny(w) for w in d.would_deny])}]')
        parts.append(f',"method":{quote(entry.method[:MAX_NAME])}')
        if entry.tool is not None:
            parts.append(f',"tool":{quote(entry.tool[:MAX_NAME])}')
        if d.category is not None:
            parts.append(f',"category":"{d.category}"')
        if d.risk is not None:
            parts.append(f',"risk":"{d.risk}"')
        return "".join(parts)

    def _who(self, entry: AuditEntry) -> str:
        """Who asked, in which session, with which client."""
        session = entry.session
        text = self._principal(entry.principal)
        if session is not None:
            text += self._sessions.get(session) or self._session(session)
        return text + self._client(entry.client) if entry.client else text

    def _principal(self, principal: Principal) -> str:
        known = self._principals.get(id(principal))
        if known is not None and known[0] is principal:
            return known[1]
        text = (
            f',"principal":{{"id":{quote(principal.id[:1024])},"kind":{quote(principal.kind)},'
            f'"verified":{"true" if principal.verified else "false"}}}'
        )
        _remember(self._principals, id(principal), (principal, text))
        return text

    def _client(self, client: Mapping[str, str]) -> str:
        known = self._clients.get(id(client))
        if known is not None and known[0] is client:
            return known[1]
        pairs = ",".join([f"{quote(k[:MAX_NAME])}:{quote(v[:MAX_NAME])}" for k, v in client.items()])
        text = f',"client":{{{pairs}}}'
        _remember(self._clients, id(client), (client, text))
        return text

    def _rule(self, rule: RuleRef) -> str:
        known = self._rules.get(id(rule))
        if known is not None and known[0] is rule:
            return known[1]
        text = quote(str(rule)[:MAX_TEXT])
        _remember(self._rules, id(rule), (rule, text))
        return text

    def _would_deny(self, would: WouldDeny) -> str:
        reason = quote(would.reason[:MAX_TEXT])
        return f'{{"rule":{self._rule(would.rule)},"action":"{would.action.value}","reason":{reason}}}'

    def _session(self, session: str) -> str:
        text = self._sessions.get(session)
        if text is None:
            text = f',"session":"{self._sessions_key.of(session.encode("utf-8", "surrogatepass"))[:24]}"'
            _remember(self._sessions, session, text)
        return text

    def _time(self) -> str:
        second, nanos = divmod(self._clock(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{nanos // 1000:06d}Z"

    def _begin(self) -> None:
        """The first record of this process: it says where it goes on, and what it found damaged."""
        notes: dict[str, Any] = {"keyId": self._key.key_id}
        if isinstance(self._sink, FileSink):
            notes |= self._continue(self._sink)
        self._append(f'"kind":"start",{_encode(notes)[1:-1]}')

    def _continue(self, sink: FileSink) -> dict[str, Any]:
        """Take up the chain of the file's last record; what the start record has to say of the file's end."""
        tail = sink.tail(2 * chain.MAX_LINE)
        if not tail:
            return {}
        whole, _, torn = tail.rpartition(b"\n")
        last = next(filter(None, map(chain.parse, reversed(whole.split(b"\n")))), None)
        if last is None and not tail.startswith(_OPENING):
            raise AuditUnwritable(errno.EINVAL, f"audit file {sink.path} holds something else; give another file")
        notes: dict[str, Any] = {}
        if torn:
            log.warning("%s: the last line is cut off after %d bytes; a crash?", sink.path, len(torn))
            notes["torn"] = len(torn)
            sink.write(b"\n")
        if last is None:
            return notes
        if not hmac.compare_digest(self._key.of(last.body), last.mac):
            log.warning("%s: its last record was not written under this key; a new chain begins", sink.path)
            return notes | {"after": {"chain": last.chain, "seq": last.seq, "mac": last.mac}}
        self._chain, self._seq, self._mac = last.chain, last.seq, last.mac
        return notes

    def reopen(self) -> None:
        """Go on in a new file of the same name after the old one was renamed (logrotate); the chain goes on too.
        Nothing happens where it was not.

        Raises OSError (AuditUnwritable among them), and then goes on in the old file.
        """
        if isinstance(self._sink, FileSink) and self._sink.moved():
            sink = FileSink(self._sink.path)
            self._sink.close()
            self._sink = sink
            self._append(f'"kind":"start","keyId":"{self._key.key_id}","rotated":true')

    def close(self) -> None:
        if self._lost:
            self._close_gap()
        self._sink.close()


class NoAuditLog:
    """No audit, because the operator of the sidecar said so: every record counts as written."""

    records = 0
    failures = 0
    failing = False
    last_error = ""
    chain = ""
    head = (0, "")

    def record(self, entry: AuditEntry) -> bool:
        return True

    def reopen(self) -> None: ...

    def close(self) -> None: ...


def open_audit(target: str, key: bytes) -> ChainedAuditLog | NoAuditLog:
    """The log for a setting: a file, ``-`` for stdout, ``stderr``, or ``none``. Raises ``sinks.AuditUnwritable``."""
    if target in ("none", ""):
        return NoAuditLog()
    if target in ("-", "stderr"):
        fd, name = (1, "stdout") if target == "-" else (2, "stderr")
        return ChainedAuditLog(StreamSink(fd, name), key)
    return ChainedAuditLog(FileSink(os.fspath(target)), key)


def _remember(cache: dict[Any, Any], key: Any, value: Any) -> None:
    if len(cache) >= _REMEMBERED:
        cache.clear()
    cache[key] = value


def _request_id(value: str | int) -> str:
    return f',"requestId":{quote(value[:MAX_NAME]) if isinstance(value, str) else value}'


def _arguments(entry: AuditEntry) -> str:
    text = _encode(redact(entry.arguments or {}, entry.redact))
    return f',"arguments":{text}' if len(text) <= MAX_ARGUMENTS else ',"argumentsTooLong":true'


__all__ = ["ChainedAuditLog", "Decision", "NoAuditLog", "open_audit"]
