"""The methods that no policy judges (DESIGN section 2, "Match"): one list for the language and for the wire."""

from __future__ import annotations

from typing import Final

PASSING: Final = frozenset(
    {
        "initialize",
        "server/discover",
        "ping",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/unsubscribe",
        "subscriptions/listen",
        "logging/setLevel",
        "tasks/get",
        "tasks/list",
        "tasks/result",
        "tasks/cancel",
        "tasks/update",
    }
)
"""Besides these, notifications and answers to the server's own requests pass."""
