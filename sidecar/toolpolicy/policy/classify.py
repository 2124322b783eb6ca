"""What a tool does, from nothing but its name: :func:`classify`.

Names are what every server has and no server has to be trusted for: annotations are hints, written by whoever wrote
the server (MCP specification, tools, "clients MUST consider tool annotations to be untrusted"). So the name
decides, and annotations may only raise the result (:func:`raise_by_annotations`).

The order of strictness is Read < Write < Execute < Financial and Destructive. The last two are both the strictest:
neither is below the other, so nothing turns one into the other. In doubt a name counts as the stricter: a
Destructive, Execute or Financial tool that is called Read passes where reads are free, the opposite only costs
somebody a rule. A name that says nothing is Execute.

The rules are those of English: the name is cut into words (:func:`split`), each word is reduced to its verb and
form (*deleted*, *deleting*, *deletion*), and the first verb heads the name. Behind a reading head other verbs are
mostly nouns (*list runs*, *get delete marker*), unless they can't be (*find and replace*, *list and purge*). The
vocabulary is in ``words.py``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from toolpolicy.policy.grammar import category_of, stricter
from toolpolicy.policy.model import Category, Risk
from toolpolicy.policy.morphology import split
from toolpolicy.policy.risk import DEFAULT_RISK, max_risk, risk_of

__all__ = ["DEFAULT_RISK", "Classification", "classify", "raise_by_annotations", "split", "stricter"]

MAX_NAME = 256
"""Characters of a name that are looked at. Longer names (the specification allows 128) count as at least Execute."""


@dataclass(frozen=True, slots=True)
class Classification:
    category: Category
    risk: Risk


def classify(name: str) -> Classification:
    """Category and risk of a tool by its name. Never fails; looks at the first 256 characters."""
    if len(name) > MAX_NAME:
        known = _classify(name[:MAX_NAME])
        category = stricter(known.category, Category.EXECUTE)
        return Classification(category, max_risk(known.risk, DEFAULT_RISK[category]))
    return _classify(name)


def raise_by_annotations(c: Classification, annotations: Mapping[str, Any]) -> Classification:
    """``c`` raised by a server's explicit annotations (``readOnlyHint``, ``destructiveHint``), never lowered.

    ``readOnlyHint: false`` makes it at least Write; ``destructiveHint: true`` makes it Destructive, except that
    Financial stays what it is (as strict, and a server must not be able to leave the rules for it), with Critical risk.
    A hint that is not a boolean is taken for the stricter one.
    """
    category, risk = c.category, c.risk
    read_only, destructive = annotations.get("readOnlyHint"), annotations.get("destructiveHint")
    if read_only is not None and read_only is not True:
        category = stricter(category, Category.WRITE)
    if destructive is not None and destructive is not False:
        if category is Category.FINANCIAL:
            risk = Risk.CRITICAL
        category = stricter(category, Category.DESTRUCTIVE)
    if category is c.category and risk is c.risk:
        return c
    return Classification(category, max_risk(risk, DEFAULT_RISK[category]))


@lru_cache(maxsize=4096)
def _classify(name: str) -> Classification:
    plain = unicodedata.normalize("NFKC", name)
    said = split(plain)
    namespace = len(split(plain[: max(map(plain.rfind, "./:")) + 1]))
    category, reading = category_of(said, namespace)
    if not plain.isascii():
        category = stricter(category, Category.EXECUTE)
    return Classification(category, risk_of(category, said, reading=reading))
