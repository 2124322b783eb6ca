"""Events on their way to a client: whole ones only, looked at where something could have to change, and room for ours
between.

Nothing waits for a second event: what is held back is only the beginning of an event that is not complete, because a
message that is half sent can't be filtered any more.
"""

from __future__ import annotations

from collections.abc import Callable

from toolpolicy.mcp.sse import EventScanner, replace_data
from toolpolicy.sidecar.lens import Lens

_ENDS = (b"\n\n", b"\r\n\r\n")


class EventRelay:
    """One stream. ``endpoint`` gets the data of a legacy ``endpoint`` event and answers with what to announce instead,
    or None.
    """

    def __init__(
        self,
        lens: Lens,
        max_event: int,
        endpoint: Callable[[bytes], bytes | None] | None = None,
        heard: Callable[[bytes], None] | None = None,
    ) -> None:
        self._lens = lens
        self._scanner = EventScanner(max_event)
        self._endpoint = endpoint
        self._heard = heard
        self._held = 0

    def feed(self, data: bytes) -> bytes:
        """What to send for ``data``. Raises ``Unreadable`` for an event that may hold a tool list and can't be read."""
        lens = self._lens
        if self._heard is None and not self._held and data.endswith(_ENDS) and not lens.wants(data):
            return data
        out: list[bytes] = []
        self._held += len(data)
        for event in self._scanner.feed(data):
            raw = event.raw
            self._held -= len(raw)
            payload = event.data
            if payload is not None:
                if self._heard is not None:
                    self._heard(payload)
                changed: bytes | None = None
                if event.event == "endpoint" and self._endpoint is not None:
                    changed = self._endpoint(payload)
                elif lens.wants(payload):
                    changed = lens.look(payload)
                if changed is not None:
                    raw = replace_data(event, changed) if changed else b""
            out.append(raw)
        return b"".join(out)
