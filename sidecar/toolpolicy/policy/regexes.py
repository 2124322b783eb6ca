"""The one typed adapter to RE2: no pattern that a user writes ever runs on a backtracking engine."""

from __future__ import annotations

from typing import Any, cast

import re2  # pyright: ignore[reportMissingTypeStubs]

_RE2 = cast(Any, re2)
_OPTIONS = _RE2.Options()
_OPTIONS.log_errors = False


def regex_problem(pattern: str) -> str | None:
    """What RE2 says is wrong with a pattern, or None."""
    try:
        _RE2.compile(pattern, _OPTIONS)
    except _RE2.error as error:
        text: object = error.args[0] if error.args else "not a pattern"
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return None
