"""Keys and methods that a lenient parser takes for other ones.

Go's ``encoding/json`` matches ``NAME`` and ``paramſ`` (U+017F, and U+212A for k), its json/v2 and pydantic's aliases
match ``task_id`` for ``taskId`` and ``meta`` for ``_meta``, Java's ``equalsIgnoreCase`` takes the dotless i for an i,
and C strings end at U+0000. Only the envelope and the direct members of ``params`` are compared like this.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final


def fold(text: str) -> str:
    """The form in which two names that some parser confuses are equal: ASCII letters and digits in lower case."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.replace("\u0131", "i")).casefold()
    return "".join(c for c in text.lower() if c.isascii() and c.isalnum())


class Reserved:
    """A set of names that must be written exactly. ``exact`` is for the test that nearly every message passes."""

    __slots__ = ("_folded", "exact")

    def __init__(self, names: Iterable[str]) -> None:
        self.exact: Final = frozenset(names)
        self._folded: Final[Mapping[str, str]] = {fold(name): name for name in self.exact}

    def mistaken(self, key: str) -> str | None:
        """The reserved name that ``key`` can be mistaken for; None if it is that name itself, or like none."""
        if key in self.exact:
            return None
        return self._folded.get(fold(key))

    def first_mistaken(self, keys: Iterable[str]) -> str | None:
        """The reserved name that the first lookalike among ``keys`` can be mistaken for."""
        return next((name for key in keys if (name := self.mistaken(key)) is not None), None)
