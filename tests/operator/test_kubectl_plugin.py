"""``kubectl toolpolicy`` against a real API server, with real objects; pods are Running by their status alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.control import ControlPlane
from support.scene import APP, Scene
from toolpolicy.cli.output import InputError
from toolpolicy_operator import names
from toolpolicy_operator.kube import Api, ApiError, Object
from toolpolicy_operator.kubectl import completion
from toolpolicy_operator.kubectl.access import cure
from toolpolicy_operator.kubectl.gather import snapshot

ROOT = Path(__file__).parents[2]
LATE = "in force in 1 of 3 pods: late did not load generation 1 in time"


@pytest.fixture
def scene(control_plane: ControlPlane, namespace: str) -> Scene:
    return Scene(control_plane, namespace)


@pytest.fixture
def settled(scene: Scene) -> Scene:
    """One policy, in force in the pod ``good``."""
    scene.enable()
    policy = scene.policy()
    scene.rules(policy)
    scene.pod("good", policy)
    counts = {"selected": 1, "injected": 1, "current": 1, "optedOut": 0}
    scene.status(policy, "True", "Programmed", "generation 1 is in force in 1 pod", pods=counts)
    return scene


@pytest.fixture
def lagging(scene: Scene) -> Scene:
    """One policy, three pods: current, behind, and older than the policy."""
    scene.enable()
    policy = scene.policy()
    scene.rules(policy)
    scene.pod("good", policy)
    scene.pod("late", policy, told="3-16")
    scene.pod("old")
    counts = {"selected": 3, "injected": 2, "current": 1, "optedOut": 0}
    scene.status(
        policy, "False", "PartiallyEnforced", LATE, pods=counts, podsBehind=["late"], podsNeedingRestart=["old"],
    )  # fmt: skip
    return scene


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_status_shows_each_policy_and_exits_with_0_where_all_are_in_force(settled: Scene) -> None:
    result = settled.run("status")
    assert result.exit_code == 0, result.output
    assert words(result.stdout)[0][:5] == ["NAMESPACE", "POLICY", "MODE", "RULES", "GENERATION"]
    assert words(result.stdout)[1] == [
        settled.namespace, "imaging", "Enforce", "2", "1", "1", "1", "1", "True", "Programmed",
    ]  # fmt: skip
    everywhere = settled.run("status", "-A", namespace=False)
    assert [settled.namespace, "imaging"] in [row[:2] for row in words(everywhere.stdout)]


def test_status_of_one_policy_says_who_lags_why_and_what_to_do(lagging: Scene) -> None:
    result = lagging.run("status", "imaging")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == f"ToolPolicy {lagging.namespace}/imaging: Enforce, default Deny, 2 rules, generation 1"
    assert (
        "  Enforced False (PartiallyEnforced): in force in 1 of 3 pods: late did not load generation 1 in time" in lines
    )
    assert f"  rules of {lagging.namespace}: revision 3-17 has generation 1" in lines
    rows = {row[0]: row[1:] for row in words(result.stdout)}
    assert rows["good"] == ["Running", "0.1.0", "3-17", "Current"]
    assert rows["late"] == ["Running", "0.1.0", "3-16", "Behind"]
    assert rows["old"] == ["Running", "none", "-", "Uninjected"]
    assert lines[-1].endswith(f"kubectl -n {lagging.namespace} delete pod old (and create it again)")
    assert f"see: kubectl toolpolicy status imaging -n {lagging.namespace}" in lagging.run("status").stderr
    told = json.loads(lagging.run("status", "-o", "json").stdout)
    assert {pod["name"]: pod["state"] for pod in told["policies"][0]["pods"]} == {
        "good": "Current", "late": "Behind", "old": "Uninjected",
    }  # fmt: skip
    assert told["policies"][0]["good"] is False


def test_an_edit_that_nobody_has_seen_yet_is_not_in_force(settled: Scene) -> None:
    settled.policy(mode="Audit")
    result = settled.run("status", "imaging")
    assert result.exit_code == 1
    assert "the operator has seen generation 1 only" in result.stdout
    assert "has generation 1 (not the newest)" in result.stdout
    assert ["good", "Running", "0.1.0", "3-17", "Waiting"] in words(result.stdout)


def test_a_pod_that_is_not_up_yet_is_no_success_and_waiting_is_for_it(scene: Scene) -> None:
    scene.enable()
    policy = scene.policy()
    scene.rules(policy)
    scene.status(policy, "Unknown", "NoMatchingPods", "no running pod matches the selector")
    assert scene.run("status", "imaging").exit_code == 0
    waited = scene.run("status", "--wait=10ms", "imaging")
    assert (waited.exit_code, waited.stderr) == (1, "not in force after 10ms\n"), "nothing is in force yet"
    scene.pod("good", policy)
    pending = json.dumps({"status": {"phase": "Pending"}})
    scene.kubectl("patch", "pod", "good", "--subresource=status", "--type=merge", "-p", pending)
    result = scene.run("status", "imaging")
    assert result.exit_code == 1
    assert f"pod good is Pending: kubectl describe pod good -n {scene.namespace}" in result.stdout
    assert json.loads(scene.run("status", "-o", "json").stdout)["policies"][0]["good"] is False


def test_wait_takes_its_time_after_an_equals_sign_alone(settled: Scene) -> None:
    assert settled.run("status", "--wait", "imaging").exit_code == 0
    assert settled.run("status", "imaging", "--wait=2m").exit_code == 0
    result = settled.run("status", "imaging", "--wait=soon")
    assert result.exit_code == 2
    assert "For example: --wait=90s" in result.stderr


def test_what_is_not_there_is_said_and_exits_with_2(scene: Scene) -> None:
    assert scene.run("status").exit_code == 0
    for arguments, said in (
        (("status", "nope"), "no ToolPolicy or ClusterToolPolicy nope in namespace"),
        (("status", "nope"), "see kubectl toolpolicy status -A"),
        (("explain", "pod", "nope"), "no pod nope in namespace"),
        (("explain", "pod", "deploy/nope"), "deploy/nope: expected NAME, or pod/NAME"),
        (("explain", "call", "--pod", "nope", "--tool", "x"), "no pod nope in namespace"),
        (("status", "--context", "nope"), "no context 'nope' in the kubeconfig: it has "),
        (("status", "--context", "nope"), ": see kubectl config get-contexts"),
        (("check", "-f", "/does/not/exist.yaml"), "does not exist"),
    ):
        result = scene.run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert said in result.stderr, (arguments, result.stderr)
        assert "Traceback" not in result.output


def test_names_may_carry_their_type_as_kubectl_prints_them(settled: Scene) -> None:
    assert settled.run("status", "tp/imaging").exit_code == 0
    assert settled.run("status", "toolpolicy.toolpolicy.dev/imaging").exit_code == 0
    assert settled.run("explain", "pod", "pod/good").exit_code == 0
    nowhere = settled.run("explain", "pod", "good", "-n", "nosuch", namespace=False)
    assert (nowhere.exit_code, "there is no namespace nosuch" in nowhere.stderr) == (2, True), nowhere.stderr


def test_explain_pod_says_why_it_is_injected(settled: Scene) -> None:
    result = settled.run("explain", "pod", "good")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"pod {settled.namespace}/good: has the sidecar (Injected)"
    assert "  sidecar 0.1.0, interception Redirect, MCP ports 8000; the pod is Running, ready" in lines
    assert "  rules revision 3-17 (the newest) with 1 policy" in lines
    assert "  ToolPolicy imaging (Enforce, default Deny, 2 rules, generation 1): Current" in lines


@pytest.mark.parametrize(
    ("enabled", "pod", "reason", "said"),
    [
        (True, {}, "Selected", "kubectl -n {ns} delete pod p (and create it again)"),
        (True, {"labels": {"app": "web"}}, "NoPolicy", "ToolPolicy imaging: the pod lacks app=mcp (it has app=web)"),
        (False, {}, "NamespaceNotEnabled", "kubectl label namespace {ns} --overwrite toolpolicy.dev/injection=enabled"),
        (True, {"spec": {"hostNetwork": True}}, "HostNetwork", "hostNetwork: true shares the node's ports"),
        (True, {"labels": {**APP, names.INJECTION_LABEL: "disabled"}}, "OptOutNotAllowed", "the pod asks to opt out"),
        (
            True,
            {"spec": {"containers": [{"name": "a", "image": "a", "ports": [{"containerPort": n} for n in (1, 2)]}]}},
            "AmbiguousPort",
            "any of the ports 1, 2 could be the MCP server's",
        ),
    ],
    ids=["older than its policy", "other labels", "not enabled", "host network", "opted out", "which port"],
)
def test_explain_pod_says_why_it_is_not(scene: Scene, enabled: bool, pod: Object, reason: str, said: str) -> None:
    """By the words of the operator's own table."""
    if enabled:
        scene.enable()
    scene.policy()
    scene.pod("p", **pod)
    result = scene.run("explain", "pod", "p")
    assert result.exit_code == 1, result.output
    assert result.stdout.splitlines()[0] == f"pod {scene.namespace}/p: no sidecar ({reason})"
    assert said.format(ns=scene.namespace) in result.stdout
    assert json.loads(scene.run("explain", "pod", "p", "-o", "json").stdout)["reason"] == reason


