"""Who is calling: real tokens, real certificates, and headers as hostile as they come."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from joserfc import jwk, jws
from joserfc.jwk import Key

from toolpolicy.policy.model import IdentityConfig, Jwt
from toolpolicy.sidecar.identity import RequestIdentifier
from toolpolicy.sidecar.identity.addresses import TrustedProxies
from toolpolicy.sidecar.interfaces import Identity, IdentityRefused, Peer
from toolpolicy.sidecar.settings import Settings

ISSUER = "https://issuer.example"
AUDIENCE = "toolpolicy"
PEER = Peer("203.0.113.7")
DEADLINE = 10.0


def new_key(kind: str = "EC", kid: str = "k1") -> Key:
    size: Any = {"RSA": 2048, "EC": "P-256", "OKP": "Ed25519"}[kind]
    generate = cast("Callable[..., Key]", jwk.generate_key)
    return generate(kind, size, {"kid": kid})


EC_KEY = new_key()
RSA_KEY = new_key("RSA", "r1")
OKP_KEY = new_key("OKP", "o1")


def key_set(*keys: Key) -> str:
    return json.dumps({"keys": [k.as_dict(private=False) for k in keys]})


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    values = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "iat": now, **changes}
    return {k: v for k, v in values.items() if v is not None}


def token(payload: dict[str, Any] | None = None, key: Key = EC_KEY, alg: str = "ES256", **header: Any) -> str:
    head = {"alg": alg, "kid": key.kid, **header}
    head = {k: v for k, v in head.items() if v is not None}
    registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
    return jws.serialize_compact(head, json.dumps(payload or claims()), key, [alg], registry)


def bearer(text: str) -> list[tuple[bytes, bytes]]:
    return [(b"Host", b"x"), (b"Authorization", b"Bearer " + text.encode())]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(key_set(EC_KEY, RSA_KEY, OKP_KEY))
    return path


def config(jwks: str | Path, **changes: Any) -> IdentityConfig:
    values: dict[str, Any] = {"issuer": ISSUER, "audiences": (AUDIENCE,), "jwks": str(jwks), **changes}
    return IdentityConfig(jwt=(Jwt(**values),))


async def identify(
    identifier: RequestIdentifier, headers: list[tuple[bytes, bytes]], peer: Peer = PEER
) -> Identity | IdentityRefused:
    async with asyncio.timeout(DEADLINE):
        found = identifier.identify(peer, headers)
        return await found if isinstance(found, Awaitable) else found


@asynccontextmanager
async def identifier_for(
    identity: IdentityConfig | None, settings: Settings | None = None
) -> AsyncGenerator[RequestIdentifier]:
    identifier = RequestIdentifier(identity, b"key", settings)
    await identifier.start()
    try:
        yield identifier
    finally:
        await identifier.close()


async def one(identity: IdentityConfig | None, headers: list[tuple[bytes, bytes]]) -> Identity | IdentityRefused:
    async with identifier_for(identity) as identifier:
        return await identify(identifier, headers)


# Claimed


@pytest.mark.asyncio
async def test_without_credentials_the_address_is_the_caller() -> None:
    found = await one(None, [(b"Host", b"x")])
    assert isinstance(found, Identity)
    assert (found.principal.id, found.principal.kind, found.principal.verified) == (
        "addr:203.0.113.7",
        "Address",
        False,
    )
    assert found.identities == ("addr:203.0.113.7",)


@pytest.mark.asyncio
async def test_an_opaque_credential_is_a_keyed_hash_and_never_replaces_the_address() -> None:
    found = await one(None, bearer("secret-token"))
    other = await one(None, bearer("other-token"))
    elsewhere = RequestIdentifier(None, b"another key").identify(PEER, bearer("secret-token"))
    assert isinstance(found, Identity)
    assert isinstance(other, Identity)
    assert isinstance(elsewhere, Identity)
    assert found.principal.kind == "Credential"
    assert not found.principal.verified
    assert found.identities == (found.principal.id, "addr:203.0.113.7")
    assert len({found.principal.id, other.principal.id, elsewhere.principal.id}) == 3
    assert "secret" not in repr(found)


@pytest.mark.asyncio
async def test_a_token_of_an_unknown_issuer_is_only_claimed(keys: Path) -> None:
    found = await one(config(keys), bearer(token(claims(iss="https://elsewhere.example"))))
    assert isinstance(found, Identity)
    assert found.principal.kind == "Credential"


@pytest.mark.parametrize("names", [(b"Authorization", b"authorization"), (b"AUTHORIZATION", b"Authorization")])
@pytest.mark.asyncio
async def test_two_authorizations_are_refused(names: tuple[bytes, bytes]) -> None:
    found = await one(None, [(n, b"Bearer x") for n in names])
    assert isinstance(found, IdentityRefused)
    assert found.status == 400


# Tokens


@pytest.mark.parametrize(
    ("key", "alg"),
    [(EC_KEY, "ES256"), (RSA_KEY, "RS256"), (RSA_KEY, "PS512"), (OKP_KEY, "Ed25519"), (OKP_KEY, "EdDSA")],
)
@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
@pytest.mark.asyncio
async def test_a_valid_token_names_its_subject(keys: Path, key: Key, alg: str) -> None:
    found = await one(config(keys), bearer(token(claims(groups=["a", 1, "b"], team="x"), key, alg)))
    assert isinstance(found, Identity), found
    principal = found.principal
    assert (principal.id, principal.kind, principal.verified, principal.groups) == ("alice", "JWT", True, ("a", "b"))
    assert principal.claims["team"] == "x"
    assert found.identities == ("alice",)


@pytest.mark.asyncio
async def test_header_parameters_that_are_not_known_do_not_matter(keys: Path) -> None:
    assert isinstance(await one(config(keys), bearer(token(nonce="x", typ="at+jwt"))), Identity)
    assert isinstance(await one(config(keys), bearer(token(kid=None))), Identity)
    lower = [(b"authorization", b"bearer " + token().encode())]
    assert isinstance(await one(config(keys), lower), Identity)


def _unsigned(header: dict[str, Any], payload: dict[str, Any], signature: str = "") -> str:
    parts = (base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in (header, payload))
    return ".".join([*parts, signature])


def _swapped(payload: dict[str, Any]) -> str:
    """A good token with another payload."""
    head, _, signature = token().split(".")
    return ".".join([head, _unsigned({}, payload).split(".")[1], signature])


def _confused() -> str:
    """Signed with HMAC under the text of the public key: what a verifier that trusts ``alg`` would take."""
    text = _unsigned({"alg": "HS256", "kid": "k1"}, claims()).rstrip(".")
    signature = hmac.digest(cast("Any", EC_KEY).as_pem(private=False), text.encode(), "sha256")
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


NOW = int(time.time())
INVALID: dict[str, tuple[Callable[[], str], str]] = {
    "none": (lambda: _unsigned({"alg": "none"}, claims()), "algorithm"),
    "None in capitals": (lambda: _unsigned({"alg": "NONE"}, claims()), "algorithm"),
    "no algorithm": (lambda: _unsigned({}, claims()), "algorithm"),
    "shared secret": (_confused, "algorithm"),
    "another key": (lambda: token(key=new_key()), "signature"),
    "another kid": (lambda: token(kid="k9"), "signature"),
    "no signature": (lambda: token().rpartition(".")[0] + ".", "signature"),
    "another payload": (
        lambda: _swapped(claims(sub="root")),
        "signature",
    ),
    "algorithm of another key type": (lambda: _unsigned({"alg": "RS256", "kid": "k1"}, claims(), "AAAA"), "signature"),
    "critical extension": (
        lambda: _unsigned({"alg": "ES256", "kid": "k1", "crit": ["b64"], "b64": False}, claims(), "AAAA"),
        "signature",
    ),
    "expired": (lambda: token(claims(exp=NOW - 3600)), "expired"),
    "no expiry": (lambda: token(claims(exp=None)), "expiry"),
    "expiry as text": (lambda: token(claims(exp="never")), "exp"),
    "expiry true": (lambda: token(claims(exp=True)), "exp"),
    "not yet valid": (lambda: token(claims(nbf=NOW + 3600)), "not valid yet"),
    "another audience": (lambda: token(claims(aud="other")), "audience"),
    "no audience": (lambda: token(claims(aud=None)), "audience"),
    "audiences without ours": (lambda: token(claims(aud=["a", "b"])), "audience"),
    "no subject": (lambda: token(claims(sub=None)), "subject"),
    "empty subject": (lambda: token(claims(sub="")), "subject"),
    "subject a number": (lambda: token(claims(sub=1)), "subject"),
    "subject with a line feed": (lambda: token(claims(sub="a\nb")), "subject"),
    "a service account that it is not": (lambda: token(claims(sub="system:serviceaccount:a:b")), "reserved"),
    "another account in the claims": (
        lambda: token(claims(sub="system:serviceaccount:a:b", **_kubernetes("a", "other"))),
        "reserved",
    ),
    "an address": (lambda: token(claims(sub="addr:10.0.0.1")), "reserved"),
}


def _kubernetes(namespace: str, name: str) -> dict[str, Any]:
    return {"kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": "u"}}}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.asyncio
async def test_an_invalid_token_is_refused_and_never_taken_for_a_claim(keys: Path, name: str) -> None:
    make, said = INVALID[name]
    found = await one(config(keys), bearer(make()))
    assert isinstance(found, IdentityRefused), found
    assert found.status == 401
    assert said in found.reason
    assert found.www_authenticate.startswith('Bearer error="invalid_token"')
    assert found.www_authenticate.isprintable()


@pytest.mark.asyncio
async def test_clock_difference_is_allowed_for(keys: Path) -> None:
    async with identifier_for(config(keys), Settings(jwt_leeway=60)) as identifier:
        now = int(time.time())
        for payload in (claims(exp=now - 30), claims(nbf=now + 30)):
            assert isinstance(await identify(identifier, bearer(token(payload))), Identity)


@pytest.mark.asyncio
async def test_a_projected_service_account_token_names_the_account(keys: Path) -> None:
    payload = claims(sub="system:serviceaccount:agents:bot", **_kubernetes("agents", "bot"))
    found = await one(config(keys), bearer(token(payload)))
    assert isinstance(found, Identity)
    principal = found.principal
    assert (principal.kind, principal.service_account) == ("ServiceAccount", "agents/bot")
    assert principal.id == "system:serviceaccount:agents:bot"
    assert principal.groups == ("system:serviceaccounts", "system:serviceaccounts:agents")


@pytest.mark.asyncio
async def test_what_merely_looks_like_a_token_is_a_claim(keys: Path) -> None:
    for text in (
        "a.b.c",
        "..",
        "{}.{}.{}",
        "e30.e30.",
        "e30=.e30=.x",
        "e30.W10.x",
        "." * 5,
        "e30." + "W" * 20000 + ".",
    ):
        found = await one(config(keys), bearer(text))
        assert isinstance(found, Identity), text
        assert found.principal.kind == "Credential"


@pytest.mark.asyncio
async def test_an_expired_token_is_not_remembered_as_good(keys: Path) -> None:
    async with identifier_for(config(keys), Settings(jwt_leeway=0.0)) as identifier:
        text = token(claims(exp=time.time() + 0.05))
        outcomes: list[bool] = []
        async with asyncio.timeout(DEADLINE):
            while True:
                outcomes.append(isinstance(await identify(identifier, bearer(text)), Identity))
                if not outcomes[-1]:
                    break
        assert outcomes[-1] is False


@pytest.mark.asyncio
async def test_the_second_request_costs_no_signature(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with identifier_for(config(keys)) as identifier:
        headers = bearer(token())
        first = await identify(identifier, headers)
        monkeypatch.setattr(jws, "deserialize_compact", None)
        assert identifier.identify(PEER, list(headers)) is first


@pytest.mark.asyncio
async def test_remembered_callers_are_bounded() -> None:
    identifier = RequestIdentifier(None, b"k", Settings(identity_cache=10))
    for n in range(100):
        identifier.identify(PEER, bearer(str(n)))
    assert len(identifier._remembered) == 10  # pyright: ignore[reportPrivateUsage]


# Several issuers

OTHER = "https://other.example"


def two_issuers(keys: Path, tmp_path: Path, *, first: str = "", second: str = "") -> IdentityConfig:
    """ISSUER signs with EC_KEY, OTHER with RSA_KEY; each may have a prefix."""
    own, others = tmp_path / "own.json", tmp_path / "others.json"
    own.write_text(key_set(EC_KEY))
    others.write_text(key_set(RSA_KEY))
    entries = ((ISSUER, own, first), (OTHER, others, second))
    return IdentityConfig(
        jwt=tuple(
            Jwt.model_validate({"issuer": i, "audiences": [AUDIENCE], "jwks": str(k), "principalPrefix": p})
            for i, k, p in entries
        )
    )


def of_other(**changes: Any) -> list[tuple[bytes, bytes]]:
    return bearer(token(claims(iss=OTHER, **changes), RSA_KEY, "RS256"))


@pytest.mark.asyncio
async def test_a_prefix_tells_the_principals_of_two_issuers_apart(keys: Path, tmp_path: Path) -> None:
    identity = two_issuers(keys, tmp_path, second=f"{OTHER}#")
    first = await one(identity, bearer(token(claims(groups=["admins"]))))
    second = await one(identity, of_other(groups=["admins"]))
    assert isinstance(first, Identity)
    assert isinstance(second, Identity)
    assert (first.principal.id, first.principal.groups) == ("alice", ("admins",))
    assert (second.principal.id, second.principal.groups) == (f"{OTHER}#alice", (f"{OTHER}#admins",))
    assert second.identities == (f"{OTHER}#alice",)
    assert second.principal.verified


@pytest.mark.parametrize("prefix", ["", "corp:"])
@pytest.mark.asyncio
async def test_issuers_that_could_name_each_others_principals_are_both_refused(
    keys: Path, tmp_path: Path, prefix: str
) -> None:
    identity = two_issuers(keys, tmp_path, first=prefix, second=prefix)
    for headers in (bearer(token()), of_other()):
        found = await one(identity, headers)
        assert isinstance(found, IdentityRefused)
        assert found.status == 403
        assert "principalPrefix" in found.reason
    assert isinstance(await one(identity, [(b"Authorization", b"Bearer opaque")]), Identity)


@pytest.mark.parametrize(
    ("first", "second", "spelled"),
    [
        ("", f"{OTHER}#", {"sub": f"{OTHER}#alice"}),
        ("", "o#", {"groups": ["o#admins"]}),
        ("a:", "a:b:", {"sub": "b:x"}),
    ],
)
@pytest.mark.asyncio
async def test_no_subject_or_group_spells_out_anothers_prefix(
    keys: Path, tmp_path: Path, first: str, second: str, spelled: dict[str, Any]
) -> None:
    found = await one(two_issuers(keys, tmp_path, first=first, second=second), bearer(token(claims(**spelled))))
    assert isinstance(found, IdentityRefused)
    assert "prefix of another issuer" in found.reason


@pytest.mark.asyncio
async def test_an_issuer_with_a_prefix_names_no_service_accounts(keys: Path, tmp_path: Path) -> None:
    payload = {"sub": "system:serviceaccount:agents:bot", **_kubernetes("agents", "bot")}
    found = await one(two_issuers(keys, tmp_path, second="o#"), of_other(**payload))
    assert isinstance(found, Identity)
    assert found.principal.id == "o#system:serviceaccount:agents:bot"
    assert found.principal.service_account is None
    assert found.principal.groups == ()


@pytest.mark.asyncio
async def test_prefix_and_subject_together_make_no_reserved_name(keys: Path, tmp_path: Path) -> None:
    found = await one(two_issuers(keys, tmp_path, second="add"), of_other(sub="r:203.0.113.7"))
    assert isinstance(found, IdentityRefused)


# Key sets


class Jwks:
    """A key server that counts, and answers what it is told to."""

    def __init__(self) -> None:
        self.body = key_set(EC_KEY).encode()
        self.status = 200
        self.requests = 0
        self.authorization: str | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.authorization = request.headers.get("Authorization")
        await self.gate.wait()
        return web.Response(body=self.body, status=self.status, headers={"Location": "/elsewhere"})

    async def elsewhere(self, request: web.Request) -> web.Response:
        return web.Response(text=key_set(EC_KEY))


@asynccontextmanager
async def jwks_server() -> AsyncGenerator[Jwks]:
    server = Jwks()
    app = web.Application()
    app.router.add_get("/jwks", server.answer)
    app.router.add_get("/elsewhere", server.elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    try:
        yield server
    finally:
        server.gate.set()
        await runner.cleanup()


@pytest.mark.asyncio
async def test_keys_come_from_a_url_once() -> None:
    async with jwks_server() as server, identifier_for(config(server.url)) as identifier:
        for n in range(5):
            assert isinstance(await identify(identifier, bearer(token(claims(jti=str(n))))), Identity)
        assert server.requests == 1


@pytest.mark.asyncio
async def test_an_unknown_key_fetches_the_keys_again_but_not_for_every_token() -> None:
    fresh = new_key(kid="k2")
    settings = Settings(jwks_retry=0.1)
    async with jwks_server() as server, identifier_for(config(server.url), settings) as identifier:
        server.body = key_set(EC_KEY, fresh).encode()
        async with asyncio.timeout(DEADLINE):
            while not isinstance(await identify(identifier, bearer(token(key=fresh))), Identity):
                await asyncio.sleep(0.01)
        settled = server.requests
        assert settled <= 3
    async with jwks_server() as server, identifier_for(config(server.url)) as identifier:
        for n in range(50):
            assert isinstance(await identify(identifier, bearer(token(key=new_key(kid=f"x{n}")))), IdentityRefused)
        assert server.requests == 1


@pytest.mark.asyncio
async def test_callers_that_wait_for_keys_share_one_fetch() -> None:
    async with jwks_server() as server:
        server.gate.clear()
        identifier = RequestIdentifier(config(server.url), b"k")
        waiting = [asyncio.ensure_future(identify(identifier, bearer(token(claims(jti=str(n)))))) for n in range(20)]
        async with asyncio.timeout(DEADLINE):
            while not server.requests:
                await asyncio.sleep(0.005)
        server.gate.set()
        assert all(isinstance(f, Identity) for f in await asyncio.gather(*waiting))
        assert server.requests == 1
        await identifier.close()


@pytest.mark.asyncio
async def test_a_withdrawn_key_is_no_longer_believed() -> None:
    settings = Settings(jwks_refresh=0.0, jwks_retry=0.0)
    async with jwks_server() as server, identifier_for(config(server.url), settings) as identifier:
        headers = bearer(token())
        assert isinstance(await identify(identifier, headers), Identity)
        server.body = key_set(new_key(kid="k2")).encode()
        async with asyncio.timeout(DEADLINE):
            while isinstance(await identify(identifier, headers), Identity):
                await asyncio.sleep(0.005)


@pytest.mark.asyncio
async def test_new_keys_end_what_was_remembered_under_the_old_ones() -> None:
    fresh = new_key(kid="k2")
    async with jwks_server() as server, identifier_for(config(server.url), Settings(jwks_retry=0.0)) as identifier:
        headers = bearer(token())
        assert isinstance(await identify(identifier, headers), Identity)
        server.body = key_set(fresh).encode()
        assert isinstance(await identify(identifier, headers), Identity)
        assert isinstance(await identify(identifier, bearer(token(key=fresh))), Identity)
        assert isinstance(await identify(identifier, headers), IdentityRefused)


@pytest.mark.asyncio
async def test_the_keys_known_stay_while_the_issuer_is_away() -> None:
    settings = Settings(jwks_refresh=0.0, jwks_retry=0.0)
    async with jwks_server() as server, identifier_for(config(server.url), settings) as identifier:
        server.status = 500
        for n in range(5):
            assert isinstance(await identify(identifier, bearer(token(claims(jti=str(n))))), Identity)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200),
        (b"[]", 200),
        (b'{"keys": []}', 200),
        (b'{"keys": [{"kty": "oct", "k": "AAAA", "kid": "k1"}]}', 200),
        (b'{"keys": [{"kty": "EC"}, 1, null]}', 200),
        (b"[" * 100_000, 200),
        (b" " * 300_000, 200),
        (key_set(EC_KEY).encode(), 404),
        (key_set(EC_KEY).encode(), 302),
    ],
    ids=["empty", "list", "no keys", "secret", "broken", "deep", "large", "missing", "redirect"],
)
@pytest.mark.asyncio
async def test_without_usable_keys_tokens_are_refused_for_now(body: bytes, status: int) -> None:
    async with jwks_server() as server:
        server.body, server.status = body, status
        found = await one(config(server.url), bearer(token()))
        assert isinstance(found, IdentityRefused)
        assert found.status == 503


@pytest.mark.asyncio
async def test_a_slow_or_absent_issuer_does_not_hang_the_caller() -> None:
    async with jwks_server() as server:
        server.gate.clear()
        identifier = RequestIdentifier(config(server.url), b"k", Settings(jwks_timeout=0.1))
        found = await identify(identifier, bearer(token()))
        assert isinstance(found, IdentityRefused)
        assert found.status == 503
        await identifier.close()
    found = await one(config("http://127.0.0.1:9/none"), bearer(token()))
    assert isinstance(found, IdentityRefused)


@pytest.mark.asyncio
async def test_the_sidecars_token_goes_to_the_one_address_that_the_settings_name(tmp_path: Path) -> None:
    """Whoever writes a policy chooses where keys are fetched: he must not choose where the token goes."""
    secret = tmp_path / "token"
    secret.write_text("sesame\n")
    async with jwks_server() as server:
        settings = Settings(jwks_token_file=str(secret), jwks_token_url=server.url)
        async with identifier_for(config(server.url), settings) as identifier:
            assert isinstance(await identify(identifier, bearer(token())), Identity)
            assert server.authorization == "Bearer sesame"
        for other in (f"{server.url}?", server.url.replace("127.0.0.1", "localhost"), server.url + "#"):
            server.authorization = "never asked"
            async with identifier_for(config(other), settings) as identifier:
                await identify(identifier, bearer(token()))
                assert server.authorization is None


def test_keys_over_plain_http_are_refused_beyond_loopback() -> None:
    with pytest.raises(ValueError, match="loopback"):
        RequestIdentifier(config("http://issuer.example/jwks"), b"k")


@pytest.mark.asyncio
async def test_keys_from_a_file_are_read_again(keys: Path) -> None:
    fresh = new_key(kid="k2")
    async with identifier_for(config(keys), Settings(jwks_retry=0.0)) as identifier:
        assert isinstance(await identify(identifier, bearer(token(key=fresh))), IdentityRefused)
        keys.write_text(key_set(fresh))
        assert isinstance(await identify(identifier, bearer(token(key=fresh))), Identity)


# Client certificates


def certificate(cn: str | None = "bot", uris: tuple[str, ...] = (), organizations: tuple[str, ...] = ()) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations]
    if cn is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, cn))
    name = x509.Name(attributes)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )
    if uris:
        names = [x509.UniformResourceIdentifier(u) for u in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def with_certificates() -> RequestIdentifier:
    identity = IdentityConfig.model_construct(jwt=(), client_ca="configured", session=None, trusted_proxies=())
    return RequestIdentifier(identity, b"k")


@pytest.mark.parametrize(
    ("arguments", "identity", "account"),
    [
        ({"cn": "bot"}, "bot", None),
        ({"cn": "bot", "uris": ("spiffe://cluster.local/ns/agents/sa/bot",)}, "spiffe://cluster.local/ns/agents/sa/bot",
         "agents/bot"),
        ({"cn": None, "uris": ("https://x", "spiffe://td/path")}, "spiffe://td/path", None),
    ],
)  # fmt: skip
def test_a_client_certificate_names_its_holder(arguments: dict[str, Any], identity: str, account: str | None) -> None:
    der = certificate(**arguments, organizations=("team-a", "team-b"))
    found = with_certificates().identify(Peer("10.0.0.1", der), bearer("opaque"))
    assert isinstance(found, Identity)
    principal = found.principal
    assert (principal.id, principal.kind, principal.verified) == (identity, "Certificate", True)
    assert principal.groups == ("team-a", "team-b")
    assert principal.service_account == account
    assert found.identities == (identity,)


@pytest.mark.parametrize(
    "der",
    [
        certificate(None),
        certificate("system:serviceaccount:a:b"),
        certificate("addr:10.0.0.1"),
        certificate("cred:00"),
        certificate("a\nb"),
        certificate("x", ("spiffe://a/1", "spiffe://a/2")),
        b"no certificate",
        b"",
    ],
)
def test_a_certificate_without_a_usable_name_is_refused(der: bytes) -> None:
    found = with_certificates().identify(Peer("10.0.0.1", der), [])
    assert isinstance(found, IdentityRefused)
    assert found.status == 401


def test_a_certificate_counts_only_where_an_authority_is_configured() -> None:
    found = RequestIdentifier(None, b"k").identify(Peer("10.0.0.1", certificate()), [])
    assert isinstance(found, Identity)
    assert found.principal.id == "addr:10.0.0.1"


# Addresses


@pytest.mark.parametrize(
    ("address", "identity"),
    [
        ("192.0.2.1", "addr:192.0.2.1"),
        ("::ffff:192.0.2.1", "addr:192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "addr:2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "addr:2001:db8:1:2::/64"),
        ("fe80::1%eth0", "addr:fe80::/64"),
        ("::1", "addr:127.0.0.1"),
        ("127.0.0.1", "addr:127.0.0.1"),
        ("127.8.8.8", "addr:127.0.0.1"),
        ("", "addr:local"),
        ("/run/x.sock", "addr:local"),
    ],
)
def test_one_host_is_one_address(address: str, identity: str) -> None:
    assert TrustedProxies(()).clients(address, (), ()) == (identity,)


PROXIES = TrustedProxies(("10.0.0.0/8", "2001:db8::/32"))


@pytest.mark.parametrize(
    ("peer", "xff", "forwarded", "clients"),
    [
        ("203.0.113.7", ["198.51.100.1"], [], ["addr:203.0.113.7"]),
        ("203.0.113.7", [], ["for=198.51.100.1"], ["addr:203.0.113.7"]),
        ("10.0.0.1", [], [], ["addr:10.0.0.1"]),
        ("10.0.0.1", ["198.51.100.1"], [], ["addr:198.51.100.1"]),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], [], ["addr:198.51.100.1"]),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1, 10.0.0.9"], [], ["addr:198.51.100.1"]),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], [], ["addr:10.0.0.3"]),
        ("10.0.0.1", ["198.51.100.1, nonsense"], [], ["addr:10.0.0.1"]),
        ("10.0.0.1", ["198.51.100.1, nonsense, 10.0.0.9"], [], ["addr:10.0.0.9"]),
        ("10.0.0.1", ["198.51.100.1:4711"], [], ["addr:198.51.100.1"]),
        ("10.0.0.1", ["[2001:db9::5]:4711"], [], ["addr:2001:db9::/64"]),
        ("10.0.0.1", [""], [], ["addr:10.0.0.1"]),
        ("::ffff:10.0.0.1", ["198.51.100.1"], [], ["addr:198.51.100.1"]),
        ("2001:db8::9", ["198.51.100.1"], [], ["addr:198.51.100.1"]),
        ("10.0.0.1", [], ['for="[2001:db9::5]:1";proto=https, for=10.0.0.5'], ["addr:2001:db9::/64"]),
        ("10.0.0.1", [], ["For=198.51.100.1 ; by=x"], ["addr:198.51.100.1"]),
        ("10.0.0.1", [], ["for=_hidden"], ["addr:10.0.0.1"]),
        ("10.0.0.1", [], ["proto=https"], ["addr:10.0.0.1"]),
        ("10.0.0.1", [], ['for="198.51.100.1, for=6.6.6.6"'], ["addr:10.0.0.1"]),
        ("10.0.0.1", ["198.51.100.1"], ["for=6.6.6.6"], ["addr:198.51.100.1", "addr:6.6.6.6"]),
        ("10.0.0.1", ["198.51.100.1"], ["for=198.51.100.1"], ["addr:198.51.100.1"]),
        ("10.0.0.1", ["1.1.1.1," * 100_000 + "198.51.100.1"], [], ["addr:198.51.100.1"]),
    ],
)
def test_only_what_a_trusted_proxy_wrote_is_believed(
    peer: str, xff: list[str], forwarded: list[str], clients: list[str]
) -> None:
    def raw(values: list[str]) -> list[bytes]:
        return [v.encode() for v in values]

    assert PROXIES.clients(peer, raw(xff), raw(forwarded)) == tuple(clients)


@pytest.mark.asyncio
async def test_forwarding_headers_count_through_the_whole_way() -> None:
    identity = IdentityConfig(trusted_proxies=("10.0.0.0/8",))
    headers = [(b"X-Forwarded-For", b"6.6.6.6, 198.51.100.1"), (b"x-forwarded-for", b"10.0.0.7")]
    async with identifier_for(identity) as identifier:
        found = await identify(identifier, headers, Peer("10.0.0.1"))
        direct = await identify(identifier, headers)
    assert isinstance(found, Identity)
    assert found.identities == ("addr:198.51.100.1",)
    assert isinstance(direct, Identity)
    assert direct.identities == ("addr:203.0.113.7",)


def test_what_only_tokens_and_certificates_need_is_not_imported_without_them() -> None:
    code = (
        "import sys; from toolpolicy.sidecar.identity import RequestIdentifier;"
        "from toolpolicy.sidecar.interfaces import Peer;"
        "RequestIdentifier(None, b'k').identify(Peer('10.0.0.1'), [(b'Authorization', b'Bearer a.b.c')]);"
        "bad = {'joserfc', 'cryptography'} & set(sys.modules); sys.exit(','.join(bad) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
