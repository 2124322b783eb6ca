"""Durations as a manifest spells them: GEP-2257 (``60s``, ``10m``, ``1h30m``, ``250ms``) or a bare number of seconds.

Seconds are whole multiples of a millisecond, the smallest unit there is: formatting is the inverse of parsing.
"""

from __future__ import annotations

import re

PATTERN = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
"""GEP-2257, section "Specification"."""

MAX_LENGTH = 28
"""Four parts of five digits and a two-letter unit."""

MAX_SECONDS = 99_999 * 3600
"""The longest duration (``99999h``): what every shorter one can be normalised within."""

_WHOLE = re.compile(PATTERN)
_PART = re.compile(r"([0-9]{1,5})(ms|h|m|s)")
_MILLIS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_HELP = "a duration like 60s, 10m, 1h30m or 250ms, or a bare whole number of seconds"


def parse_duration(value: object) -> float:
    """Seconds of a manifest's duration (a string or a number). ValueError says what is accepted."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected {_HELP}")
    if isinstance(value, str):
        return _parse_text(value)
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"expected {_HELP}, from 0 to {MAX_SECONDS}")
    if value != int(value):
        raise ValueError(f"a bare number is whole seconds: write {format_duration(value)} instead of {value}")
    return float(value)


def _parse_text(text: str) -> float:
    if len(text) > MAX_LENGTH or not _WHOLE.fullmatch(text):
        hint = ""
        if text.isascii() and text.isdigit() and len(text) <= 5:
            hint = f": write {text}s, or {text} without quotes"
        raise ValueError(f"expected {_HELP}{hint}")
    seconds = sum(int(digits) * _MILLIS[unit] for digits, unit in _PART.findall(text)) / 1000
    if seconds > MAX_SECONDS:
        raise ValueError(f"a duration is at most {MAX_SECONDS // 3600}h")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest usual spelling of ``seconds`` (rounded to a millisecond), e.g. ``1h30m``; ``0s`` for nothing.

    ValueError where no spelling exists: below zero, not finite, or above :data:`MAX_SECONDS`.
    """
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{seconds!r} seconds is not a duration")
    rest = round(seconds * 1000)
    parts: list[str] = []
    for unit, millis in _MILLIS.items():
        count, rest = divmod(rest, millis)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
