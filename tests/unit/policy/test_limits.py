"""Limits are exact, tell exactly when to come back, and use memory only for what still counts."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings

from support.limits_law import HISTORIES, Step, Store, check, demand
from toolpolicy.policy.limits import MAX_ENTRIES, UNIT, MemoryCounters, Reservation, Window, units

STORES: list[Callable[[], Store]] = [MemoryCounters]
"""A shared store joins here."""


@pytest.mark.parametrize("make_store", STORES)
@settings(max_examples=60, deadline=None)
@given(history=HISTORIES)
def test_any_history_obeys_the_law(make_store: Callable[[], Store], history: tuple[float, list[Step]]) -> None:
    check(make_store, history)


@pytest.fixture
def counters() -> MemoryCounters:
    return MemoryCounters()


def granted(
    counters: MemoryCounters,
    bucket: str = "b",
    maximum: float = 3,
    window: float = 10.0,
    cost: float = 1.0,
    *,
    now: float,
) -> bool:
    return not isinstance(counters.reserve([demand(bucket, maximum, window, cost)], now), list)


def test_a_burst_over_the_edge_of_a_window_never_doubles_the_limit(counters: MemoryCounters) -> None:
    assert [granted(counters, now=t) for t in (9.0, 9.5, 9.9, 10.1, 18.9)] == [True, True, True, False, False]
    assert granted(counters, now=19.0)
    assert not granted(counters, now=19.4)


def test_the_wait_is_exact_to_the_last_bit() -> None:
    generator = random.Random(3)
    for _ in range(500):
        counters, start = MemoryCounters(), generator.choice([5.0, 1e6]) * generator.random()
        for _ in range(3):
            assert granted(counters, now=start)
        now = start + generator.uniform(0, 9)
        refused = counters.reserve([demand()], now)
        assert isinstance(refused, list)
        wait = refused[0].retry_after
        assert wait is not None
        assert not granted(counters, now=math.nextafter(start + 10.0, 0))
        assert granted(counters, now=now + wait)
        assert math.isclose(now + wait, start + 10.0)


def test_the_last_billionth_counts(counters: MemoryCounters) -> None:
    assert granted(counters, "b", 1.0, cost=1.0, now=0.0)
    assert not granted(counters, "b", 1.0, cost=1e-10, now=1.0)
    assert granted(counters, "b", 1.0, cost=0.0, now=1.0)


def test_all_enforced_demands_are_granted_or_none(counters: MemoryCounters) -> None:
    assert granted(counters, "full", 1, now=0.0)
    refused = counters.reserve([demand("free", 1), demand("full", 1), demand("watched", 1, audit=True)], 1.0)
    assert isinstance(refused, list)
    assert [shortage.demand.bucket[-1] for shortage in refused] == ["full"]
    assert granted(counters, "free", 1, now=1.0)
    assert not counters.shortages([demand("watched", 1, audit=True)], 1.0)


def test_the_same_bucket_twice_in_one_call_counts_twice(counters: MemoryCounters) -> None:
    assert isinstance(counters.reserve([demand("b", 1), demand("b", 1)], 0.0), list)
    assert granted(counters, "b", 1, now=0.0)


def test_audited_demands_never_refuse_and_are_recorded(counters: MemoryCounters) -> None:
    watched = demand("w", 1, audit=True)
    first, second = counters.reserve([watched], 0.0), counters.reserve([watched], 1.0)
    assert isinstance(first, Reservation)
    assert isinstance(second, Reservation)
    assert not first.audit_shortages
    assert [shortage.retry_after for shortage in second.audit_shortages] == [9.0]


def test_what_is_released_is_free_again(counters: MemoryCounters) -> None:
    reservation = counters.reserve([demand("b", 2)], 0.0)
    assert isinstance(reservation, Reservation)
    assert granted(counters, "b", 2, now=0.0)
    assert not granted(counters, "b", 2, now=1.0)
    reservation.release()
    reservation.release()  # a second time takes nobody else's place back
    assert granted(counters, "b", 2, now=2.0)
    assert not granted(counters, "b", 2, now=3.0)


def test_what_is_released_is_taken_from_its_own_time(counters: MemoryCounters) -> None:
    first = counters.reserve([demand("b", 10, cost=1.5)], 0.0)
    assert isinstance(first, Reservation)
    assert granted(counters, "b", 10, cost=8.5, now=7.0)
    first.release()
    assert granted(counters, "b", 10, cost=1.5, now=8.0)
    assert not granted(counters, "b", 10, cost=0.5, now=12.0)


def test_what_has_expired_is_not_released_from_another(counters: MemoryCounters) -> None:
    first = counters.reserve([demand("b", 1)], 0.0)
    assert isinstance(first, Reservation)
    assert granted(counters, "b", 1, now=10.0)
    first.release()
    assert not granted(counters, "b", 1, now=10.0)


def test_a_cost_above_the_limit_never_fits(counters: MemoryCounters) -> None:
    refused = counters.reserve([demand("b", 10, cost=10.5)], 0.0)
    assert isinstance(refused, list)
    assert refused[0].retry_after is None
    assert counters.size() == 0


@pytest.mark.parametrize(("cost", "times"), [(0.07, 100), (0.1, 70), (0.7, 10), (1 / 3, 20)])
def test_sums_do_not_drift(counters: MemoryCounters, cost: float, times: int) -> None:
    assert [granted(counters, "b", 7.0, cost=cost, now=0.0) for _ in range(times + 1)] == [True] * times + [False]


def test_costs_are_rounded_up_never_down() -> None:
    assert units(0.07) == 70_000_000
    assert units(1e-12) == 1
    assert units(0.0) == 0
    assert units(1.0) == UNIT


def test_an_edited_limit_keeps_what_was_counted(counters: MemoryCounters) -> None:
    for _ in range(3):
        assert granted(counters, "b", 3, 60.0, now=0.0)
    assert not granted(counters, "b", 2, 30.0, now=1.0)
    refused = counters.reserve([demand("b", 2, 30.0)], 2.0)
    assert isinstance(refused, list)
    assert refused[0].retry_after == 28.0
    assert granted(counters, "b", 2, 30.0, now=30.0)


def test_a_clock_that_steps_back_frees_nothing(counters: MemoryCounters) -> None:
    assert granted(counters, "b", 1, now=100.0)
    assert not granted(counters, "b", 1, now=50.0)
    assert not granted(counters, "b", 1, now=109.0)


def test_a_log_of_many_small_costs_is_bounded_and_never_counts_less() -> None:
    window, generator = Window(60.0), random.Random(7)
    passed: list[tuple[float, int]] = []
    now = 0.0
    for _ in range(3 * MAX_ENTRIES):
        now += 0.001
        window.forget(now)
        cost = generator.randrange(1, UNIT // 1000)
        window.add(cost, now)
        passed.append((now, cost))
    assert len(window) <= MAX_ENTRIES
    live = sum(cost for when, cost in passed if when + 60.0 > now)
    assert window.total == live
    later = now + 45.0
    window.forget(later)
    assert window.total >= sum(cost for when, cost in passed if when + 60.0 > later)
    grain = 60.0 / 4096
    assert window.total <= sum(cost for when, cost in passed if when + 60.0 + grain > later)


def test_an_entry_of_a_coarse_log_is_released_too() -> None:
    window = Window(60.0)
    for index in range(2 * MAX_ENTRIES):
        window.add(UNIT + 1, index / 1000)
    before = window.total
    window.remove(UNIT + 1, 3.5)
    assert window.total == before - UNIT - 1
    window.remove(UNIT + 1, -100.0)
    assert window.total == before - UNIT - 1


def test_memory_follows_what_still_counts() -> None:
    counters = MemoryCounters()

    def calls(start: int, count: int) -> None:
        for index in range(start, start + count):
            session = f"session-{index // 10}"
            counters.reserve([demand(session, 10, 5.0), demand("principal", 10_000, 5.0)], index / 100)

    calls(0, 10_000)
    tracemalloc.start()
    before, size = tracemalloc.get_traced_memory()[0], counters.size()
    calls(10_000, 40_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert counters.size() <= size + 10
    assert grown < 300_000


def test_too_many_buckets_refuse_new_ones_and_keep_those_that_count() -> None:
    counters = MemoryCounters(max_buckets=3)
    for index in range(3):
        assert granted(counters, f"b{index}", 2, now=float(index))
    refused = counters.reserve([demand("new", 2)], 5.0)
    assert isinstance(refused, list)
    assert refused[0].retry_after == 5.0
    assert granted(counters, "b0", 2, now=5.0)
    assert not granted(counters, "b0", 2, now=5.5)
    assert counters.size() == 3
    assert isinstance(counters.reserve([demand("watched", 2, audit=True)], 5.0), Reservation)
    assert granted(counters, "new", 2, now=11.0)  # b1 is gone by then, b0 is not
    assert counters.size() <= 4


def test_refused_calls_do_not_fill_the_table() -> None:
    """A caller with ever new sessions is refused by his address; his sessions must not take the room of others."""
    counters = MemoryCounters(max_buckets=10)
    for index in range(100):
        counters.reserve([demand(f"session {index}"), demand("address", 3)], float(index) / 1000)
    assert counters.size() == 4
    assert granted(counters, "somebody else", now=0.2)


def test_a_full_table_of_audited_buckets_refuses_nobody() -> None:
    counters = MemoryCounters(max_buckets=1)
    counters.reserve([demand("w1", audit=True)], 0.0)
    answer = counters.reserve([demand("w2", audit=True), demand("b")], 0.0)
    assert isinstance(answer, Reservation)
    assert len(answer.audit_shortages) == 1
