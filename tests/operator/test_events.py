"""Events: when something turned, once, and counted where it is said again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from cluster.control import ControlPlane
from support.replicas import cluster_policy, pod, policy
from toolpolicy_operator.events import AGAIN_SECONDS, Happening, Recorder, turned, unguarded
from toolpolicy_operator.kube import Api, ApiError
from toolpolicy_operator.records import Kind, PodRecord, PolicyRecord, pod_record, policy_record

Obj = dict[str, Any]


def record(status: Obj | None = None, *, cluster: bool = False) -> PolicyRecord:
    manifest = cluster_policy("imaging") if cluster else policy("agents", "imaging")
    about = {**manifest["metadata"], "uid": "uid-1", "generation": 1, "resourceVersion": "5"}
    kind = Kind.CLUSTER_TOOL_POLICY if cluster else Kind.TOOL_POLICY
    return policy_record(kind, {**manifest, "metadata": about, "status": status or {}})


def status(accepted: str, enforced: tuple[str, str], *pods: str) -> Obj:
    conditions = [
        {"type": "Accepted", "status": accepted, "reason": "Accepted", "message": "m"},
        {"type": "Enforced", "status": enforced[0], "reason": enforced[1], "message": "in force"},
    ]
    return {"conditions": conditions, "podsNeedingRestart": list(pods)}


UNKNOWN, GOOD, BAD = ("Unknown", "NoMatchingPods"), ("True", "Programmed"), ("False", "BypassPossible")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, status("True", UNKNOWN), []),
        (None, status("False", BAD), [("Warning", "Accepted"), ("Warning", "BypassPossible")]),
        (status("True", UNKNOWN), status("True", GOOD), [("Normal", "Programmed")]),
        (status("True", GOOD), status("True", GOOD), []),
        (status("True", GOOD), status("True", UNKNOWN), []),
        (status("True", GOOD), status("True", BAD), [("Warning", "BypassPossible")]),
        (status("True", BAD), status("True", ("False", "PartiallyEnforced")), [("Warning", "PartiallyEnforced")]),
    ],
)
def test_a_condition_that_turns_is_told(before: Obj | None, after: Obj, said: list[tuple[str, str]]) -> None:
    assert [(h.type, h.reason) for h in turned(record(before), after)] == said


def test_pods_that_newly_need_a_restart_are_told_and_no_more_than_a_few() -> None:
    pods: dict[str, PodRecord] = {}
    for number in range(30):
        obj = pod("agents", f"mcp-{number}", injected=False)
        obj["metadata"]["uid"] = f"uid-{number}"
        pods[f"mcp-{number}"] = pod_record(obj)
    known = record(status("True", BAD, "mcp-0"))
    told = list(unguarded(known, status("True", BAD, *pods), pods))
    assert len(told) == 10
    assert "mcp-0" not in {h.regarding["name"] for h in told}
    assert {h.reason for h in told} == {"NotInjected"}


class Sink:
    def __init__(self) -> None:
        self.seen: list[Obj] = []
        self.fault: ApiError | None = None

    async def apply(self, path: str, obj: Obj) -> Obj:
        if self.fault:
            raise self.fault
        self.seen.append(obj)
        return obj


def happening(note: str = "why") -> Happening:
    return Happening(record().reference, "Warning", "BypassPossible", note)


@pytest.mark.asyncio
async def test_the_same_again_is_counted_and_written_rarely() -> None:
    sink, now = Sink(), [datetime(2026, 1, 1, tzinfo=UTC)]
    recorder = Recorder(cast("Api", sink), "one", now=lambda: now[0])
    for _ in range(50):
        await recorder.write(happening())
    assert len(sink.seen) == 1
    now[0] += timedelta(seconds=AGAIN_SECONDS + 1)
    await recorder.write(happening())
    assert [e["metadata"]["name"] for e in sink.seen] == [sink.seen[0]["metadata"]["name"]] * 2
    assert sink.seen[1]["series"]["count"] == 51
    await recorder.write(happening("something else"))
    assert len({e["metadata"]["name"] for e in sink.seen}) == 2


@pytest.mark.asyncio
async def test_an_event_that_can_not_be_written_is_lost_without_harm() -> None:
    sink = Sink()
    sink.fault = ApiError(403, "Forbidden", "no right")
    recorder = Recorder(cast("Api", sink), "one")
    await recorder.write(happening())
    for _ in range(600):
        recorder.tell(happening())
    assert recorder.dropped == 1 + 100


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_api_server_takes_them(control_plane: ControlPlane, namespace: str) -> None:
    now = [datetime.now(UTC)]
    regarding = {**record().reference, "namespace": namespace}
    baseline = Happening(record(cluster=True).reference, "Normal", "Programmed", "x" * 3000)
    async with await Api.connect(control_plane.kubeconfig) as api:
        recorder = Recorder(api, "one", now=lambda: now[0])
        await recorder.write(Happening(regarding, "Warning", "BypassPossible", "why"))
        now[0] += timedelta(seconds=AGAIN_SECONDS + 1)
        await recorder.write(Happening(regarding, "Warning", "BypassPossible", "why"))
        await recorder.write(baseline)
        assert (recorder.written, recorder.dropped) == (3, 0)
        found = await api.list(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
    assert [(e["reason"], e["series"]["count"]) for e in found] == [("BypassPossible", 2)]
