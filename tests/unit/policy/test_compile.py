"""What a set of policies compiles to: every problem named, settings merged to the stricter, caches bounded."""

from __future__ import annotations

from typing import Any

import pytest

from support.policies import allow, call, compiled, deny, policy
from toolpolicy.policy.compile import CACHED_NAMES, compile_policies
from toolpolicy.policy.decide import evaluate
from toolpolicy.policy.errors import PolicyError
from toolpolicy.policy.types import Code


def test_every_problem_is_named_in_one_error() -> None:
    broken = policy(
        allow("a", when="args.x =="),
        allow("b", validations=[{"expression": "nope"}, {"schema": {"type": "nonsense"}}]),
        allow("c", rateLimit={"max": 1.0, "window": 1, "cost": "'a'"}),
    )
    with pytest.raises(PolicyError) as caught:
        compile_policies([broken, policy(allow(when="tool.nam == 1"), name="q")])
    where = [(problem.file, problem.path) for problem in caught.value.problems]
    assert where == [
        ("agents/p:r1", "when"),
        ("agents/p:r2", "validations[0]"),
        ("agents/p:r2", "validations[1].schema"),
        ("agents/p:r3", "rateLimit.cost"),
        ("agents/q:r1", "when"),
    ]


def test_duplicates() -> None:
    twice = policy(allow("a"))
    assert len(compile_policies([twice, twice]).policies) == 1
    with pytest.raises(PolicyError, match="two different policies have this name"):
        compile_policies([twice, policy(allow("b"))])
    with pytest.raises(PolicyError, match="2 rules are named `same`"):
        compile_policies([policy(allow("a", name="same"), deny("b", name="same"))])


def test_the_same_name_in_the_other_tier_is_another_policy() -> None:
    assert len(compiled(policy(), policy(cluster=True)).policies) == 2


def test_what_a_set_knows_of_itself() -> None:
    assert compiled().empty
    assert not compiled(policy(mode="Audit")).empty
    assert compiled(policy(mode="Audit")).enforced == ()
    assert compiled(policy(allow(when="args.x == 1"))).needs_args
    assert not compiled(policy(allow(when='tool.name == "args"'))).needs_args
    assert compiled(policy(allow(when="now.getHours() == 1"))).reads_now


UNSTATED: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("stated", "state", "audit"),
    [
        ([], "Allow", "Continue"),
        ([{"mode": "Audit", "onStateFailure": "Deny"}], "Allow", "Continue"),
        ([UNSTATED], "Deny", "Deny"),
        ([{"onStateFailure": "Local", "onAuditFailure": "Continue"}], "Local", "Continue"),
        ([{"onStateFailure": "Allow"}, {"onStateFailure": "Local", "onAuditFailure": "Continue"}], "Local", "Deny"),
        ([{"onStateFailure": "Allow"}, UNSTATED], "Deny", "Deny"),
    ],
)
def test_on_failure_the_stricter_wins(stated: list[dict[str, Any]], state: str, audit: str) -> None:
    merged = compiled(*(policy(name=f"p{index}", **spec) for index, spec in enumerate(stated)))
    assert (merged.on_state_failure, merged.on_audit_failure) == (state, audit)


def test_paths_are_the_union_and_unjudged_ones_only_of_what_is_enforced() -> None:
    a = policy(name="a", server={"path": "/a", "passThrough": [{"path": "/x", "methods": ["GET"]}]})
    b = policy(name="b", server={"path": "/b", "passThrough": [{"path": "/x", "methods": ["POST"]}]})
    audited = policy(name="c", mode="Audit", server={"path": "/c", "passThrough": [{"path": "/y"}]})
    merged = compiled(a, b, audited)
    assert merged.paths == ("/a", "/b", "/c")
    assert [(entry.path, entry.methods) for entry in merged.pass_through] == [("/x", ("GET", "POST"))]
    assert compiled().paths == ("/mcp",)


def test_arguments_are_recorded_only_where_nobody_objects() -> None:
    full, digest = {"arguments": "Full", "redact": ["/b"]}, {"arguments": "Digest"}
    assert compiled(policy(audit=full), policy(name="q")).audit.arguments == "Full"
    assert compiled(policy(audit=full), policy(name="q", audit=digest)).audit.arguments == "Digest"
    two = compiled(policy(audit=full), policy(name="q", audit={"arguments": "Full", "redact": ["/a"]}))
    assert two.audit.redact == ("/a", "/b")
    assert compiled().audit.arguments == "Digest"


def issuer(name: str, *audiences: str, jwks: str = "/keys") -> dict[str, Any]:
    return {"issuer": f"https://{name}", "audiences": audiences, "jwks": jwks}


def jwts(*policies: Any) -> list[tuple[str, tuple[str, ...]]]:
    identity = compiled(*policies).identity
    assert identity is not None
    return [(entry.issuer, entry.audiences) for entry in identity.jwt]


def test_within_a_tier_issuers_are_joined_and_their_audiences_shared() -> None:
    a = policy(name="a", identity={"jwt": [issuer("one", "x", "y")]})
    b = policy(name="b", identity={"jwt": [issuer("one", "y", "z"), issuer("two", "x")]})
    assert jwts(a, b) == [("https://one", ("y",)), ("https://two", ("x",))]
    other_keys = policy(name="c", identity={"jwt": [issuer("one", "y", jwks="/other")]})
    assert jwts(a, other_keys) == []


def test_an_issuer_whose_entries_disagree_on_its_prefix_verifies_nothing() -> None:
    plain = policy(name="a", identity={"jwt": [issuer("one", "x")]})
    prefixed = policy(name="b", identity={"jwt": [{**issuer("one", "x"), "principalPrefix": "one#"}]})
    assert jwts(plain, prefixed) == []
    assert jwts(prefixed) == [("https://one", ("x",))]


def test_a_namespace_adds_no_issuer_to_the_platforms() -> None:
    platform = policy(cluster=True, identity={"jwt": [issuer("platform", "x")]})
    tenant = policy(
        identity={
            "jwt": [issuer("tenant", "x")],
            "session": {"header": "X-Session"},
            "trustedProxies": ["10.0.0.0/8"],
        }
    )
    merged = compiled(platform, tenant)
    assert merged.identity is not None
    assert [entry.issuer for entry in merged.identity.jwt] == ["https://platform"]
    assert merged.session_source is not None
    assert merged.session_source.header == "X-Session"
    assert compiled(policy(mode="Audit", identity={"jwt": [issuer("one", "x")]})).identity is None


def test_contradictory_sources_and_proxies_come_to_the_stricter() -> None:
    a = policy(name="a", identity={"session": {"header": "A"}, "trustedProxies": ["10.0.0.0/8", "192.168.0.0/16"]})
    b = policy(name="b", identity={"session": {"header": "B"}, "trustedProxies": ["10.0.0.0/8"]})
    merged = compiled(a, b)
    assert merged.session_source is None
    assert merged.identity is not None
    assert merged.identity.trusted_proxies == ("10.0.0.0/8",)


def test_names_from_callers_do_not_grow_the_caches() -> None:
    set_ = compiled(policy(allow("get_*"), allow("x")))
    for index in range(CACHED_NAMES + 500):
        asked = call(f"get_{index}") if index % 2 else call(method=f"m/{index}")
        evaluate(set_, asked, None)
    caches = [getattr(set_, name) for name in ("_names", "_methods")]
    assert all(0 < len(cache) <= CACHED_NAMES for cache in caches)
    assert evaluate(set_, call("get_0"), None).code == Code.ALLOWED
