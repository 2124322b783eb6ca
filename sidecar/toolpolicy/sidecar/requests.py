"""What passes between the front, the judge and the upstream leg: a request as it came, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass

from toolpolicy.sidecar.exchange import Order
from toolpolicy.sidecar.interfaces import Peer, RawHeaders
from toolpolicy.sidecar.wiring import Answer


class Request:
    """One request as it came. ``target`` is the request line's; ``body`` is None where there is none."""

    __slots__ = ("body", "headers", "http10", "method", "peer", "target")

    def __init__(
        self, method: str, target: str, headers: RawHeaders, body: bytes | None, peer: Peer, http10: bool = False
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.peer = peer
        self.http10 = http10


@dataclass(slots=True)
class Dispatch:
    """What is to be sent upstream: the whole request in bytes, and how its answer is to be seen."""

    request: bytes
    order: Order
    idempotent: bool = False
    head_only: bool = False
    patient: bool = False
    """The first byte of the answer may take as long as it likes."""


Verdict = Answer | Dispatch
