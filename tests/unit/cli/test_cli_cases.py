"""``toolpolicy test``: what passes, how a failure reads, and what is wrong with a test file."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]

POLICY = """
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {name: imaging, namespace: agents}
spec:
  selector: {matchLabels: {app: imaging}}
  rules:
  - name: read-freely
    match: {categories: [Read]}
    action: Allow
  - name: exports
    match: {tools: [start_export]}
    action: Allow
    rateLimit: {max: 3, window: 60s, per: Session}
    validations:
    - {expression: 'args.uri.startsWith("s3://exports/")', message: exports go to the exports bucket}
  - name: office-hours
    match: {tools: ["update_*"]}
    when: now.getHours("Europe/Zurich") >= 8 && now.getHours("Europe/Zurich") < 18
    action: Allow
  - {name: copies, match: {tools: [copy_it]}, action: RequireApproval}
  - {name: mine, match: {tools: [mine], principals: {ids: [alice]}}, action: Allow}
  - {name: ours, match: {tools: [mine], principals: {groups: [admins], serviceAccounts: [a/b]}}, action: Allow}
  - {name: claims, match: {tools: [claims]}, when: principal.claims.team == "x" && client.name == "c", action: Allow}
  - {name: docs, match: {methods: [resources/read]}, when: 'args.uri == "a://b"', action: Allow}
  - {name: watched, match: {tools: [get_watched]}, action: Deny, reason: soon, mode: Audit}
  - {name: declared, match: {tools: [create_it]}, action: Allow, arguments: Declared}
  - name: never-delete
    match: {categories: [Destructive]}
    action: Deny
    reason: deletes are off for agents
    hide: true
"""
HEAD = """apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicyTest
policies: [policy.yaml]
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    (tmp_path / "policy.yaml").write_text(POLICY)

    def file(cases: str, head: str = HEAD) -> Path:
        path = tmp_path / "policy-test.yaml"
        path.write_text(head + cases)
        return path

    return file


Write = Callable[..., Path]

PASSING = """
cases:
- name: reads pass, in tools/list too
  call: {tool: get_it}
  expect: {action: Allow, code: Allowed, rule: read-freely, visible: true}
- name: deletes are off and out of sight
  call: {tool: delete_it}
  expect: {action: Deny, code: DeniedByRule, reason: off for agents, rule: "imaging:never-delete", visible: false}
- name: exports stay in the bucket
  call: {tool: start_export, args: {uri: "s3://elsewhere/"}}
  expect: {action: Deny, code: ValidationFailed, reason: the exports bucket, rule: "agents/imaging:exports"}
- name: three exports a minute and session
  call: {tool: start_export, session: one, args: {uri: "s3://exports/x"}}
  steps:
  - {repeat: 3, expect: {action: Allow}}
  - {expect: {action: Deny, code: RateLimited}}
  - {call: {session: two}, expect: {action: Allow}}
  - {after: 59s, expect: {action: Deny}}
  - {after: 1, expect: {action: Allow}}
  - {call: {args: {uri: "s3://x"}}, expect: {code: ValidationFailed}}
- name: counters are not shared by cases
  call: {tool: start_export, session: one, args: {uri: "s3://exports/x"}}
  repeat: 3
  expect: {action: Allow}
- name: office hours
  call: {tool: update_it}
  steps:
  - {time: "2026-01-07T08:00:00+01:00", expect: {action: Allow}}
  - {time: "2026-01-07T17:59:59+01:00", expect: {action: Allow}}
  - {after: 1s, expect: {action: Deny, code: DeniedByDefault, rule: imaging}}
- name: noon is the time of those who state none
  call: {tool: update_it}
  expect: {action: Allow}
- name: copies need a human
  call: {tool: copy_it}
  expect: {action: RequireApproval, code: ApprovalRequired}
- name: by principal
  call: {tool: mine}
  steps:
  - {call: {principal: {id: alice}}, expect: {rule: mine}}
  - {call: {principal: {id: bob}}, expect: {action: Deny}}
  - {call: {principal: {groups: [admins]}}, expect: {rule: ours}}
  - {call: {principal: {serviceAccount: a/b}}, expect: {rule: ours}}
- name: claims and clients
  call: {tool: claims, principal: {claims: {team: x}}, client: {name: c}}
  expect: {action: Allow}
- name: other methods
  call: {method: resources/read, args: {uri: "a://b"}}
  expect: {action: Allow, rule: docs}
- name: what auditing would have done
  call: {tool: get_watched}
  expect: {action: Allow, wouldDeny: watched}
- name: without tools every schema passes
  call: {tool: create_it, args: {any: 1}}
  expect: {action: Allow}
"""


