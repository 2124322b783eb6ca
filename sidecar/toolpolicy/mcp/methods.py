"""Which methods are judged, and which pass (DESIGN section 2, "Match").

A method that is not known here is judged: a later revision or a vendor may let it start anything.
"""

from __future__ import annotations

import re
from typing import Final

from toolpolicy.policy.methods import PASSING

JUDGED: Final = frozenset(
    {
        "tools/call",
        "resources/read",
        "resources/subscribe",
        "prompts/get",
        "completion/complete",
    }
)
"""Judged in every revision. A ``tools/call`` that asks for a task is a ``tools/call``."""

TASK_METHODS: Final = frozenset({"tasks/get", "tasks/result", "tasks/cancel", "tasks/update"})
"""They act on one running task, which belongs to the principal that started it; ``tasks/update`` hands it the answers
that it asked for. They start nothing, and pass for one's own task."""

NOTIFICATION_PREFIX: Final = "notifications/"

NAME_PARAMETER: Final = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "resources/subscribe": "uri",
    "resources/unsubscribe": "uri",
    "tasks/get": "taskId",
    "tasks/result": "taskId",
    "tasks/cancel": "taskId",
    "tasks/update": "taskId",
}
"""The member of ``params`` that says what is asked for: a string, wherever the method is one of these."""

NAME_OPTIONAL: Final = frozenset({"resources/subscribe", "resources/unsubscribe"})
"""2026-07-28 has these no more: without a name they reach the server, whose "Method not found" its clients expect."""

LISTING: Final = "tools/list"
CALL: Final = "tools/call"

_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,128}")


def judged(method: str) -> bool:
    """Whether a request of this method needs a decision. Notifications and answers to the server never do."""
    return method in JUDGED or not (method in PASSING or method.startswith(NOTIFICATION_PREFIX))


def plain_tool_name(name: str) -> bool:
    """Whether a tool name is one that is matched without being named exactly by a rule (WIRE: names outside are
    refused)."""
    return _TOOL_NAME.fullmatch(name) is not None
