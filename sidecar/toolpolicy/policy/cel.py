"""The one typed adapter to cel-expr-python, Google's CEL runtime.

Traps of the runtime (each measured, each with a test):

* An evaluation error is a *truthy* value of type ERROR, or a RuntimeError. Only Python's own ``True`` passes here.
* Strings, keys too, end at U+0000: ``args.s == "x"`` is true of ``"x\\0evil"``. A variable that holds a NUL anywhere is
  never given to an expression that reads it (:class:`Scope`), nor are arguments that a server may read differently
  (:mod:`toolpolicy.policy.hazards`).
* An integer beyond 64 bits makes every use of ``args`` an error; a lone surrogate raises.
* ``has()`` on a dotted variable is the variable itself. The checker then refuses it for want of a bool.

The variables are declared dotted (``tool.name``), not as maps: a misspelt ``tool.nam`` is then an error when the policy
is loaded, and only what a set of rules reads has to be converted for a call.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from zoneinfo import ZoneInfo

from cel_expr_python import cel  # pyright: ignore[reportMissingTypeStubs]
from cel_expr_python.ext import ext_math, ext_optional, ext_strings  # pyright: ignore[reportMissingTypeStubs]

from toolpolicy.policy import celtree, celwords, hazards
from toolpolicy.policy.hazards import Hazard
from toolpolicy.policy.regexes import regex_problem
from toolpolicy.policy.types import Call

MAX_CODE_POINTS = 1000
Expect = Literal["bool", "number"]

_MAP = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
VARIABLES: Mapping[str, cel.Type] = {
    "args": _MAP,
    "tool.name": cel.Type.STRING,
    "tool.category": cel.Type.STRING,
    "tool.risk": cel.Type.STRING,
    "principal.id": cel.Type.STRING,
    "principal.kind": cel.Type.STRING,
    "principal.verified": cel.Type.BOOL,
    "principal.groups": cel.Type.List(cel.Type.STRING),
    "principal.claims": _MAP,
    "session": cel.Type.STRING,
    "client.name": cel.Type.STRING,
    "client.version": cel.Type.STRING,
    "server.name": cel.Type.STRING,
    "server.namespace": cel.Type.STRING,
    "now": cel.Type.TIMESTAMP,
}
"""What an expression may read. A string is empty where the call has no such thing (no session, no tool)."""
_ROOTS = frozenset(name.split(".")[0] for name in VARIABLES)
CLASS_VARIABLES = frozenset({"tool.category", "tool.risk"})

_ACCEPTED: Mapping[str, frozenset[str]] = {
    "bool": frozenset({"BOOL", "DYN"}),
    "number": frozenset({"INT", "UINT", "DOUBLE", "DYN"}),
}
_ZONE_FUNCTIONS = frozenset(
    f"get{part}"
    for part in (
        *("FullYear", "Month", "Date", "DayOfMonth", "DayOfWeek", "DayOfYear"),
        *("Hours", "Minutes", "Seconds", "Milliseconds"),
    )
)
_MESSAGE = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)")


def _environment() -> cel.Env:
    # The runtime reads the system's zone files. A slim image has none; the tzdata distribution that we pin does.
    if "TZDIR" not in os.environ and not Path("/usr/share/zoneinfo/Europe").is_dir():
        import tzdata  # noqa: PLC0415  (only such an image needs it)

        os.environ["TZDIR"] = str(Path(tzdata.__file__).parent / "zoneinfo")
    return cel.NewEnv(
        variables=VARIABLES, extensions=[ext_strings.ExtStrings(), ext_optional.ExtOptional(), ext_math.ExtMath()]
    )


_ENV = _environment()


class ExpressionFault(ValueError):
    """An expression that can't be used. ``line`` and ``column`` are 1-based and count within the expression."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Failure:
    """An evaluation that gave no usable value: why, and the cure."""

    expression: str
    problem: str
    cure: str

    def __str__(self) -> str:
        return f"the expression `{self.expression}` could not be evaluated: {self.problem}. {self.cure}"