def test_a_table_of_cases_passes(run: Run, write: Write) -> None:
    result = run("test", write(PASSING))
    assert (result.exit_code, result.output) == (0, "13 passed, 0 failed\n")
    assert "ok   office hours\n" in run("test", "-v", write(PASSING)).output
    assert run("test", "--case", "office*", write(PASSING)).output == "1 passed, 0 failed\n"


def test_no_case_of_that_name_is_an_error(run: Run, write: Write) -> None:
    assert run("test", "--case", "nothing", write(PASSING)).exit_code == 2


FAILING = """
cases:
- name: a wrong <hope>
  call: {tool: delete_it}
  expect: {action: Allow, code: Allowed, reason: fine, rule: read-freely, visible: true, wouldDeny: watched}
- name: too many
  call: {tool: start_export, session: one, args: {uri: "s3://exports/x"}}
  steps:
  - {repeat: 4, expect: {action: Allow}}
- name: fine
  call: {tool: get_it}
  expect: {action: Allow}
"""


def test_a_failure_says_what_came_and_why(run: Run, write: Write) -> None:
    file = write(FAILING)
    result = run("test", file)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == f"FAIL {file}:6: a wrong <hope>"
    assert lines[1:4] == ["  action", "    - expected Allow", "    + got      Deny (DeniedByRule)"]
    assert [line.strip() for line in lines if line.startswith("  ") and line[2].isalpha()] == [
        "action", "code", "reason", "rule", "wouldDeny", "visible", "action",
    ]  # fmt: skip
    assert f"FAIL {file}:9: too many (step 1, call 4 of 4)" in lines
    assert any("never-delete (Deny) applies" in line for line in lines)
    assert any("[NO] limit at most 3" in line for line in lines)
    assert lines[-1] == "1 passed, 2 failed"


def test_junit_and_json(run: Run, write: Write, tmp_path: Path) -> None:
    file, report = write(FAILING), tmp_path / "report.xml"
    result = run("test", file, "--junit", report, "-o", "json")
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert (shown["passed"], shown["failed"]) == (1, 2)
    assert shown["cases"][1]["where"] == "step 1, call 4 of 4"
    assert shown["cases"][0]["differences"][0] == {
        "field": "action", "expected": "Allow", "got": "Deny (DeniedByRule)",
    }  # fmt: skip
    root = ET.fromstring(report.read_text())
    assert (root.attrib["tests"], root.attrib["failures"]) == ("3", "2")
    cases = {case.attrib["name"]: case for case in root.iter("testcase")}
    failure = cases["a wrong <hope>"].find("failure")
    assert failure is not None
    assert "never-delete (Deny) applies" in (failure.text or "")
    assert cases["fine"].find("failure") is None
    assert run("test", file, "--junit", tmp_path / "no" / "x.xml").exit_code == 2


