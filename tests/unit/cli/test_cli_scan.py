"""``scan`` and ``explain``: what a server offers, the first policy for it, and what that policy does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from support.saying import TOOLS, Fixture
from toolpolicy.cli.listing import Listing
from toolpolicy.cli.output import table
from toolpolicy.cli.starter import starter_policy
from toolpolicy.policy.load import load_text, require
from toolpolicy.policy.types import ToolInfo

Run = Callable[..., Result]
Serve = Callable[[Fixture], Fixture]
Stdio = Callable[..., list[str]]


def test_scan_lists_by_category(run: Run, serve: Serve) -> None:
    result = run("scan", "--upstream", serve(Fixture()).url)
    assert result.exit_code == 0
    assert [line.split() for line in result.output.splitlines()] == [
        ["TOOL", "CATEGORY", "RISK", "BY"],
        ["get_item", "Read", "Low", "name"],
        ["get_secret", "Read", "High", "name"],
        ["create_item", "Write", "Medium", "name"],
        ["run_it", "Execute", "High", "name"],
        ["delete_item", "Destructive", "High", "name"],
        ["list_things", "Destructive", "High", "annotations"],
        ["pay_invoice", "Financial", "Critical", "name"],
    ]


def test_scan_as_json_keeps_what_the_server_said(run: Run, stdio: Stdio) -> None:
    result = run("scan", "-o", "json", "--", *stdio())
    assert result.exit_code == 0
    tools = {tool["name"]: tool for tool in json.loads(result.stdout)["tools"]}
    assert tools["list_things"]["raisedByAnnotations"] is True
    assert {name: tool["inputSchema"] for name, tool in tools.items()} == {t["name"]: t["inputSchema"] for t in TOOLS}


def test_the_starter_policy_does_what_it_says(run: Run, stdio: Stdio, tmp_path: Path) -> None:
    policy, tools = tmp_path / "policy.yaml", tmp_path / "tools.json"
    tools.write_text(json.dumps({"tools": TOOLS}))
    assert run("scan", "--write", policy, "--name", "My Server!", "--", *stdio()).exit_code == 0
    [loaded] = require(policy.read_text(), "policy.yaml")
    assert loaded.metadata.name == "my-server"

    def decided(tool: str, args: str = "{}") -> tuple[str, str]:
        result = run("explain", "--policy", policy, "--tool", tool, "--args", args, "--tools", tools, "-o", "json")
        decision = json.loads(result.stdout)["decision"]
        assert result.exit_code == (0 if decision["action"] == "Allow" else 1)
        return decision["action"], decision["code"]

    assert decided("get_item") == ("Allow", "Allowed")
    assert decided("get_secret") == ("Allow", "Allowed")
    assert decided("create_item", '{"id": 1}') == ("Allow", "Allowed")
    assert decided("create_item") == ("Deny", "SchemaFailed")
    assert decided("run_it") == ("Allow", "Allowed")  # its schema is none, so nothing is checked
    assert decided("delete_item") == ("Deny", "DeniedByRule")
    assert decided("list_things") == ("Deny", "DeniedByRule")
    assert decided("pay_invoice") == ("Allow", "Allowed")
    assert decided("create_other") == ("Deny", "CatalogueUnknown")


def test_what_runs_whatever_it_is_given_starts_denied() -> None:
    tools = ("execute_command", "run_shell", "start_job", "get_item")
    [policy] = require(starter_policy(Listing(tuple(ToolInfo(n, {"type": "object"}) for n in tools)), "x"), "p.yaml")
    rules = {rule.name: rule for rule in policy.spec.rules}
    denied = rules["not-before-a-look"]
    assert (denied.action, denied.match.tools) == ("Deny", ("execute_command", "run_shell"))
    assert rules["change-a-little"].match.tools == ("start_job",)


def test_scan_replaces_a_file_only_if_told(run: Run, stdio: Stdio, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("mine")
    result = run("scan", "--write", policy, "--", *stdio())
    assert (result.exit_code, policy.read_text()) == (2, "mine")
    assert run("scan", "--write", policy, "--force", "--", *stdio()).exit_code == 0
    assert policy.read_text().startswith("# A starter policy for ")
    assert run("scan", "--write", tmp_path / "no" / "dir.yaml", "--", *stdio()).exit_code == 2


@pytest.mark.parametrize("header", ["nonsense", ": x", "a b: c", "X: a\nY: b", "é: x"])
def test_headers_that_are_none(run: Run, header: str) -> None:
    result = run("scan", "--upstream", "http://127.0.0.1:1/mcp", "--header", header)
    assert result.exit_code == 2
    assert "--header" in result.stderr


NAMES = [
    "yes",
    "on",
    "1",
    "a b",
    "a: b",
    "#x",
    "- x",
    "Null",
    'qu"ote',
    "ünï",
    "{x}",
    "a*b",
    "x" * 300,
    "\x1b[31m",
    "%",
    "~",
]


@given(
    st.lists(st.sampled_from(NAMES) | st.text(min_size=1, max_size=30), unique=True, max_size=20), st.text(max_size=60)
)
def test_every_starter_policy_is_valid(names: list[str], server: str) -> None:
    listing = Listing(tuple(ToolInfo(name, {"type": "object"}) for name in names), server, server)
    text = starter_policy(listing, f"cmd {server}")
    assert load_text(text, "p.yaml")[1] == []


def test_many_tools_are_several_rules() -> None:
    listing = Listing(tuple(ToolInfo(f"create_{n}", {}) for n in range(1000)))
    [policy] = require(starter_policy(listing, "x"), "p.yaml")
    assert [rule.name for rule in policy.spec.rules if rule.name.startswith("change")] == [
        "change-a-little", *(f"change-a-little-{n}" for n in range(2, 6)),
    ]  # fmt: skip


def test_names_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table([("\x1b[31mred\n", "Read")], ("TOOL", "CATEGORY"))
    assert "\\x1b[31mred\\n" in capsys.readouterr().out


POLICY = """
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {name: p}
spec:
  selector: {}
  rules:
  - {name: read, match: {categories: [Read]}, action: Allow}
  - {name: ask, match: {tools: [copy_it]}, action: RequireApproval}
  - {name: big, match: {tools: [put]}, action: Allow, arguments: Declared}
  - name: docs
    match: {methods: [resources/read], principals: {groups: [admins]}}
    action: Allow
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "p.yaml"
    file.write_text(POLICY)
    return file


