"""Limits in memory, through the interface that the way of a call uses."""

from __future__ import annotations

from toolpolicy.policy.model import Per
from toolpolicy.policy.types import Demand, RuleRef
from toolpolicy.sidecar.interfaces import Refused
from toolpolicy.sidecar.state.memory import MemoryState

RULE = RuleRef("ToolPolicy", "agents", "imaging", "limited")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def demand(key: str, maximum: float = 2, *, audit: bool = False) -> Demand:
    return Demand(("uid", "limited", "Session", key), maximum, 60.0, 1.0, RULE, Per.SESSION, audit)


def test_a_limit_holds_within_the_window_and_frees_after_it() -> None:
    clock = Clock()
    state = MemoryState(clock=clock)
    assert not isinstance(state.reserve([demand("a")]), Refused)
    clock.now += 1
    assert not isinstance(state.reserve([demand("a")]), Refused)
    refused = state.reserve([demand("a")])
    assert isinstance(refused, Refused)
    assert refused.shortages[0].retry_after == 59.0
    clock.now += 59
    assert not isinstance(state.reserve([demand("a")]), Refused)


def test_all_or_none_is_reserved_and_a_release_gives_all_back() -> None:
    state = MemoryState(clock=Clock())
    assert not isinstance(state.reserve([demand("full", 1)]), Refused)
    assert isinstance(state.reserve([demand("free", 1), demand("full", 1)]), Refused)
    grant = state.reserve([demand("free", 1)])
    assert not isinstance(grant, Refused)
    grant.release()
    assert not isinstance(state.reserve([demand("free", 1)]), Refused)


def test_audited_demands_are_told_and_refuse_nothing() -> None:
    state = MemoryState(clock=Clock())
    for expected in (0, 1):
        grant = state.reserve([demand("a", 1, audit=True)])
        assert not isinstance(grant, Refused)
        assert len(grant.audit_shortages) == expected


def test_no_demand_is_always_granted() -> None:
    assert not isinstance(MemoryState(clock=Clock()).reserve([]), Refused)


def test_memory_follows_the_callers_of_the_last_window() -> None:
    clock = Clock()
    state = MemoryState(clock=clock)
    for n in range(20_000):
        clock.now += 0.1
        state.reserve([demand(f"session-{n}")])
    assert state.size() <= 700


def test_buckets_of_callers_that_are_gone_are_forgotten_when_asked() -> None:
    clock = Clock()
    state = MemoryState(clock=clock)
    for n in range(100):
        state.reserve([demand(f"session-{n}")])
    clock.now += 61
    assert state.size() == 0


def test_at_the_cap_new_callers_are_refused_and_known_ones_go_on() -> None:
    state = MemoryState(3, Clock())
    for key in "abc":
        assert not isinstance(state.reserve([demand(key)]), Refused)
    assert isinstance(state.reserve([demand("d")]), Refused)
    assert not isinstance(state.reserve([demand("a")]), Refused)
