"""``toolpolicy check``: exit codes, forms of output, and what it reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from toolpolicy.cli import listing
from toolpolicy.cli.check import command
from toolpolicy.policy.types import ToolInfo

HEAD = "apiVersion: toolpolicy.dev/v1alpha1\nkind: ToolPolicy\nmetadata: {name: NAME}\n"
GOOD = HEAD + "spec: {selector: {}, rules: [{name: a, action: Allow, match: {tools: [get_x]}}]}\n"
BAD = HEAD + "spec: {selector: {}, moode: Audit}\n"


def check(*arguments: str | Path, stdin: str | bytes = "", color: bool = False) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], input=stdin, color=color)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD.replace("NAME", "good"))
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD.replace("NAME", "bad"))
    return path


def test_valid_policies_exit_with_0_and_a_summary(good: Path) -> None:
    result = check(good)
    assert (result.exit_code, result.output) == (0, "1 valid policy in 1 file: no problems\n")


def test_an_error_exits_with_1_and_its_place(good: Path, bad: Path) -> None:
    result = check(good, bad)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"{bad}:4:22: error: spec.moode: unknown field 'moode': did you mean mode?",
        "1 valid policy in 2 files: 1 error",
    ]


@pytest.mark.parametrize(
    "arguments", [[], ["missing.yaml"], ["--nonsense", "x"], ["--tools", "a", "--upstream", "b", "c"]]
)
def test_usage_and_unreadable_files_exit_with_2_and_no_traceback(arguments: list[str]) -> None:
    result = check(*arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)


def test_a_directory_stands_for_its_manifests(good: Path, bad: Path) -> None:
    (good.parent / "readme.txt").write_text("not a policy")
    result = check(good.parent)
    assert result.exit_code == 1
    assert "1 valid policy in 2 files" in result.output


def test_the_same_policy_in_two_files_is_an_error(good: Path) -> None:
    (good.parent / "twin.yaml").write_text(good.read_text())
    result = check(good.parent)
    assert result.exit_code == 1
    assert f"ToolPolicy good is also in {good}" in result.output


def test_standard_input_is_read_for_a_dash() -> None:
    assert check("-", stdin=GOOD.replace("NAME", "x")).exit_code == 0
    result = check("-", stdin=b"\xff\xfe")
    assert result.exit_code == 1
    assert result.output.startswith("<stdin>:1:1: error: not UTF-8")


@pytest.mark.parametrize(
    "tools",
    [
        "set_x\nlist_x\n",
        "# names\nset_x\tWrite\n",
        '["set_x"]',
        '{"tools": [{"name": "set_x"}]}',
        '{"result": {"tools": [{"name": "set_x"}]}}',
    ],
)
def test_names_are_compared_with_the_tools_in_a_file(good: Path, tools: str) -> None:
    (good.parent / "tools").write_text(tools)
    result = check(good, "--tools", good.parent / "tools")
    assert result.exit_code == 0
    assert f"{good}:4:71: warning: spec.rules[0].match.tools[0]: the name is that of no tool" in result.output
    assert "did you mean set_x?" in result.output
    assert check(good, "--strict", "--tools", good.parent / "tools").exit_code == 1


def test_names_are_compared_with_what_the_server_lists(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def list_tools(upstream: str | None, command: Sequence[str] | None) -> list[ToolInfo]:
        asked.append(upstream)
        return [ToolInfo("set_x")]

    monkeypatch.setattr(listing, "list_tools", list_tools)
    result = check(good, "--upstream", "http://127.0.0.1:1/mcp")
    assert asked == ["http://127.0.0.1:1/mcp"]
    assert "did you mean set_x?" in result.output


@pytest.mark.parametrize("tools", ["", "# none\n", "{", "[1]", '{"tools": 3}'])
def test_a_file_without_tools_is_bad_input(good: Path, tools: str) -> None:
    (good.parent / "tools").write_text(tools)
    result = check(good, "--tools", good.parent / "tools")
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)


def test_json_says_all_of_it(good: Path, bad: Path) -> None:
    result = check(good, bad, "-o", "json")
    told = json.loads(result.output)
    assert result.exit_code == 1
    assert told["policies"] == [
        {"file": str(good), "kind": "ToolPolicy", "namespace": None, "name": "good", "rules": 1}
    ]
    [problem] = told["problems"]
    assert (problem["line"], problem["column"], problem["code"]) == (4, 22, "unknown-field")
    assert (told["errors"], told["warnings"]) == (1, 0)


def test_github_annotations_can_not_be_forged_by_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(HEAD.replace("NAME", "x") + 'spec: {selector: {}, "a\\n::error::forged%0A": 1}\n')
    lines = check(path, "-o", "github").output.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("::error file=")
    assert "line=4,col=22,title=unknown-field::" in lines[0]
    assert "%250A" in lines[0]


def test_colours_are_for_terminals_only(bad: Path) -> None:
    assert "\x1b[" not in check(bad).output
    assert "\x1b[31m" in check(bad, color=True).output.replace("\x1b[31m\x1b[1m", "\x1b[31m")


def test_control_characters_of_a_file_never_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(HEAD.replace("NAME", "x") + 'spec: {selector: {}, "a\\e[2Jb": 1}\n')
    result = check(path, color=True)
    assert result.exit_code == 1
    assert "\x1b[2J" not in result.output
