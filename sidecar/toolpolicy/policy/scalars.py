"""What a plain YAML scalar means where every reader of a manifest agrees; where they don't, a fault says to quote it.

kubectl reads YAML 1.1 (``yes`` is true, ``0777`` is octal, ``1_000`` a number), editors mostly YAML 1.2. A policy must
not mean different things to them.
"""

from __future__ import annotations

import math
import re

Scalar = str | int | float | bool | None

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_OLD_BOOL = frozenset({"y", "Y", "n", "N"}) | {
    spelled for word in ("yes", "no", "on", "off") for spelled in (word, word.title(), word.upper())
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_OLD_NUMBER = re.compile(
    r"[-+]?(0[0-9_]+|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?|[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?)"
)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_INT = 2**63


def resolve(text: str) -> tuple[Scalar, str | None]:
    """The value of the plain scalar ``text``, and None or what is wrong with it (the value is then the text itself)."""
    if text in _NULL:
        return None, None
    if text in _BOOL:
        return _BOOL[text], None
    if text in _OLD_BOOL:
        word = "true" if text[0] in "yY" or text.lower() == "on" else "false"
        return text, f'`{text}` means {word} to some readers of YAML and a text to others: write {word} or "{text}"'
    if text[0] not in "+-.0123456789" or len(text) > 400:
        return text, None
    if _OLD_NUMBER.fullmatch(text):
        return (
            text,
            f'`{text}` is a different number to different readers of YAML: write it plainly or quote it: "{text}"',
        )
    if _INT.fullmatch(text):
        if len(text) > 20 or not -_MAX_INT <= (number := int(text)) < _MAX_INT:
            return text, "the number is too large: quote it if it is a text"
        return number, None
    if _NOT_FINITE.fullmatch(text):
        return text, f'`{text}` is not a number that JSON knows: quote it if it is a text: "{text}"'
    if _FLOAT.fullmatch(text):
        fraction = float(text)
        return (fraction, None) if math.isfinite(fraction) else (text, "the number is too large")
    return text, None
