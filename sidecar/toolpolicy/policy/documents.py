"""YAML or JSON text to plain values, with the place of every value, and every fault of the text.

The parser's events are read here instead of PyYAML's constructors: no tag is ever resolved, no alias expanded, nesting
is bounded, and no recursion depends on the input. A document after a broken one is still read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml

from toolpolicy.policy.scalars import resolve

Path = tuple[str | int, ...]

MAX_FILE = 8 * 1024 * 1024
"""Characters of one file."""
MAX_DOCUMENT = 256 * 1024
"""Characters of one document, comments included."""
MAX_DEPTH = 64
"""Lists and mappings inside each other."""

UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufeff\\ufffe\\uffff]"
)
"""Control characters, marks that turn the reading direction, and what is not a character at all."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SEPARATOR = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value or a key begins; 1-based. ``style`` is YAML's: ``|``, ``>``, a quote, or None if plain."""

    line: int
    column: int
    style: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    place: Place
    path: Path
    message: str
    code: str


@dataclass(slots=True)
class Document:
    """One document. ``faults``: what is wrong with its text. Values at ``doubtful`` paths deserve no second error."""

    value: Any = None
    places: dict[Path, Place] = field(default_factory=dict[Path, Place])
    key_places: dict[Path, Place] = field(default_factory=dict[Path, Place])
    faults: list[Fault] = field(default_factory=list[Fault])
    doubtful: set[Path] = field(default_factory=set[Path])
    complete: bool = True
    """False where the text ended in a fault that hides the rest."""

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where ``path`` is, or the nearest thing above it."""
        if key and path in self.key_places:
            return self.key_places[path]
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, Place(1, 1))


def read(text: str) -> list[Document]:
    """The documents of ``text`` that are not empty. Never raises; a text without any gives a document with a fault."""
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_FILE:
        return [_broken(Place(1, 1), f"the file has {len(text)} characters; at most {MAX_FILE} are read", "too-large")]
    documents: list[Document] = []
    for start, chunk in _chunks(text):
        documents.extend(_read_chunk(chunk, start))
    if not documents:
        return [_broken(Place(1, 1), "the file is empty: expected a ToolPolicy or a ClusterToolPolicy", "empty")]
    return documents


def unsafe_character(text: str) -> str | None:
    """What is wrong with a character of ``text`` that may not be in a manifest, or None."""
    found = UNSAFE.search(text)
    return None if found is None else _unsafe_message(found.group())


def _unsafe_message(character: str) -> str:
    code = f"U+{ord(character):04X}"
    if "\ud800" <= character <= "\udfff":
        return f"half a character ({code}): a surrogate without its pair"
    if character in "\u2028\u2029\ufeff\ufffe\uffff" or "\u202a" <= character <= "\u202e" or character >= "\u2066":
        return f"the invisible character {code} is not accepted"
    return f"the control character {code} is not accepted"


def _broken(place: Place, message: str, code: str) -> Document:
    return Document(faults=[Fault(place, (), message, code)], complete=False)


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """(0-based first line, text) between ``---`` lines, which YAML accepts nowhere inside a document."""
    cuts = [0, *(found.start() for found in _SEPARATOR.finditer(text) if found.start()), len(text)]
    line = 0
    for begin, end in pairwise(cuts):
        chunk = text[begin:end]
        yield line, chunk
        line += chunk.count("\n")


def _read_chunk(chunk: str, line: int) -> list[Document]:
    if len(chunk) > MAX_DOCUMENT:
        message = f"the document has {len(chunk)} characters; at most {MAX_DOCUMENT} are read"
        return [_broken(Place(line + 1, 1), message, "too-large")]
    unsafe = list(UNSAFE.finditer(chunk))
    if unsafe:
        document = Document(complete=False)
        for found in unsafe[:20]:
            before = chunk[: found.start()]
            place = Place(line + before.count("\n") + 1, found.start() - (before.rfind("\n") + 1) + 1)
            document.faults.append(Fault(place, (), _unsafe_message(found.group()), "character"))
        return [document]
    if chunk.lstrip().startswith("{"):
        # JSON may be indented with tabs and spells a rare character as two escapes; YAML knows neither.
        chunk = _ESCAPE.sub(_join, chunk.replace("\t", " "))
    if all(not bare or bare.startswith(("#", "%")) for bare in map(str.strip, chunk.splitlines())):
        return []
    builder = _Builder(line)
    try:
        for event in yaml.parse(chunk, Loader=_LOADER):
            if not builder.take(event):
                break
    except yaml.YAMLError as error:
        builder.stop(*_explain(error, chunk, line))
    return builder.documents


def _explain(error: yaml.YAMLError, chunk: str, line: int) -> tuple[Place, str]:
    mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML")
    context = getattr(error, "context", None)
    message = f"not valid YAML: {problem}" + (f" ({context})" if context else "")
    if mark is None:
        return Place(line + 1, 1), message
    lines = chunk.split("\n")
    at = int(mark.line)
    here = lines[at] if at < len(lines) else ""
    if here[mark.column : mark.column + 1] == "\t" or here[: mark.column].strip(" ").startswith("\t"):
        message += "; indent with spaces, not tabs"
    elif here[mark.column : mark.column + 1] in ("*", "&", "!", "@", "`", "%") or ": " in here[mark.column :]:
        message += "; quote a text that holds special characters"
    return Place(line + mark.line + 1, mark.column + 1), message


@dataclass(slots=True)
class _Frame:
    value: dict[str, Any] | list[Any]
    path: Path
    key: str | None = None
    spare: bool = False
    """A mapping's key that is itself a list or mapping: read, and dropped."""


