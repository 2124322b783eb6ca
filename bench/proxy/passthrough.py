"""The pass-through of the benchmark: the sidecar's own two legs, and nothing between them. It judges nothing; never
deploy it.

python bench/proxy/passthrough.py 127.0.0.1:9100 http://127.0.0.1:9000/mcp
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

from toolpolicy.sidecar.app import Sidecar
from toolpolicy.sidecar.audit import NoAuditLog
from toolpolicy.sidecar.exchange import Order
from toolpolicy.sidecar.head import with_body
from toolpolicy.sidecar.identity import RequestIdentifier
from toolpolicy.sidecar.lens import Lens
from toolpolicy.sidecar.metrics import Metrics
from toolpolicy.sidecar.requests import Dispatch, Request
from toolpolicy.sidecar.settings import Settings
from toolpolicy.sidecar.state.memory import MemoryState


class NoRules:
    current = None

    def subscribe(self, changed: Any) -> None: ...


class Blind:
    """Looks at no answer."""

    def wants(self, data: bytes) -> bool:
        return False

    def look(self, payload: bytes) -> None:
        return None


def _blind() -> Lens:
    return cast(Lens, _BLIND)


_BLIND = Blind()


class PassThrough(Sidecar):
    """A sidecar whose gate stands open."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            settings,
            NoRules(),
            RequestIdentifier(None, b"", settings),
            MemoryState(),
            cast(Any, NoAuditLog()),
            Metrics(),
        )

    def take(self, request: Request) -> Dispatch:
        patient = request.method == "GET"
        return Dispatch(with_body(request.head.forwarded, request.body), Order(_blind), patient=patient)


async def main() -> None:
    server = PassThrough(Settings(listen=sys.argv[1], upstream=sys.argv[2]))
    await server.start()
    print(f"pass-through on {server.address}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
