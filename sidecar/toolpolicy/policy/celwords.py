"""What CEL's compiler says, in words for whoever wrote the expression: its parser (ANTLR) lists every token that could
have stood there, and a name it does not know it only names.

Nothing here decides whether an expression is valid. A message that is not recognised is passed on as it came.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Final

FUNCTIONS: Final = (
    "all", "bool", "bytes", "contains", "double", "duration", "dyn", "endsWith", "exists", "exists_one", "filter",
    "format", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours",
    "getMilliseconds", "getMinutes", "getMonth", "getSeconds", "has", "hasValue", "int", "join", "lowerAscii",
    "map", "matches", "optFlatMap", "optMap", "orValue", "replace", "size", "split", "startsWith", "string",
    "substring", "timestamp", "trim", "type", "uint", "upperAscii", "value",
)  # fmt: skip
"""Functions and macros that a policy may have meant: CEL's standard ones and the common extensions."""
_ELSEWHERE: Final = {
    "len": "size", "length": "size", "count": "size", "lower": "lowerAscii", "upper": "upperAscii", "any": "exists",
    "str": "string", "float": "double", "includes": "contains", "match": "matches", "regex": "matches",
}  # fmt: skip
"""What other languages call them."""
_OPERATORS: Final = {"and": "&&", "or": "||", "not": "!", "AND": "&&", "OR": "||", "NOT": "!", "is": "=="}
_TYPES: Final = {"google.protobuf.Timestamp": "timestamp", "google.protobuf.Duration": "duration"}

_UNDECLARED = re.compile(r"undeclared reference to '([\w.]+)'")
_TOKEN = re.compile(r"token recognition error at: '(.*)'\Z", re.DOTALL)
_MISSING = re.compile(r"missing '(.+)' at '(.*)'\Z", re.DOTALL)
_UNEXPECTED = re.compile(r"(?:mismatched|extraneous) input '(.*)' expecting (.+)\Z", re.DOTALL)
_NO_WAY = re.compile(r"no viable alternative at input '(.*)'\Z", re.DOTALL)
_NO_OVERLOAD = re.compile(r"found no matching overload for '(.+?)' applied to '(.*)'\Z", re.DOTALL)
_RESERVED = re.compile(r"reserved identifier: (\w+)\Z")


def readable(message: str, before: str, source: str, variables: Collection[str]) -> str:
    """The compiler's ``message`` in plain words.

    ``before`` is the source up to where it points; ``variables`` are the names that there are, dots included.
    """
    if (found := _UNDECLARED.search(message)) is not None:
        name = found[1]
        called = re.search(rf"\b{re.escape(name.rsplit('.', maxsplit=1)[-1])}\s*\(", source)
        return unknown_function(name, variables) if called else unknown_variable(name, variables)
    if (found := _RESERVED.search(message)) is not None:
        choice = "; CEL writes a choice as `condition ? this : that`" if found[1] == "if" else ""
        return f"`{found[1]}` is a reserved word{choice}"
    if (found := _NO_OVERLOAD.search(message)) is not None:
        return _no_overload(found[1], found[2])
    return _syntax(message.removeprefix("Syntax error: "), before) or message


def unknown_variable(name: str, variables: Collection[str]) -> str:
    """Which variable was meant, or which there are."""
    root, dot, rest = name.partition(".")
    roots = {variable.partition(".")[0] for variable in variables}
    close = [name] if root in roots else [near + dot + rest for near in get_close_matches(root, roots, 1)]
    for candidate in close:
        near = candidate.partition(".")[0]
        if near in variables or candidate in variables:
            return f"unknown variable `{name}`; did you mean `{candidate}`?"
        known = sorted(variable for variable in variables if variable.startswith(near + "."))
        meant = get_close_matches(candidate, known, 1)
        hint = f"did you mean `{meant[0]}`? There are " if meant else "there are "
        return f"unknown variable `{name}`; {hint}{', '.join(known)}"
    return f"unknown variable `{name}`; there are {', '.join(sorted(variables))}"


def unknown_function(name: str, variables: Collection[str]) -> str:
    """Which function was meant; of one that there is, that it can't be used so."""
    last = name.rsplit(".", maxsplit=1)[-1]
    if last in FUNCTIONS:
        return f"`{last}` is a function that does not take these arguments here"
    if last in _OPERATORS:
        return f"`{last}` is written `{_OPERATORS[last]}` in CEL"
    lowered = {function.lower(): function for function in FUNCTIONS}
    meant = _ELSEWHERE.get(last.lower()) or next(
        (lowered[near] for near in get_close_matches(last.lower(), lowered, 1)), None
    )
    if meant is None and last != name and name.partition(".")[0] not in {v.partition(".")[0] for v in variables}:
        return unknown_variable(name, variables)
    return f"unknown function `{last}`" + (f"; did you mean `{meant}`?" if meant else "")


def _syntax(message: str, before: str) -> str | None:
    if (found := _TOKEN.search(message)) is not None:
        return _unreadable(found[1].strip())
    if (found := _MISSING.search(message)) is not None:
        where = "at the end" if found[2] == "<EOF>" else f"before `{found[2]}`"
        return f"`{found[1]}` is missing {where}"
    if (found := _UNEXPECTED.search(message)) is not None:
        return _unexpected(found[1], found[2], before)
    if (found := _NO_WAY.search(message)) is not None:
        return f"`{found[1][-20:]}` can't stand here"
    return None


def _unreadable(text: str) -> str:
    if text.startswith("="):
        return "`=` alone has no meaning: equality is `==`"
    if text.startswith(("'", '"')):
        return f"the text {text[:60]} is not closed, or holds an escape that CEL does not know"
    return f"`{text[:20]}` has no meaning in CEL"


def _unexpected(found: str, expecting: str, before: str) -> str:
    one = re.fullmatch(r"'(.+)'", expecting)
    words = before.split()
    if found in _OPERATORS:
        return f"`{found}` is written `{_OPERATORS[found]}` in CEL"
    if words and words[-1] in _OPERATORS:
        return f"`{words[-1]}` is written `{_OPERATORS[words[-1]]}` in CEL"
    if found == "<EOF>":
        return f"the expression ends where `{one[1]}` should follow" if one else "the expression ends too early"
    if expecting == "<EOF>":
        if found in (")", "]", "}"):
            return f"`{found}` closes nothing: there is one too many"
        return f"`{found}` can't follow here: is an operator such as `&&` or `==` missing before it?"
    if one and one[1] == ")" and found == ",":
        return "`,` can't stand here; a list is written in brackets: `x in ['a', 'b']`"
    return f"`{found}` can't stand here" + (f": `{one[1]}` was expected" if one else "")


def _no_overload(function: str, types: str) -> str:
    kinds = _plain_types(types.strip("()").split(", "))
    operator = re.fullmatch(r"_?(\W+)_?", function)
    if operator is None:
        return f"`{function}` does not take {' and '.join(kinds) or 'no arguments'}"
    return f"`{operator[1]}` does not take {' and '.join(kinds)}"


def _plain_types(types: Iterable[str]) -> list[str]:
    return [_TYPES.get(kind, kind) for kind in types if kind]