class _Builder:
    """Takes one event of the parser at a time; ``documents`` holds what came of them."""

    def __init__(self, line: int) -> None:
        self.documents: list[Document] = []
        self._line = line
        self._stack: list[_Frame] = []
        self._current = Document()

    def take(self, event: Any) -> bool:
        """False when nothing after this event can be read."""
        if isinstance(event, yaml.DocumentStartEvent):
            self._current = Document()
        elif isinstance(event, yaml.DocumentEndEvent):
            if self._current.value is not None or self._current.faults:
                self.documents.append(self._current)
            self._current = Document()
        elif isinstance(event, yaml.NodeEvent):
            return self._node(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            frame = self._stack.pop()
            if frame.spare:
                self._stack[-1].key = "?"
        return True

    def stop(self, place: Place, message: str) -> None:
        """The text is broken at ``place``: what was read of the document is kept, but not believed."""
        self._fault(place, (), message, "yaml")
        self._current.complete = False
        self.documents.append(self._current)

    def _node(self, event: Any) -> bool:
        mark = event.start_mark
        place = Place(self._line + mark.line + 1, mark.column + 1, getattr(event, "style", None) or None)
        path = self._path()
        if event.anchor is not None:
            kind = "an alias (*)" if isinstance(event, yaml.AliasEvent) else "an anchor (&)"
            self._doubt(place, path, f"{kind} is not accepted here: write the value out", "anchor")
        tag: str | None = getattr(event, "tag", None)
        if tag is not None:
            self._doubt(place, path, f"the tag {tag[:40]!r} is not accepted: leave it out", "tag")
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            return self._open({} if isinstance(event, yaml.MappingStartEvent) else [], place, path)
        self._scalar(event, place, path)
        return True

    def _open(self, value: dict[str, Any] | list[Any], place: Place, path: Path) -> bool:
        if len(self._stack) >= MAX_DEPTH:
            self._fault(place, path, f"nested more than {MAX_DEPTH} deep", "too-deep")
            self._current.complete = False
            self.documents.append(self._current)
            return False
        if self._awaits_key():
            self._doubt(place, path, "a key must be a text, not a list or mapping", "key")
            self._stack.append(_Frame(value, path, spare=True))
        else:
            self._put(value, place, path)
            self._stack.append(_Frame(value, path))
        return True

    def _scalar(self, event: Any, place: Place, path: Path) -> None:
        if isinstance(event, yaml.AliasEvent):
            value: Any = ""
            fault = None
        elif event.implicit[0] and not event.style:
            value, fault = resolve(event.value)
        else:
            value, fault = event.value, None
        if not self._awaits_key():
            if fault:
                self._doubt(place, path, fault, "ambiguous")
            elif isinstance(value, str) and (unsafe := unsafe_character(value)):
                self._doubt(place, path, unsafe, "character")
            self._put(value, place, path)
            return
        frame = self._stack[-1]
        alias = isinstance(event, yaml.AliasEvent)
        frame.key = "*" if alias else str(event.value)
        path = (*frame.path, frame.key)
        if frame.key == "<<" and not place.style:
            fault = "merge keys (<<) are not accepted: write the fields out"
        elif not fault and not isinstance(value, str):
            fault = f'a key must be a text: quote it: "{frame.key}"'
        fault = fault or unsafe_character(frame.key)
        if path in self._current.key_places:
            first = self._current.key_places[path].line
            fault = fault or f"the key {frame.key[:80]!r} is there twice: first on line {first}"
        else:
            self._current.key_places[path] = place
        if fault:
            self._doubt(place, path, fault, "key")

    def _awaits_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None

    def _path(self) -> Path:
        if not self._stack:
            return ()
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            return (*frame.path, len(frame.value))
        return frame.path if frame.key is None else (*frame.path, frame.key)

    def _put(self, value: Any, place: Place, path: Path) -> None:
        self._current.places.setdefault(path, place)
        if not self._stack:
            self._current.value = value
            return
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
        else:
            frame.value[str(frame.key)] = value
            frame.key = None

    def _fault(self, place: Place, path: Path, message: str, code: str) -> None:
        self._current.faults.append(Fault(place, path, message, code))

    def _doubt(self, place: Place, path: Path, message: str, code: str) -> None:
        self._fault(place, path, message, code)
        self._current.doubtful.add(path)


def _join(escape: re.Match[str]) -> str:
    """A pair of JSON's ``\\uXXXX`` escapes as the one character that they stand for; any other escape as it is."""
    text = escape.group()
    if len(text) == 2:
        return text
    return (chr(int(text[2:6], 16)) + chr(int(text[8:12], 16))).encode("utf-16", "surrogatepass").decode("utf-16")
