"""The file format of ``toolpolicy test``: kind ``ToolPolicyTest``, read with a position for every error.

Python names are snake_case, the file's are camelCase, as in the policy's own models.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from toolpolicy.cli.output import read_bytes
from toolpolicy.policy import documents
from toolpolicy.policy.duration import parse_duration
from toolpolicy.policy.errors import Problem
from toolpolicy.policy.explained import Explained, explain_errors, nearest, spell
from toolpolicy.policy.model import API_VERSION, Action, Model
from toolpolicy.policy.types import Code

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
"""When a call happens that states no time: a Wednesday, the same in every run."""
CODES = tuple(value for name, value in vars(Code).items() if name.isupper())


def _time(value: Any) -> datetime:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ValueError("expected a time with a zone, quoted, like '2026-01-31T09:30:00+01:00'")
    return time


def _code(value: Any) -> str:
    if isinstance(value, str) and value in CODES:
        return value
    guess = nearest(value, CODES)
    raise ValueError(f"expected a code like {guess}" if guess else f"expected one of {', '.join(CODES)}")


Time = Annotated[datetime, BeforeValidator(_time)]
Seconds = Annotated[float, BeforeValidator(parse_duration)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class TestPrincipal(Model):
    __test__ = False
    id: Text | None = None
    kind: Text | None = None
    verified: bool = True
    groups: tuple[Text, ...] = ()
    service_account: Text | None = None
    claims: dict[str, Any] = Field(default_factory=dict)


class TestCall(Model):
    """One request. ``tool`` for a tool call, else ``method``."""

    __test__ = False
    tool: Text | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    method: Text = "tools/call"
    session: Text | None = None
    principal: TestPrincipal = TestPrincipal()
    client: dict[str, str] = Field(default_factory=dict)
    server: dict[str, str] = Field(default_factory=dict)


class Expectation(Model):
    """What must come of a call; what is left out is not asked."""

    action: Action | None = None
    reason: Text | None = None
    """A part of the reason."""
    rule: Text | None = None
    """A deciding rule: ``rule``, ``policy:rule`` or ``namespace/policy:rule``; a policy alone for its default."""
    code: Annotated[str, BeforeValidator(_code)] | None = None
    visible: bool | None = None
    """Whether ``tools/list`` shows the tool to this caller."""
    would_deny: Text | None = None
    """A rule of an Audit policy, or an Audit rule, that would have denied."""


class Step(Model):
    """One or more equal calls. ``time`` sets the clock, ``after`` moves it on, both before the first call."""

    call: TestCall | None = None
    time: Time | None = None
    after: Seconds = 0.0
    repeat: Annotated[int, Field(gt=0, le=10_000)] = 1
    expect: Expectation


class Case(Model):
    """Either one step, written out, or ``steps`` that share counters and a clock; their calls add to ``call``."""

    name: Text
    call: TestCall | None = None
    time: Time | None = None
    after: Seconds = 0.0
    repeat: Annotated[int, Field(gt=0, le=10_000)] = 1
    expect: Expectation | None = None
    steps: tuple[Step, ...] = ()


class TestMetadata(Model):
    __test__ = False
    name: Text | None = None


class TestFile(Model):
    __test__ = False
    api_version: Literal["toolpolicy.dev/v1alpha1"]
    kind: Literal["ToolPolicyTest"]
    metadata: TestMetadata = TestMetadata()
    policies: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Files or directories, beside this file."""
    tools: str | tuple[Any, ...] | None = None
    """What the server lists: a file, or the list itself. Without it every name is a tool."""
    cases: Annotated[tuple[Case, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A test file; ``lines`` are those of its cases, ``directory`` what its paths start from."""

    path: str
    directory: FilePath
    file: TestFile
    lines: tuple[int, ...]


def load_cases(path: str) -> tuple[list[Loaded], list[Problem]]:
    """The test documents of a file, and every problem of it."""
    data = read_bytes(path)
    shown = "<stdin>" if path == "-" else path
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return [], [Problem(shown, 0, 0, "", f"not UTF-8 (byte {error.start}): save the file as UTF-8")]
    loaded: list[Loaded] = []
    problems: list[Problem] = []
    directory = FilePath() if path == "-" else FilePath(path).parent
    for document in documents.read(text):
        found = [
            Problem(shown, f.place.line, f.place.column, spell(f.path), _wanted(f), code=f.code)
            for f in document.faults
        ]
        if document.complete:
            file, errors = _accept(document.value)
            for error in errors:
                place = document.place(error.path, key=error.at_key)
                where = (shown, place.line, place.column, spell(error.path))
                found.append(Problem(*where, error.message, code=error.code))
            if file is not None and not found:
                lines = tuple(document.place(("cases", i)).line for i in range(len(file.cases)))
                loaded.append(Loaded(shown, directory, file, lines))
        problems += found
    return loaded, sorted(set(problems))


def _wanted(fault: documents.Fault) -> str:
    return "the file is empty: expected a ToolPolicyTest" if fault.code == "empty" else fault.message


def _accept(value: Any) -> tuple[TestFile | None, list[Explained]]:
    if not isinstance(value, dict):
        return None, [Explained((), "expected a ToolPolicyTest, as a mapping", "not-a-test")]
    held = cast("dict[str, Any]", value)
    if held.get("kind") != "ToolPolicyTest":
        said = f"the kind {held['kind']!r} is no test" if "kind" in held else "the kind is missing"
        return None, [Explained(("kind",), f"{said}: expected ToolPolicyTest", "unknown-kind")]
    if held.get("apiVersion") != API_VERSION:
        return None, [Explained(("apiVersion",), f"expected {API_VERSION}", "unknown-version")]
    try:
        file = TestFile.model_validate(held)
    except ValidationError as error:
        return None, [_renamed(each) for each in explain_errors(error, held)]
    errors = [error for i, case in enumerate(file.cases) for error in _check(case, ("cases", i))]
    names = [case.name for case in file.cases]
    for i, name in enumerate(names):
        if name in names[:i]:
            errors.append(Explained(("cases", i, "name"), f"another case is named {name[:80]!r}", "duplicate-case"))
    return (None if errors else file), errors


def _check(case: Case, path: documents.Path) -> list[Explained]:
    """What no field says alone."""
    errors: list[Explained] = []
    if bool(case.steps) == (case.expect is not None):
        errors.append(Explained(path, "expected either `expect` (one call) or `steps` (several)", "steps"))
    if case.steps and case.repeat != 1:
        errors.append(Explained((*path, "repeat"), "put `repeat` into a step", "steps"))
    calls = [(path, case.call)] if not case.steps else []
    for i, step in enumerate(case.steps):
        merged = step_call(case.call, step.call)
        calls.append(((*path, "steps", i), merged))
    for where, call in calls:
        if call is None:
            errors.append(Explained(where, "the field call is missing: which request is judged?", "missing-field"))
        elif (call.tool is None) == (call.method == "tools/call"):
            errors.append(Explained((*where, "call"), "expected `tool`, or another `method` than tools/call", "call"))
    for where, step in [(path, case), *(((*path, "steps", i), s) for i, s in enumerate(case.steps))]:
        if step.expect is not None and not step.expect.model_fields_set:
            errors.append(Explained((*where, "expect"), "it asks for nothing: name an action at least", "expect"))
    return errors


def step_call(base: TestCall | None, own: TestCall | None) -> TestCall | None:
    """A step's call: what it states itself, and the case's for the rest."""
    if base is None or own is None:
        return own or base
    return base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


def _renamed(error: Explained) -> Explained:
    """An unknown field, with the names that this format knows there."""
    if error.code != "unknown-field":
        return error
    fields = _fields_at(error.path[:-1])
    name = str(error.path[-1])[:64]
    guess = nearest(name, fields)
    hint = f": did you mean {guess}?" if guess else f": expected one of {', '.join(fields)}"
    return Explained(error.path, f"unknown field {name!r}{hint}", error.code, at_key=True)


def _fields_at(path: documents.Path) -> list[str]:
    model: type[BaseModel] = TestFile
    for part in path:
        annotation = next((i.annotation for n, i in model.model_fields.items() if part in (n, i.alias)), None)
        model = _model_in(annotation) or model
    return [info.alias or name for name, info in model.model_fields.items()]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)
