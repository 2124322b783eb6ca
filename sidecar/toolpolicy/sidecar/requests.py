"""What passes between the front, the judge and the upstream leg: a request as it came, and what becomes of it."""

from __future__ import annotations

from toolpolicy.sidecar.exchange import Order
from toolpolicy.sidecar.head import Head
from toolpolicy.sidecar.interfaces import Peer, RawHeaders
from toolpolicy.sidecar.wiring import Answer


class Request:
    """One request as it came. ``body`` is None where there is none."""

    __slots__ = ("body", "head", "peer")

    def __init__(self, head: Head, body: bytes | None, peer: Peer) -> None:
        self.head = head
        self.body = body
        self.peer = peer

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def target(self) -> str:
        """Of the request line, as it came."""
        return self.head.target

    @property
    def headers(self) -> RawHeaders:
        return self.head.headers


class Dispatch:
    """What is to be sent upstream: the whole request in bytes, and how its answer is to be seen."""

    __slots__ = ("head_only", "idempotent", "order", "patient", "request")

    def __init__(
        self, request: bytes, order: Order, *, idempotent: bool = False, head_only: bool = False, patient: bool = False
    ) -> None:
        self.request = request
        self.order = order
        self.idempotent = idempotent
        self.head_only = head_only
        self.patient = patient
        """The first byte of the answer may take as long as it likes."""


Verdict = Answer | Dispatch
