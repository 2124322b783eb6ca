"""From the words of a tool's name to its category: which words are used as verbs, which one heads the name, what is
done to what.

See ``classify.py`` for the purpose and the order of strictness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolpolicy.policy import words as w
from toolpolicy.policy.model import Category
from toolpolicy.policy.morphology import Form, Word, analyse
from toolpolicy.policy.words import Strength, Verb

STRICTNESS: dict[Category, int] = {
    Category.READ: 0,
    Category.WRITE: 1,
    Category.EXECUTE: 2,
    Category.FINANCIAL: 3,
    Category.DESTRUCTIVE: 3,
}


def stricter(a: Category, b: Category) -> Category:
    """The stricter of two categories; ``a`` where both are equally strict."""
    return b if STRICTNESS[b] > STRICTNESS[a] else a


@dataclass(frozen=True, slots=True)
class _Act:
    """A word that is used as a verb."""

    at: int
    verb: Verb
    lemma: str


def category_of(said: Sequence[str], namespace: int = 0) -> tuple[Category, bool]:
    """The category of a name cut into words, and whether it speaks of nothing but looking.

    ``namespace``: how many of the words stand before the last ``.``, ``/`` or ``:``. Only their HARD verbs are verbs,
    if the rest has one of its own.
    """
    sentence = [analyse(text) for text in said]
    acts = _acts(sentence)
    if any(act.at >= namespace for act in acts):
        acts = [act for act in acts if act.at >= namespace or act.verb.strength is Strength.HARD]
    category = _headed(acts, sentence) if acts else _verbless(sentence)
    reading = category is Category.READ
    if category is not Category.DESTRUCTIVE and _is_money(frozenset(said), reading):
        category = Category.FINANCIAL
    return category, reading


def _acts(sentence: Sequence[Word]) -> list[_Act]:
    """The words used as verbs, in order; LOOSE ones only where no stronger one makes them nouns."""
    based = any(word.verb and word.form is Form.BASE and word.verb.strength > Strength.LOOSE for word in sentence)
    found = [
        _Act(i, word.verb, word.lemma) for i, word in enumerate(sentence) if word.verb and _speaks(sentence, i, based)
    ]
    strongest = max((act.verb.strength for act in found), default=Strength.LOOSE)
    if strongest > Strength.LOOSE:
        found = [act for act in found if act.verb.strength > Strength.LOOSE]
    asked = next((act.at for act in found if act.lemma in w.NEVER_NOUNS), 0)
    found = [act for act in found if act.at >= asked or act.lemma not in w.NAMES_A_RECORD]
    if strongest < Strength.HARD and len(sentence) > 1:
        records = w.RECORDS.get(sentence[-1].text, frozenset[str]())
        found = [act for act in found if act.lemma not in records]
    return found


def _speaks(sentence: Sequence[Word], i: int, based: bool) -> bool:
    """Whether word ``i``, a form of a verb, is used as one. ``based``: the name holds a plain SOFT or HARD verb."""
    word = sentence[i]
    assert word.verb is not None
    following = sentence[i + 1].text if i + 1 < len(sentence) else ""
    if word.form is Form.BASE:
        if word.text == "log" and i and not following:
            return False
        if following in w.FIXED_NOUN or (i > 1 and word.text in w.ONLY_FIRST):
            return False
        return word.verb.strength is Strength.HARD or i == 0 or sentence[i - 1].text not in w.NOT_A_START
    if word.form is Form.PLURAL:
        return not based and i == 0 and bool(following) and word.verb.strength is Strength.HARD
    return word.form is Form.GERUND and not based


def _headed(acts: Sequence[_Act], sentence: Sequence[Word]) -> Category:
    """The category of a name with verbs: the first one's, raised by those behind it that are not its nouns."""
    head, *others = acts
    category = _meaning(head, sentence)
    reading = category is Category.READ
    inverse = head.lemma in w.INVERSE
    for act in others:
        joined = any(word.text in w.CONJUNCTIONS for word in sentence[head.at + 1 : act.at])
        ends = act.at == len(sentence) - 1 and act.lemma not in w.NAMES_A_RECORD
        last = head.lemma in w.NOUNABLE and ends and act.verb.category is not Category.WRITE
        noun = act.verb.strength is not Strength.HARD and not joined and not last
        if noun or act.verb.category is Category.READ:
            continue
        behind = (word.text for word in sentence[act.at + 1 :])
        nouns = w.ATTRIBUTED if reading else w.PROTECTED
        if not joined and (inverse or any(text in nouns for text in behind)):
            continue
        category = _stricter_act(category, _meaning(act, sentence))
    if not reading and not inverse:
        category = _stricter_act(category, _object_category(head, sentence))
    return category


