"""How the plugin says that a pod stands to a policy, out of what the operator wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolpolicy_operator import names
from toolpolicy_operator.kube import Object
from toolpolicy_operator.kubectl import waiting
from toolpolicy_operator.kubectl.podstory import tell
from toolpolicy_operator.kubectl.standing import policy_line
from toolpolicy_operator.records import Kind
from toolpolicy_operator.store import Store

INJECTED = {"initContainers": [{"name": names.SIDECAR_CONTAINER}], "containers": [{"name": "a"}]}
PLAIN = {"containers": [{"name": "a", "ports": [{"containerPort": 8000}]}]}


def status(reason: str = "Programmed", generation: int = 2, **extra: Any) -> Object:
    enforced = {"type": "Enforced", "status": "True", "reason": reason, "message": "m"}
    counts = {"selected": 1, "injected": 1, "current": 1}
    return {"observedGeneration": generation, "conditions": [enforced], "pods": counts, **extra}


def unknown(reason: str) -> Object:
    enforced = {"type": "Enforced", "status": "Unknown", "reason": reason, "message": "m"}
    return {**status(), "conditions": [enforced]}


def pod(spec: Object = INJECTED, *, phase: str = "Running", **metadata: Any) -> Object:
    held = {
        "name": "p",
        "namespace": "agents",
        "uid": "p",
        "resourceVersion": "1",
        "labels": {"app": "mcp"},
        **metadata,
    }
    return {"metadata": held, "spec": spec, "status": {"phase": phase}}


def told(policy_status: Object, given: Object, *, enabled: bool = True, cluster: bool = False) -> tuple[str, bool]:
    """The pod's state and whether all is good."""
    store = Store()
    labels = {names.INJECTION_LABEL: names.ENABLED} if enabled else {}
    store.put(Kind.NAMESPACE, {"metadata": {"name": "agents", "uid": "n", "resourceVersion": "1", "labels": labels}})
    store.put(Kind.POD, given)
    kind = Kind.CLUSTER_TOOL_POLICY if cluster else Kind.TOOL_POLICY
    metadata: Object = {"name": "x", "uid": "x", "resourceVersion": "1", "generation": 2}
    if not cluster:
        metadata["namespace"] = "agents"
    spec = {"selector": {"matchLabels": {"app": "mcp"}}}
    policy = {"kind": kind.value, "metadata": metadata, "spec": spec, "status": policy_status}
    store.put(kind, policy)
    line = policy_line(policy, store)
    assert line is not None
    return (line.pods[0].state if line.pods else "", line.good)


@pytest.mark.parametrize(
    ("policy_status", "given", "enabled", "state", "good"),
    [
        (status(), pod(), True, "Current", True),
        (status(generation=1), pod(), True, "Waiting", False),
        ({}, pod(), True, "Waiting", False),
        (status("PartiallyEnforced", podsBehind=["p"]), pod(), True, "Behind", True),
        (status("WaitingForReports", podsBehind=["p"]), pod(), True, "Waiting", True),
        (status(podsBehind=["other"]), pod(), True, "Current", True),
        (status(podsBehind=[f"p{i}" for i in range(100)]), pod(), True, "Unknown", True),
        ({**status(), "pods": {}}, pod(), True, "Unknown", True),
        (status(), pod(phase="Pending"), True, "NotRunning", False),
        (status("NoMatchingPods"), pod(phase="Pending"), True, "NotRunning", False),
        (unknown("NoMatchingPods"), pod(), True, "Current", False),
        (unknown("NoMatchingPods"), pod(deletionTimestamp="2026-01-01T00:00:00Z"), True, "NotRunning", True),
        (unknown("NoMatchingPods"), pod(phase="Succeeded"), True, "", True),
        (unknown("WaitingForReports"), pod(), True, "Current", False),
        (status(), pod(deletionTimestamp="2026-01-01T00:00:00Z"), True, "NotRunning", True),
        (status(), pod(phase="Succeeded"), True, "", True),
        (status(), pod(PLAIN), True, "Uninjected", True),
        (status(), pod(PLAIN), False, "NotEnabled", True),
        (status(), pod(PLAIN, labels={"app": "mcp", names.INJECTION_LABEL: "disabled"}), True, "OptedOut", True),
        (status(), pod(PLAIN, annotations={names.INELIGIBLE_ANNOTATION: "NoPort"}), True, "Ineligible", True),
    ],
)
def test_states_are_the_operators_words(
    policy_status: Object, given: Object, enabled: bool, state: str, good: bool
) -> None:
    assert told(policy_status, given, enabled=enabled) == (state, good)


def test_pods_of_a_cluster_policy_are_named_with_their_namespace() -> None:
    assert told(status("PartiallyEnforced", podsBehind=["agents/p"]), pod(), cluster=True)[0] == "Behind"
    assert told(status("PartiallyEnforced", podsBehind=["other/p"]), pod(), cluster=True)[0] == "Current"


def test_a_namespace_that_can_not_be_read_is_taken_to_be_enabled() -> None:
    """A viewer may lack that permission; the other reasons are still worth telling."""
    store = Store()
    story = tell(pod(PLAIN), store)
    assert (story.injected, story.reason) == (False, "NoPolicy")
    json.dumps(story.as_json())


@pytest.mark.asyncio
async def test_waiting_ends_with_the_first_answer_that_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "INTERVAL", 0.0)
    answers = iter(range(10))

    async def read() -> int:
        return next(answers)

    assert await waiting.until(read, lambda found: found == 3, 3600.0) == 3
    assert await waiting.until(read, lambda found: found == 9, None) == 4, "without --wait it asks once"
    assert await waiting.until(read, lambda found: found == 9, 0.0) == 5, "the time is up"