class Expression:
    """A checked expression. ``variables`` are the names of :data:`VARIABLES` that it reads."""

    __slots__ = ("_eval", "reads_args", "reads_class", "reads_now", "source", "variables")

    def __init__(self, source: str, program: cel.Expression, variables: frozenset[str]) -> None:
        self.source = source
        self.variables = variables
        self.reads_args = "args" in variables
        self.reads_now = "now" in variables
        self.reads_class = not variables.isdisjoint(CLASS_VARIABLES)
        self._eval = program.eval

    def test(self, scope: Scope) -> bool | Failure:
        """True, False, or why neither. Nothing else ever passes."""
        if scope.tainted is not None and not self.variables.isdisjoint(scope.tainted):
            return self._cut(scope.tainted)
        try:
            value = self._eval(scope.activation).value()
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            return self._failure(str(error))
        if value is True or value is False:
            return value
        return self._not("bool", scope)

    def number(self, scope: Scope) -> float | Failure:
        """A finite, non-negative number, or why not."""
        if scope.tainted is not None and not self.variables.isdisjoint(scope.tainted):
            return self._cut(scope.tainted)
        try:
            value = self._eval(scope.activation).value()
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            return self._failure(str(error))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self._not("number", scope)
        if not math.isfinite(value) or value < 0:
            return Failure(
                self.source, f"a cost must be a finite number of at least 0, not {value}", "Send a positive amount."
            )
        return float(value)

    def _not(self, wanted: str, scope: Scope) -> Failure:
        value = self._eval(scope.activation)
        kind = value.type().name()
        if kind.upper().endswith("ERROR"):
            return self._failure(str(value.value()))
        return Failure(
            self.source, f"it gave a {kind.lower()}, not a {wanted}", "Compare the value, as in `args.x == true`."
        )

    def _failure(self, problem: str) -> Failure:
        problem = problem.split(": ", 1)[-1] if problem.split(": ", 1)[0].isupper() else problem
        return Failure(self.source, _clip(problem.replace("\n", " ")), _cure(problem))

    def _cut(self, tainted: Mapping[str, Hazard]) -> Failure:
        name, (problem, cure) = next((name, hazard) for name, hazard in tainted.items() if name in self.variables)
        return Failure(self.source, f"{name} {problem}", cure)


