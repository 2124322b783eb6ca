"""A sidecar's report, read strictly: it comes from a pod that may be hostile.

Known fields are checked to the letter and bounded. Fields that are not known here come from a newer sidecar and are
passed over: whatever counts against a pod being current stands in ``problems``, which every version reads. (A rule is
the opposite case: an unknown field there may be a restriction, and is refused.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

MAX_BYTES = 256 * 1024
"""Of a report's body."""
_SHOWN = 8

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Uid = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$")]
Word = Annotated[str, Field(max_length=128)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Model(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, str_max_length=4096
    )


class PodReference(_Model):
    """The pod that reports; its token must name the same."""

    namespace: Name
    name: Name
    uid: Uid


class LoadedPolicy(_Model):
    """A policy in force in the sidecar. ``namespace`` is None for a ClusterToolPolicy."""

    kind: Literal["ToolPolicy", "ClusterToolPolicy"]
    namespace: Name | None = None
    name: Name
    uid: Uid | None = None
    generation: Count | None = None


class Tool(_Model):
    """A tool that the MCP server listed, as the sidecar classifies it."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    category: Word
    risk: Word


class Listener(_Model):
    """A socket of the pod that listens where the sidecar does not see."""

    address: Annotated[str, Field(max_length=64)]
    port: Annotated[int, Field(ge=0, le=65535)]


class AuditHead(_Model):
    """The last record of the sidecar's audit log (``sequence:mac``), kept where the pod can't change it."""

    head: Word = ""
    chain: Word = ""


class Report(_Model):
    """What a sidecar says of itself."""

    pod: PodReference
    version: Word
    revision: Word | None = None
    epoch: Count = 0
    policies: Annotated[tuple[LoadedPolicy, ...], Field(max_length=1000)] = ()
    problems: Annotated[tuple[Annotated[str, Field(max_length=2000)], ...], Field(max_length=50)] = ()
    """Why the newest set of rules is not in force; empty if it is."""
    tools: Annotated[tuple[Tool, ...], Field(max_length=2000)] = ()
    listeners: Annotated[tuple[Listener, ...], Field(max_length=64)] = ()
    interception: Word = ""
    state: Word = "memory"
    """Where limits are counted; ``memory`` is each pod for itself."""
    audit: AuditHead = AuditHead()


@dataclass(frozen=True, slots=True)
class ReportFault(ValueError):
    """A body that is no report; ``problems`` holds what is wrong, with the field's path."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.problems)


def parse_report(body: bytes) -> Report:
    """The report in a request's body. Raises :class:`ReportFault`."""
    if len(body) > MAX_BYTES:
        raise ReportFault((f"a report of {len(body)} bytes; at most {MAX_BYTES} are read",))
    try:
        # Strict, but for JSON: an array is a tuple there.
        return Report.model_validate_json(body)
    except ValidationError as error:
        found = [
            f"{'.'.join(map(str, e['loc'])) or 'the body'}: {e['msg']}"
            for e in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise ReportFault(tuple(printable(text, 200) for text in (*found[:_SHOWN], *more))) from None


def printable(text: str, limit: int) -> str:
    """Text of a pod for a log line or a status: one line, no control characters, cut off with an ellipsis."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else " " for c in cut)
