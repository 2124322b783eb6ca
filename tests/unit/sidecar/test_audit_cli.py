"""``toolpolicy audit``: exit codes, and what is said of which line."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from toolpolicy.cli.audit import command
from toolpolicy.policy.model import Action
from toolpolicy.policy.types import Code, Decision, Principal
from toolpolicy.sidecar.audit import ChainedAuditLog
from toolpolicy.sidecar.audit.sinks import FileSink
from toolpolicy.sidecar.interfaces import AuditEntry


def run(*arguments: str | Path, input: bytes | None = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner(env=env).invoke(command, [str(a) for a in arguments], input=input)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(secrets.token_hex(32))
    return path


@pytest.fixture
def log(tmp_path: Path, key: Path) -> Path:
    path = tmp_path / "audit.log"
    audit = ChainedAuditLog(FileSink(path), bytes.fromhex(key.read_text()))
    for tool, action in (("get_a", Action.ALLOW), ("delete_a", Action.DENY), ("get\x1b[31mb", Action.ALLOW)):
        code = Code.ALLOWED if action is Action.ALLOW else Code.DENIED_BY_RULE
        reason = "" if action is Action.ALLOW else "off for agents"
        decision = Decision(action, code, reason)
        principal = Principal("addr:192.0.2.1", "Address")
        audit.record(
            AuditEntry(decision, "tools/call", tool, 1, principal, None, {}, None, "1-1", action is Action.ALLOW)
        )
    audit.close()
    return path


def test_a_whole_log_exits_with_0_and_prints_its_head(log: Path, key: Path) -> None:
    result = run("verify", log, "--key", key)
    last = json.loads(log.read_text().splitlines()[-1])
    assert result.exit_code == 0, result.output
    assert f"4:{last['mac'][:24]}" in result.output
    assert "whole: 4 records" in result.output
    assert run("verify", log, "--key", key, "--head", f"4:{last['mac']}").exit_code == 0


def test_damage_exits_with_1_and_names_line_and_meaning(log: Path, key: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], lines[1], lines[2].replace(b"delete_a", b"search_a"), lines[3]]))
    result = run("verify", log, "--key", key)
    assert result.exit_code == 1
    assert "line 3: edited: record 3 was changed after it was written" in result.output
    assert result.output.endswith(", 1 finding\n")
    report = json.loads(run("verify", log, "--key", key, "-o", "json").output)
    assert report["ok"] is False
    assert report["findings"][0] | {"file": ""} == {
        "file": "",
        "line": 3,
        "what": "edited",
        "message": "record 3 was changed after it was written: its MAC does not fit",
    }


def test_truncation_exits_with_1_when_the_head_is_known(log: Path, key: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    mac = json.loads(lines[-1])["mac"]
    log.write_bytes(b"".join(lines[:2]))
    assert run("verify", log, "--key", key).exit_code == 0
    result = run("verify", log, "--key", key, "--head", f"4:{mac[:12]}")
    assert result.exit_code == 1
    assert "the log ends at record 2, record 4 was published: 2 cut off the end" in result.output


def test_standard_input_and_the_environments_key(log: Path, key: Path) -> None:
    environ = {"TOOLPOLICY_AUDIT_KEY": key.read_text()}
    assert run("verify", "-", input=log.read_bytes(), env=environ).exit_code == 0
    environ = {"TOOLPOLICY_AUDIT_KEY": "", "TOOLPOLICY_AUDIT_KEY_FILE": str(key)}
    assert run("verify", log, env=environ).exit_code == 0


def test_several_files_are_one_log_and_findings_name_the_file(tmp_path: Path, log: Path, key: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    old, new = tmp_path / "a.1", tmp_path / "a"
    old.write_bytes(b"".join(lines[:2]))
    new.write_bytes(b"".join(lines[2:]))
    assert run("verify", old, new, "--key", key).exit_code == 0
    result = run("verify", new, old, "--key", key)
    assert result.exit_code == 1
    assert f"{old}:1: out-of-order" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify"],
        ["verify", "LOG", "--head", "nonsense"],
        ["verify", "LOG", "--key", "/nowhere/key"],
        ["verify", "/nowhere/log", "--key", "KEY"],
        ["verify", "LOG", "--key", "LOG"],
        ["verify", "LOG", "-o", "xml"],
        ["show", "/nowhere/log"],
        ["show", "LOG", "--since", "yesterday"],
    ],
)
def test_bad_input_exits_with_2_and_no_traceback(log: Path, key: Path, arguments: list[str]) -> None:
    values = [{"LOG": str(log), "KEY": str(key)}.get(a, a) for a in arguments]
    result = run(*values)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output


def test_show_prints_decisions_and_filters_them(log: Path) -> None:
    def tools(*options: str) -> list[str]:
        return [json.loads(line)["tool"] for line in run("show", log, "-o", "json", *options).output.splitlines()]

    assert len(tools()) == 3
    assert tools("--action", "Deny") == ["delete_a"]
    assert tools("--tool", "get_*") == ["get_a"]
    assert tools("--since", "2099-01-01T00:00:00Z") == []
    assert len(tools("--since", "1h")) == 3
    text = run("show", log).output
    assert "off for agents" in text
    assert "\x1b[31m" not in text
