"""Expressions: what is refused when they are loaded, and that nothing but a real ``true`` passes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.policies import NOON, call
from toolpolicy.policy.cel import (
    Expect,
    Expression,
    ExpressionFault,
    Failure,
    Scope,
    check_expression,
    compile_expression,
    conjunction,
    readers,
    zone_problem,
)
from toolpolicy.policy.hazards import has_nul, of_arguments, twins
from toolpolicy.policy.types import Call, Principal


def scope(expression: Expression, asked: Call, category: str = "Write", risk: str = "Medium") -> Scope:
    return Scope(readers(expression.variables), asked, category, risk)


def holds(source: str, arguments: dict[str, Any] | None = None, **about: Any) -> bool | Failure:
    expression = compile_expression(source, "bool")
    return expression.test(scope(expression, call(arguments=arguments, **about)))


def number(source: str, arguments: dict[str, Any]) -> float | Failure:
    expression = compile_expression(source, "number")
    return expression.number(scope(expression, call(arguments=arguments)))


ALICE = Principal(
    "alice", "JWT", True, ("nurses", "admins"), "agents/bot", {"tenant": "north", "roles": ["reader"], "level": 3}
)


@pytest.mark.parametrize(
    "source",
    [
        'args.uri.startsWith("s3://exports/")',
        'args["uri"].endsWith("/x")',
        "args.?missing.orValue(true)",
        "!has(args.missing)",
        "size(args.uri) < 100 && args.n <= 5 && args.n < 5.5 && args.f == 2.5",
        'args.tags.all(t, t.matches("^[a-z]+$"))',
        'args.tags.exists(t, t == "b") && "a" in args.tags && args.nested.deep[0].x == null',
        'tool.name == "get_thing" && tool.category == "Write" && tool.risk == "Medium"',
        'principal.id == "alice" && principal.kind == "JWT" && principal.verified && "nurses" in principal.groups',
        'principal.claims.tenant == "north" && "reader" in principal.claims.roles && principal.claims.level > 2',
        'session == "s1"',
        'client.name == "" && client.version == ""',
        'server.name == "imaging" && server.namespace == "agents"',
        'now.getHours("Europe/Zurich") == 14 && now.getHours() == 12 && now.getHours("+02:00") == 14',
        'now > timestamp("2026-06-30T00:00:00Z") && now - timestamp("2026-07-01T00:00:00Z") == duration("12h")',
        '"%s-%d".format([args.uri, args.n]) == "s3://exports/x-5"',
        "math.greatest(args.n, 1) == 5",
        '"A".lowerAscii() == "a" && "a,b".split(",").size() == 2',
        "args.flag",
    ],
)
def test_the_language_and_its_variables(source: str) -> None:
    arguments = {
        "uri": "s3://exports/x",
        "n": 5,
        "f": 2.5,
        "tags": ["a", "b"],
        "nested": {"deep": [{"x": None}]},
        "flag": True,
    }
    assert holds(source, arguments, principal=ALICE) is True


@pytest.mark.parametrize(
    ("source", "expect", "place", "message"),
    [
        ("args.x ==", "bool", (1, 10), "ends too early"),
        ("args.x == 1 &&\n  nope", "bool", (2, 3), "unknown variable `nope`"),
        (
            'tool.nam == "x"',
            "bool",
            (1, 5),
            "unknown variable `tool.nam`; did you mean `tool.name`? There are tool.category, tool.name, tool.risk",
        ),
        ('tool == "x"', "bool", (1, 1), "unknown variable `tool`"),
        ("principal.groop", "bool", (1, 10), "principal.groups"),
        ("argz.x", "bool", (1, 5), "argz"),
        ("has(principal.id)", "bool", (1, 1), "the result is a string, expected a bool"),
        ('"a" == 1', "bool", (1, 5), "`==` does not take string and int"),
        ("args.x.nope()", "bool", (1, 12), "nope"),
        ("1 + 1", "bool", (1, 1), "the result is a int, expected a bool"),
        ("args.?x", "bool", (1, 1), "end it with `.orValue(…)`"),
        ("args.x > 1", "number", (1, 1), "the result is a bool, expected a number"),
        ('args.x.matches("[")', "bool", (1, 16), "invalid regular expression: missing ]"),
        ('args.x == "\\"é" &&\n matches(args.y, r"(?=a)")', "bool", (2, 18), "invalid regular expression"),
        ("args.x.matches('''(''')", "bool", (1, 16), "missing )"),
        ('args.l.all(x, x.matches("\\x28"))', "bool", (1, 25), "missing )"),
        ('now.getHours("Europe/Zürich") > 1', "bool", (1, 14), "unknown time zone `Europe/Zürich`"),
        ('now.getDayOfWeek("Mars/Base") > 1', "bool", (1, 18), "expected a name like Europe/Zurich"),
        ("args.l.all(args, args == 1)", "bool", (1, 1), "`args` is a variable of every policy"),
        ('args.l.all(tool, tool.name == "x")', "bool", (1, 1), "`tool` is a variable of every policy"),
        ("(" * 400 + "true" + ")" * 400, "bool", (1, 1), "nested too deeply"),
        ("args" + ".a" * 400 + " == 1", "bool", (1, 1), "nested too deeply"),
        ("", "bool", (1, 1), "empty"),
        ("  \n ", "bool", (1, 1), "empty"),
        ('args.x == "a\0b"', "bool", (1, 13), "U+0000"),
        ('args.x == "\ud800"', "bool", (1, 12), "U+D800"),
    ],
)
def test_faults_say_what_and_where(source: str, expect: Expect, place: tuple[int, int], message: str) -> None:
    fault = check_expression(source, expect)
    assert fault is not None
    assert message in fault.message
    assert (fault.line, fault.column) == place


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("arg.x == 1", "unknown variable `arg.x`; did you mean `args.x`?"),
        ("(arg.x) == 1", "unknown variable `arg.x`; did you mean `args.x`?"),
        ("princpal.id == 'a'", "unknown variable `princpal.id`; did you mean `principal.id`?"),
        ("sessions.size() > 1", "unknown variable `sessions`; did you mean `session`?"),
        ("foo(args.x)", "unknown function `foo`"),
        ("args.x.startwith('a')", "unknown function `startwith`; did you mean `startsWith`?"),
        ("len(args.x) > 1", "unknown function `len`; did you mean `size`?"),
        ("size(args.x, 1) > 1", "`size` is a function that does not take these arguments here"),
        ("duration('1h') > 1", "`>` does not take duration and int"),
        ("has(args.x) and args.y", "`and` is written `&&` in CEL"),
        ("args.x == 'a' or true", "`or` is written `||` in CEL"),
        ("not args.x", "`not` is written `!` in CEL"),
        ("not (args.x)", "`not` is written `!` in CEL"),
        ("if args.x then 1", "`if` is a reserved word; CEL writes a choice as `condition ? this : that`"),
        ("args.x = 1", "`=` alone has no meaning: equality is `==`"),
        ("args.x === 1", "`=` alone has no meaning: equality is `==`"),
        ("args.x == 'a", "the text 'a is not closed, or holds an escape that CEL does not know"),
        ("args.x == $y", "`$` has no meaning in CEL"),
        ("(args.x == 1", "`)` is missing at the end"),
        ("args['x'", "`]` is missing at the end"),
        ("args.x == 1)", "`)` closes nothing: there is one too many"),
        ("args.x == 1 1", "`1` can't follow here: is an operator such as `&&` or `==` missing before it?"),
        ("args.x && || 1", "`||` can't stand here"),
        ("args.l.exists(x x>1)", "`x` can't stand here: `)` was expected"),
        ("args.x in ('a','b')", "`,` can't stand here; a list is written in brackets: `x in ['a', 'b']`"),
        ('args.x == "a" ? 1', "the expression ends where `:` should follow"),
    ],
)
def test_faults_are_told_in_plain_words(source: str, message: str) -> None:
    fault = check_expression(source, "bool")
    assert fault is not None
    assert fault.message == message


@pytest.mark.parametrize("source", ["args.x ==", "(" * 20, "!", "a.b.c(", "[", "{", "'", "?", "args.x ? :", "..", "\\"])
def test_no_fault_shows_the_parsers_own_words(source: str) -> None:
    fault = check_expression(source, "bool")
    assert fault is not None
    for raw in ("<EOF>", "mismatched", "extraneous", "token recognition", "Syntax error", "{'["):
        assert raw not in fault.message


def test_at_most_a_thousand_code_points() -> None:
    longest = 'args.x == "' + "é" * (1000 - 12) + '"'
    assert len(longest) == 1000
    assert check_expression(longest, "bool") is None
    fault = check_expression(longest + " ", "bool")
    assert fault is not None
    assert "1,000" in fault.message


@pytest.mark.parametrize("source", ["args.x", "args.x + 1", "1", "2.5", "double(args.x)", "size(args)"])
def test_numbers_are_accepted_where_a_number_is_wanted(source: str) -> None:
    assert check_expression(source, "number") is None


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("args.x == 1", {"args"}),
        ('principal.claims.args == "args" && tool.name == "now"', {"principal.claims", "tool.name"}),
        ('"args" in principal.groups', {"principal.groups"}),
        ('principal.groups.exists(x, x == "y") && now.getHours() > 1', {"principal.groups", "now"}),
        ('{"session": session}["session"] == "s"', {"session"}),
        ('[1, 2].all(i, i in [1, 2]) || client.name == "x"', {"client.name"}),
        ("true", set[str]()),
        (
            'args.l.map(x, x.now).exists(y, y == server.name) ? true : tool.risk == "Low"',
            {"args", "server.name", "tool.risk"},
        ),
    ],
)
def test_it_knows_which_variables_an_expression_reads(source: str, reads: set[str]) -> None:
    expression = compile_expression(source, "bool")
    assert expression.variables == reads
    assert expression.reads_args == ("args" in reads)
    assert expression.reads_now == ("now" in reads)


@pytest.mark.parametrize(
    ("source", "arguments", "problem", "cure"),
    [
        ("args.missing == 1", {}, "not found", "has(args.x)"),
        ("args.a.b.c == 1", {"a": {"b": {}}}, "not found", "args.?x"),
        ("args.flag", {"flag": "true"}, "it gave a string, not a bool", "Compare"),
        ("args.flag", {"flag": 1}, "it gave a int, not a bool", "Compare"),
        ("args.flag", {"flag": None}, "it gave a null, not a bool", "Compare"),
        ("args.flag", {"flag": [True]}, "it gave a list", "Compare"),
        ("args.flag", {"flag": {"a": True}}, "it gave a map", "Compare"),
        ('args.n.startsWith("a")', {"n": 5}, "overload", "string(args.x)"),
        ("args.n / 0 == 1", {"n": 5}, "divide by zero", "Guard"),
        ("args.l[7] == 1", {"l": [1]}, "ndex", "Guard"),
        ("args.x.matches(args.y)", {"x": "a", "y": "("}, "invalid regular expression", "Guard"),
        ("args.n == 1", {"n": 2**64}, "out of range", "64 bits"),
        ("has(args.other)", {"n": -(2**63) - 1}, "out of range", "64 bits"),
        ('args.s == "x"', {"s": "\ud800"}, "basic_string", "Guard"),
        (
            "args.l.all(x, args.l.all(y, args.l.all(z, x + y + z >= 0)))",
            {"l": list(range(300))},
            "udget",
            "fewer items",
        ),
    ],
)
def test_an_error_is_neither_true_nor_silent(source: str, arguments: dict[str, Any], problem: str, cure: str) -> None:
    failure = holds(source, arguments)
    assert isinstance(failure, Failure)
    assert failure.expression == source
    assert problem in failure.problem
    assert cure in failure.cure
    assert source in str(failure)


@pytest.mark.parametrize(
    "arguments",
    [
        {"s": "x\0evil"},
        {"s": "x", "other": "\0"},
        {"s": "x", "k\0ey": 1},
        {"s": "x", "l": [{"a": ["\0"]}]},
        {"s": "x", "l": [[[{"\0": 1}]]]},
    ],
)
def test_a_nul_never_reaches_an_expression(arguments: dict[str, Any]) -> None:
    failure = holds('args.s == "x"', arguments)
    assert isinstance(failure, Failure)
    assert "U+0000" in failure.problem


def test_a_nul_denies_only_what_reads_it() -> None:
    assert holds('args.s == "x"', {"s": "x"}, client={"name": "a\0b"}) is True
    assert isinstance(holds('client.name == "a"', {}, client={"name": "a\0b"}), Failure)
    evil = Principal("alice", claims={"sub": "alice\0root"}, groups=("a\0",))
    assert isinstance(holds('principal.claims.sub == "alice"', principal=evil), Failure)
    assert isinstance(holds('"a" in principal.groups', principal=evil), Failure)
    assert holds('principal.id == "alice"', principal=evil) is True


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text("ab\0é", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\0", max_size=3), inner, max_size=3),
    max_leaves=12,
)


def _slow_has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, list):
        return any(map(_slow_has_nul, cast(list[Any], value)))
    if isinstance(value, dict):
        return any(map(_slow_has_nul, [*cast(dict[str, Any], value), *cast(dict[str, Any], value).values()]))
    return False


@given(_JSON)
def test_every_nul_is_found(value: Any) -> None:
    assert has_nul(value) == _slow_has_nul(value)


def test_a_deep_value_is_no_crash() -> None:
    deep: Any = "\0"
    for _ in range(100_000):
        deep = [deep]
    assert has_nul({"a": deep})


TWINS: list[dict[str, Any]] = [
    {"uri": "s3://ours/", "Uri": "s3://theirs/"},
    {"output_s3_uri": "s3://ours/", "Output_S3_Uri": 1},
    {"x": {"Name": 1, "name": 2}},
    {"x": [[{"a": 1}, {"a1": 1, "A1": None}]]},
    {"task": 1, "ta\u017fk": 2},
    {"key": 1, "\u212aey": 2},
    {"\u00e9t\u00e9": 1, "\u00c9T\u00c9": 2},
]


@pytest.mark.parametrize("arguments", TWINS)
def test_keys_that_differ_only_by_case_never_reach_an_expression(arguments: dict[str, Any]) -> None:
    failure = holds('args.?uri.orValue("s3://ours/") == "s3://ours/"', arguments)
    assert isinstance(failure, Failure)
    assert "differ only by case" in failure.problem
    one, other = cast(tuple[str, str], twins(arguments))
    assert f"`{one}` and `{other}`" in failure.problem
    assert failure.cure == "Send only one of them."
    assert holds('tool.name == "get_thing"', arguments) is True
    assert isinstance(number("args.?n.orValue(1)", arguments), Failure)


@pytest.mark.parametrize(
    "arguments",
    [
        {"uri": 1, "url": 2, "URI_": 3},
        {"1": 1, "2": 2},
        {"Name": {"name": 1}, "tags": [{"Name": 1}, {"name": 2}]},
        {"\u0131d": 1, "id": 2},
    ],
)
def test_keys_that_no_server_takes_for_each_other_pass(arguments: dict[str, Any]) -> None:
    assert holds("args.?uri.orValue(1) == 1", arguments) is True


def _slow_twins(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_slow_twins, cast(list[Any], value)))
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value)
        if any(a is not b and a.casefold() == b.casefold() for a in fields for b in fields):
            return True
        return any(map(_slow_twins, fields.values()))
    return False


_KEYS = st.text("aAbs\u017fkK\u212a1\0", max_size=2)
_TWINNED = st.recursive(
    st.none() | st.integers(0, 3) | st.text("a\0", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_KEYS, _TWINNED, max_size=4))
def test_every_twin_is_found_and_the_quick_look_agrees(arguments: dict[str, Any]) -> None:
    assert (twins(arguments) is not None) == _slow_twins(arguments)
    assert (of_arguments(arguments) is not None) == (_slow_has_nul(arguments) or _slow_twins(arguments))


_ODD: list[Any] = [True, False, None, "true", "", 0, 1, 1.5, [], [True], {}, 2**70]


@pytest.mark.parametrize("a", _ODD)
@pytest.mark.parametrize("b", _ODD)
def test_a_conjunction_is_true_exactly_where_each_part_is(a: Any, b: Any) -> None:
    sources = ("args.a // a", "args.b", "args.?c.orValue(true) || false")
    parts = [compile_expression(source, "bool") for source in sources]
    together = conjunction(parts)
    assert together is not None
    asked = call(arguments={"a": a, "b": b})
    each = [part.test(scope(part, asked)) is True for part in parts]
    assert (together.test(scope(together, asked)) is True) == all(each)


def test_a_conjunction_of_none_and_of_one() -> None:
    one = compile_expression("args.a", "bool")
    assert conjunction([]) is None
    assert conjunction([one]) is one


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, 2**63 + 5])
def test_integers_beyond_63_bits_compare_rightly(value: int) -> None:
    assert holds("args.n > 100 && args.n > 0.5 && args.n != -1 && !(args.n <= 100)", {"n": value}) is True


@pytest.mark.parametrize(
    ("cost", "expected"), [("2", 2.0), ("args.n", 3.0), ("args.f * 2.0", 3.0), ("0", 0.0), ("double(args.s)", 7.5)]
)
def test_a_cost_is_a_number(cost: str, expected: float) -> None:
    assert number(cost, {"n": 3, "f": 1.5, "s": "7.5"}) == expected


@pytest.mark.parametrize(
    "cost",
    [
        "args.n * -1",
        "-0.5",
        "double('NaN')",
        "1.0 / 0.0",
        "double('-inf')",
        "args.missing",
        "args.flag",
        "args.s",
        "args.nul",
    ],
)
def test_a_cost_that_is_no_amount_is_a_failure(cost: str) -> None:
    assert isinstance(number(cost, {"n": 3, "flag": True, "s": "7", "nul": None}), Failure)


def test_now_is_the_same_instant_in_every_zone_and_keeps_microseconds() -> None:
    local = datetime(2026, 7, 1, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert holds('now == timestamp("2026-07-01T12:00:00.123456Z")', now=local) is True
    assert holds('now.getHours("Europe/Zurich") == 14', now=local.astimezone(UTC)) is True
    winter = NOON.replace(month=1)
    assert holds('now.getHours("Europe/Zurich") == 13', now=winter) is True


def test_an_absent_zone_database_is_said(tmp_path: object) -> None:
    script = (
        "from toolpolicy.policy.cel import check_expression\n"
        "print(check_expression('now.getHours(\"Europe/Zurich\") > 1', 'bool'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"TZDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "zone database" in done.stdout
    assert "install the system package tzdata" in done.stdout


def test_offsets_and_utc_are_zones() -> None:
    assert [zone_problem(name) for name in ("UTC", "Europe/Zurich", "+02:00", "-11:30")] == [None] * 4
    for name in ("", "Nowhere", '"', "\\", "../../etc/passwd", "Europe/Zurich\0"):
        assert zone_problem(name) is not None


def test_the_fault_is_an_exception_with_its_place() -> None:
    with pytest.raises(ExpressionFault, match="unknown variable"):
        compile_expression("nope", "bool")