def _meaning(act: _Act, sentence: Sequence[Word]) -> Category:
    """What the verb means in the company it keeps here."""
    if act.lemma == "query" and _is_program(act, sentence):
        return Category.EXECUTE
    company, meaning = w.COMPANY.get(act.lemma, (frozenset[str](), act.verb.category))
    return meaning if any(word.text in company for word in sentence) else act.verb.category


def _stricter_act(a: Category, b: Category) -> Category:
    """As :func:`stricter`; what both pays and destroys is Destructive."""
    return Category.DESTRUCTIVE if b is Category.DESTRUCTIVE else stricter(a, b)


def _is_program(query: _Act, sentence: Sequence[Word]) -> bool:
    """*query*, *sql_query*, *query_database*: a language that may also change things; *query_metrics* only looks."""
    return query.at == len(sentence) - 1 or any(word.text in w.DATABASES for word in sentence)


def _object_category(head: _Act, sentence: Sequence[Word]) -> Category:
    """What its object makes of a verb: a deletion is scheduled, a command sent, a run created."""
    behind = sentence[head.at + 1 :]
    for i, word in enumerate(behind):
        deletion = word.form is Form.NOMINAL and word.verb and word.verb.category is Category.DESTRUCTIVE
        if deletion and not any(later.text in w.PROTECTED for later in behind[i + 1 :]):
            return Category.DESTRUCTIVE
    texts = {word.text for word in behind}
    if head.lemma in w.SENT_TO_RUN and texts & w.CODE:
        return Category.EXECUTE
    if any(word.text in w.HANDS for word in sentence):
        return Category.EXECUTE
    if head.lemma in w.CREATED_TO_RUN and behind and behind[-1].text in w.STARTED:
        return Category.EXECUTE
    return Category.READ


def _verbless(sentence: Sequence[Word]) -> Category:
    """Nouns alone: something to look at (*logs*, *order_history*, *deleted_items*), else a name that says nothing."""
    if not sentence:
        return Category.EXECUTE
    *before, last = sentence
    if last.text in w.OBJECT:
        return Category.READ if all(map(_is_noun, before)) else Category.EXECUTE
    if last.text in w.REFERENCE:
        return Category.READ
    if before and _is_plural(last) and last.form is not Form.NOMINAL:
        adjective = before[0].form is Form.PARTICIPLE and all(word.verb is None for word in before[1:])
        return Category.READ if adjective or _is_plural(before[-1]) else Category.EXECUTE
    return Category.EXECUTE


def _is_noun(word: Word) -> bool:
    """Whether a word is surely no verb that the vocabulary lacks."""
    return word.verb is not None or word.text in w.GLUED_NOUNS or word.text in w.STATUS or _is_plural(word)


def _is_plural(word: Word) -> bool:
    return len(word.text) > 3 and word.text.endswith("s") and not word.text.endswith(("ss", "us", "is"))


def _is_money(said: frozenset[str], reading: bool) -> bool:
    objects = w.MONEY if reading else w.MONEY | w.MONEY_ACTED_ON
    for text in said & objects:
        if not said & w.NOT_MONEY.get(text.removesuffix("s"), frozenset()):
            return True
    return not reading and bool(said & {"position", "positions"} and said & w.POSITION_ACTS)
