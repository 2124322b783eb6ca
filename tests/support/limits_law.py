"""The law of limits, for any store: in any window of its length no more than ``max`` passes a bucket, ever.

:func:`check` runs a history of calls against a store and, beside it, against a model that is too simple to be wrong: a
list of everything that ever passed, summed exactly each time. Another store (a shared one) is put to the same test by
another factory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Protocol

from hypothesis import strategies as st

from toolpolicy.policy.model import Per
from toolpolicy.policy.types import Demand, RuleRef, Shortage

REF = RuleRef("ToolPolicy", "agents", "p", "r", "uid-1")


class Reserved(Protocol):
    @property
    def audit_shortages(self) -> Sequence[Shortage]: ...

    def release(self) -> None: ...


class Store(Protocol):
    def reserve(self, demands: Sequence[Demand], now: float) -> Reserved | list[Shortage]: ...

    def shortages(self, demands: Sequence[Demand], now: float) -> Sequence[Shortage]: ...


def demand(
    bucket: str = "b", maximum: float = 3, window: float = 10.0, cost: float = 1.0, *, audit: bool = False
) -> Demand:
    return Demand(("uid-1", "r", bucket), maximum, window, cost, REF, Per.SESSION, audit)


@dataclass
class _Entry:
    demand: Demand
    when: float
    cost: Decimal


@dataclass
class Model:
    """Everything that passed and was not given back."""

    entries: list[_Entry] = field(default_factory=list[_Entry])

    def room(self, wanted: Demand, now: float) -> bool:
        used = sum(
            (
                entry.cost
                for entry in self.entries
                if (entry.demand.bucket, entry.demand.audit) == (wanted.bucket, wanted.audit)
                and entry.when + wanted.window > now
            ),
            Decimal(0),
        )
        return used + exact(wanted.cost) <= Decimal(repr(wanted.max)) or exact(wanted.cost) == 0

    def enter(self, wanted: Demand, now: float) -> _Entry:
        entry = _Entry(wanted, now, exact(wanted.cost))
        self.entries.append(entry)
        return entry


def exact(cost: float) -> Decimal:
    """A cost as limits count it: rounded up to a billionth."""
    return Decimal(repr(cost)).quantize(Decimal("1e-9"), rounding=ROUND_CEILING)


@dataclass(frozen=True)
class Step:
    """Wait, then ask for these demands; or give back an earlier reservation; or come back exactly when told to."""

    wait: float
    demands: tuple[Demand, ...] = ()
    release: int | None = None
    retry: bool = False


_BUCKETS = {
    "count": [demand("count", 3, 10.0)],
    "narrow": [demand("narrow", 1, 2.5)],
    "spend": [demand("spend", 1.0, 7.0, cost) for cost in (0.07, 0.1, 0.25, 1.0, 0.0, 1e-10, 3.0)],
    "big": [demand("big", 1e9, 10.0, cost) for cost in (1.0, 5e8, 123456789.123)],
    "audit": [demand("count", 2, 10.0, audit=True), demand("audit", 1, 5.0, audit=True)],
}
_ANY = st.one_of([st.sampled_from(choices) for choices in _BUCKETS.values()])
_DEMANDS = st.lists(_ANY, min_size=1, max_size=4, unique_by=lambda d: (d.bucket, d.audit)).map(tuple)
_WAITS = st.one_of(
    st.sampled_from([0.0, 0.0, 0.1, 1.0, 2.5, 3.0, 7.0, 10.0]), st.floats(0, 12, allow_nan=False, width=32)
)
_STEPS = st.one_of(
    st.builds(Step, _WAITS, _DEMANDS, retry=st.booleans()),
    st.builds(Step, _WAITS, release=st.integers(0, 8)),
)
HISTORIES = st.tuples(st.floats(0, 1e6, width=32), st.lists(_STEPS, min_size=1, max_size=40))
"""When the clock starts, and what happens then."""


def check(make_store: Callable[[], Store], history: tuple[float, list[Step]]) -> None:
    """Run a history; fails where the store and the model differ, or where the law is broken."""
    store, model = make_store(), Model()
    now, steps = history
    held: list[tuple[Reserved, list[_Entry]]] = []
    for step in steps:
        now += step.wait
        if step.release is not None:
            if step.release < len(held):
                reserved, entries = held.pop(step.release)
                reserved.release()
                reserved.release()  # a second time does nothing
                for entry in entries:
                    model.entries.remove(entry)
            continue
        waits = _ask(store, model, step.demands, now, held)
        if step.retry and waits and None not in waits:
            until = now + max(wait for wait in waits if wait is not None)
            early = math.nextafter(until, -math.inf)
            if early > now:
                assert _ask(store, model, step.demands, early, held), "room before the time that was told"
            now = until
            assert _ask(store, model, step.demands, now, held) == [], "no room at the time that was told"
    assert_law(model)


def _ask(
    store: Store, model: Model, demands: Sequence[Demand], now: float, held: list[tuple[Reserved, list[_Entry]]]
) -> list[float | None]:
    """Ask store and model; the waits that the store tells where it refuses."""
    alone = {id(wanted): model.room(wanted, now) for wanted in demands}
    short = {id(shortage.demand) for shortage in store.shortages(demands, now)}
    assert short == {key for key, room in alone.items() if not room}
    entries: list[_Entry] = []
    fits = True
    for wanted in demands:
        if not wanted.audit:
            if model.room(wanted, now):
                entries.append(model.enter(wanted, now))
            else:
                fits = False
    if fits:
        audit_fits = 0
        for wanted in demands:
            if wanted.audit and model.room(wanted, now):
                entries.append(model.enter(wanted, now))
                audit_fits += 1
    else:
        for entry in entries:
            model.entries.remove(entry)
        entries = []
    answer = store.reserve(demands, now)
    if isinstance(answer, list):
        assert not fits, "the store refuses what the model grants"
        assert all(not shortage.demand.audit for shortage in answer)
        return [shortage.retry_after for shortage in answer]
    assert fits, "the store grants what the model refuses"
    audited = sum(wanted.audit for wanted in demands)
    assert len(answer.audit_shortages) == audited - sum(entry.demand.audit for entry in entries)
    held.append((answer, entries))
    return []


def assert_law(model: Model) -> None:
    """In any window no more than ``max``: it is enough to look at the windows that begin with an entry."""
    for first in model.entries:
        inside = [
            entry.cost
            for entry in model.entries
            if (entry.demand.bucket, entry.demand.audit) == (first.demand.bucket, first.demand.audit)
            and first.when <= entry.when < first.when + first.demand.window
        ]
        assert sum(inside) <= Decimal(repr(first.demand.max))
