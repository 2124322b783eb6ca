"""The queue hands each key out once, never to two workers, and lets failures wait."""

from __future__ import annotations

import asyncio

import pytest

from toolpolicy_operator.queue import FIRST_RETRY, LAST_RETRY, Pace, WorkQueue

pytestmark = pytest.mark.asyncio


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock, jitter=lambda: 1.0)


async def test_a_key_asked_for_often_is_handed_out_once() -> None:
    work = queue(Clock())
    for _ in range(5):
        work.add("a")
    work.add("b")
    assert [await work.get(), await work.get()] == ["a", "b"]
    assert len(work) == 0


async def test_a_key_asked_for_while_a_worker_has_it_comes_again_after_that_worker() -> None:
    work = queue(Clock())
    work.add("a")
    assert await work.get() == "a"
    work.add("a")
    work.add("b")
    assert await work.get() == "b", "a is still being worked on"
    work.done("a")
    assert await work.get() == "a"


async def test_an_earlier_time_stands_and_a_later_one_is_passed_over() -> None:
    clock = Clock()
    work = queue(clock)
    work.add("a", 10)
    work.add("a", 3)
    work.add("a", 7)
    clock.now += 3.5
    assert await work.get() == "a"
    work.done("a")
    clock.now += 100
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await work.get()


async def test_one_that_waits_is_woken_by_what_comes() -> None:
    work: WorkQueue[str] = WorkQueue()
    waiting = asyncio.create_task(work.get())
    await asyncio.sleep(0)
    work.add("a", 0.01)
    work.add("b")
    assert await asyncio.wait_for(waiting, 5) == "b"
    assert await asyncio.wait_for(work.get(), 5) == "a"


async def test_failures_wait_longer_each_time_up_to_a_limit_and_success_forgets_them() -> None:
    work = queue(Clock())
    delays = [work.retry("a") for _ in range(12)]
    assert delays[:3] == [FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY]
    assert delays[-1] == LAST_RETRY
    work.succeeded("a")
    assert work.retry("a") == FIRST_RETRY


async def test_what_the_server_asks_for_is_waited_for() -> None:
    work = queue(Clock())
    assert work.retry("a", after=17.0) == 17.0
    for _ in range(10):
        work.retry("b")
    assert work.retry("b", after=1.0) == LAST_RETRY, "our own patience may be longer"


async def test_what_waits_can_be_forgotten_but_not_what_a_worker_has() -> None:
    work = queue(Clock())
    work.add("a")
    await work.get()
    work.add("a")
    work.add("b")
    work.clear()
    work.done("a")
    assert len(work) == 0


async def test_a_pace_lets_a_burst_through_and_holds_the_rest() -> None:
    loop = asyncio.get_running_loop()
    pace, started = Pace(rate=100.0, burst=5), loop.time()
    for _ in range(15):
        await pace.turn()
    assert loop.time() - started >= 0.09
