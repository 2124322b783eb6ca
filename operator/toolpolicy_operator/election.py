"""Who of the replicas writes: the holder of a Lease (coordination.k8s.io/v1).

A Lease alone does not fence: a holder that was stopped for longer than its term may still have a write under way when
it goes on. So what is written carries the resourceVersion that was read, the successor takes possession of each
ConfigMap before anything else (``configmap.py``), and each term has a number, the *epoch*, that only grows: it stands
in the rules' index, and sidecars refuse a lower one.

Clocks of different machines are never compared: a Lease has run out when *we* have seen no change of it for as long as
it promises to last, by our own monotonic clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from toolpolicy_operator import names
from toolpolicy_operator.kube import Api, ApiError, Object, api_path

log = logging.getLogger(__name__)

DURATION = 12.0
"""Seconds without a renewal after which another replica takes over."""
DEADLINE = 9.0
"""Seconds after the last renewal at which a holder that can't renew stops writing: well before it is succeeded."""
RETRY = 2.0
_REQUEST = 4.0
_HIGHEST = 2**53


@dataclass(frozen=True, slots=True)
class Lease:
    """What counts of the Lease object."""

    holder: str
    seconds: float
    transitions: int
    epoch: int
    address: str
    version: str
    renewed: str


def read_lease(obj: Object) -> Lease:
    """From the object; whatever is missing or broken is as if it had never been held."""
    metadata, spec = _mapping(obj.get("metadata")), _mapping(obj.get("spec"))
    annotations = _mapping(metadata.get("annotations"))
    epoch = str(annotations.get(names.EPOCH_ANNOTATION) or "")
    seconds = spec.get("leaseDurationSeconds")
    return Lease(
        holder=str(spec.get("holderIdentity") or ""),
        seconds=float(seconds) if isinstance(seconds, int) and seconds > 0 else DURATION,
        transitions=int(spec.get("leaseTransitions") or 0),
        epoch=int(epoch) if epoch.isascii() and epoch.isdecimal() and len(epoch) < 17 else 0,
        address=str(annotations.get(names.ADDRESS_ANNOTATION) or ""),
        version=str(metadata.get("resourceVersion") or ""),
        renewed=str(spec.get("renewTime") or ""),
    )


def next_epoch(lease: Lease | None, floor: int) -> int:
    """The number of a new term: above every earlier one, those that only the rules still tell of (``floor``) included:
    a Lease may have been deleted, or the cluster restored from a backup."""
    earlier = max(lease.epoch, lease.transitions) if lease is not None else 0
    return min(max(earlier, floor) + 1, _HIGHEST)


