"""How much damage a tool can do, from its category and the words of its name. A companion of ``classify.py``."""

from __future__ import annotations

from collections.abc import Collection

from toolpolicy.policy import words as w
from toolpolicy.policy.model import Category, Risk

DEFAULT_RISK: dict[Category, Risk] = {
    Category.READ: Risk.LOW,
    Category.WRITE: Risk.MEDIUM,
    Category.EXECUTE: Risk.HIGH,
    Category.FINANCIAL: Risk.HIGH,
    Category.DESTRUCTIVE: Risk.HIGH,
}
"""The risk of a category where the name says nothing more."""

_ORDER = tuple(Risk)


def max_risk(a: Risk, b: Risk) -> Risk:
    return max(a, b, key=_ORDER.index)


def _more(risk: Risk) -> Risk:
    return _ORDER[min(_ORDER.index(risk) + 1, len(_ORDER) - 1)]


def risk_of(category: Category, words: Collection[str], *, reading: bool) -> Risk:
    """``reading``: nothing in the name does more than look (a Financial *list_invoices*, for one)."""
    said = frozenset(words)
    if category is Category.FINANCIAL:
        risk = Risk.MEDIUM if reading else Risk.CRITICAL if said & w.MONEY_MOVES else Risk.HIGH
    elif category is Category.DESTRUCTIVE and said & w.IRREPLACEABLE:
        risk = Risk.CRITICAL
    elif category is Category.EXECUTE and said & w.ARBITRARY_CODE:
        risk = Risk.CRITICAL
    else:
        risk = DEFAULT_RISK[category]
    if category is not Category.READ and said & w.SWEEPING:
        risk = _more(risk)
    if _secret(said):
        risk = max_risk(risk, Risk.HIGH)
    if category is not Category.READ and said & w.POWERS:
        risk = max_risk(risk, Risk.HIGH)
    return risk


def _secret(said: frozenset[str]) -> bool:
    if said & w.SECRETS:
        return not said & w.ABOUT_SECRETS
    return bool(said & w.MAYBE_SECRETS) and not said & w.NOT_SECRET
