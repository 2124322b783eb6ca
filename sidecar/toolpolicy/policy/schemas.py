"""The one adapter to jsonschema-rs: JSON Schema 2020-12 for arguments.

Nothing is ever fetched (``offline``), patterns run on a linear engine, and a message never repeats the value that was
sent: it may be huge or secret. What the agent gets is a JSON pointer (RFC 6901) and what is expected there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import jsonschema_rs

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LIMIT = 200


class SchemaFault(ValueError):
    """A schema that can't be used. ``path`` is a JSON pointer into the schema."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path


class Validator:
    """A compiled schema."""

    __slots__ = ("_validator",)

    def __init__(self, validator: jsonschema_rs.Validator) -> None:
        self._validator = validator

    def first_error(self, arguments: Any) -> tuple[str, str] | None:
        """(JSON pointer into the arguments, what is expected there), or None where they conform.

        The arguments come from a parser that bounds their depth: this runs on the native stack.
        """
        try:
            if self._validator.is_valid(arguments):
                return None
            for error in self._validator.iter_errors(arguments):
                return pointer(error.instance_path), expected(error)
        except ValueError:
            return "", "valid Unicode text and JSON values"
        return "", "something else"  # is_valid said no: never let a disagreement pass


def compile_schema(schema: Mapping[str, Any] | bool) -> Validator:
    """Compile a policy's schema. Raises :class:`SchemaFault`.

    ``format`` is enforced and unknown formats are refused, because an author who writes one expects it to hold.

    """
    if isinstance(schema, Mapping) and str(schema.get("$schema", _DIALECT)).rstrip("#") != _DIALECT:
        raise SchemaFault(f"the dialect must be {_DIALECT} (or leave $schema out)", "/$schema")
    return _compile(schema, jsonschema_rs.Draft202012Validator, formats=True)


def compile_declared(schema: Mapping[str, Any]) -> Validator:
    """Compile a server's own ``inputSchema``, in the dialect it declares (default 2020-12, as MCP says).

    ``format`` is an annotation there, as the specification has it. Raises :class:`SchemaFault`.

    """
    try:
        kind = jsonschema_rs.validator_cls_for(dict(schema))
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise SchemaFault(_first_line(str(error))) from None
    return _compile(schema, kind, formats=False)


def _compile(schema: Mapping[str, Any] | bool, kind: type[jsonschema_rs.Validator], formats: bool) -> Validator:
    try:
        built = kind(
            schema if isinstance(schema, bool) else dict(schema),
            pattern_options=jsonschema_rs.RegexOptions(),
            validate_formats=formats,
            ignore_unknown_formats=not formats,
            offline=True,
        )
    except jsonschema_rs.ValidationError as error:
        raise SchemaFault(_first_line(error.message), pointer(error.instance_path)) from None
    except (ValueError, TypeError, RecursionError, jsonschema_rs.ReferencingError) as error:
        raise SchemaFault(_first_line(str(error))) from None
    return Validator(built)


def pointer(path: list[str | int]) -> str:
    """A JSON pointer (RFC 6901); the whole document is the empty string."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def expected(error: jsonschema_rs.ValidationError) -> str:
    """What the schema wants at the place of an error; never what was sent."""
    name, value = error.kind.name, error.kind.value
    text = _TEXTS.get(name)
    if text is None:
        return f"a value that satisfies `{name}` of the schema at #{pointer(error.schema_path)}"
    return clip(text.format(value=_show(value)))


_TEXTS: Mapping[str, str] = {
    "type": "type {value}",
    "enum": "one of {value}",
    "const": "exactly {value}",
    "pattern": "text that matches {value}",
    "format": "format {value}",
    "required": "the property {value}, which is missing",
    "additionalProperties": "no property {value}",
    "unevaluatedProperties": "no property {value}",
    "falseSchema": "nothing at this place",
    "minimum": "at least {value}",
    "maximum": "at most {value}",
    "exclusiveMinimum": "more than {value}",
    "exclusiveMaximum": "less than {value}",
    "multipleOf": "a multiple of {value}",
    "minLength": "at least {value} characters",
    "maxLength": "at most {value} characters",
    "minItems": "at least {value} items",
    "maxItems": "at most {value} items",
    "minProperties": "at least {value} properties",
    "maxProperties": "at most {value} properties",
    "uniqueItems": "items that are all different",
    "contains": "an item as `contains` describes it",
}


def _show(value: Any) -> str:
    if isinstance(value, list):
        items = cast(list[Any], value)
        shown = ", ".join(clip(_show(item), 60) for item in items[:12])
        return f"{shown}, … ({len(items)} in all)" if len(items) > 12 else shown
    return json.dumps(value, ensure_ascii=False, default=str)


def clip(text: str, limit: int = _LIMIT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _first_line(text: str) -> str:
    return clip(text.split("\n", 1)[0])
