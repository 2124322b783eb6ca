"""Looking into values that came from outside and may have any shape. A wrong shape reads as empty."""

from __future__ import annotations

from typing import Any, cast


def mapping(value: object) -> dict[str, Any]:
    """``value`` if it is a mapping, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """``value`` if it is a list, else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def texts(value: object) -> list[str]:
    """The texts in ``value``, if it is a list."""
    return [item for item in items(value) if isinstance(item, str)]
