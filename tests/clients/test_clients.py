"""The official clients behind the sidecar: allow, deny, limit, list, stream, cancel, resume, as agents see them."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, cast

import pytest

from support import servers
from support.processes import Program
from support.sidecar import Sidecar
from tools import environments

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clients")]

PROGRAMS = environments.ROOT / "tests" / "clients" / "programs"
DEADLINE = 60.0
REASON = "nothing is deleted here"
POLICY = f"""\
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {{name: clients}}
spec:
  selector: {{}}
  defaultAction: Deny
  rules:
  - name: harmless
    match: {{tools: [get_sum, wait_for_gate, test_reconnection]}}
    action: Allow
  - name: two-echoes
    match: {{tools: [echo]}}
    action: Allow
    rateLimit: {{max: 2, window: 1h, per: Session, principalMax: 2}}
  - name: never-delete
    match: {{tools: [delete_everything]}}
    action: Deny
    reason: {REASON}
    hide: true
"""


@dataclass(frozen=True)
class Client:
    """``interpreter`` is a set of requirements, or ``node``; ``modern`` where it speaks 2026-07-28."""

    interpreter: str
    program: str
    mode: str = ""
    modern: bool = False

    @property
    def name(self) -> str:
        return f"{self.interpreter}-{self.mode}" if self.mode else self.interpreter

    def start(self, url: str) -> Program:
        source = PROGRAMS / self.program
        arguments = [url, self.mode] if self.mode else [url]
        if self.interpreter == "node":
            modules = str(environments.node_modules())
            return Program([environments.node(), source, *arguments], name=self.name, env={"NODE_PATH": modules})
        python = environments.venv(self.interpreter) / "bin" / "python"
        return Program([python, "-W", "ignore", source, *arguments], name=self.name)


CLIENTS = [
    Client("test-mcp1", "python1.py"),
    Client("test-mcp2", "python2.py", "legacy"),
    Client("test-mcp2", "python2.py", "2026-07-28", modern=True),
    Client("test-fastmcp", "fastmcp_client.py", "legacy"),
    Client("test-fastmcp", "fastmcp_client.py", "2026-07-28", modern=True),
    Client("node", "typescript.cjs", "v1"),
    Client("node", "typescript.cjs", "v2-legacy"),
    Client("node", "typescript.cjs", "v2-2026-07-28", modern=True),
]


@dataclass
class Run:
    """One client's whole run: what it reported, by step, and what the server saw."""

    client: Client
    steps: dict[str, dict[str, Any]]
    lab: dict[str, dict[str, int]]


def reported(program: Program) -> list[dict[str, Any]]:
    lines = program.output().splitlines(keepends=True)
    return [cast(dict[str, Any], json.loads(line)) for line in lines if line.endswith("\n") and line.startswith("{")]


def drive(client: Client) -> Run:
    """A server, a sidecar and a limit for each client: what one leaves behind must not help another."""
    with servers.reference() as server, Sidecar(POLICY, server.url) as sidecar, client.start(sidecar.url) as program:

        def has(step: str) -> bool:
            return any(line["step"] == step for line in reported(program))

        try:
            program.wait_until(lambda: has("stream-waits"), "progress while the call runs", DEADLINE)
            server.open_gate("stream")
            program.wait_until(lambda: has("cancel"), "cancelled call", DEADLINE)
            program.wait_until(lambda: server.lab()["cancelled"].get("cancel"), "cancellation at the server", DEADLINE)
            program.wait_until(lambda: has("end"), "end of all steps", DEADLINE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{sidecar.log()}\n{server.log()}") from None
        steps = {line["step"]: line for line in reported(program)}
        return Run(client, steps, server.lab())


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda client: cast(Client, client).name)
def run(request: pytest.FixtureRequest) -> Generator[Run]:
    yield drive(cast(Client, request.param))


def test_an_allowed_call_is_answered(run: Run) -> None:
    assert run.steps["allow"]["answer"] == ["3", False]


def test_a_denied_call_is_an_error_that_the_agent_reads(run: Run) -> None:
    text, is_error = run.steps["deny"]["answer"]
    assert is_error
    assert REASON in text
    assert "delete_everything" not in run.lab["executed"]


def test_a_limited_call_says_when_to_retry(run: Run) -> None:
    *granted, (text, is_error) = run.steps["limit"]["answers"]
    assert granted == [["ok", False]] * 2
    assert is_error
    assert "retry" in text.lower()
    assert run.lab["executed"]["echo"] == 2


def test_a_hidden_tool_is_not_listed(run: Run) -> None:
    assert "delete_everything" not in run.steps["list"]["tools"]
    assert {"get_sum", "echo", "wait_for_gate"} <= set(run.steps["list"]["tools"])


def test_progress_arrives_while_the_call_runs(run: Run) -> None:
    assert run.steps["stream"]["answer"] == ["stream is open", False]
    assert run.steps["stream"]["progress"] == [1, 2]


def test_a_cancelled_call_is_cancelled_at_the_server(run: Run) -> None:
    assert run.lab["cancelled"] == {"cancel": 1}


def test_a_broken_stream_is_resumed(run: Run) -> None:
    if run.client.modern:
        assert "resume" not in run.steps, "streams of 2026-07-28 cannot be resumed"
    else:
        assert run.steps["resume"]["answer"] == ["Reconnection test completed successfully", False]
