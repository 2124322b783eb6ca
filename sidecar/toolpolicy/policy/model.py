"""The policy language: what a ToolPolicy or ClusterToolPolicy manifest may say.

These pydantic models are the single source of the CRDs, of the JSON Schema for editors and of the reference in
``docs/``; a field's docstring is its meaning there. Python names are snake_case, manifest names camelCase;
:class:`Model` joins them in one place. All models are frozen and refuse unknown fields. What one field alone can't say
(a limit on a Deny rule, a selector that contradicts itself) is in ``semantics.py``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, Strict, model_serializer
from pydantic.alias_generators import to_camel

from toolpolicy.policy import fields as f

API_VERSION = "toolpolicy.dev/v1alpha1"


class Model(BaseModel):
    """Dumps (``by_alias``) as the manifest it came from: nothing is added, durations and numbers are spelt as there.

    Whether a field was stated or has its default is kept: settings of several policies are merged by what they state.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",
    )

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        for name, info in type(self).model_fields.items():
            if name not in self.model_fields_set or getattr(self, name) is None:
                dumped.pop(name, None)
                dumped.pop(info.alias or name, None)
        return dumped


class Category(StrEnum):
    """What a tool does to the world."""

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
    """One condition on a label, as in every Kubernetes selector."""

    key: f.LabelKey
    """The label's key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """`In` and `NotIn` compare with `values`; `Exists` and `DoesNotExist` take none."""
    values: Annotated[tuple[f.LabelValue, ...], Field(max_length=64)] = ()
    """At least one with `In` and `NotIn`, else none."""


class LabelSelector(Model):
    """Which objects are meant, by their labels. All conditions must hold; `{}` selects every object."""

    match_labels: Annotated[dict[f.LabelKey, f.LabelValue], Field(max_length=32)] = Field(
        default_factory=dict[str, str]
    )
    """Labels that must be there with exactly this value."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=32)] = ()
    """Further conditions."""


