"""What several policies' settings come to for one server.

Ports and paths are the union. Where policies contradict each other the stricter wins, and what the platform's tier
(ClusterToolPolicy) states about identity the namespace's tier can't change, or a tenant could make itself any
principal. A policy in Audit settles nothing, except that its path is served, and that arguments it wants recorded are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from toolpolicy.policy.model import (
    AuditConfig,
    ClusterToolPolicy,
    HttpMethod,
    IdentityConfig,
    Jwt,
    Mode,
    PassThrough,
    Policy,
    SessionSource,
)

T = TypeVar("T")
DEFAULT_PATH = "/mcp"


def _enforced(policies: Iterable[Policy]) -> list[Policy]:
    return [policy for policy in policies if policy.spec.mode is Mode.ENFORCE]


def paths(policies: Sequence[Policy]) -> tuple[str, ...]:
    """The MCP paths: of every policy, or the default where there is none."""
    return tuple(sorted({policy.spec.server.path for policy in policies})) or (DEFAULT_PATH,)


def pass_through(policies: Sequence[Policy]) -> tuple[PassThrough, ...]:
    """Unjudged paths of the enforced policies; methods of the same path are joined."""
    joined: dict[str, set[HttpMethod]] = {}
    for policy in _enforced(policies):
        for entry in policy.spec.server.pass_through:
            joined.setdefault(entry.path, set()).update(entry.methods)
    return tuple(PassThrough(path=path, methods=tuple(sorted(methods))) for path, methods in sorted(joined.items()))


def server_name(policies: Sequence[Policy]) -> str | None:
    """The name that stands for the workload in limits: the cluster tier's, else the first by alphabet."""
    return _first_tier(_enforced(policies), lambda policy: policy.spec.server.name, min)


def on_state_failure(policies: Sequence[Policy]) -> Literal["Deny", "Local", "Allow"]:
    """Deny before Local before Allow; Allow where nothing is enforced, because then nothing may be denied."""
    stated = {policy.spec.on_state_failure for policy in _enforced(policies)}
    return "Deny" if "Deny" in stated else "Local" if "Local" in stated else "Allow"


def on_audit_failure(policies: Sequence[Policy]) -> Literal["Deny", "Continue"]:
    """Deny before Continue; Continue where nothing is enforced, because then nothing may be denied."""
    return "Deny" if any(policy.spec.on_audit_failure == "Deny" for policy in _enforced(policies)) else "Continue"


def interception(policies: Sequence[Policy]) -> Literal["Auto", "Redirect", "Port"]:
    """Redirect before Port before Auto: what is stated outweighs the default, and Redirect leaves less open."""
    stated = {policy.spec.interception for policy in policies}
    return "Redirect" if "Redirect" in stated else "Port" if "Port" in stated else "Auto"


def ineligible(policies: Sequence[Policy]) -> Literal["Refuse", "Warn"]:
    """Refuse before Warn; Warn where nothing is enforced, because then nothing may be refused."""
    return "Refuse" if any(policy.spec.ineligible == "Refuse" for policy in _enforced(policies)) else "Warn"


def opt_out_allowed(policies: Sequence[Policy]) -> bool:
    """False if one enforced ClusterToolPolicy forbids it."""
    return not any(
        isinstance(policy, ClusterToolPolicy) and policy.spec.opt_out == "Forbidden" for policy in _enforced(policies)
    )


def audit(policies: Sequence[Policy]) -> AuditConfig:
    """Arguments are recorded in full only if a policy asks for it and none states ``Digest``; whatever any redacts is
    redacted.

    """
    stated = {policy.spec.audit.arguments for policy in policies if "arguments" in policy.spec.audit.model_fields_set}
    redact = tuple(sorted({pointer for policy in policies for pointer in policy.spec.audit.redact}))
    return AuditConfig(arguments="Full" if stated == {"Full"} else "Digest", redact=redact)


def identity(policies: Sequence[Policy]) -> IdentityConfig | None:
    """Field by field what the cluster tier states, else the namespace tier.

    Within a tier, several policies verify less, never more: an issuer keeps the audiences all its entries share, and
    entries that disagree on its keys verify nothing; two CAs, or two sources of the session, are none; proxies are
    those all trust.
    """
    configs = [(policy, policy.spec.identity) for policy in _enforced(policies) if policy.spec.identity is not None]
    if not configs:
        return None
    by_policy = {id(policy): config for policy, config in configs}
    members = [policy for policy, _ in configs]

    def tier(value: Callable[[IdentityConfig], T | None], merge: Callable[[Iterable[T]], T | None]) -> T | None:
        return _first_tier(members, lambda policy: value(by_policy[id(policy)]), merge)

    return IdentityConfig(
        jwt=tier(lambda c: c.jwt or None, _jwt) or (),
        clientCA=tier(lambda c: c.client_ca, _only),
        session=tier(_session, _only),
        trusted_proxies=tier(lambda c: c.trusted_proxies or None, _shared) or (),
    )


def _session(config: IdentityConfig) -> SessionSource | None:
    return config.session


def _first_tier(
    policies: Sequence[Policy], value: Callable[[Policy], T | None], merge: Callable[[Iterable[T]], T | None]
) -> T | None:
    for cluster in (True, False):
        stated = [
            v
            for policy in policies
            if isinstance(policy, ClusterToolPolicy) is cluster and (v := value(policy)) is not None
        ]
        if stated:
            return merge(stated)
    return None


def _only(values: Iterable[T]) -> T | None:
    first, *others = values
    return first if all(other == first for other in others) else None


def _shared(values: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted(frozenset[str].intersection(*map(frozenset, values))))


def _verification(entry: Jwt) -> tuple[str, str, str]:
    return entry.jwks, entry.groups_claim, entry.principal_prefix


def _jwt(values: Iterable[tuple[Jwt, ...]]) -> tuple[Jwt, ...]:
    by_issuer: dict[str, list[Jwt]] = {}
    for entries in values:
        for entry in entries:
            by_issuer.setdefault(entry.issuer, []).append(entry)
    merged: list[Jwt] = []
    for _, entries in sorted(by_issuer.items()):
        first = entries[0]
        audiences = frozenset[str].intersection(*(frozenset(entry.audiences) for entry in entries))
        agreed = all(_verification(entry) == _verification(first) for entry in entries)
        if audiences and agreed:
            merged.append(first.model_copy(update={"audiences": tuple(sorted(audiences))}))
    return tuple(merged)
