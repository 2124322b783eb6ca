"""Who a session or a task belongs to. Bounded, forgetful, and only ever a reason to refuse between verified principals.

Anybody can have sessions remembered under claimed identities, which bind nothing; so these make room first, and
verified owners only for each other.

A session is bound to its principal when the server names it in the answer to ``initialize``; one that is first seen
later (after a restart) is bound to the principal that shows it, once the server has taken it. A claimed identity is
free to change with every call, so that a change of it proves nothing: it is no reason to refuse, and binds nothing
over a verified owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from sys import intern
from typing import NamedTuple

from toolpolicy.policy.types import Principal

TOUCH = 5.0
"""Seconds within which a further use does not move an entry: keeping order costs nothing on the way of a call."""


class Owner(NamedTuple):
    principal: str
    verified: bool
    used: float
    client: Mapping[str, str]


_NO_CLIENT: Mapping[str, str] = {}


class Owners:
    """From the id of a session or task to its owner. ``most`` entries, each for ``idle`` seconds after its last use."""

    def __init__(self, most: int, idle: float) -> None:
        self._most = most
        self._idle = idle
        self._verified: dict[str, Owner] = {}
        self._claimed: dict[str, Owner] = {}
        self._clients: dict[tuple[str, ...], Mapping[str, str]] = {}

    def __len__(self) -> int:
        return len(self._verified) + len(self._claimed)

    def owner(self, key: str, now: float) -> Owner | None:
        """``now`` in monotonic seconds."""
        owners = self._verified
        found = owners.get(key)
        if found is None:
            owners = self._claimed
            found = owners.get(key)
            if found is None:
                return None
        age = now - found.used
        if age > TOUCH:
            del owners[key]
            if age > self._idle:
                return None
            found = found._replace(used=now)
            owners[key] = found
        return found

    def foreign(self, key: str, principal: Principal, now: float) -> bool:
        """Whether it is known to belong to another: both the owner and ``principal`` verified, and not the same."""
        if not principal.verified:
            return False
        found = self.owner(key, now)
        return found is not None and found.verified and found.principal != principal.id

    def bind(self, key: str, principal: Principal, now: float, client: Mapping[str, str] = _NO_CLIENT) -> None:
        """Note the owner. One that is known stays, except that a verified principal replaces a claimed one."""
        found = self.owner(key, now)
        if found is not None and (found.verified or not principal.verified):
            if client and not found.client:
                owners = self._verified if found.verified else self._claimed
                owners[key] = found._replace(client=self._shared(client))
            return
        self._claimed.pop(key, None)
        self._expire(now)
        if not self._room(verified=principal.verified):
            return
        owners = self._verified if principal.verified else self._claimed
        owners[key] = Owner(intern(principal.id), principal.verified, now, self._shared(client))

    def end(self, key: str) -> None:
        self._verified.pop(key, None)
        self._claimed.pop(key, None)

    def _expire(self, now: float) -> None:
        """Forget what was idle too long. Dictionaries are in order of use: the oldest come first."""
        for owners in (self._claimed, self._verified):
            while owners and now - owners[next(iter(owners))].used > self._idle:
                del owners[next(iter(owners))]

    def _room(self, *, verified: bool) -> bool:
        """Make room for one owner. False: it is full of verified owners, and a claimed one is not worth any of them."""
        if len(self) < self._most:
            return True
        if self._claimed:
            del self._claimed[next(iter(self._claimed))]
        elif verified:
            del self._verified[next(iter(self._verified))]
        return len(self) < self._most

    def _shared(self, client: Mapping[str, str]) -> Mapping[str, str]:
        """One object for all sessions of one client program."""
        if not client:
            return _NO_CLIENT
        if len(self._clients) > 256:
            self._clients.clear()
        return self._clients.setdefault(tuple(client.values()), client)