def test_explain_call_decides_by_the_rules_of_the_pod(settled: Scene) -> None:
    allowed = settled.run("explain", "call", "--pod", "good", "--tool", "get_image")
    assert allowed.exit_code == 0, allowed.output
    assert allowed.stdout.splitlines()[0] == f"by the rules of {settled.namespace}, revision 3-17"
    assert "tool get_image: Allow (Allowed)" in allowed.stdout
    assert allowed.stderr == ""
    denied = settled.run("explain", "call", "--pod", "good", "--tool", "delete_image", "--args", '{"id": 1}')
    assert denied.exit_code == 1
    assert "deleting is off" in denied.stdout
    told = json.loads(settled.run("explain", "call", "--pod", "good", "--tool", "delete_x", "-o", "json").stdout)
    assert told["decision"]["action"] == "Deny"
    about = {key: told[key] for key in ("namespace", "pod", "revision", "warnings")}
    assert about == {"namespace": settled.namespace, "pod": "good", "revision": "3-17", "warnings": []}


def test_explain_claims_nothing_of_a_pod_that_does_not_run_yet(settled: Scene) -> None:
    pending = json.dumps({"status": {"phase": "Pending"}})
    settled.kubectl("patch", "pod", "good", "--subresource=status", "--type=merge", "-p", pending)
    said = "pod good is Pending: its sidecar has reported nothing yet"
    told = json.loads(settled.run("explain", "call", "--pod", "good", "--tool", "get_x", "-o", "json").stdout)
    assert told["warnings"] == [said]
    assert said in settled.run("explain", "call", "--pod", "good", "--tool", "get_x").stderr
    story = settled.run("explain", "pod", "good").stdout
    assert "  written for it: rules revision 3-17 with 1 policy; nothing reported yet (Pending)" in story


