"""A body costs time in every step that looks at its values, so their number is bounded like its bytes."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from toolpolicy.mcp.envelope import EnvelopeError, parse

LIMIT = 1000


def body(value: Any) -> bytes:
    params = {"name": "a", "arguments": {"x": value}}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


@pytest.mark.parametrize(
    "value",
    cast(list[Any], [[0] * 1100, [[]] * 1100, [[[]]] * 550, {str(n): 0 for n in range(1100)}, [{"a": [0, 1]}] * 300]),
)
def test_more_values_than_allowed_are_refused(value: Any) -> None:
    with pytest.raises(EnvelopeError) as caught:
        parse(body(value), max_values=LIMIT)
    assert "values" in caught.value.message


@pytest.mark.parametrize("value", cast(list[Any], [[0] * 900, "," * 5000, '\\"[{' * 5000, {"a": [[], {}] * 200}]))
def test_as_many_as_allowed_pass(value: Any) -> None:
    parse(body(value), max_values=LIMIT)


@pytest.mark.parametrize("item", [b"[[[[[[[[]]]]]]]]", b"1e-9", b"[]", b"{}"])
def test_a_body_of_four_megabytes_is_refused_before_it_is_parsed(item: bytes) -> None:
    hostile = body([]).replace(b"[]", b"[" + b",".join([item] * (4_000_000 // (len(item) + 1))) + b"]")
    with pytest.raises(EnvelopeError, match="values"):
        parse(hostile)