def _clip(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _cure(problem: str) -> str:
    if "not found" in problem or "no such key" in problem.lower():
        return "An argument that may be missing is guarded with `has(args.x) && …` or `args.?x.orValue(…)`."
    if "overload" in problem:
        return "A value has another type than the expression expects: convert it, as in `string(args.x)`."
    if "out of range" in problem:
        return "Numbers must fit into 64 bits."
    if "budget" in problem:
        return "Send fewer items."
    return "Guard it with `has()` or `args.?x`, and check the values that were sent."


def check_expression(source: str, expect: Expect) -> ExpressionFault | None:
    """What is wrong with an expression, or None. As :func:`compile_expression`."""
    try:
        compile_expression(source, expect)
    except ExpressionFault as fault:
        return fault
    return None


def compile_expression(source: str, expect: Expect) -> Expression:
    """Check and prepare one expression. Raises :class:`ExpressionFault`.

    Besides CEL's own checks: the length, the type of the result, the names, literal regular expressions and literal
    time zones. A result whose type only the call decides (``args.flag``) is accepted: at run time only a bool, or a
    number, passes.
    """
    if len(source) > MAX_CODE_POINTS:
        raise ExpressionFault(
            f"an expression has at most {MAX_CODE_POINTS:,} code points, this one has {len(source):,}"
        )
    if not source.strip():
        raise ExpressionFault("the expression is empty")
    for index, char in enumerate(source):
        if char == "\0" or 0xD800 <= ord(char) <= 0xDFFF:
            raise ExpressionFault(
                f"the character U+{ord(char):04X} can't be used in an expression", *_place(source, index)
            )
    try:
        program = _ENV.compile(source)
    except RuntimeError as error:
        raise _compile_fault(source, str(error)) from None
    result = program.return_type().name()
    if result.upper() not in _ACCEPTED[expect]:
        raise ExpressionFault(_wrong_type(result, expect))
    facts = celtree.read(program.serialize())
    shadowed = sorted(facts.bound & _ROOTS)
    if shadowed:
        name = shadowed[0]
        raise ExpressionFault(
            f"`{name}` is a variable of every policy: give the one in the macro another name, such as `x`"
        )
    for literal in facts.literals:
        _check_literal(source, literal)
    return Expression(source, program, frozenset(facts.identifiers & VARIABLES.keys()))


def conjunction(expressions: Sequence[Expression]) -> Expression | None:
    """One expression that is true exactly where all of these are; None where there is none (or the runtime takes none).

    Evaluating it is cheaper than evaluating each. Only its True says something: any other outcome is for the single
    ones to explain. (CEL's ``&&`` is true only of two bools that both are; the line feed ends a trailing comment.)
    """
    if len(expressions) < 2:
        return expressions[0] if expressions else None
    source = " && ".join(f"({expression.source}\n)" for expression in expressions)
    try:
        program = _ENV.compile(source)
    except RuntimeError:
        return None
    return Expression(source, program, frozenset[str]().union(*(e.variables for e in expressions)))


def _compile_fault(source: str, text: str) -> ExpressionFault:
    found = _MESSAGE.search(text)
    if "recursion" in text:
        return ExpressionFault(
            "the expression is nested too deeply (at most 32 levels): use two validations, or `in` a list"
        )
    if found is None:
        return ExpressionFault(_clip(text.replace("\n", " ")))
    message = found[3].replace(" (in container '')", "").strip()
    line, column = int(found[1]), int(found[2])
    before = "\n".join([*source.split("\n")[: line - 1], source.split("\n")[line - 1][: column - 1]])
    return ExpressionFault(celwords.readable(message, before, source, VARIABLES.keys()), line, column)


def _wrong_type(result: str, expect: Expect) -> str:
    if result.startswith("optional"):
        return f"the result is optional; end it with `.orValue(…)` so that it is a {expect}"
    hint = ", such as a comparison" if expect == "bool" else ", such as `double(args.amount)`"
    return f"the result is a {result.lower()}, expected a {expect}{hint}"


def _check_literal(source: str, literal: celtree.Literal) -> None:
    if literal.function == "matches":
        problem = regex_problem(literal.text)
        if problem is not None:
            raise ExpressionFault(
                f"invalid regular expression: {problem} (the syntax is RE2's)", *_place(source, literal.offset)
            )
    elif literal.function in _ZONE_FUNCTIONS:
        problem = zone_problem(literal.text)
        if problem is not None:
            raise ExpressionFault(problem, *_place(source, literal.offset))


def zone_problem(name: str) -> str | None:
    """Why CEL can't use a time zone, or None. Asks the runtime itself, which reads the system's zone files."""
    if _zone_works(name):
        return None
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        known = "a name like Europe/Zurich or UTC, or an offset like +02:00"
        return f"unknown time zone `{_clip(name, 60)}`; expected {known}"
    return (
        f"the time zone `{name}` exists, but the zone database (zoneinfo) that CEL reads was not found: "
        "install the system package tzdata, or set TZDIR to a zoneinfo directory"
    )


def _zone_works(name: str) -> bool:
    if '"' in name or "\\" in name or not name.isprintable() or not name:
        return False
    probe = _ENV.compile(f'timestamp("2026-07-01T00:00:00Z").getHours("{name}")')
    return probe.eval(_EMPTY).type().name() == "INT"


_EMPTY = _ENV.Activation({})


def _place(source: str, offset: int) -> tuple[int, int]:
    before = source[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime takes no other mapping than a dict, and no other sequence than a list."""
    return cast(dict[str, Any], value) if type(value) is dict else dict(value)


Getter = Callable[[Call], Any]
_GETTERS: Mapping[str, Getter] = {
    "args": lambda call: call.arguments,
    "tool.name": lambda call: call.tool or "",
    "principal.id": lambda call: call.principal.id,
    "principal.kind": lambda call: call.principal.kind,
    "principal.verified": lambda call: call.principal.verified,
    "principal.groups": lambda call: list(call.principal.groups),
    "principal.claims": lambda call: _plain(call.principal.claims),
    "session": lambda call: call.session or "",
    "client.name": lambda call: call.client.get("name", ""),
    "client.version": lambda call: call.client.get("version", ""),
    "server.name": lambda call: call.server.get("name", ""),
    "server.namespace": lambda call: call.server.get("namespace", ""),
    "now": lambda call: call.now,
}


Reader = tuple[str, Getter | None]


def readers(variables: Collection[str]) -> tuple[Reader, ...]:
    """How to find the values of variables; prepared once, for :class:`Scope`."""
    return tuple((name, _GETTERS.get(name)) for name in VARIABLES if name in variables)


class Scope:
    """The values of one call, converted once for all expressions that share them.

    ``tainted`` are the variables that must not be judged, and why: no expression that reads one may run.
    """

    __slots__ = ("activation", "tainted")

    def __init__(self, wanted: Iterable[Reader], call: Call, category: str, risk: str) -> None:
        values: dict[str, Any] = {}
        tainted: dict[str, Hazard] | None = None
        for name, getter in wanted:
            if name == "args":  # nearly every expression's, and mostly the only ones
                arguments: Any = call.arguments
                if arguments.__class__ is not dict:
                    arguments = dict(arguments)
                values[name] = arguments
                hazard = None if hazards.harmless(arguments) else hazards.of_arguments(arguments)
            elif getter is None:
                values[name] = category if name == "tool.category" else risk
                continue
            else:
                values[name] = value = getter(call)
                hazard = hazards.NUL if hazards.has_nul(value) else None
            if hazard is not None:
                tainted = {**(tainted or {}), name: hazard}
        self.activation = _ENV.Activation(values)
        self.tainted: Mapping[str, Hazard] | None = tainted