def test_explain_call_takes_what_is_written_and_not_what_was_edited_since(settled: Scene) -> None:
    settled.policy(rules=[{"name": "all", "action": "Allow"}])
    result = settled.run("explain", "call", "--pod", "good", "--tool", "delete_image")
    assert result.exit_code == 1
    assert "ToolPolicy imaging has generation 2, these rules 1" in result.stderr


def test_explain_call_warns_of_a_pod_that_lags(lagging: Scene) -> None:
    result = lagging.run("explain", "call", "--pod", "late", "--tool", "get_image")
    assert result.exit_code == 0, result.output
    assert "the pod was told of revision 3-16, the newest is 3-17: it may lag" in result.stderr
    assert "the sidecar has not reported generation 1 of ToolPolicy imaging" in result.stderr
    assert lagging.run("explain", "call", "--pod", "good", "--tool", "get_image").stderr == ""


def test_explain_call_of_a_pod_without_sidecar_is_a_no(lagging: Scene) -> None:
    result = lagging.run("explain", "call", "--pod", "old", "--tool", "get_image")
    assert result.exit_code == 1
    assert "has no sidecar (Selected): nothing judges its calls" in result.stderr


def test_explain_call_where_rules_are_broken_or_absent_is_an_error(settled: Scene) -> None:
    broken = json.dumps({"data": {"toolpolicy.imaging.json": "{}"}})
    settled.kubectl("patch", "configmap", names.RULES_CONFIGMAP, "--type=merge", "-p", broken)
    result = settled.run("explain", "call", "--pod", "good", "--tool", "x")
    assert result.exit_code == 2
    assert "sidecars keep older ones" in result.stderr
    settled.plane.kubectl("delete", "configmap", names.RULES_CONFIGMAP, "-n", settled.namespace)
    result = settled.run("explain", "call", "--pod", "good", "--tool", "x")
    assert result.exit_code == 2
    assert "have no rules and deny every call" in result.stderr


def test_a_viewer_gets_answers_and_is_told_which_permission_is_missing(settled: Scene) -> None:
    viewer = settled.viewer()
    result = settled.run("status", "imaging", kubeconfig=viewer)
    assert result.exit_code == 0, result.output
    assert "you lack the permission to list clustertoolpolicies.toolpolicy.dev" in result.stderr
    assert settled.run("explain", "pod", "good", kubeconfig=viewer).exit_code == 0
    assert settled.run("explain", "call", "--pod", "good", "--tool", "get_x", kubeconfig=viewer).exit_code == 0
    everywhere = settled.run("status", "-A", kubeconfig=viewer, namespace=False)
    assert everywhere.exit_code == 2
    assert 'cannot list resource "toolpolicies"' in everywhere.stderr
    granting = f"kubectl create clusterrolebinding NAME --clusterrole=view --user=viewer-{settled.namespace}"
    assert f"Ask for one namespace with -n, instead of -A. Who may grant it: {granting}" in everywhere.stderr