def test_the_servers_list_decides_where_it_is_given(run: Run, write: Write, tmp_path: Path) -> None:
    schema = '{"type": "object", "required": ["id"]}'
    raised = '{"name": "get_it", "annotations": {"destructiveHint": true}}'
    listed = f'[{{"name": "create_it", "inputSchema": {schema}}}, {raised}]'
    cases = """
cases:
- {name: declared, call: {tool: create_it}, expect: {code: SchemaFailed}}
- {name: raised, call: {tool: get_it}, expect: {rule: never-delete}}
- {name: unknown, call: {tool: get_other}, expect: {code: CatalogueUnknown}}
"""
    assert run("test", write(cases, f"{HEAD}tools: {listed}\n")).output == "3 passed, 0 failed\n"
    (tmp_path / "tools.json").write_text(f'{{"tools": {listed}}}')
    assert run("test", write(cases, f"{HEAD}tools: tools.json\n")).output == "3 passed, 0 failed\n"
    assert run("test", write(cases, f"{HEAD}tools: nowhere.json\n")).exit_code == 2
    assert run("test", write(cases, f"{HEAD}tools: [1]\n")).exit_code == 2


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        (
            "casess: []\ncases: [{name: a, call: {tool: x}, expect: {action: Deny}}]",
            ":4:1: error: casess: unknown field",
        ),
        ("cases: [{name: a, cal: {tool: x}, expect: {action: Deny}}]", "unknown field 'cal': did you mean call?"),
        ("cases: [{name: a, call: {tol: x}, expect: {action: Deny}}]", "cases[0].call.tol: unknown field"),
        ("cases: [{name: a, call: {tool: x}, expect: {action: Alow}}]", "did you mean Allow?"),
        ("cases: [{name: a, call: {tool: x}, expect: {code: RateLimitd}}]", "a code like RateLimited"),
        ("cases: [{name: a, call: {tool: x}, expect: {}}]", "it asks for nothing"),
        ("cases: [{name: a, call: {tool: x}}]", "either `expect`"),
        ("cases: [{name: a, expect: {action: Deny}}]", "call is missing"),
        ("cases: [{name: a, call: {}, expect: {action: Deny}}]", "expected `tool`, or another `method`"),
        ("cases: [{name: a, call: {tool: x, method: ping}, expect: {action: Deny}}]", "expected `tool`, or"),
        ("cases: [{name: a, call: {tool: x}, expect: {action: Deny}, time: noon}]", "expected a time with a zone"),
        ("cases: [{name: a, call: {tool: x}, expect: {action: Deny}, after: soon}]", "cases[0].after"),
        ("cases: [{name: a, call: {tool: x}, expect: {action: Deny}, repeat: 0}]", "cases[0].repeat"),
        (
            "cases: [{name: a, call: {tool: x}, repeat: 2, steps: [{expect: {action: Deny}}]}]",
            "put `repeat` into a step",
        ),
        ("cases: []", "cases"),
        ("", "cases: the field is missing"),
        ("cases: [", "not valid YAML"),
        ("cases: [&a {name: a}]", "anchor"),
    ],
)
def test_errors_of_a_test_file(run: Run, write: Write, cases: str, said: str) -> None:
    result = run("test", write(cases))
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_all_errors_come_in_one_run(run: Run, write: Write) -> None:
    case = "{name: a, cal: 1, call: {tool: x, grup: 1}, expect: {acton: Deny}}"
    result = run("test", write(f"cases: [{case}, {case}]"))
    assert result.stderr.count("unknown field") == 6


@pytest.mark.parametrize(
    "text", ["", "[]", "x", "kind: ToolPolicy", "kind: ToolPolicyTest", b"\xff\xfe".decode("latin-1")]
)
def test_files_that_are_no_test(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(text.encode("latin-1"))
    result = run("test", file)
    assert result.exit_code == 2
    assert str(file) in result.stderr


def test_two_cases_of_one_name(run: Run, write: Write) -> None:
    case = "{name: a, call: {tool: get_x}, expect: {action: Allow}}"
    assert "another case is named 'a'" in run("test", write(f"cases: [{case}, {case}]")).stderr


def test_time_does_not_run_backwards(run: Run, write: Write) -> None:
    cases = """
cases:
- name: back
  time: "2026-01-07T12:00:00Z"
  call: {tool: get_it}
  steps: [{time: "2026-01-07T11:00:00Z", expect: {action: Allow}}]
"""
    result = run("test", write(cases))
    assert result.exit_code == 1
    assert "not before 2026-01-07T12:00:00+00:00" in result.output


def test_errors_of_the_policy_stop_the_test(run: Run, write: Write, tmp_path: Path) -> None:
    file = write(PASSING)
    (tmp_path / "policy.yaml").write_text(POLICY.replace("hide: true", "hid: true"))
    result = run("test", file)
    assert result.exit_code == 2
    assert "spec.rules[10].hid" in result.stderr
    (tmp_path / "policy.yaml").unlink()
    assert "does not exist" in run("test", file).stderr


def test_several_documents_and_standard_input(
    run: Run, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(PASSING).read_text()
    assert run("test", write(f"{PASSING}\n---\n{one}")).output == "26 passed, 0 failed\n"
    monkeypatch.chdir(tmp_path)
    assert run("test", "-", input=one).output == "13 passed, 0 failed\n"
