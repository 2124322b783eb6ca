"""The edge of the command line: help, mistakes, exit codes, pipes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import pytest
from click.testing import Result

from toolpolicy import cli
from toolpolicy.cli import VERBS, main

Run = Callable[..., Result]


def toolpolicy(*args: str, env: Mapping[str, str] | None = None, **extra: object) -> subprocess.Popen[str]:
    program = "import sys; from toolpolicy.cli import main; main(sys.argv[1:])"
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return subprocess.Popen(
        [sys.executable, "-c", program, *args],
        env=clean | dict(env or {}),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("verb", ["test", "explain", "scan", "classify", "completion"])
def test_help_has_examples_as_written(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "  Examples:\n    toolpolicy " + verb in result.output
    assert run(verb, "-h").output == result.output


def test_help_lists_every_verb_without_importing_one(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"  {verb} " in result.output for verb in VERBS)
    program = "from toolpolicy.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", "import sys\n" + program], capture_output=True, text=True, timeout=30)
    assert not {"aiohttp", "pydantic", "cel_expr_python"} & set(done.stderr.split())


def test_no_verb_is_help_and_a_usage_error(run: Run) -> None:
    result = run()
    assert result.exit_code == 2
    assert "Usage: toolpolicy" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["tset"], "unknown verb 'tset': did you mean 'test'?"),
        (["CLASSIFY"], "did you mean 'classify'?"),
        (["xyzzy"], "the verbs are proxy, check"),
        (["classify"], "Missing argument"),
        (["classify", "--otput", "json", "x"], "--output"),
        (["classify", "-o", "yaml", "x"], "'yaml' is not one of"),
    ],
)
def test_mistakes_are_one_line_and_what_to_do(run: Run, args: list[str], said: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    first, *rest = result.stderr.splitlines()
    assert first.startswith("error: ")
    assert said in first
    assert rest == [f"try: toolpolicy{' ' + args[0] if args[0] == 'classify' else ''} --help"]


def test_a_fault_of_ours_shows_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("wheel\nfell off")

    monkeypatch.setattr("toolpolicy.cli.classify.classify", broken)
    result = run("classify", "x")
    assert result.exit_code == 2
    assert "error: internal error: RuntimeError: wheel fell off" in result.stderr
    assert "TOOLPOLICY_DEBUG=1" in result.stderr
    assert "Traceback" not in result.stderr
    monkeypatch.setenv("TOOLPOLICY_DEBUG", "1")
    assert "Traceback" in run("classify", "x").stderr


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (cli.Refusal("no"), 1),
        (click.ClickException("bad"), 2),
        (click.UsageError("bad"), 2),
        (click.FileError("x"), 2),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_exit_codes(run: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int) -> None:
    def broken(*_: object) -> None:
        raise raised

    monkeypatch.setattr("toolpolicy.cli.classify.classify", broken)
    monkeypatch.setattr("toolpolicy.cli._silence", lambda: None)
    assert run("classify", "x").exit_code == code


def test_the_reader_may_leave() -> None:
    process = toolpolicy("classify", "-")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError), process.stdin:
        while process.poll() is None:
            process.stdin.write("get_x\n" * 10_000)
            process.stdin.flush()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(30) == 141


def test_interruption_is_quiet() -> None:
    process = toolpolicy("classify", "-")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("get_x\n")
    process.stdin.flush()
    assert process.stdout.readline() == "get_x\tRead\tLow\n"  # it is running
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colour_only_where_it_is_wanted(environment: dict[str, str], coloured: bool) -> None:
    process = toolpolicy("nonsense", env=environment)
    _, errors = process.communicate(timeout=30)
    assert ("\x1b[" in errors) is coloured


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_TOOLPOLICY_COMPLETE" in result.output
    assert run("completion", "tcsh").exit_code == 2


def test_completion_completes_verbs() -> None:
    environment = {"_TOOLPOLICY_COMPLETE": "bash_complete", "COMP_WORDS": "toolpolicy cla", "COMP_CWORD": "1"}
    out, _ = toolpolicy(env=environment).communicate(timeout=30)
    assert out.split() == ["plain,classify"]


def test_classify_arguments_and_lines(run: Run) -> None:
    assert run("classify", "get_x", "purgeAll").output == "get_x\tRead\tLow\npurgeAll\tDestructive\tCritical\n"
    lines = b"get_x\r\n\n  \nrun\tit\n\xff\xfe_delete\n\x1b[31mx"
    assert run("classify", "-", input=lines).output.splitlines() == [
        "get_x\tRead\tLow",
        "run\\tit\tExecute\tHigh",
        "\ufffd\ufffd_delete\tDestructive\tHigh",
        "\\x1b[31mx\tExecute\tHigh",
    ]
    assert '"category": "Write"' in run("classify", "-o", "json", "get_or_create").output
    assert run("classify", "-", input=b"x" * 100_000).exit_code == 2


def test_main_is_a_click_group() -> None:
    assert isinstance(main, click.Group)
    assert Path(cli.__file__).name == "__init__.py"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("max_bdy=3", "no such setting; did you mean max_body?"),
        ("qqqqq=3", "no such setting; docs/reference/settings.md has them all"),
        ("max_body", "expected NAME=VALUE"),
    ],
)
def test_a_setting_that_is_not_there_is_named(run: Run, given: str, said: str) -> None:
    result = run("proxy", "--policy", "p.yaml", "--upstream", "http://127.0.0.1:1/mcp", "--set", given)
    assert result.exit_code == 2
    assert f"--set {given}: {said}" in result.output


def test_the_admin_address_that_is_taken_is_named_with_the_cure(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "apiVersion: toolpolicy.dev/v1alpha1\nkind: ToolPolicy\nmetadata: {name: p}\nspec: {selector: {}}\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["--upstream", "http://127.0.0.1:1/mcp", "--listen", "127.0.0.1:0", "--audit", "none"]
        with toolpolicy("proxy", "--policy", str(policy), *arguments, "--admin", at) as process:
            errors = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert f"error: can't listen on {at} for health and metrics: Address already in use; choose another" in errors
