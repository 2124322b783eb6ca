"""From a tool's name to its words, and from each word to the verb it is a form of. The tables are in ``words.py``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from toolpolicy.policy import words as w
from toolpolicy.policy.model import Category
from toolpolicy.policy.words import Strength, Verb


class Form(Enum):
    BASE = 1
    PLURAL = 2  # or the third person: "runs", "deletes"
    GERUND = 3
    PARTICIPLE = 4
    NOMINAL = 5
    OTHER = 6


@dataclass(frozen=True, slots=True)
class Word:
    text: str
    verb: Verb | None
    lemma: str
    form: Form


_COMPOUNDS = """
    pull+request pull+requests merge+request merge+requests graph+ql git+hub git+lab you+tube dynamo+db mongo+db
    o+auth my+sql postgre+sql no+sql big+query java+script type+script power+shell click+up click+house
    cloud+run open+ai open+api open+search open+telemetry code+build code+deploy cloud+watch cloud+trail
    event+bridge big+table push+notification push+notifications load+balancer load+balancers test+flight
    launch+template launch+darkly drop+box test+case test+cases test+rail run+book call+center call+back
    play+list play+lists play+wright post+man post+gres type+form check+list check+lists to+do to+dos read+me
    who+is look+up roll+back roll+out shut+down log+in log+out sign+in sign+out power+on power+off turn+on
    turn+off clean+up tear+down back+up write+off pay+out pay+outs pay+roll pay+load top+up cash+out check+in
    check+out charge+back fail+over wake+up cherry+pick fine+tune key+word key+words key+space key+spaces
    key+board wild+card use+case use+cases show+case data+set data+sets image+set image+sets change+set
    change+sets change+log replica+set replica+sets daemon+set daemon+sets stateful+set stateful+sets record+set
    record+sets result+set rule+set scale+set file+system data+base data+bases data+store data+stores time+out
    road+map site+map heat+map config+map config+maps app+store object+store vector+store vector+stores
    feature+store key+store web+hook web+hooks black+list white+list allow+list deny+list watch+list wish+list
    price+list mailing+list e+mail e+mails double+click key+press
"""
_PHRASES = {
    "start up": "boot", "who am": "whoami", "set up": "configure", "log off": "logout", "sign up": "register",
    "switch on": "turnon", "switch off": "turnoff", "take down": "teardown", "spin up": "launch",
    "spin down": "shutdown", "compose up": "launch", "compose down": "halt", "opt in": "opt",
    "opt out": "opt", "hang up": "halt", "factory reset": "wipe", "zero out": "wipe",
}  # fmt: skip
_PAIRS: dict[tuple[str, str], str] = {}
for _pair in _COMPOUNDS.split():
    _one, _two = _pair.split("+")
    _PAIRS[_one, _two] = _one + _two
for _phrase, _meaning in _PHRASES.items():
    _one, _two = _phrase.split(" ")
    _PAIRS[_one, _two] = _meaning
"""Two words that mean something else together, and names that camelCase takes apart."""

_PIECES = re.compile(r"[A-Z]{2,}s(?![a-z])|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_SERVER = re.compile(r"^mcp__.+?__(?=.)", re.IGNORECASE)


def split(name: str) -> list[str]:
    """The lower-case words of a name in snake, kebab, dotted, camel or any mixture of cases; digits and signs are gaps.

    ``getHTTPServer2`` → get http server; ``mcp__files__delete_file`` → delete file (the server's own name is no verb).
    """
    pieces = [piece.lower() for piece in _PIECES.findall(_SERVER.sub("", name))]
    words: list[str] = []
    for piece in pieces:
        joined = _PAIRS.get((words[-1], piece)) if words else None
        if joined:
            words[-1] = joined
        else:
            words.append(piece)
    return words


def _singulars(text: str) -> list[str]:
    if text.endswith("ies"):
        return [text[:-3] + "y"]
    if text.endswith("ss") or len(text) < 4 or not text.endswith("s"):
        return []
    return [text[:-1], text[:-2]] if text.endswith("es") else [text[:-1]]


def _stems(text: str, ending: str) -> list[str]:
    stem = text[: -len(ending)]
    if len(stem) < 2:
        return []
    doubled = [stem[:-1]] if len(stem) > 2 and stem[-1] == stem[-2] else []
    return [*doubled, stem, stem + "e"]


def _first(candidates: Sequence[str]) -> str | None:
    return next((c for c in candidates if c in w.VERBS), None)


def _inflected(text: str) -> tuple[str, Form] | None:
    """The verb that ``text`` is a form of."""
    if text in w.VERBS:
        return text, Form.BASE
    if text in w.NOMINAL:
        return w.NOMINAL[text], Form.NOMINAL
    if text in w.IRREGULAR:
        return w.IRREGULAR[text], Form.PARTICIPLE
    if text in w.NOUNS:
        return None
    for ending, form in (("ing", Form.GERUND), ("ed", Form.PARTICIPLE), ("ied", Form.PARTICIPLE)):
        if text.endswith(ending):
            stem = text[: -len(ending)] + "y" if ending == "ied" else None
            lemma = _first([stem] if stem else _stems(text, ending))
            if lemma:
                return lemma, form
    lemma = _first(_singulars(text))
    return (lemma, Form.PLURAL) if lemma else None


_PREFIXES = ("un", "de", "dis", "re", "auto", "bulk", "batch", "mass", "multi", "force")
_UNDOING = {"un", "de", "dis"}


def _prefixed(text: str) -> tuple[Verb, str, Form] | None:
    """Verbs made with a prefix: *undelete* takes back (a Write), *resend* and *bulkdelete* do as the stem."""
    for prefix in _PREFIXES:
        if text.startswith(prefix) and len(text) > len(prefix) + 2:
            found = _inflected(text[len(prefix) :])
            if found is None or found[1] is Form.NOMINAL:
                continue
            lemma, form = found
            verb = w.VERBS[lemma]
            if prefix in _UNDOING or (prefix == "re" and verb.category is Category.READ):
                verb = Verb(Category.WRITE, Strength.HARD)
            return verb, prefix + lemma, form
    return None


def _glued(text: str) -> tuple[Verb, str] | None:
    """*deletefile*, *runcommand*: a verb and a known noun without any gap."""
    for cut in range(2, len(text) - 1):
        verb = w.VERBS.get(text[:cut])
        if verb and text[cut:] in w.GLUED_NOUNS:
            return Verb(verb.category, Strength.HARD), text[:cut]
    return None


def analyse(text: str) -> Word:
    found = _inflected(text)
    if found:
        return Word(text, w.VERBS[found[0]], found[0], found[1])
    if text in w.NOUNS or len(text) > 32:
        return Word(text, None, text, Form.OTHER)
    prefixed = _prefixed(text)
    if prefixed:
        return Word(text, *prefixed)
    glued = _glued(text)
    if glued:
        return Word(text, *glued, Form.BASE)
    return Word(text, None, text, Form.OTHER)
