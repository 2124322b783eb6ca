"""The program as a process: what it says when it can't start, and what signals do."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from support.processes import Program
from support.sidecar import Sidecar

pytestmark = pytest.mark.slow
GOOD = """
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {name: a, namespace: agents}
spec: {selector: {}, rules: [{name: one, match: {tools: [search]}, action: Allow}]}
"""
BAD = GOOD.replace("Allow", "Permit").replace("selector", "selectr")
NOWHERE = "http://127.0.0.1:9/mcp"


def test_a_bad_policy_at_the_start_is_told_once(tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(BAD)
    program = str(Path(sys.executable).with_name("toolpolicy"))
    with Program([program, "proxy", "--policy", policy, "--upstream", NOWHERE], name="proxy") as proxy:
        assert proxy.wait() == 2
        said = proxy.errors()
    assert said.count("did you mean Allow?") == 1
    assert said.count("'selectr'") == 1
    assert "Traceback" not in said


def test_sighup_reads_the_rules_and_goes_on_in_a_new_audit_file() -> None:
    with Sidecar(GOOD, NOWHERE) as sidecar:
        old = sidecar.audit.with_suffix(".1")
        sidecar.audit.rename(old)
        sidecar.signal(signal.SIGHUP)
        sidecar.wait_until(lambda: sidecar.audit.exists() and sidecar.audit.read_text(), "a new audit file")
        first = json.loads(sidecar.audit.read_text().splitlines()[0])
        before = json.loads(old.read_text().splitlines()[-1])
        assert (first["kind"], first["rotated"], first["prev"]) == ("start", True, before["mac"])
        sidecar.wait_until(lambda: json.loads(sidecar.admin("/status")[1])["rules"]["reloads"] == 2, "reload")


def test_sighup_without_a_renamed_file_changes_nothing_of_the_audit() -> None:
    with Sidecar(GOOD, NOWHERE) as sidecar:
        before = sidecar.audit.read_text()
        sidecar.signal(signal.SIGHUP)
        sidecar.wait_until(lambda: json.loads(sidecar.admin("/status")[1])["rules"]["reloads"] == 2, "reload")
        assert sidecar.audit.read_text() == before
        assert "goes on in the old file" not in sidecar.errors()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"TOOLPOLICY_SERVERS": "15771"}, "TOOLPOLICY_SERVERS: '15771': expected LISTENPORT=TARGETPORT"),
        ({"TOOLPOLICY_SERVERS": "15771=8000", "TOOLPOLICY_UPSTREAM": NOWHERE}, "give one of them"),
        ({"TOOLPOLICY_SERVERS": "15771=8000", "TOOLPOLICY_ADMIN": ":8000"}, "port 8000 is also in TOOLPOLICY_SERVERS"),
        ({"TOOLPOLICY_PROBES": "{}x"}, "TOOLPOLICY_PROBES: is not JSON"),
        ({"TOOLPOLICY_PROBES": '{"a/liveness": {}}'}, "type: expected http, tcp, grpc"),
        ({"TOOLPOLICY_PROBES": "{}", "TOOLPOLICY_ADMIN": ""}, "TOOLPOLICY_ADMIN, which is empty"),
        ({"TOOLPOLICY_JWKS_TOKEN_FILE": "/x"}, "give both or neither"),
        ({"TOOLPOLICY_POD_LABELS": "[1]"}, "labels can't be read"),
        ({"TOOLPOLICY_POD_LABELS": '{"a": 1}'}, "labels can't be read"),
    ],
)
def test_an_environment_that_cannot_be_meant_ends_with_the_reason(
    env: dict[str, str], words: str, tmp_path: Path
) -> None:
    given = {
        "TOOLPOLICY_RULES": str(tmp_path),
        "TOOLPOLICY_RULES_INDEX": "required",
        "TOOLPOLICY_POD_NAMESPACE": "agents",
        "TOOLPOLICY_SERVERS": "" if "TOOLPOLICY_UPSTREAM" in env else "15771=8000",
        **env,
    }
    with Program([sys.executable, "-m", "toolpolicy.sidecar"], name="pod", env=given) as program:
        assert program.wait() == 2
        said = program.errors()
    assert words in said
    assert "Traceback" not in said
