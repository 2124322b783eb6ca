"""``scan`` against real servers: both lines of the Python SDK, the official Node server, and the running example."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from support import servers
from toolpolicy.policy.load import require
from tools import environments

pytestmark = pytest.mark.slow
Run = Callable[..., Result]


@pytest.mark.parametrize("options", [[], ["--stateless", "--json-response"]])
def test_python_sdk_2_over_http(run: Run, options: list[str]) -> None:
    with servers.reference(*options) as server:
        result = run("scan", "--upstream", server.url, "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["tools"]


@pytest.mark.parametrize("kind", ["python1", "node1", "node2"])
def test_other_sdks_over_http(run: Run, kind: str) -> None:
    with servers.stack(kind) as server:
        result = run("scan", "--upstream", server.url, "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["tools"]


def test_server_everything_over_http_and_stdio(run: Run) -> None:
    with servers.everything() as server:
        over_http = run("scan", "--upstream", server.url, "-o", "json")
    script = environments.node_modules() / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    over_stdio = run("scan", "-o", "json", "--", environments.node(), script, "stdio")
    assert over_http.exit_code == over_stdio.exit_code == 0
    assert json.loads(over_http.stdout)["tools"] == json.loads(over_stdio.stdout)["tools"] != []


def test_the_running_example(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    command = environments.venv("demo-server") / "bin" / "awslabs.healthimaging-mcp-server"
    policy = tmp_path / "policy.yaml"
    result = run("scan", "--write", policy, "-o", "json", "--", command)
    assert result.exit_code == 0, result.stderr
    tools = {tool["name"]: tool["category"] for tool in json.loads(result.stdout)["tools"]}
    assert len(tools) == 39
    assert tools["start_dicom_export_job"] == "Execute"
    assert tools["get_image_set"] == "Read"
    destructive = sorted(name for name, category in tools.items() if category == "Destructive")
    assert len(destructive) >= 8, destructive
    [starter] = require(policy.read_text(), str(policy))
    assert {rule.name for rule in starter.spec.rules} == {"read-freely", "change-a-little", "never-destroy"}
