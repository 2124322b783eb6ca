"""Which patterns match a name, found by looking up rather than by trying them all.

A pattern is a name, or a glob: anchored, case-sensitive, ``*`` for any run of characters, nothing else special.
"""

from __future__ import annotations

from string import ascii_letters, digits
from typing import Generic, TypeVar

T = TypeVar("T")

_Filed = dict[int, dict[str, list[tuple[str, T]]]]
"""Length of a text, the text → the patterns that have it, with their items."""

MAX_PATTERN = 256
_ORDINARY = frozenset(ascii_letters + digits + "_./-")
_GLOB = _ORDINARY | {"*"}


def ordinary(name: str) -> bool:
    """Whether a tool name is of the safe kind. Any other is refused unless a rule names that exact string (WIRE)."""
    return 0 < len(name) <= 128 and _ORDINARY.issuperset(name)


def valid_glob(text: str) -> bool:
    """Whether a pattern can match anything.

    A glob has only characters of ordinary names and ``*``; a name without ``*`` may have any printable character,
    because naming that exact string is what lets an unusual name pass.

    """
    if not text or len(text) > MAX_PATTERN:
        return False
    if "*" in text:
        return _GLOB.issuperset(text)
    return text.isprintable()


def glob_matches(pattern: str, name: str) -> bool:
    """Whether one pattern matches one name. Linear in both."""
    if "*" not in pattern:
        return pattern == name
    first, *middle, last = pattern.split("*")
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


class NameIndex(Generic[T]):
    """Patterns and what they stand for.

    A pattern with ``*`` is filed under the text before it, else behind it, else the longest in between. A lookup cuts
    the name into the lengths that occur there: it costs as much as there are lengths, however many patterns there are.

    """

    __slots__ = ("_any", "_exact", "_inner", "_prefixes", "_suffixes")

    def __init__(self) -> None:
        self._exact: dict[str, list[T]] = {}
        self._prefixes: _Filed[T] = {}
        self._suffixes: _Filed[T] = {}
        self._inner: _Filed[T] = {}
        self._any: list[T] = []

    def add(self, pattern: str, item: T) -> None:
        """File an item under a pattern."""
        if "*" not in pattern:
            self._exact.setdefault(pattern, []).append(item)
            return
        first, *middle, last = pattern.split("*")
        inner = max(middle, key=len, default="")
        filed, text = next(
            ((f, t) for f, t in ((self._prefixes, first), (self._suffixes, last), (self._inner, inner)) if t),
            (None, ""),
        )
        if filed is None:
            self._any.append(item)
        else:
            filed.setdefault(len(text), {}).setdefault(text, []).append((pattern, item))

    def find(self, name: str) -> list[T]:
        """The items of every pattern that matches; an item of several matching patterns comes several times."""
        found = [*self._exact.get(name, ()), *self._any]
        candidates: list[tuple[str, T]] = []
        for length, prefixes in self._prefixes.items():
            candidates += prefixes.get(name[:length], ())
        for length, suffixes in self._suffixes.items():
            candidates += suffixes.get(name[-length:], ())
        for length, inner in self._inner.items():
            for part in {name[at : at + length] for at in range(len(name) - length + 1)}:
                candidates += inner.get(part, ())
        found += [item for pattern, item in candidates if glob_matches(pattern, name)]
        return found
