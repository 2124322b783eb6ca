"""The policy language: what a ToolPolicy or ClusterToolPolicy manifest may say.

These pydantic models are the single source of the CRDs, of the JSON Schema for editors and of the reference in ``docs/``.
Python names are snake_case, manifest names camelCase; :class:`Model` joins them in one place. All models are frozen and
refuse unknown fields.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

API_VERSION = "toolpolicy.dev/v1alpha1"


class Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Category(StrEnum):
    READ = "Read"
    WRITE = "Write"
    EXECUTE = "Execute"
    DESTRUCTIVE = "Destructive"
    FINANCIAL = "Financial"


class Risk(StrEnum):
    LOW = "Low"
    MEDIUM = "Medium"
    HIGH = "High"
    CRITICAL = "Critical"


class Mode(StrEnum):
    ENFORCE = "Enforce"
    AUDIT = "Audit"


class Action(StrEnum):
    ALLOW = "Allow"
    DENY = "Deny"
    REQUIRE_APPROVAL = "RequireApproval"


class Per(StrEnum):
    SESSION = "Session"
    PRINCIPAL = "Principal"
    TOOL = "Tool"
    SERVER = "Server"


class LabelRequirement(Model):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(Model):
    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: tuple[LabelRequirement, ...] = ()


class PassThrough(Model):
    path: str
    methods: tuple[str, ...] = ("GET", "HEAD")


class Server(Model):
    port: int | str | None = None
    path: str = "/mcp"
    name: str | None = None
    pass_through: tuple[PassThrough, ...] = ()


class PrincipalMatch(Model):
    ids: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()


class Match(Model):
    tools: tuple[str, ...] = ()
    categories: tuple[Category, ...] = ()
    risks: tuple[Risk, ...] = ()
    methods: tuple[str, ...] = ()
    principals: PrincipalMatch | None = None


class Approval(Model):
    ttl: float = 600.0
    """Seconds."""


class RateLimit(Model):
    max: float
    """Calls in any window (an integer, at most 10,000); with ``cost`` the sum of the costs."""
    window: float
    """Seconds."""
    per: Per = Per.SESSION
    principal_max: float | None = None
    """Only with ``per: Session``; default ten times ``max``."""
    cost: str | None = None
    """CEL, a number."""


class Validation(Model):
    """Exactly one of ``expression`` (CEL, a bool) and ``schema`` (JSON Schema 2020-12 of the arguments)."""

    expression: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    message: str | None = None


class Rule(Model):
    name: str
    match: Match = Match()
    when: str | None = None
    action: Action
    reason: str | None = None
    hide: bool = False
    mode: Mode = Mode.ENFORCE
    approval: Approval | None = None
    rate_limit: RateLimit | None = None
    validations: tuple[Validation, ...] = ()
    arguments: Literal["Any", "Declared"] = "Any"


class Jwt(Model):
    issuer: str
    audiences: tuple[str, ...]
    jwks: str
    """A file path or an https URL (http only on loopback)."""
    groups_claim: str = "groups"


class SessionSource(Model):
    header: str | None = None
    meta_key: str | None = None


class IdentityConfig(Model):
    jwt: tuple[Jwt, ...] = ()
    client_ca: str | None = Field(default=None, alias="clientCA")
    """PEM."""
    session: SessionSource | None = None
    trusted_proxies: tuple[str, ...] = ()
    """CIDRs."""


class AuditConfig(Model):
    arguments: Literal["Digest", "Full"] = "Digest"
    redact: tuple[str, ...] = ()
    """JSON pointers (RFC 6901) into the arguments; only with ``Full``."""


class Spec(Model):
    selector: LabelSelector
    server: Server = Server()
    mode: Mode = Mode.ENFORCE
    default_action: Literal[Action.DENY, Action.ALLOW] = Action.DENY
    rules: tuple[Rule, ...] = ()
    categories: dict[str, Category] = Field(default_factory=dict)
    identity: IdentityConfig | None = None
    audit: AuditConfig = AuditConfig()
    on_state_failure: Literal["Deny", "Local", "Allow"] = "Deny"
    on_audit_failure: Literal["Deny", "Continue"] = "Deny"


class ClusterSpec(Spec):
    namespace_selector: LabelSelector = LabelSelector()


class Metadata(BaseModel):
    """What of ObjectMeta a decision needs; everything else that Kubernetes puts there is ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)
    name: str
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class ToolPolicy(Model):
    api_version: Literal["toolpolicy.dev/v1alpha1"]
    kind: Literal["ToolPolicy"]
    metadata: Metadata
    spec: Spec


class ClusterToolPolicy(Model):
    api_version: Literal["toolpolicy.dev/v1alpha1"]
    kind: Literal["ClusterToolPolicy"]
    metadata: Metadata
    spec: ClusterSpec


Policy = ToolPolicy | ClusterToolPolicy
