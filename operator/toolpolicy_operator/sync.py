"""A LIST of every kind at start, and again every few minutes: what the watch missed is healed, and if it missed
something it is told to begin anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from toolpolicy_operator import names
from toolpolicy_operator.kube import Api, ApiError, Listing, api_path
from toolpolicy_operator.records import Kind
from toolpolicy_operator.store import Store
from toolpolicy_operator.watch import FIELD_SELECTORS, RESOURCES

log = logging.getLogger(__name__)

_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
_SECOND_LIST_SECONDS = 5.0
"""After the start: between our first LIST and the watch's own a deletion may have gone unseen."""
SETTLE_SECONDS = 3.0
"""What a LIST found is compared with the store this much later: whatever the watch has not delivered by then it
missed."""


@dataclass
class Sync:
    """``on_synced`` is called once, after every kind was listed; ``on_missed`` whenever the watch missed something."""

    api: Api
    store: Store
    on_synced: Callable[[], None]
    on_missed: Callable[[], None]
    interval: float = 300.0
    settle: float = SETTLE_SECONDS
    faults: dict[Kind, str] = field(default_factory=dict[Kind, str])
    """Why a kind can't be listed now; shown by readiness."""
    repairs: int = 0

    async def run(self) -> None:
        """Forever."""
        await self._first()
        self.on_synced()
        await asyncio.sleep(_SECOND_LIST_SECONDS)
        await self.again(tell=False)
        while True:
            await asyncio.sleep(self.interval * random.uniform(0.9, 1.1))  # noqa: S311 - replicas apart
            await self.again()

    async def _first(self) -> None:
        wanted, attempt = list(RESOURCES), 0
        while wanted:
            for kind in list(wanted):
                listing = await self._list(kind)
                if listing is not None:
                    self.store.replace(kind, listing)
                    wanted.remove(kind)
            if wanted:
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1

    async def again(self, tell: bool = True) -> None:
        """One round of LISTs."""
        missed = 0
        for kind in RESOURCES:
            listing = await self._list(kind)
            if listing is None:
                continue
            await asyncio.sleep(self.settle)
            found = self.store.replace(kind, listing)
            if found:
                log.info("the LIST of %s found %d objects that the watch had not told of", RESOURCES[kind][2], found)
            missed += found
        self.repairs += missed
        if missed and tell:
            self.on_missed()

    async def _list(self, kind: Kind) -> Listing | None:
        group, version, plural = RESOURCES[kind]
        path = api_path(f"{group}/{version}" if group else version, plural)
        try:
            listing = await self.api.list(path, fieldSelector=FIELD_SELECTORS.get(kind, ""))
        except ApiError as error:
            self._say(kind, _explain(plural, group, error))
            return None
        if self.faults.pop(kind, None):
            log.info("%s can be listed again", plural)
        return listing

    def _say(self, kind: Kind, fault: str) -> None:
        if self.faults.get(kind) != fault:
            log.error("%s", fault)
        self.faults[kind] = fault


def _explain(plural: str, group: str, error: ApiError) -> str:
    what = f"{plural}.{group}" if group else plural
    if error.not_found and group == names.GROUP:
        return f"the CustomResourceDefinition {what} is missing: kubectl apply -f manifests/crds/"
    if error.forbidden:
        return f"the operator may not list {what}: its ClusterRole needs the verbs get, list and watch on it ({error})"
    return f"{what} can't be listed: {error}"
