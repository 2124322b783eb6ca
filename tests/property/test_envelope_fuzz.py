"""What was judged is what runs: over mutated bodies, no server's parser executes a call that was not judged exactly so.

The judge refuses a body or names the tool and the arguments. The parsers of real servers (Python's ``json`` and the
official SDK's models, Node's ``JSON.parse`` and the official SDK's schemas, Go's ``encoding/json``) say what they
would execute of the same bytes. Wherever one of them executes anything, the judge must have refused, or have judged
that.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings

from support.bodies import bodies
from support.parsers import KINDS, Call, parser
from toolpolicy.mcp.envelope import EnvelopeError, Message, parse

FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def judged(body: bytes) -> list[Call] | None:
    """The calls that the judge was asked about; None if the body was refused."""
    try:
        found = parse(body)
    except EnvelopeError:
        return None
    messages = (found,) if isinstance(found, Message) else found
    return [(message.tool, message.arguments) for message in messages if message.tool is not None]


def same(one: Any, other: Any) -> bool:
    """Equal as JSON values. Numbers as a double holds them: that is all JavaScript and Go keep of them."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return as_double(one) == as_double(other)
    if isinstance(one, dict) and isinstance(other, dict):
        left, right = cast(dict[str, Any], one), cast(dict[str, Any], other)
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = zip(cast(list[Any], one), cast(list[Any], other), strict=True)
        return len(cast(list[Any], one)) == len(cast(list[Any], other)) and all(same(a, b) for a, b in pairs)
    return isinstance(one, str) is isinstance(other, str) and bool(one == other)


def as_double(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def violates(judge: Callable[[bytes], list[Call] | None], executed: list[Call], body: bytes) -> bool:
    """Whether a server executes what the judge did not judge."""
    if not executed:
        return False
    calls = judge(body)
    return calls is not None and not same(calls, executed)


def plain_json(body: bytes) -> list[Call]:
    """Python's ``json``, in this process: the oracle that needs no installation."""
    try:
        found: Any = json.loads(body)
        items = cast(list[Any], found) if isinstance(found, list) else [found]
        return [(i["params"]["name"], i["params"].get("arguments") or {}) for i in items if i["method"] == "tools/call"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def outcome(body: bytes, executed: list[Call]) -> str:
    calls = judged(body)
    if calls is None:
        return "refused what runs" if executed else "refused"
    return "judged what runs" if executed else "passed"


def assert_telling(seen: Counter[str]) -> None:
    """A fuzz test whose bodies are all refused, or all harmless, would prove nothing."""
    total = seen.total()
    assert seen["judged what runs"] > total / 10, seen
    assert seen["refused what runs"] > total / 20, seen


def test_python_json() -> None:
    seen: Counter[str] = Counter()

    @settings(FUZZ, max_examples=300)
    @given(bodies())
    def run(body: bytes) -> None:
        executed = plain_json(body)
        seen[outcome(body, executed)] += 1
        assert not violates(judged, executed, body), (body, executed, judged(body))

    run()
    assert_telling(seen)


@pytest.mark.slow
def test_parsers_of_real_servers() -> None:
    seen: dict[str, Counter[str]] = {}
    with ExitStack() as stack:
        oracles = [stack.enter_context(parser(kind)) for kind in KINDS]

        @settings(FUZZ, max_examples=1500)
        @given(bodies())
        def run(body: bytes) -> None:
            for oracle in oracles:
                for name, executed in oracle.executed(body).items():
                    seen.setdefault(name, Counter())[outcome(body, executed)] += 1
                    assert not violates(judged, executed, body), (name, body, executed, judged(body))

        run()
    assert set(seen) == {"json", "mcp", "mcp-python", "parse", "assign", "sdk", "unmarshal", "decoder"}
    for counted in seen.values():
        assert_telling(counted)


CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read_one","arguments":{"path":"/ok"}}}'
GAPS = [
    # (process, parser, body)
    ("golang", "unmarshal", CALL.replace(b'"arguments"', b'"Name":"delete_everything","arguments"')),
    ("golang", "unmarshal", CALL.replace(b"}}}", b'},"argument\xc5\xbf":{"path":"/evil"}}}')),
    (
        "golang",
        "unmarshal",
        CALL.replace(b'"params"', b'"Params":{"name":"x"},"params"').replace(b"read_one", b"delete_everything"),
    ),
    (
        "golang",
        "unmarshal",
        CALL.replace(b'"method"', b'"id2":0,"method"').replace(b'"tools/call"', b'"ping","METHOD":"tools/call"'),
    ),
    ("golang", "decoder", CALL + b"\n" + CALL.replace(b"read_one", b"delete_everything")),
    ("node1", "assign", CALL.replace(b'"path":"/ok"', b'"__proto__":{"path":"/evil"}')),
    ("node1", "parse", CALL.replace(b"/ok", b"/\xff")),
    ("node1", "parse", b"\xef\xbb\xbf" + CALL),
    ("node1", "parse", CALL.replace(b'"/ok"', b"1e400")),
    ("python2", "json", CALL.replace(b'"/ok"', b"NaN")),
    ("python2", "json", CALL.decode().encode("utf-16")),
    ("python2", "json", CALL.replace(b'"name"', b'"name":"first","name"')),
    ("python2", "mcp", CALL.replace(b'"name"', b'"name":"first","name"')),
    ("python2", "json", CALL.replace(b'"/ok"', b'"\\ud800"')),
    ("python2", "json", CALL.replace(b'"id":1', b'"id":null')),
    ("python2", "json", CALL.replace(b'"id":1', b'"id":1,"result":{}')),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_control_each_gap_runs_on_a_server_and_is_refused_here(kind: str) -> None:
    with parser(kind) as oracle:
        for wanted, name, body in GAPS:
            if wanted == kind:
                assert oracle.executed(body)[name], (name, body)
                assert judged(body) is None, body


@pytest.mark.slow
def test_the_control_a_naive_judge_is_found_out() -> None:
    """With Python's ``json`` as the judge, the same bodies show calls that it never saw."""
    found: Counter[str] = Counter()
    with parser("golang") as golang, parser("node1") as node:

        @settings(FUZZ, max_examples=300)
        @given(bodies())
        def run(body: bytes) -> None:
            for oracle in (golang, node):
                for name, executed in oracle.executed(body).items():
                    found[name] += violates(plain_json, executed, body)

        run()
    assert all(found[name] for name in ("unmarshal", "decoder", "parse")), found
