"""The audit log on real files and pipes: what a line says, what never gets into it, and what damage shows."""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import resource
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolpolicy.policy.model import Action, Category, Risk
from toolpolicy.policy.types import Code, Decision, Principal, RuleRef, WouldDeny
from toolpolicy.sidecar.audit import ChainedAuditLog, NoAuditLog, VerifyResult, audit_key, open_audit, verify
from toolpolicy.sidecar.audit import chain as chain_module
from toolpolicy.sidecar.audit.keys import KeyFault, read_key
from toolpolicy.sidecar.audit.redact import redact
from toolpolicy.sidecar.audit.sinks import AuditUnwritable, FileSink, StreamSink, Written
from toolpolicy.sidecar.audit.verify import Head, Verifier, parse_head
from toolpolicy.sidecar.interfaces import AuditEntry
from toolpolicy.sidecar.settings import Settings

KEY = bytes(range(32))
RULE = RuleRef("ToolPolicy", "agents", "imaging", "read-freely", "uid-1", 3)


def entry(tool: str | None = "search", **changes: Any) -> AuditEntry:
    values: dict[str, Any] = {
        "decision": Decision(Action.ALLOW, Code.ALLOWED, rules=(RULE,), category=Category.READ, risk=Risk.LOW),
        "method": "tools/call",
        "tool": tool,
        "request_id": 7,
        "principal": Principal("cred:00ff", "Credential"),
        "session": "session-secret",
        "client": {"name": "agent", "version": "1.0"},
        "arguments_digest": "sha256:" + "a" * 64,
        "revision": "3-17",
        "forwarded": True,
    }
    return AuditEntry(**{**values, **changes})


@contextmanager
def log_at(path: Path, key: bytes = KEY) -> Generator[ChainedAuditLog]:
    log = ChainedAuditLog(FileSink(path), key)
    try:
        yield log
    finally:
        log.close()


def write(path: Path, count: int, key: bytes = KEY) -> None:
    with log_at(path, key) as log:
        for n in range(count):
            assert log.record(entry(f"tool{n}"))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def check(path: Path, key: bytes = KEY, *heads: Head) -> VerifyResult:
    with path.open("rb") as file:
        return verify(file, key, heads)


def found(result: VerifyResult) -> list[tuple[int, str]]:
    return [(f.line, f.what) for f in result.findings]


# What a line says


