"""Who a session belongs to, and that remembering it stays bounded."""

from __future__ import annotations

from toolpolicy.policy.types import Principal
from toolpolicy.sidecar.sessions import TOUCH, Owners

ALICE = Principal("alice", verified=True)
MALLORY = Principal("mallory", verified=True)
CLAIMED = Principal("somebody")


def test_only_a_verified_owner_makes_a_verified_caller_foreign() -> None:
    owners = Owners(10, 100)
    assert not owners.foreign("s", MALLORY, 0)
    owners.bind("s", CLAIMED, 0)
    assert not owners.foreign("s", MALLORY, 0)
    owners.bind("s", ALICE, 0)
    owners.bind("s", CLAIMED, 0)
    owners.bind("s", MALLORY, 0)
    assert owners.foreign("s", MALLORY, 0)
    assert not owners.foreign("s", ALICE, 0)
    assert not owners.foreign("s", CLAIMED, 0)
    owners.end("s")
    assert not owners.foreign("s", MALLORY, 0)


def test_the_longest_unused_is_forgotten_when_there_are_too_many() -> None:
    owners = Owners(3, 1000)
    for number, key in enumerate("abc"):
        owners.bind(key, ALICE, number)
    assert owners.owner("a", 100) is not None
    owners.bind("d", ALICE, 101)
    assert len(owners) == 3
    assert owners.owner("b", 102) is None
    assert owners.owner("a", 102) is not None


def test_claimed_owners_make_room_first_and_push_no_verified_one_out() -> None:
    owners = Owners(3, 1000)
    owners.bind("a", ALICE, 0)
    for number in range(100):
        owners.bind(f"made-up-{number}", CLAIMED, 1 + number)
    assert len(owners) == 3
    assert owners.foreign("a", MALLORY, 102)
    owners.bind("b", ALICE, 103)
    owners.bind("c", ALICE, 104)
    assert len(owners) == 3
    owners.bind("made-up", CLAIMED, 105)
    assert owners.owner("made-up", 105) is None
    assert owners.owner("a", 200) is not None
    owners.bind("d", ALICE, 201)
    assert len(owners) == 3
    assert owners.owner("b", 202) is None, "the longest unused of the verified ones"


def test_an_owner_that_becomes_verified_is_counted_once() -> None:
    owners = Owners(3, 1000)
    owners.bind("a", CLAIMED, 0)
    owners.bind("a", ALICE, 1)
    assert len(owners) == 1
    owners.end("a")
    assert len(owners) == 0


def test_idle_owners_of_both_kinds_are_forgotten_with_the_next_one() -> None:
    owners = Owners(10, 60)
    owners.bind("a", ALICE, 0)
    owners.bind("b", CLAIMED, 0)
    owners.bind("c", CLAIMED, 61)
    assert len(owners) == 1


def test_what_is_idle_too_long_is_forgotten_and_use_keeps_it() -> None:
    owners = Owners(10, 60)
    owners.bind("s", ALICE, 0)
    for now in range(0, 600, 50):
        assert owners.owner("s", now) is not None
    assert owners.owner("s", 550 + 61) is None
    owners.bind("t", ALICE, 0)
    assert owners.owner("t", TOUCH / 2) is not None
    assert owners.owner("t", 61) is None, "a use within the moment of binding must not count as a later one"


def test_a_clients_name_is_one_object_for_all_its_sessions() -> None:
    owners = Owners(10, 60)
    owners.bind("s", ALICE, 0, {"name": "x", "version": "1"})
    owners.bind("t", ALICE, 0, {"name": "x", "version": "1"})
    first, second = owners.owner("s", 0), owners.owner("t", 0)
    assert first is not None
    assert second is not None
    assert first.client is second.client
