"""The canonical form is RFC 8785's, byte for byte, wherever RFC 8785 has one."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from toolpolicy.sidecar.canonical import canonical, digest

SAFE = 2**53 - 1
texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-SAFE, SAFE) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(values)
def test_it_equals_the_reference(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(texts, values, max_size=4))
def test_the_digest_is_of_the_canonical_bytes_and_survives_json(arguments: dict[str, Any]) -> None:
    expected = "sha256:" + hashlib.sha256(rfc8785.dumps(arguments)).hexdigest()
    assert digest(arguments) == expected
    assert digest(json.loads(json.dumps(dict(reversed(list(arguments.items())))))) == expected


EXAMPLES: list[tuple[Any, str]] = [
    ({"\ufb33": 1, "\U0001f600": 2}, '{"\U0001f600":2,"\ufb33":1}'),
    ({"b": 1, "a": -0.0, "": None}, '{"":null,"a":0,"b":1}'),
    ([1e21, 1e-7, 1.0, 100.0, 0.1, 5e-324], "[1e+21,1e-7,1,100,0.1,5e-324]"),
    ('\x00\x1f\x7f"\\/\n\u2028', '"\\u0000\\u001f\x7f\\"\\\\/\\n\u2028"'),
    ([True, False, None, [], {}], "[true,false,null,[],{}]"),
]


@pytest.mark.parametrize(("value", "expected"), EXAMPLES)
def test_examples(value: Any, expected: str) -> None:
    assert canonical(value).decode() == expected


@given(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30))
def test_integers_beyond_what_a_double_can_hold_keep_their_digits(one: int, other: int) -> None:
    assert (digest({"n": one}) == digest({"n": other})) == (one == other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_has_no_canonical_form(value: float) -> None:
    with pytest.raises(ValueError, match="representable"):
        canonical([value])