def test_explain_says_why_rule_by_rule(run: Run, policy: Path) -> None:
    result = run("explain", "--policy", policy, "--tool", "get_x")
    assert result.exit_code == 0
    assert "tool get_x: Allow (Allowed)" in result.output
    assert "read (Allow) applies: it matches the call" in result.output
    assert "ask (RequireApproval) does not apply" in result.output
    denied = run("explain", "--policy", policy, "--tool", "create_x")
    assert denied.exit_code == 1
    assert "DeniedByDefault" in denied.output


def test_explain_says_that_approval_is_not_available(run: Run, policy: Path) -> None:
    result = run("explain", "--policy", policy, "--tool", "copy_it")
    assert result.exit_code == 1
    assert "RequireApproval" in result.output
    assert "approval is not available here" in result.output


def test_explain_says_that_the_schema_is_not_known(run: Run, policy: Path) -> None:
    assert "--tools FILE" in run("explain", "--policy", policy, "--tool", "put").output


def test_explain_other_methods_and_principals(run: Run, policy: Path) -> None:
    asked = ["explain", "--policy", policy, "--method", "resources/read"]
    assert run(*asked).exit_code == 1
    assert run(*asked, "--group", "admins").exit_code == 0


def test_explain_takes_arguments_from_a_file_or_standard_input(run: Run, policy: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"id": 1}')
    asked = ["explain", "--policy", policy, "--tool", "get_x", "--args"]
    assert run(*asked, f"@{tmp_path / 'a.json'}").exit_code == 0
    assert run(*asked, "-", input='{"id": 1}').exit_code == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--args", "{"], "is not JSON"),
        (["--args", "[]"], "not a JSON object"),
        (["--args", "@nowhere"], "does not exist"),
        (["--args", "[" * 100_000], "is not JSON"),
        (["--time", "yesterday"], "not a time with a zone"),
        (["--time", "2026-01-01T00:00:00"], "not a time with a zone"),
        (["--method", "ping"], "give --tool NAME"),
        (["--tools", "nowhere"], "does not exist"),
        (["--policy", "nowhere"], "does not exist"),
    ],
)
def test_explain_refuses_bad_input(run: Run, policy: Path, more: list[str], said: str) -> None:
    result = run("explain", "--policy", policy, "--tool", "get_x", *more)
    assert result.exit_code == 2
    assert said in result.stderr


def test_errors_of_a_policy_are_all_printed(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(POLICY.replace("action: Allow", "action: Alow").replace("spec:", "spec:\n  moed: Audit"))
    result = run("explain", "--policy", file, "--tool", "x")
    assert result.exit_code == 2
    assert result.stderr.count("error:") >= 4
    assert f"{file}:6:3: error: spec.moed" in result.stderr


def test_a_directory_stands_for_its_policies(run: Run, tmp_path: Path, policy: Path) -> None:
    (tmp_path / ".hidden.yaml").write_text("nonsense")
    (tmp_path / "README.md").write_text("nonsense")
    assert run("explain", "--policy", policy.parent, "--tool", "get_x").exit_code == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("explain", "--policy", empty, "--tool", "get_x").exit_code == 2