def test_one_line_per_decision_says_who_what_and_why(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    would = WouldDeny(RULE, Action.DENY, "not at night")
    decision = Decision(
        Action.DENY, Code.DENIED_BY_RULE, 'no "deletes"\n', (RULE,), would_deny=(would,), category=Category.DESTRUCTIVE,
        risk=Risk.CRITICAL,
    )  # fmt: skip
    clock = iter([1_700_000_000_123_456_789] * 3)
    log = ChainedAuditLog(FileSink(path), KEY, lambda: next(clock))
    assert log.record(entry("delete", decision=decision, forwarded=False, request_id="a\nb", extra={"ms": 1.5}))
    log.close()
    start, line = read(path)
    assert start["kind"] == "start"
    expected: dict[str, Any] = {
        "time": "2023-11-14T22:13:20.123456Z",
        "kind": "decision",
        "action": "Deny",
        "code": "DeniedByRule",
        "reason": 'no "deletes"\n',
        "rules": ["agents/imaging:read-freely"],
        "wouldDeny": [{"rule": "agents/imaging:read-freely", "action": "Deny", "reason": "not at night"}],
        "method": "tools/call",
        "tool": "delete",
        "category": "Destructive",
        "risk": "Critical",
        "principal": {"id": "cred:00ff", "kind": "Credential", "verified": False},
        "client": {"name": "agent", "version": "1.0"},
        "argumentsDigest": "sha256:" + "a" * 64,
        "requestId": "a\nb",
        "revision": "3-17",
        "forwarded": False,
        "extra": {"ms": 1.5},
        "seq": 2,
        "chain": log.chain,
        "prev": start["mac"],
    }
    assert expected.items() <= line.items()
    assert set(line) - set(expected) == {"mac", "session"}
    assert log.head == (2, line["mac"])


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with log_at(path) as log:
        bare = Decision(Action.ALLOW, Code.NO_POLICY)
        log.record(
            entry(None, decision=bare, session=None, client={}, arguments_digest=None, request_id=None, method="x/y")
        )
    line = read(path)[1]
    assert set(line) == {
        "time", "chain", "seq", "kind", "action", "code", "method", "principal", "revision", "forwarded", "prev", "mac",
    }  # fmt: skip


def test_a_session_id_is_a_secret_and_only_a_keyed_hash_of_it_is_written(tmp_path: Path) -> None:
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    with log_at(one) as log:
        for session in ("s-secret-1", "s-secret-1", "s-secret-2"):
            log.record(entry(session=session))
    with log_at(two, bytes(32)) as log:
        log.record(entry(session="s-secret-1"))
    assert b"secret" not in one.read_bytes()
    first, again, other = (line["session"] for line in read(one)[1:])
    assert first == again != other
    assert read(two)[1]["session"] != first


HOSTILE = st.text(st.characters(), max_size=400) | st.sampled_from(
    ['"}\n{"seq":1', "\x00\x1b[2J\u2028\x85", "\ud800", '","mac":"']
)


@settings(max_examples=150, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_nothing_a_caller_sends_breaks_a_line(tool: str, name: str, session: str, request_id: str) -> None:
    sink = Memory()
    log = ChainedAuditLog(sink, KEY)
    decision = Decision(Action.DENY, Code.DENIED_BY_RULE, reason=name)
    for _ in range(2):
        hostile = entry(
            tool, method=name, session=session, request_id=request_id, decision=decision, revision=name,
            client={name: tool}, principal=Principal(session, "Address"), arguments={tool: name}, extra={name: tool},
        )  # fmt: skip
        assert log.record(hostile)
    assert len(sink.lines) == 3
    for line in sink.lines:
        assert line.isascii()
        assert line.count(b"\n") == 1
        assert line.endswith(b"}\n")
        assert all(byte >= 0x20 for byte in line[:-1])
    result = verify(sink.lines, KEY)
    assert (result.ok, result.records) == (True, 3)
    assert json.loads(sink.lines[1])["tool"] == tool[:256]


class Memory:
    """A sink that keeps lines, and fails on demand."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.error = "on demand"
        self.failing = False

    def write(self, line: bytes) -> Written:
        if self.failing:
            return Written.NO
        self.lines.append(line)
        return Written.YES

    def close(self) -> None: ...


def test_what_a_caller_sends_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    long = "x" * 100_000
    with log_at(path) as log:
        log.record(entry(long, method=long, request_id=long, client={long: long}, arguments={"a": long}))
    line = read(path)[1]
    assert len(path.read_bytes()) < 4000
    assert line["argumentsTooLong"] is True
    assert len(line["tool"]) == 256


def test_full_arguments_are_written_without_what_is_to_be_redacted(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    arguments = {"user": {"name": "a", "password": "p4ss"}, "keys": ["k0", "k1"], "a/b": 1, "m~n": 2}
    pointers = ("/user/password", "/keys/1", "/a~1b", "/m~0n", "/nowhere/x", "/keys/9", "/keys/x", "/user/name/deep")
    with log_at(path) as log:
        log.record(entry(arguments=arguments, redact=pointers))
    written = read(path)[1]["arguments"]
    assert written == {
        "user": {"name": "a", "password": "[redacted]"},
        "keys": ["k0", "[redacted]"],
        "a/b": "[redacted]",
        "m~n": "[redacted]",
    }
    assert arguments["user"] == {"name": "a", "password": "p4ss"}
    assert redact({"a": 1}, [""]) == {"": "[redacted]"}


# The chain over restarts


def test_an_untouched_log_verifies_and_its_head_is_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 5)
    result = check(path)
    assert (result.ok, result.records, result.lost) == (True, 6, 0)
    last = read(path)[-1]
    assert result.heads == {last["chain"]: (6, last["mac"])}


def test_the_chain_goes_on_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 2)
    write(path, 2)
    lines = read(path)
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert len({line["chain"] for line in lines}) == 1
    assert check(path).ok


def test_a_line_cut_off_by_a_crash_is_reported_by_the_next_start_and_by_verify(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 2)
    with path.open("ab") as file:
        file.write(b'{"time":"2026')
    assert found(check(path)) == [(4, "torn")]
    write(path, 1)
    result = check(path)
    assert result.ok
    assert [(n.line, n.what) for n in result.notes] == [(4, "torn")]
    assert read_kinds(path) == ["start", "decision", "decision", None, "start", "decision"]


def read_kinds(path: Path) -> list[str | None]:
    kinds: list[str | None] = []
    for line in path.read_bytes().splitlines():
        try:
            kinds.append(json.loads(line)["kind"])
        except ValueError:
            kinds.append(None)
    return kinds


def test_a_torn_line_of_another_length_is_not_covered_by_the_start_record(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 2)
    with path.open("ab") as file:
        file.write(b'{"time":"2026')
    write(path, 1)
    path.write_bytes(path.read_bytes().replace(b'{"time":"2026\n', b'{"time":"2026-x\n'))
    assert found(check(path)) == [(4, "garbage")]


def test_a_file_that_holds_something_else_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("kind: ToolPolicy\n")
    with pytest.raises(AuditUnwritable, match="holds something else"):
        ChainedAuditLog(FileSink(path), KEY)
    assert path.read_text() == "kind: ToolPolicy\n"


def test_garbage_behind_the_last_record_does_not_break_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 2)
    with path.open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    write(path, 1)
    assert found(check(path)) == [(4, "garbage")]


def test_a_chain_begun_under_one_key_in_one_file_with_another_is_checked_under_its_own() -> None:
    one, two = Memory(), Memory()
    for sink, key in ((one, KEY), (two, bytes(32))):
        log = ChainedAuditLog(sink, key)
        for _ in range(3):
            log.record(entry())
    woven = [line for pair in zip(one.lines, two.lines, strict=True) for line in pair]
    assert verify(woven, [KEY, bytes(32)]).ok
    assert found(verify(woven[2:], [bytes(32), KEY])) == [(1, "missing"), (2, "missing")]


def test_another_key_begins_another_chain_and_says_where_the_old_one_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 2)
    write(path, 2, bytes(32))
    lines = read(path)
    assert lines[3]["after"] == {"chain": lines[0]["chain"], "seq": 3, "mac": lines[2]["mac"]}
    assert found(check(path)) == [(4, "wrong-key")]
    assert found(check(path, bytes(32))) == [(1, "wrong-key")]
    with path.open("rb") as file:
        assert verify(file, [KEY, bytes(32)]).ok


def test_rotation_carries_the_chain_into_the_new_file(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    log = ChainedAuditLog(FileSink(path), KEY)
    log.record(entry())
    path.rename(old)
    log.record(entry())
    log.reopen()
    log.record(entry())
    log.close()
    assert [r["seq"] for r in read(old)] == [1, 2, 3]
    assert [r["seq"] for r in read(path)] == [4, 5]
    assert verify([*old.read_bytes().splitlines(True), *path.read_bytes().splitlines(True)], KEY).ok
    assert found(check(path)) == [(1, "missing")]


def test_a_file_that_is_no_audit_log_is_one_finding(tmp_path: Path) -> None:
    path, other = tmp_path / "audit.log", tmp_path / "README.md"
    write(path, 2)
    other.write_text("# Read me\n" * 500)
    assert found(check(other)) == [(1, "garbage")]
    assert "none of its 500 lines" in check(other).findings[0].message
    verifier = Verifier([KEY])
    for file in (path, other):
        with file.open("rb") as lines:
            verifier.file(file.name, lines)
    assert [(f.file, f.what) for f in verifier.result().findings] == [("README.md", "garbage")]


def test_a_file_that_was_not_renamed_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = ChainedAuditLog(FileSink(path), KEY)
    log.record(entry())
    log.reopen()
    log.record(entry())
    log.close()
    assert [r["seq"] for r in read(path)] == [1, 2, 3]
    assert not any("rotated" in r for r in read(path))


def test_where_no_new_file_can_be_made_the_old_one_goes_on(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    log = ChainedAuditLog(FileSink(path), KEY)
    path.rename(old)
    path.mkdir()
    with pytest.raises(OSError, match="audit"):
        log.reopen()
    assert log.record(entry())
    log.close()
    assert [r["seq"] for r in read(old)] == [1, 2]


# Damage

Change = Callable[[list[bytes]], list[bytes]]


def damaged(path: Path, change: Change) -> VerifyResult:
    lines = path.read_bytes().splitlines(keepends=True)
    return verify(change(lines), KEY)


def edit(lines: list[bytes], at: int, old: bytes, new: bytes) -> list[bytes]:
    assert old in lines[at]
    return [*lines[:at], lines[at].replace(old, new), *lines[at + 1 :]]


DAMAGE: dict[str, tuple[Change, list[tuple[int, str]]]] = {
    "none": (lambda s: s, []),
    "an edit": (lambda s: edit(s, 3, b"tool2", b"toolX"), [(4, "edited")]),
    "an edit of the MAC": (lambda s: [*s[:3], s[3][:-10] + b"0000000" + s[3][-3:], *s[4:]], [(4, "edited")]),
    "a deletion": (lambda s: s[:3] + s[4:], [(4, "missing")]),
    "two deletions": (lambda s: [*s[:3], *s[4:6], *s[7:]], [(4, "missing"), (6, "missing")]),
    "the first line gone": (lambda s: s[1:], [(1, "missing")]),
    "a swap": (lambda s: [*s[:3], s[4], s[3], *s[5:]], [(4, "missing"), (5, "out-of-order")]),
    "a line twice": (lambda s: [*s[:4], s[3], *s[4:]], [(5, "out-of-order")]),
    "an insertion of garbage": (lambda s: [*s[:3], b"hello\n", *s[3:]], [(4, "garbage")]),
    "an empty line": (lambda s: [*s[:3], b"\n", *s[3:]], [(4, "garbage")]),
    "a line of another kind": (lambda s: [*s[:3], b'{"level":"info"}\n', *s[3:]], [(4, "garbage")]),
    "an end without line feed": (lambda s: [*s[:-1], s[-1][:-1]], [(8, "torn")]),
    "a cut within the last line": (lambda s: [*s[:-1], s[-1][:40]], [(8, "torn")]),
    "another key's MAC on an edit": (
        lambda s: [*s[:3], forge(s[3], b"tool2", b"tool9", bytes(32)), *s[4:]],
        [(4, "edited")],
    ),
    "trailing bytes behind the object": (
        lambda s: [*s[:3], s[3][:-1] + b" \n", *s[4:]],
        [(4, "garbage"), (5, "missing")],
    ),
}


def forge(line: bytes, old: bytes, new: bytes, key: bytes) -> bytes:
    record = chain_module.parse(line.rstrip(b"\n"))
    assert record is not None
    body = record.body.replace(old, new).decode()
    return chain_module.seal(chain_module.Mac(key), body)[0]


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_at_its_line(tmp_path: Path, name: str) -> None:
    change, expected = DAMAGE[name]
    path = tmp_path / "audit.log"
    write(path, 7)
    result = damaged(path, change)
    assert found(result) == expected


def test_cutting_off_the_end_shows_against_a_published_head(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 7)
    lines = read(path)
    last, middle = lines[-1], lines[4]
    heads = (Head(8, last["mac"]), Head(5, middle["mac"][:12]), Head(8, last["mac"], last["chain"]))
    assert check(path, KEY, *heads).ok
    kept = path.read_bytes().splitlines(keepends=True)[:5]
    cut = verify(kept, KEY, [Head(8, last["mac"])])
    assert found(cut) == [(0, "truncated")]
    assert "3 cut off" in cut.findings[0].message
    assert found(verify(kept, KEY, [Head(5, "f" * 12)])) == [(0, "rewritten")]


def test_a_log_rewritten_by_one_who_has_the_key_shows_against_a_published_head(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 3)
    published = read(path)[-1]
    path.unlink()
    write(path, 3)
    assert check(path).ok
    assert found(check(path, KEY, Head(4, published["mac"]))) == [(0, "rewritten")]


def test_a_genuine_record_of_another_course_of_events_does_not_pass(tmp_path: Path) -> None:
    """The end was cut off and the sidecar went on from there: both ends are genuine, a mixture of them is not."""
    path = tmp_path / "audit.log"
    write(path, 2)
    kept = path.read_bytes()
    write(path, 3)
    first = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(kept)
    write(path, 3)
    second = path.read_bytes().splitlines(keepends=True)
    assert verify(second, KEY).ok
    assert found(verify([*first[:5], *second[5:]], KEY)) == [(6, "replaced")]


def test_an_emptied_log_is_not_whole() -> None:
    assert found(verify([], KEY)) == [(0, "empty")]


def test_the_wrong_key_is_named_as_such_and_not_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 3)
    result = check(path, bytes(32))
    assert found(result) == [(1, "wrong-key")]
    assert chain_module.Mac(KEY).key_id in result.findings[0].message


def test_chains_of_several_pods_in_one_stream_are_told_apart() -> None:
    one, two = Memory(), Memory()
    for sink in (one, two):
        log = ChainedAuditLog(sink, KEY)
        for _ in range(3):
            log.record(entry())
    woven = [line for pair in zip(one.lines, two.lines, strict=True) for line in pair]
    assert verify(woven, KEY).ok
    assert found(verify([*woven[:4], *woven[5:]], KEY)) == [(6, "missing")]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_change_of_any_byte_is_found(data: st.DataObject) -> None:
    sink = Memory()
    log = ChainedAuditLog(sink, KEY)
    for n in range(4):
        log.record(entry(f"tool{n}"))
    whole = b"".join(sink.lines)
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != whole[at]))
    changed = whole[:at] + bytes([byte]) + whole[at + 1 :]
    assert not verify(changed.splitlines(keepends=True), KEY).ok


def test_the_mac_is_hmac_sha256() -> None:
    for key in (b"", KEY, bytes(64), bytes(65), b"k" * 200):
        mac = chain_module.Mac(key)
        for body in (b"", b"x" * 700):
            assert mac.of(body) == hmac.digest(key, body, "sha256").hex()


@pytest.mark.parametrize("text", ["", "5", "x:aa", "5:12345", "5:zzzzzzzzzzzzzz", "-1:aaaaaaaaaaaa", "a:b:c:d"])
def test_a_head_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="SEQ:MAC"):
        parse_head(text)


# The file


@contextmanager
def file_size_limit(size: int) -> Generator[None]:
    """What a full disk does to a write: part of it succeeds, then it fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_records_and_says_how_many_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with log_at(path) as log:
        assert log.record(entry())
        size = path.stat().st_size
        with file_size_limit(size + 300):
            assert [log.record(entry()) for _ in range(3)] == [False, False, False]
            assert log.failing
            assert "large" in log.last_error
            assert path.stat().st_size == size, "the part that fitted was taken back"
        assert log.record(entry())
        assert not log.failing
        assert (log.records, log.failures) == (4, 3)
    kinds = [r["kind"] for r in read(path)]
    assert kinds == ["start", "decision", "gap", "decision"]
    result = check(path)
    assert (result.ok, result.lost) == (True, 3)
    assert "3 records could not be written" in result.notes[0].message


def test_room_for_the_gap_record_alone_is_not_enough_for_the_call(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with log_at(path) as log:
        size = path.stat().st_size
        with file_size_limit(size + 100):
            assert not log.record(entry())
        with file_size_limit(size + 430):
            assert not log.record(entry())
        assert log.record(entry())
    assert check(path).ok
    assert sum(r.get("lost", 0) for r in read(path)) == 2


def test_the_file_is_private_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, 1)
    assert path.stat().st_mode & 0o777 == 0o600


def test_places_that_others_control_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("")
    link = tmp_path / "link.log"
    link.symlink_to(target)
    open_to_all = tmp_path / "open.log"
    open_to_all.write_text("")
    open_to_all.chmod(0o666)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, said in (
        (link, "symlink"),
        (open_to_all, "chmod go-w"),
        (fifo, "not a regular file"),
        (tmp_path, "directory"),
        (tmp_path / "no" / "where", "directory does not exist"),
        (Path("/dev/null"), "not a regular file"),
    ):
        with pytest.raises(AuditUnwritable, match=said):
            FileSink(path)


def test_a_second_sidecar_cannot_weave_into_the_same_file(tmp_path: Path) -> None:
    with log_at(tmp_path / "audit.log"), pytest.raises(AuditUnwritable, match="another sidecar"):
        FileSink(tmp_path / "audit.log")


# Streams


@contextmanager
def pipe() -> Generator[tuple[int, StreamSink]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 65536)
    sink = StreamSink(writer, "stdout")
    os.close(writer)
    try:
        yield reader, sink
    finally:
        os.close(reader)
        sink.close()


def drain(reader: int) -> bytes:
    os.set_blocking(reader, False)
    data = b""
    try:
        while chunk := os.read(reader, 1 << 20):
            data += chunk
    except BlockingIOError:
        pass
    return data


def test_a_pipe_whose_reader_stops_fails_the_audit_and_never_blocks() -> None:
    with pipe() as (reader, sink):
        log = ChainedAuditLog(sink, KEY)
        written = 0
        while log.record(entry()):
            written += 1
            assert written < 1000
        assert log.failing
        assert "keep up" in log.last_error
        data = drain(reader)
        assert log.record(entry())
        data += drain(reader)
        result = verify(data.splitlines(keepends=True), KEY)
        assert (result.ok, result.lost) == (True, 1)


def test_a_long_line_that_a_full_pipe_cuts_is_finished_before_anything_else() -> None:
    with pipe() as (reader, sink):
        log = ChainedAuditLog(sink, KEY)
        big = {"text": "x" * 20_000}
        outcomes = [log.record(entry(arguments=big)) for _ in range(6)]
        assert outcomes[:2] == [True, True]
        assert outcomes[-1] is False
        data = drain(reader)
        assert log.record(entry())
        data += drain(reader)
        result = verify(data.splitlines(keepends=True), KEY)
        assert result.ok
        assert result.lost + result.records == 1 + 6 + 1 + 1


def test_a_reader_that_is_gone_fails_the_audit() -> None:
    reader, writer = os.pipe()
    sink = StreamSink(writer, "stdout")
    os.close(writer)
    os.close(reader)
    assert sink.write(b"x\n") is Written.NO
    assert sink.error
    sink.close()


def test_a_device_without_room_fails_the_audit() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    sink = StreamSink(fd, "stdout")
    os.close(fd)
    assert sink.write(b"x\n") is Written.NO
    assert "space" in sink.error
    sink.close()


def test_the_stream_is_not_set_non_blocking_for_others() -> None:
    reader, writer = os.pipe()
    sink = StreamSink(writer, "stdout")
    assert os.get_blocking(writer)
    sink.close()
    os.close(writer)
    os.close(reader)


def test_the_setting_chooses_the_sink(tmp_path: Path) -> None:
    assert isinstance(open_audit("none", KEY), NoAuditLog)
    assert NoAuditLog().record(entry()) is True
    log = open_audit(str(tmp_path / "a.log"), KEY)
    log.close()
    assert check(tmp_path / "a.log").ok


# Keys


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    key, where = audit_key(Settings(), environ)
    assert where == str(tmp_path / "toolpolicy" / "audit.key")
    assert Path(where).stat().st_mode & 0o777 == 0o600
    assert audit_key(Settings(), environ) == (key, where)
    assert len(key) == 32


def test_the_key_of_the_settings_goes_first(tmp_path: Path) -> None:
    text = secrets.token_hex(32)
    assert audit_key(Settings(audit_key=text), {}) == (bytes.fromhex(text), "TOOLPOLICY_AUDIT_KEY")
    file = tmp_path / "key"
    file.write_text(text + "\n")
    assert audit_key(Settings(audit_key_file=str(file)), {})[0] == bytes.fromhex(text)


def test_in_a_cluster_the_key_never_lies_beside_the_log(tmp_path: Path) -> None:
    settings = Settings(pod_namespace="agents", audit=str(tmp_path / "a.log"), audit_key_file=str(tmp_path / "k"))
    with pytest.raises(KeyFault, match="beside the audit log"):
        audit_key(settings, {})
    assert audit_key(Settings(pod_namespace="agents"), {})[1] == ""


@pytest.mark.parametrize(("content", "said"), [("zz", "hex"), ("00" * 31, "32 bytes"), ("", "32 bytes"), ("é", "hex")])
def test_a_key_that_cannot_be_used_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(KeyFault, match=said):
        read_key(tmp_path / "key")


def test_a_key_that_cannot_be_read_or_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFault, match="can't be read"):
        read_key(tmp_path)
    with pytest.raises(KeyFault, match="no such key"):
        read_key(tmp_path / "none", create=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFault, match=r"can't be (read|made)"):
        read_key(tmp_path / "file" / "key")


def test_what_is_remembered_of_a_tool_is_never_written_for_another_decision(tmp_path: Path) -> None:
    """The record of a decision is prepared by tool: whatever differs must show all the same."""
    rules = (RULE,)
    first = Decision(Action.ALLOW, Code.ALLOWED, rules=rules, category=Category.READ, risk=Risk.LOW)
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"decision": first}, {"action": "Allow", "code": "Allowed", "rules": ["agents/imaging:read-freely"]}),
        ({"decision": Decision(Action.DENY, Code.ALLOWED, rules=rules)}, {"action": "Deny"}),
        ({"decision": Decision(Action.ALLOW, "Other", rules=rules)}, {"code": "Other"}),
        (
            {"decision": replace(first, rules=(replace(RULE, rule="b"),))},
            {"rules": ["agents/imaging:b"]},
        ),
        ({"decision": replace(first, category=Category.WRITE)}, {"category": "Write"}),
        ({"decision": replace(first, risk=Risk.HIGH)}, {"risk": "High"}),
        ({"decision": replace(first, reason="why")}, {"reason": "why"}),
        ({"decision": first, "method": "tools/other"}, {"method": "tools/other"}),
        ({"decision": first, "tool": "find"}, {"tool": "find"}),
        ({"decision": first, "tool": "x" * 300}, {"tool": "x" * 256}),
    ]
    path = tmp_path / "audit.jsonl"
    with log_at(path) as log:
        for change, _ in changes:
            assert log.record(entry(decision=first))
            assert log.record(entry(**change))
    lines = read(path)[1:]
    for index, (_, wanted) in enumerate(changes):
        assert lines[2 * index]["reason" if "reason" in lines[2 * index] else "code"] == "Allowed"
        assert lines[2 * index + 1].items() >= wanted.items()
