"""The scalar types of the manifest: their limits, their patterns, and how a wrong value is explained.

Every text has a longest length, and every pattern is one that RE2, the ``regex`` crate and ECMAScript read alike: the
API server, pydantic and editors check the same one.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, Strict, WithJsonSchema

from toolpolicy.policy.duration import MAX_LENGTH, PATTERN, format_duration, parse_duration

LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
PORT_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
URL_PATH = r"^/[A-Za-z0-9._~!$&'()*+,;=:@/-]*$"
METHOD = r"^[A-Za-z0-9_$*-]+([/.][A-Za-z0-9_$*-]+)*$"
SERVICE_ACCOUNT = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
META_KEY = (
    r"^([A-Za-z]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z]([A-Za-z0-9-]*[A-Za-z0-9])?)*/)?"
    r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
)
JSON_POINTER = r"^(/([^/~]|~[01])*)+$"

EXPECTED: dict[str, str] = {
    LABEL: "a name of lower-case letters, digits and '-', beginning and ending with a letter or digit",
    SUBDOMAIN: "lower-case letters, digits, '-' and '.', each part beginning and ending with a letter or digit",
    LABEL_KEY: "a label key: an optional DNS prefix with '/', then at most 63 letters, digits, '-', '_' and '.'",
    LABEL_VALUE: "a label value: at most 63 letters, digits, '-', '_' and '.', no punctuation at either end",
    URL_PATH: "a path that begins with '/', without query, fragment or percent-encoding",
    METHOD: "an MCP method like resources/read",
    SERVICE_ACCOUNT: "a ServiceAccount as namespace/name",
    HEADER: "the name of an HTTP header",
    META_KEY: "a _meta key: an optional prefix like example.com/, then letters, digits, '-', '_' and '.'",
    JSON_POINTER: "a JSON pointer (RFC 6901) like /patient/name",
    PATTERN: "a duration like 60s, 10m, 1h30m or 250ms",
}
"""What a value that misses the pattern should have been."""

MAX_EXPRESSION = 1000
"""Code points of one CEL expression."""
MAX_CALLS = 10_000
"""Of a rate limit that counts calls."""
MAX_SUM = 1e15
"""Of a limit on costs: below it whole units are exact in a double."""
MAX_WINDOW = 31 * 24 * 3600
"""Seconds."""
MAX_TTL = 7 * 24 * 3600
"""Seconds."""
MAX_RULES = 500


def _duration_schema(longest: int) -> dict[str, Any]:
    return {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": longest},
            {"type": "string", "pattern": PATTERN, "maxLength": MAX_LENGTH, "allOf": [{"pattern": "[1-9]"}]},
        ],
        "x-kubernetes-int-or-string": True,
    }


def _positive(longest: float) -> Any:
    def check(value: Any) -> float:
        seconds = parse_duration(value)
        if not 0 < seconds <= longest:
            raise ValueError(f"expected a duration above 0, at most {format_duration(longest)}")
        return seconds

    return check


def _port(value: Any) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool):
        if 1 <= value <= 65535:
            return value
        raise ValueError("expected a port number from 1 to 65535")
    if isinstance(value, str):
        plain = value.replace("-", "")
        if (
            1 <= len(value) <= 15
            and plain.isascii()
            and plain.isalnum()
            and plain == plain.lower()
            and not plain.isdigit()
            and "--" not in value
            and not value.startswith("-")
            and not value.endswith("-")
        ):
            return value
        if value.isascii() and value.isdigit():
            raise ValueError("write the port number without quotes")
    raise ValueError("expected a port number, or a port's name (at most 15 of a-z, 0-9 and '-', with a letter)")


def _plain_number(value: float) -> int | float:
    return int(value) if value == int(value) else value


PORT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": 65535},
        {"type": "string", "pattern": PORT_NAME, "maxLength": 15},
    ],
    "x-kubernetes-int-or-string": True,
}

Window = Annotated[
    float,
    BeforeValidator(_positive(MAX_WINDOW)),
    PlainSerializer(format_duration),
    WithJsonSchema(_duration_schema(MAX_WINDOW)),
]
Ttl = Annotated[
    float,
    BeforeValidator(_positive(MAX_TTL)),
    PlainSerializer(format_duration),
    WithJsonSchema(_duration_schema(MAX_TTL)),
]
Port = Annotated[int | str, PlainValidator(_port), WithJsonSchema(PORT_SCHEMA)]
Amount = Annotated[float, Strict(), Field(gt=0, le=MAX_SUM, allow_inf_nan=False), PlainSerializer(_plain_number)]
Flag = Annotated[bool, Strict()]

LabelKey = Annotated[str, Field(pattern=LABEL_KEY, min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE, max_length=63)]
RuleName = Annotated[str, Field(pattern=LABEL, min_length=1, max_length=63)]
ObjectName = Annotated[str, Field(pattern=SUBDOMAIN, min_length=1, max_length=253)]
NamespaceName = Annotated[str, Field(pattern=LABEL, min_length=1, max_length=63)]
UrlPath = Annotated[str, Field(pattern=URL_PATH, min_length=1, max_length=256)]
ToolName = Annotated[str, Field(min_length=1, max_length=256)]
Method = Annotated[str, Field(pattern=METHOD, min_length=1, max_length=128)]
PrincipalId = Annotated[str, Field(min_length=1, max_length=512)]
ServiceAccount = Annotated[str, Field(pattern=SERVICE_ACCOUNT, min_length=3, max_length=317)]
Expression = Annotated[str, Field(min_length=1, max_length=MAX_EXPRESSION)]
Sentence = Annotated[str, Field(min_length=1, max_length=1024)]
"""Text for people and agents."""
HeaderName = Annotated[str, Field(pattern=HEADER, min_length=1, max_length=128)]
MetaKey = Annotated[str, Field(pattern=META_KEY, min_length=1, max_length=256)]
JsonPointer = Annotated[str, Field(pattern=JSON_POINTER, min_length=1, max_length=256)]
Cidr = Annotated[str, Field(min_length=1, max_length=64)]
PrincipalPrefix = Annotated[str, Field(max_length=256)]
ClaimName = Annotated[str, Field(min_length=1, max_length=128)]
Location = Annotated[str, Field(min_length=1, max_length=1024)]
Pem = Annotated[str, Field(min_length=1, max_length=32768)]
