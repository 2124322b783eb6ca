"""What is in arguments that a server may read differently from an expression or a schema.

* A string or key with U+0000, at which the CEL runtime cuts it off.
* Twins: keys of one object that differ only by case. Go's ``encoding/json`` matches members of a struct without regard
  to case, so of ``output_uri`` and ``Output_URI`` the policy may judge the one and the server obey the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

_SCALARS = frozenset({int, float, bool, type(None), datetime})
_LEAVES = _SCALARS | {str}


def harmless(arguments: dict[str, Any]) -> bool:
    """Whether arguments are surely without NUL and twins: a quick look, which settles the flat ones of most calls."""
    keys = "".join(arguments)
    if "\0" in keys:
        return False
    # islower: no letter has another case. It is false, too, where there is no letter: then it is looked at closely.
    if not (keys.islower() and keys.isascii()) and len({*map(str.casefold, arguments)}) < len(arguments):
        return False
    for child in arguments.values():
        kind = child.__class__
        if kind is str:
            if "\0" in child:
                return False
        elif kind not in _SCALARS:
            return False
    return True


def twins(value: Any) -> tuple[str, str] | None:
    """Two keys of one object, at any depth, that differ only by case (``ſ`` and the Kelvin sign included). Never
    recurses."""
    pending: list[Any] = [value]
    for item in pending:  # grows as it goes
        children: Iterable[Any]
        if isinstance(item, Mapping):
            fields = cast(Mapping[str, Any], item)
            if len({*map(str.casefold, fields)}) < len(fields):
                return _pair(fields)
            children = fields.values()
        elif isinstance(item, list | tuple):
            children = cast(Sequence[Any], item)
        else:
            continue
        pending += [child for child in children if type(child) not in _LEAVES]
    return None


def _pair(keys: Iterable[str]) -> tuple[str, str]:
    seen: dict[str, str] = {}
    for key in keys:
        folded = key.casefold()
        if folded in seen:
            return seen[folded], key
        seen[folded] = key
    raise AssertionError("there are twins")


def has_nul(value: Any) -> bool:
    """Whether a NUL is in a JSON value: in a string of it or a key, at any depth. Never recurses."""
    if type(value) is str:
        return "\0" in value
    pending: list[Any] = [value]
    for item in pending:  # grows as it goes
        children: Iterable[Any]
        if type(item) is dict or isinstance(item, Mapping):
            for key in cast(Mapping[str, Any], item):
                if "\0" in key:
                    return True
            children = cast(Mapping[str, Any], item).values()
        elif isinstance(item, list | tuple):
            children = cast(Sequence[Any], item)
        else:
            continue
        for child in children:
            if type(child) is str:
                if "\0" in child:
                    return True
            elif type(child) not in _SCALARS:
                pending.append(child)
    return False


Hazard = tuple[str, str]
"""What is wrong, as the end of a sentence, and the cure, a sentence."""


def of_arguments(arguments: Mapping[str, Any]) -> Hazard | None:
    """Why no expression may judge these arguments; None where it may."""
    if has_nul(arguments):
        return NUL
    pair = twins(arguments)
    return None if pair is None else _twin_hazard(*pair)


NUL: Hazard = ("contains the character U+0000", "Send the call without it.")


def _twin_hazard(one: str, other: str) -> Hazard:
    pair = " and ".join(f"`{key if len(key) <= 60 else key[:59] + '…'}`" for key in (one, other))
    return (
        f"has the keys {pair} in one object, which differ only by case, and servers disagree on which of them counts",
        "Send only one of them.",
    )