class Election:
    """``floor`` gives the highest epoch that stands in any rules; ``gained`` and ``lost`` are told of our own terms.

    :attr:`leading` is asked before each write.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        *,
        address: str = "",
        floor: Callable[[], int] = lambda: 0,
        gained: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._namespace, self.identity = api, namespace, identity
        self._own_address, self._floor, self._gained, self._lost, self._clock = address, floor, gained, lost, clock
        self._path = api_path("coordination.k8s.io/v1", "leases", namespace, names.LEASE)
        self._seen: Lease | None = None
        self._seen_at = 0.0
        self._until: float | None = None
        self.epoch = 0
        self.terms = 0
        self.fault = ""

    @property
    def leading(self) -> bool:
        """Whether this replica may write now."""
        return self._until is not None and self._clock() < self._until

    @property
    def address(self) -> str:
        """The control API of the holder; empty while nobody holds the Lease."""
        return self._seen.address if self._seen is not None and self._seen.holder else ""

    @property
    def holder(self) -> str:
        return self._seen.holder if self._seen is not None else ""

    async def run(self) -> None:
        """Forever: hold the Lease, or watch for it to run out."""
        while True:
            await self.turn()
            left = self._until - self._clock() if self._until is not None else RETRY
            await asyncio.sleep(max(0.0, min(RETRY, left)))

    async def turn(self) -> None:
        """Renew it, or look whether it can be had."""
        started = self._clock()
        self._expire()
        try:
            await self._turn(started)
            self.fault = ""
        except ApiError as error:
            self._failed(error)
        self._expire()

    async def release(self) -> None:
        """Give it back, so that another replica need not wait. Whatever fails, it runs out by itself."""
        if self._until is None or self._seen is None:
            return
        lease, epoch = self._seen, self.epoch
        self._until = None
        self._lost()
        try:
            await self._write(lease, lease.transitions, epoch, held=False)
        except ApiError as error:
            log.info("the lease could not be given back and will run out: %s", error)

    async def raise_epoch(self, above: int) -> None:
        """Begin a new term with a number above this one: rules were found that claim to be later than ours."""
        if self._seen is not None and self.leading and above >= self.epoch:
            started = self._clock()
            epoch = next_epoch(self._seen, above)
            self._observe(await self._write(self._seen, self._seen.transitions, epoch))
            self._begin(started, epoch)

    async def _turn(self, started: float) -> None:
        lease = self._seen if self._until is not None else None
        if lease is None:
            try:
                lease = read_lease(await self._api.get(self._path, within=_REQUEST))
            except ApiError as error:
                if not error.not_found:
                    raise
                await self._create(started)
                return
            self._observe(lease)
        if self._until is not None:
            self._observe(await self._write(lease, lease.transitions, self.epoch))
            self._until = started + DEADLINE
        elif lease.holder in ("", self.identity) or self._clock() - self._seen_at > lease.seconds:
            epoch = next_epoch(lease, self._floor())
            self._observe(await self._write(lease, lease.transitions + 1, epoch))
            self._begin(started, epoch)

    async def _create(self, started: float) -> None:
        epoch = next_epoch(None, self._floor())
        obj = self._object(None, 0, epoch, held=True)
        path = api_path("coordination.k8s.io/v1", "leases", self._namespace)
        self._observe(read_lease(await self._api.create(path, obj, within=_REQUEST)))
        self._begin(started, epoch)

    def _begin(self, started: float, epoch: int) -> None:
        self.epoch, self._until = epoch, started + DEADLINE
        self.terms += 1
        log.info("%s holds the lease and writes; epoch %d", self.identity, epoch)
        self._gained()

    def _expire(self) -> None:
        if self._until is not None and self._clock() >= self._until:
            self._until = None
            log.warning("%s could not renew the lease in time and writes no more", self.identity)
            self._lost()

    def _failed(self, error: ApiError) -> None:
        if error.conflict and self._until is not None:
            # Someone else wrote it while we held it: we were taken for gone, and must not write before we know more.
            self._until = None
            log.warning("%s lost the lease", self.identity)
            self._lost()
        elif not error.conflict:
            fault = f"the lease {self._namespace}/{names.LEASE} can't be read or written: {error}"
            if fault != self.fault:
                log.warning("%s", fault)
            self.fault = fault

    def _observe(self, lease: Lease) -> None:
        if self._seen is None or lease.version != self._seen.version:
            self._seen, self._seen_at = lease, self._clock()

    async def _write(self, lease: Lease, transitions: int, epoch: int, *, held: bool = True) -> Lease:
        obj = self._object(lease, transitions, epoch, held)
        return read_lease(await self._api.request("PUT", self._path, obj, within=_REQUEST))

    def _object(self, lease: Lease | None, transitions: int, epoch: int, held: bool) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata: Object = {
            "name": names.LEASE,
            "namespace": self._namespace,
            "annotations": {
                names.EPOCH_ANNOTATION: str(epoch),
                names.ADDRESS_ANNOTATION: self._own_address if held else "",
            },
        }
        if lease is not None:
            metadata["resourceVersion"] = lease.version
        spec: Object = {
            "holderIdentity": self.identity if held else "",
            "leaseDurationSeconds": int(DURATION) if held else 1,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def _mapping(value: object) -> Object:
    return cast("Object", value) if isinstance(value, dict) else {}
