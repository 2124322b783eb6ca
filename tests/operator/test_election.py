"""One replica holds the Lease, terms are numbered upwards, and one that can't renew stops before it is succeeded."""

from __future__ import annotations

from typing import Any, cast

import pytest

from toolpolicy_operator import names
from toolpolicy_operator.election import DEADLINE, DURATION, Election, next_epoch, read_lease
from toolpolicy_operator.kube import Api, ApiError

pytestmark = pytest.mark.asyncio


class Server:
    """The one Lease of an API server: optimistic locking, and faults to order."""

    def __init__(self) -> None:
        self.obj: dict[str, Any] | None = None
        self.version = 0
        self.fault: ApiError | None = None
        self.requests = 0

    async def get(self, path: str, **_: Any) -> dict[str, Any]:
        self._ask()
        if self.obj is None:
            raise ApiError(404, "NotFound", "no lease")
        return self.obj

    async def create(self, path: str, obj: dict[str, Any], **_: Any) -> dict[str, Any]:
        self._ask()
        if self.obj is not None:
            raise ApiError(409, "AlreadyExists", "it is there")
        return self._store(obj)

    async def request(self, method: str, path: str, obj: dict[str, Any], **_: Any) -> dict[str, Any]:
        self._ask()
        if self.obj is None or obj["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(409, "Conflict", "modified")
        return self._store(obj)

    def _ask(self) -> None:
        self.requests += 1
        if self.fault is not None:
            raise self.fault

    def _store(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        return self.obj


class Member:
    """A candidate, driven turn by turn, with its own clock."""

    def __init__(self, server: Server, name: str, floor: int = 0) -> None:
        self.now, self.told = 1000.0, list[str]()
        self.election = Election(
            cast("Api", server),
            "system",
            name,
            address=f"{name}:9444",
            floor=lambda: floor,
            gained=lambda: self.told.append("gained"),
            lost=lambda: self.told.append("lost"),
            clock=lambda: self.now,
        )

    async def turn(self, seconds: float = 2.0) -> None:
        self.now += seconds
        await self.election.turn()


@pytest.fixture
def server() -> Server:
    return Server()


async def test_the_first_holds_it_and_the_second_waits(server: Server) -> None:
    one, two = Member(server, "one"), Member(server, "two")
    for _ in range(20):
        await one.turn()
        await two.turn()
    assert one.election.leading
    assert not two.election.leading
    assert one.told == ["gained"]
    assert (two.election.holder, two.election.address) == ("one", "one:9444")


async def test_a_silent_holder_is_succeeded_after_its_duration_with_a_higher_epoch(server: Server) -> None:
    one, two = Member(server, "one"), Member(server, "two")
    await one.turn()
    await two.turn()
    waited = 0.0
    while not two.election.leading:
        await two.turn()
        waited += 2.0
    assert DURATION < waited <= DURATION + 4.0
    assert two.election.epoch == one.election.epoch + 1


async def test_one_that_comes_back_after_its_deadline_does_not_write(server: Server) -> None:
    one, two = Member(server, "one"), Member(server, "two")
    await one.turn()
    for _ in range(9):
        await two.turn()
    one.now += 60.0
    assert not one.election.leading, "before any turn: it is asked before each write"
    await one.turn()
    assert one.told == ["gained", "lost"]
    assert two.election.leading


async def test_one_that_comes_back_and_was_not_missed_begins_a_new_term(server: Server) -> None:
    one = Member(server, "one")
    await one.turn()
    await one.turn(60.0)
    assert one.told == ["gained", "lost", "gained"]
    assert one.election.epoch == 2


async def test_a_holder_that_cannot_renew_stops_before_it_is_succeeded(server: Server) -> None:
    one = Member(server, "one")
    await one.turn()
    server.fault = ApiError(0, "Unreachable", "cut off")
    await one.turn(DEADLINE - 2.1)
    assert one.election.leading
    await one.turn(2.2)
    assert not one.election.leading
    assert DEADLINE < DURATION
    assert "cut off" in one.election.fault
    server.fault = None
    await one.turn()
    assert one.election.leading, "nobody else wanted it"
    assert one.election.epoch == 2, "but it is a new term: someone may have written meanwhile"


async def test_what_is_given_back_is_taken_at_once(server: Server) -> None:
    one, two = Member(server, "one"), Member(server, "two")
    await one.turn()
    await two.turn()
    await one.election.release()
    await two.turn()
    assert two.election.leading
    assert not one.election.leading


async def test_clocks_of_other_machines_do_not_matter(server: Server) -> None:
    one, two = Member(server, "one"), Member(server, "two")
    two.now = 5_000_000.0
    await one.turn()
    assert server.obj is not None
    server.obj["spec"]["renewTime"] = "1970-01-01T00:00:00.000000Z"
    for _ in range(3):
        await two.turn()
        await one.turn()
        server.obj["spec"]["renewTime"] = "2099-01-01T00:00:00.000000Z"
    assert one.election.leading
    assert not two.election.leading


async def test_the_epoch_is_above_all_that_the_rules_tell_of_even_if_the_lease_was_deleted(server: Server) -> None:
    one = Member(server, "one", floor=41)
    await one.turn()
    assert one.election.epoch == 42
    assert server.obj is not None
    assert server.obj["metadata"]["annotations"][names.EPOCH_ANNOTATION] == "42"


async def test_a_lease_that_someone_else_wrote_ends_the_term(server: Server) -> None:
    one = Member(server, "one")
    await one.turn()
    server.version += 1
    await one.turn()
    assert not one.election.leading
    assert one.told == ["gained", "lost"]


async def test_an_epoch_found_in_the_rules_that_claims_to_be_later_is_passed(server: Server) -> None:
    one = Member(server, "one")
    await one.turn()
    await one.election.raise_epoch(99)
    assert one.election.leading
    assert one.election.epoch == 100


async def test_holding_it_costs_one_request_a_turn(server: Server) -> None:
    one = Member(server, "one")
    await one.turn()
    before = server.requests
    for _ in range(10):
        await one.turn()
    assert server.requests - before == 10


@pytest.mark.parametrize(
    "obj",
    [
        {},
        {"spec": None},
        {"spec": {"leaseDurationSeconds": "x", "holderIdentity": None}, "metadata": {"annotations": []}},
    ],
)
async def test_a_broken_lease_is_as_one_never_held(obj: dict[str, Any]) -> None:
    lease = read_lease(obj)
    assert (lease.holder, lease.seconds, lease.epoch) == ("", DURATION, 0)
    assert next_epoch(lease, 0) == 1
