"""What fields of a policy mean together."""

from __future__ import annotations

from typing import Any

from toolpolicy.policy.explained import Explained


def check_spec(manifest: dict[str, Any]) -> list[Explained]:
    return []
