"""What every test against the API server relies on."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.control import Components, ControlPlane, answers, wait_until


def test_it_serves_a_current_version_and_our_resources(control_plane: ControlPlane) -> None:
    version = json.loads(control_plane.kubectl("version", "-o", "json").stdout)["serverVersion"]
    assert (int(version["major"]), int(version["minor"])) >= (1, 30)
    served = control_plane.kubectl("api-resources", "--api-group=toolpolicy.dev", "-o", "name").stdout.split()
    assert {"toolpolicies.toolpolicy.dev", "clustertoolpolicies.toolpolicy.dev"} <= set(served)


def test_a_user_has_no_rights_but_those_bound(control_plane: ControlPlane, namespace: str) -> None:
    kubeconfig = control_plane.kubeconfig_for("alice", ["reviewers"])

    def may(verb: str) -> str:
        asked = ("auth", "can-i", verb, "configmaps", "-n", namespace)
        return control_plane.kubectl(*asked, kubeconfig=kubeconfig, check=False).stdout.strip()

    who = json.loads(control_plane.kubectl("auth", "whoami", "-o", "json", kubeconfig=kubeconfig).stdout)
    assert who["status"]["userInfo"]["username"] == "alice"
    assert "reviewers" in who["status"]["userInfo"]["groups"]
    assert may("get") == "no"
    here = ("-n", namespace)
    control_plane.kubectl("create", "role", "reader", "--verb=get", "--resource=configmaps", *here)
    control_plane.kubectl("create", "rolebinding", "readers", "--role=reader", "--group=reviewers", *here)
    assert may("get") == "yes"
    assert may("create") == "no"


def test_what_a_user_did_is_in_the_audit_log(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "configmap", "seen", "-n", namespace)
    events = map(json.loads, control_plane.audit_log.read_text().splitlines())
    mine = [event for event in events if event.get("objectRef", {}).get("namespace") == namespace]
    assert ("admin", "create", "configmaps") in {
        (event["user"]["username"], event["verb"], event["objectRef"]["resource"]) for event in mine
    }


def test_a_control_plane_of_ones_own_can_be_stopped_and_paused(
    own_control_plane: tuple[ControlPlane, Components], tmp_path: Path
) -> None:
    plane, parts = own_control_plane
    assert plane.folder.is_relative_to(tmp_path)
    plane.kubectl("create", "configmap", "kept")
    parts.stop("apiserver")
    assert not answers(parts.layout)
    parts.start("apiserver")
    wait_until(lambda: answers(parts.layout), "an answer of the API server", parts)
    assert plane.kubectl("get", "configmap", "kept", "-o", "name").stdout.strip() == "configmap/kept"
    parts.pause("apiserver")
    assert plane.kubectl("get", "configmap", "--request-timeout=1s", check=False).returncode
    parts.resume("apiserver")
    plane.kubectl("get", "configmap")