def test_strangers_and_servers_that_are_away_are_told_what_to_do(settled: Scene, tmp_path: Path) -> None:
    stranger = settled.run("status", kubeconfig=settled.plane.kubeconfig_for(f"stranger-{settled.namespace}"))
    assert stranger.exit_code == 2
    assert "not permitted" in stranger.stderr
    away = tmp_path / "away"
    away.write_text(settled.plane.kubeconfig.read_text().replace(settled.plane.url, "https://127.0.0.1:1"))
    result = settled.run("status", kubeconfig=away)
    assert result.exit_code == 2
    assert "https://127.0.0.1:1 can't be reached" in result.stderr
    for text in ("", "{", "[]", "clusters: 5"):
        away.write_text(text)
        result = settled.run("status", kubeconfig=away)
        assert (result.exit_code, "Traceback" in result.output) == (2, False), (text, result.output)


def refusal(user: str, verb: str, resource: str, where: str) -> str:
    """As RBAC refuses."""
    return f'{resource} is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group "x" {where}'


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ApiError(0, "Timeout", "GET /api: no answer within 10 s"),
            "can't be reached: GET /api: no answer within 10 s",
        ),
        (ApiError(401, "Unauthorized", "Unauthorized"), "does not accept these credentials: log in again"),
        (
            ApiError(403, "Forbidden", refusal("a b", "list", "pods", 'in the namespace "agents"')),
            "kubectl create rolebinding NAME --clusterrole=view --user='a b' -n agents",
        ),
        (
            ApiError(
                403,
                "Forbidden",
                refusal("system:serviceaccount:ci:bot", "update", "toolpolicies", 'in the namespace "x"'),
            ),
            "kubectl create rolebinding NAME --clusterrole=toolpolicy-edit --serviceaccount=ci:bot -n x",
        ),
        (
            ApiError(403, "Forbidden", refusal("a", "create", "clustertoolpolicies", "at the cluster scope")),
            "grants it but cluster-admin: ask who runs the cluster",
        ),
        (ApiError(403, "Forbidden", 'pods is forbidden: User "a" cannot'), "Ask who runs the cluster"),
        (ApiError(403, "Forbidden", "quota exceeded"), "Ask who runs the cluster"),
        (ApiError(429, "TooManyRequests", "slow down"), "Try again in a moment"),
        (ApiError(500, "InternalError", 'failed calling webhook "x": refused'), "Does the operator run?"),
        (ApiError(410, "Gone", "too old"), "too old"),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)
def test_every_error_of_the_api_says_what_to_do(error: ApiError, said: str) -> None:
    role = "toolpolicy-edit" if "toolpolicies" in str(error) else "view"
    assert said in cure(error, "https://127.0.0.1:6443", role)


def test_completion_offers_verbs_options_and_names_from_the_cluster(
    settled: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(settled.plane.kubeconfig))

    def offered(*typed: str) -> list[str]:
        completion.main(list(typed))
        *lines, directive = capsys.readouterr().out.splitlines()
        assert directive == ":4"
        return [line.partition("\t")[0] for line in lines]

    assert offered("") == ["status", "explain", "check"]
    assert offered("explain", "") == ["call", "pod"]
    assert offered("status", "-n", settled.namespace, "im") == ["imaging"]
    assert offered("explain", "pod", "--namespace", settled.namespace, "") == ["good"]
    assert offered("explain", "call", "-n", settled.namespace, "--pod", "") == ["good"]
    assert "--all-namespaces" in offered("status", "--")
    monkeypatch.setenv("KUBECONFIG", "/does/not/exist")
    assert offered("status", "") == []


def test_kubectl_finds_the_plugin_and_its_completion_by_their_names(settled: Scene, tmp_path: Path) -> None:
    """As pip installs the two entry points of pyproject.toml."""
    for name, function in (("kubectl-toolpolicy", "main"), ("kubectl_complete-toolpolicy", "complete")):
        script = tmp_path / name
        script.write_text(
            f"#!{sys.executable}\nimport sys\nfrom toolpolicy_operator.kubectl import {function}\n{function}()\n"
        )
        script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "KUBECONFIG": str(settled.plane.kubeconfig),
    }

    def kubectl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(settled.plane.programs / "kubectl"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    done = kubectl("toolpolicy", "status", "imaging", "-n", settled.namespace)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Enforced True (Programmed)" in done.stdout
    assert kubectl("toolpolicy", "nope").returncode == 2
    assert "imaging" in kubectl("__complete", "toolpolicy", "status", "-n", settled.namespace, "").stdout


@pytest.mark.asyncio
async def test_a_cluster_without_the_crds_is_told_from_one_without_policies() -> None:
    class Bare(Api):
        def __init__(self) -> None:
            """Without a configuration: nothing is sent."""

        async def list(self, path: str, **_: object) -> Any:
            raise ApiError(404, "NotFound", f"the server could not find the requested resource ({path})")

    with pytest.raises(InputError, match="does not know ToolPolicies: install toolpolicy first"):
        await snapshot(Bare(), "agents")
