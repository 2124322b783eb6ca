"""Argument schemas: nothing is fetched, patterns are linear, and messages help without repeating what was sent."""

from __future__ import annotations

import time
from typing import Any

import pytest

from toolpolicy.policy.declared import DeclaredSchemas
from toolpolicy.policy.schemas import SchemaFault, Validator, compile_declared, compile_schema

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "uri": {"type": "string", "pattern": "^s3://exports/"},
        "n": {"type": "integer", "minimum": 1, "maximum": 5},
        "kind": {"enum": ["a", "b"]},
        "a/b~c": {"items": {"const": 1}},
        "mail": {"type": "string", "format": "email"},
    },
    "required": ["uri"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "pointer", "expected"),
    [
        ({"uri": "s3://exports/x", "n": 3, "kind": "a"}, None, None),
        ({"uri": "http://evil"}, "/uri", 'text that matches "^s3://exports/"'),
        ({"uri": 7}, "/uri", "type"),
        ({}, "", 'the property "uri", which is missing'),
        ({"uri": "s3://exports/", "n": 9}, "/n", "at most 5"),
        ({"uri": "s3://exports/", "n": 0}, "/n", "at least 1"),
        ({"uri": "s3://exports/", "n": 1.5}, "/n", 'type "integer"'),
        ({"uri": "s3://exports/", "kind": "c"}, "/kind", 'one of "a", "b"'),
        ({"uri": "s3://exports/", "x": 1}, "", 'no property "x"'),
        ({"uri": "s3://exports/", "a/b~c": [1, 2]}, "/a~1b~0c/1", "exactly 1"),
        ({"uri": "s3://exports/", "mail": "nobody"}, "/mail", 'format "email"'),
        ({"uri": "s3://exports/", "mail": "\ud800"}, "", "Unicode"),
        ({"uri": "s3://exports/", "n": 2**70}, "/n", "at most 5"),
    ],
)
def test_the_first_error(arguments: Any, pointer: str | None, expected: str | None) -> None:
    error = compile_schema(SCHEMA).first_error(arguments)
    if pointer is None or expected is None:
        assert error is None
    else:
        assert error is not None
        assert error[0] == pointer
        assert expected in error[1]


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": {"not": {"const": "SECRET" * 1000}}}},
        {"properties": {"x": {"maxLength": 3}}},
        {"properties": {"x": {"enum": ["E" * 500] * 1}}},
        {"properties": {"x": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}},
        {"properties": {"x": {"pattern": "^" + "a" * 400 + "$"}}},
    ],
)
def test_messages_are_short_and_never_repeat_the_value(schema: dict[str, Any]) -> None:
    error = compile_schema(schema).first_error({"x": "SECRET" * 1000})
    assert error is not None
    assert "SECRET" not in error[1]
    assert len(error[1]) <= 200


@pytest.mark.parametrize(
    ("schema", "message", "path"),
    [
        ({"type": "objekt"}, "objekt", "/type"),
        ({"properties": {"x": {"pattern": "("}}}, "regex", "/properties/x/pattern"),
        ({"properties": {"x": {"pattern": "(?=a)"}}}, "regex", "/properties/x/pattern"),
        ({"properties": {"x": {"format": "emial"}}}, "format", "/properties/x/format"),
        ({"$ref": "http://127.0.0.1:1/x"}, "127.0.0.1", ""),
        ({"$ref": "file:///etc/passwd"}, "/etc/passwd", ""),
        ({"$ref": "#/$defs/nope"}, "nope", ""),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "2020-12", "/$schema"),
        ({"$schema": 5}, "2020-12", "/$schema"),
        ({"minimum": "3"}, "3", "/minimum"),
    ],
)
def test_a_bad_schema_is_refused_when_it_is_loaded(schema: dict[str, Any], message: str, path: str) -> None:
    with pytest.raises(SchemaFault) as caught:
        compile_schema(schema)
    assert message in caught.value.message
    assert caught.value.path == path


def test_references_within_the_schema_work() -> None:
    validator = compile_schema({"$defs": {"n": {"type": "integer"}}, "additionalProperties": {"$ref": "#/$defs/n"}})
    assert validator.first_error({"a": 1}) is None
    assert validator.first_error({"a": "1"}) == ("/a", 'type "integer"')


def test_a_hostile_pattern_takes_linear_time() -> None:
    validator = compile_schema({"properties": {"x": {"pattern": "^(a+)+$"}}})
    started = time.process_time()
    assert validator.first_error({"x": "a" * 50_000 + "b"}) is not None
    assert time.process_time() - started < 5  # an exponential engine would not end within the age of the universe


def test_a_deep_value_is_no_crash() -> None:
    deep: Any = 1
    for _ in range(60):
        deep = {"a": deep}
    validator = compile_schema({"$defs": {"n": {"properties": {"a": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"})
    assert validator.first_error(deep) is None


def test_a_servers_own_dialect_is_honoured() -> None:
    draft7 = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}
    assert compile_declared(draft7).first_error([1]) == ("/0", 'type "string"')
    assert compile_declared({"properties": {"x": {"format": "whatever"}}}).first_error({"x": "y"}) is None
    with pytest.raises(SchemaFault):
        compile_declared({"$ref": "https://example.com/schema.json"})


def test_a_schema_that_is_listed_again_is_compiled_once() -> None:
    cache = DeclaredSchemas()
    first = cache.validator({"type": "object", "required": ["a"]})
    assert isinstance(first, Validator)
    assert cache.validator({"required": ["a"], "type": "object"}) is first
    assert cache.validator({"type": "object"}) is not first
    assert isinstance(cache.validator({"type": "nonsense"}), SchemaFault)


def test_another_schema_at_the_same_address_is_not_mistaken() -> None:
    cache = DeclaredSchemas()
    for index in range(3000):
        validator = cache.validator({"required": [f"k{index}"]})
        assert isinstance(validator, Validator)
        assert validator.first_error({f"k{index}": 1}) is None
        assert validator.first_error({}) is not None