HttpMethod = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class PassThrough(Model):
    """A path of the server that is not MCP and is forwarded without judgement (and audited)."""

    path: f.UrlPath
    """Exactly this path. The MCP path and anything that a server could take for it is refused."""
    methods: Annotated[
        tuple[Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"], ...],
        Field(min_length=1, max_length=7),
    ] = ("GET", "HEAD")
    """HTTP methods that may pass."""


class Server(Model):
    """Where the MCP server listens in the pod."""

    port: f.Port | None = None
    """Number or name of the container's port. Without it: the port named `mcp`, else the only one."""
    path: f.UrlPath = "/mcp"
    """Path of the MCP endpoint, exactly."""
    name: f.ObjectName | None = None
    """Name of the server in limits `per: Server` and in expressions. Without it: the owning workload."""
    pass_through: Annotated[tuple[PassThrough, ...], Field(max_length=32)] = ()
    """Other paths that are forwarded unjudged. All else is answered with 404."""


class PrincipalMatch(Model):
    """Who is calling. All lists that are given must name the caller."""

    ids: Annotated[tuple[f.PrincipalId, ...], Field(min_length=1, max_length=256)] = ()
    """Ids of principals, exactly."""
    groups: Annotated[tuple[f.PrincipalId, ...], Field(min_length=1, max_length=256)] = ()
    """Groups of a verified principal."""
    service_accounts: Annotated[tuple[f.ServiceAccount, ...], Field(min_length=1, max_length=256)] = ()
    """Verified Kubernetes ServiceAccounts as `namespace/name`."""


class Match(Model):
    """Which calls a rule is about. All given fields must match, of a list one item; `{}` is every judged call."""

    tools: Annotated[tuple[f.ToolName, ...], Field(min_length=1, max_length=256)] = ()
    """Names of tools, or globs: `*` stands for any text, all else for itself, from the first letter to the last."""
    categories: Annotated[tuple[Category, ...], Field(min_length=1, max_length=5)] = ()
    """Categories of the tool (`spec.categories`, else derived from its name and annotations)."""
    risks: Annotated[tuple[Risk, ...], Field(min_length=1, max_length=4)] = ()
    """Risks of the tool."""
    methods: Annotated[tuple[f.Method, ...], Field(min_length=1, max_length=64)] = ()
    """MCP methods, for what is not a tool call: `resources/read`, `prompts/get`, …"""
    principals: PrincipalMatch | None = None
    """Who is calling."""


class Approval(Model):
    """How long a human's approval of one call stands."""

    ttl: f.Ttl = 600.0
    """From the approval on; at most 168h."""


class RateLimit(Model):
    """At most `max` in any window of that length, counted in a bucket for each value of `per`."""

    max: f.Amount
    """Calls (a whole number, at most 10000), or with `cost` the sum of the costs."""
    window: f.Window
    """Length of the sliding window; at most 744h."""
    per: Per = Per.SESSION
    """What has a bucket of its own: the session, the principal, the tool, or the server (all its pods together)."""
    principal_max: f.Amount | None = None
    """Only with `per: Session`: what all sessions of a principal may use together. Default: 10 times `max`."""
    cost: f.Expression | None = None
    """CEL, a number: what this call costs. Makes the limit a sum, e.g. `double(args.amount)` for a spend limit."""


class Validation(Model):
    """A condition that a call must meet. Exactly one of `expression` and `schema`."""

    expression: f.Expression | None = None
    """CEL, a bool: only `true` passes, an error denies."""
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    """JSON Schema (2020-12) of the arguments. References stay inside it; patterns are RE2's."""
    message: f.Sentence | None = None
    """What the agent is told when the condition fails: say what would be accepted."""


class Rule(Model):
    """One statement about some calls. The order of rules never matters."""

    name: f.RuleName
    """Unique in the policy; named in denials, metrics and the audit log."""
    match: Match = Match()
    """Which calls the rule is about."""
    when: f.Expression | None = None
    """CEL, a bool: the rule applies only where it is `true`. An error denies the call."""
    action: Action
    """What the rule says of a matching call. One `Deny` outweighs every `Allow`."""
    reason: f.Sentence | None = None
    """What the agent (or the approver) is told."""
    hide: f.Flag = False
    """Also leave the tool out of `tools/list`. Only with `Deny`."""
    mode: Mode = Mode.ENFORCE
    """`Audit`: the rule keeps what it grants; its denial, approval, validations and limit are only recorded."""
    approval: Approval | None = None
    """Only with `RequireApproval`."""
    rate_limit: RateLimit | None = None
    """Not with `Deny`."""
    validations: Annotated[tuple[Validation, ...], Field(max_length=32)] = ()
    """All of them must hold. Not with `Deny`."""
    arguments: Literal["Any", "Declared"] = "Any"
    """`Declared`: the arguments must also satisfy the server's own `inputSchema`. Not with `Deny`."""


class Jwt(Model):
    """An issuer whose tokens prove who is calling."""

    issuer: f.Location
    """Exactly the token's `iss`."""
    audiences: Annotated[tuple[f.PrincipalId, ...], Field(min_length=1, max_length=16)]
    """The token's `aud` must be one of these."""
    jwks: f.Location
    """The issuer's keys: a file's path or an https URL (http only on loopback)."""
    groups_claim: f.ClaimName = "groups"
    """The claim that holds the principal's groups."""
    principal_prefix: f.PrincipalPrefix = ""
    """Put before `sub` and groups to make the principal's id and groups, such as `https://idp.example#`. Issuers that
    are trusted together need different ones, or either could name the other's principals. ServiceAccounts are
    recognised in tokens of the one issuer without a prefix."""


class SessionSource(Model):
    """Where the session's id is found when the protocol has none (2026-07-28). Exactly one of the two."""

    header: f.HeaderName | None = None
    """An HTTP header."""
    meta_key: f.MetaKey | None = None
    """A key of the request's `_meta`."""


class IdentityConfig(Model):
    """How callers are identified. Without it a caller is known by its address and a digest of its Authorization."""

    jwt: Annotated[tuple[Jwt, ...], Field(max_length=8)] = ()
    """Trusted issuers of tokens."""
    client_ca: f.Pem | None = Field(default=None, alias="clientCA")
    """PEM certificates that sign client certificates."""
    session: SessionSource | None = None
    """Where to find a session id."""
    trusted_proxies: Annotated[tuple[f.Cidr, ...], Field(max_length=64)] = ()
    """Networks (CIDR) whose `X-Forwarded-For` is believed."""


class AuditConfig(Model):
    """What a record of the audit log holds."""

    arguments: Literal["Digest", "Full"] = "Digest"
    """`Digest` records a digest of the arguments, `Full` the arguments."""
    redact: Annotated[tuple[f.JsonPointer, ...], Field(max_length=64)] = ()
    """JSON pointers (RFC 6901) into the arguments; only with `Full`."""


class Spec(Model):
    """The policy."""

    selector: LabelSelector
    """The pods of the namespace that the policy protects; `{}` selects them all."""
    server: Server = Server()
    """Where the MCP server listens."""
    mode: Mode = Mode.ENFORCE
    """`Audit`: the policy changes no outcome; what it would deny is recorded."""
    default_action: Literal[Action.DENY, Action.ALLOW] = Action.DENY
    """What becomes of a call that no rule matches."""
    rules: Annotated[tuple[Rule, ...], Field(max_length=f.MAX_RULES)] = ()
    """The rules."""
    categories: Annotated[dict[f.ToolName, Category], Field(max_length=512)] = Field(
        default_factory=dict[str, Category]
    )
    """Categories of tools by exact name, for the rules of this policy alone."""
    identity: IdentityConfig | None = None
    """How callers are identified."""
    audit: AuditConfig = AuditConfig()
    """What is recorded."""
    on_state_failure: Literal["Deny", "Local", "Allow"] = "Deny"
    """When the shared store of limits does not answer: deny, count in this pod alone, or forward uncounted."""
    on_audit_failure: Literal["Deny", "Continue"] = "Deny"
    """When a decision can't be written to the audit log: deny, or go on without."""
    interception: Literal["Auto", "Redirect", "Port"] = "Auto"
    """How calls come to the sidecar of a pod: packets are redirected in the kernel, or it takes over the named port.

    `Auto`: `Redirect`, unless the namespace enforces the baseline or restricted Pod Security Standard.
    """
    ineligible: Literal["Refuse", "Warn"] = "Refuse"
    """A selected pod that can't be protected is refused, or admitted without protection and reported."""
    rollout: Literal["Manual", "Restart"] = "Manual"
    """Pods that run without the sidecar: they are reported, or evicted once a generation, at a limited rate."""


class ClusterSpec(Spec):
    """The policy."""

    selector: LabelSelector
    """The pods, in the selected namespaces, that the policy protects; `{}` selects them all."""
    namespace_selector: LabelSelector = LabelSelector()
    """The namespaces; `{}` selects them all."""
    opt_out: Literal["Allowed", "Forbidden"] = "Allowed"
    """Whether pods may opt out, in namespaces that are labelled `toolpolicy.dev/opt-out: allowed`."""


class Metadata(Model):
    """What of ObjectMeta a decision needs; everything else that Kubernetes puts there is ignored."""

    model_config = ConfigDict(extra="ignore")

    name: f.ObjectName
    """The policy's name."""
    namespace: f.NamespaceName | None = None
    """The namespace (ToolPolicy only)."""
    uid: Annotated[str, Field(max_length=128)] | None = None
    """Given by Kubernetes."""
    generation: Annotated[int, Strict()] | None = None
    """Given by Kubernetes."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the policy itself."""


class ToolPolicy(Model):
    """A policy between AI agents and the tools of the MCP servers that it selects in its namespace."""

    api_version: Literal["toolpolicy.dev/v1alpha1"]
    kind: Literal["ToolPolicy"]
    metadata: Metadata
    spec: Spec


class ClusterToolPolicy(Model):
    """The platform's baseline: a ToolPolicy for many namespaces, which a namespace can tighten and never open."""

    api_version: Literal["toolpolicy.dev/v1alpha1"]
    kind: Literal["ClusterToolPolicy"]
    metadata: Metadata
    spec: ClusterSpec


Policy = ToolPolicy | ClusterToolPolicy
