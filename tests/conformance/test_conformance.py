"""The sidecar is transparent: the official suite gives the same result, check by check, with and without it."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from conformance import suite
from support import servers
from support.relay import Relay
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("conformance")]

# server-everything does not compare the headers of 2026-07-28 with the body, which the sidecar must do (a server that
# goes by the body, behind something that goes by the headers, is a bypass): these fail directly and pass through it.
MENDED = {
    ("everything", "server-stateless", "sep-2575-http-server-header-mismatch-400"),
    ("everything", "tasks-request-headers", "tasks-headers-reject-mismatched-method"),
}

# Everything is judged: each call passes a rule with a validation and a limit, none is simply let through.
POLICY = """\
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {name: conformance}
spec:
  selector: {}
  defaultAction: Deny
  rules:
  - name: everything
    match: {}
    action: Allow
  - name: limited
    match: {tools: ["*"]}
    action: Allow
    rateLimit: {max: 10000, window: 60s, per: Server}
    validations:
    - expression: size(args) < 1000
      message: too many arguments
"""


@pytest.fixture(scope="module", params=["reference", "everything"])
def server(request: pytest.FixtureRequest) -> Generator[servers.Server]:
    with servers.reference() if request.param == "reference" else servers.everything() as running:
        yield running


@pytest.fixture(scope="module")
def direct(server: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, suite.Checks]:
    folder = tmp_path_factory.mktemp("direct")
    return {revision: suite.run(server.url, revision, folder / revision) for revision in suite.REVISIONS}


@pytest.mark.parametrize("server", ["reference"], indirect=True)
@pytest.mark.parametrize("revision", suite.REVISIONS)
def test_the_reference_server_passes_every_scored_check(direct: dict[str, suite.Checks], revision: str) -> None:
    """A check that fails on both sides proves nothing, so that none may."""
    asked = {scenario: direct[revision].get(scenario, []) for scenario in suite.scored(revision)}
    assert [scenario for scenario, found in asked.items() if not found] == []
    assert suite.failed(asked) == []


@pytest.mark.parametrize("revision", suite.REVISIONS)
def test_the_suite_sees_no_difference(
    server: servers.Server, direct: dict[str, suite.Checks], revision: str, tmp_path: Path
) -> None:
    with Sidecar(POLICY, server.url) as sidecar:
        through = suite.run(sidecar.url, revision, tmp_path / "results")
        mended = {(scenario, check) for name, scenario, check in MENDED if name == server.name}
        different = suite.differences(direct[revision], through, mended)
        assert not different, "\n".join([*different, sidecar.log()])


@pytest.mark.parametrize("revision", suite.REVISIONS)
def test_the_suite_is_repeatable(
    server: servers.Server, direct: dict[str, suite.Checks], revision: str, tmp_path: Path
) -> None:
    """The control: a plain pass-through gives no difference either, so that one would be the sidecar's."""
    with Relay(server.address) as relay:
        url = f"http://127.0.0.1:{relay.port}{server.path}"
        assert suite.differences(direct[revision], suite.run(url, revision, tmp_path / "results")) == []
