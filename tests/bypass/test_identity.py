"""Ways to pass for someone else: forged tokens, another's session, another's task, claims that nobody checked."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from bypass.test_streams import LIST, REVISION, open_session
from bypass.vectors.build import ACCEPT, BASE, DELETE, HOST, call, compact, request
from support import servers
from support.rawhttp import Reply, Stream, exchange
from support.relay import Relay
from support.sidecar import Sidecar

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("bypass")]

ISSUER = "https://issuer.example"
AUDIENCE = "mcp"
SYMMETRIC = b'{"alg":"HS256","kid":"k1"}'
UNSIGNED = b'{"alg":"none"}'
POLICY = """\
apiVersion: toolpolicy.dev/v1alpha1
kind: ToolPolicy
metadata: {name: identity}
spec:
  selector: {}
  defaultAction: Deny
  identity:
    jwt:
    - {issuer: "https://issuer.example", audiences: [mcp], jwks: JWKS}
  rules:
  - name: operators-may-delete
    match: {tools: [delete_everything], principals: {groups: [operators]}}
    action: Allow
  - name: everyone
    match: {tools: [echo, get_sum]}
    action: Allow
"""
Address = tuple[str, int]


@dataclass(frozen=True)
class Issuer:
    """Signs tokens; ``jwks`` is the file with its public key."""

    key: RSAKey
    jwks: Path

    def token(self, subject: str, *groups: str, key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        now = int(time.time())
        body = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "groups": list(groups), "iat": now, "exp": now + 600}
        header = {"alg": algorithm, "kid": "k1"}
        return jwt.encode(header, body | claims, key or self.key, algorithms=[algorithm])


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    key = RSAKey.generate_key(2048, {"kid": "k1"})
    file = tmp_path_factory.mktemp("issuer") / "jwks.json"
    file.write_text(json.dumps({"keys": [key.as_dict(private=False) | {"use": "sig", "alg": "RS256"}]}))
    return Issuer(key, file)


@pytest.fixture(scope="module")
def plain() -> Generator[servers.Server]:
    with servers.stack("plain") as server:
        yield server


@pytest.fixture(scope="module")
def guard(plain: servers.Server, issuer: Issuer) -> Generator[Sidecar]:
    with Sidecar(POLICY.replace("JWKS", str(issuer.jwks)), plain.url) as sidecar:
        yield sidecar


def ask(address: Address, token: str | None, body: dict[str, Any], *headers: tuple[str, str]) -> Reply:
    bearer = [("Authorization", f"Bearer {token}")] if token is not None else []
    sent = request("POST", "/mcp", [*BASE, ("MCP-Protocol-Version", REVISION), *bearer, *headers], compact(body))
    reply = exchange(address, sent).reply
    assert reply is not None
    return reply


def refused(reply: Reply) -> bool:
    if reply.status >= 400:
        return True
    message = reply.messages()[-1]
    return "error" in message or bool(message["result"].get("isError"))


def test_the_right_token_is_let_through(plain: servers.Server, guard: Sidecar, issuer: Issuer) -> None:
    before = plain.executed(DELETE)
    assert not refused(ask(guard.address, issuer.token("alice", "operators"), call()))
    assert plain.executed(DELETE) == before + 1


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_secret(body: str, secret: bytes) -> str:
    """``body`` signed with HMAC: a verifier that takes the algorithm from the token would use the public key for it."""
    signed = f"{encoded(SYMMETRIC)}.{body}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), 'sha256'))}"


def forged(issuer: Issuer) -> dict[str, str | None]:
    """Credentials that say ``operators`` without the right to."""
    other = RSAKey.generate_key(2048, {"kid": "k1"})
    good = issuer.token("alice", "operators")
    head, body, signature = good.split(".")
    return {
        "no token": None,
        "a token that is none": "operators",
        "an opaque token that looks like a group": "operators.operators.operators",
        "another's signature": issuer.token("alice", "operators", key=other),
        "the public key as a secret": with_secret(body, issuer.key.as_pem(private=False)),
        "no signature": f"{head}.{body}.",
        "alg none": f"{encoded(UNSIGNED)}.{body}.",
        "another header": f"{encoded(SYMMETRIC)}.{body}.{signature}",
        "a changed body": f"{head}.{issuer.token('mallory', 'operators').split('.')[1]}.{signature}",
        "expired": issuer.token("alice", "operators", exp=int(time.time()) - 3600),
        "not yet valid": issuer.token("alice", "operators", nbf=int(time.time()) + 3600),
        "another audience": issuer.token("alice", "operators", aud="others"),
        "another issuer": issuer.token("alice", "operators", iss="https://evil.example"),
        "no expiry": issuer.token("alice", "operators", exp=None),
        "another group": issuer.token("alice", "readers"),
        "a group that contains the name": issuer.token("alice", "operators-of-nothing", "Operators", " operators"),
        "a key in the header": jwt.encode(
            {"alg": "RS256", "jwk": other.as_dict(private=False)},
            {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "groups": ["operators"], "exp": int(time.time()) + 600},
            other,
            algorithms=["RS256"],
        ),
    }


def test_a_forged_credential_grants_nothing(plain: servers.Server, guard: Sidecar, issuer: Issuer) -> None:
    for name, token in forged(issuer).items():
        before = plain.executed(DELETE)
        with Relay(plain.address) as relay:
            ask(("127.0.0.1", relay.port), token, call())
        assert plain.executed(DELETE) == before + 1, "the control: the server does not look at credentials"
        assert refused(ask(guard.address, token, call())), name
        assert plain.executed(DELETE) == before + 1, name


def test_two_credentials_grant_nothing(plain: servers.Server, guard: Sidecar, issuer: Issuer) -> None:
    """Which of them would the server take?"""
    good, bad = issuer.token("alice", "operators"), issuer.token("mallory", "readers")
    before = plain.executed(DELETE)
    for first, second in ((good, bad), (bad, good)):
        reply = ask(guard.address, first, call(), ("Authorization", f"Bearer {second}"))
        assert refused(reply)
    assert plain.executed(DELETE) == before


def test_names_that_a_client_gives_itself_grant_nothing(plain: servers.Server, guard: Sidecar) -> None:
    before = plain.executed(DELETE)
    claims = {"sub": "alice", "groups": ["operators"]}
    body = call(params={"name": DELETE, "arguments": {"groups": ["operators"]}, "_meta": {"principal": claims}})
    headers = [("X-Forwarded-User", "alice"), ("X-Remote-Groups", "operators"), ("Remote-User", "alice")]
    assert refused(ask(guard.address, None, body, *headers))
    assert plain.executed(DELETE) == before


def test_another_verified_callers_session_is_closed(issuer: Issuer) -> None:
    """Control: the server itself takes the session from anyone who knows its id."""
    alice, mallory = issuer.token("alice"), issuer.token("mallory")
    with servers.reference() as server, Sidecar(POLICY.replace("JWKS", str(issuer.jwks)), server.url) as sidecar:
        session = open_session(sidecar.address, ("Authorization", f"Bearer {alice}"))[:1]
        assert not refused(ask(sidecar.address, alice, call("echo"), *session))
        before = server.executed("echo")
        assert not refused(ask(server.address, mallory, call("echo"), *session))
        assert server.executed("echo") == before + 1
        assert refused(ask(sidecar.address, mallory, call("echo"), *session))
        assert server.executed("echo") == before + 1
        stolen = [HOST, ACCEPT, ("MCP-Protocol-Version", REVISION), *session, ("Authorization", f"Bearer {mallory}")]
        for method in ("GET", "DELETE"):
            with Stream(sidecar.address, request(method, "/mcp", stolen)) as stream:
                stream.until(b"\r\n\r\n")
                assert stream.status == 404, method
        assert not refused(ask(sidecar.address, alice, LIST, *session)), "the session lives on for its owner"


def test_another_verified_callers_task_is_closed(plain: servers.Server, guard: Sidecar, issuer: Issuer) -> None:
    """Control: the server gives a task's result to anyone who knows its id."""
    alice, mallory = issuer.token("alice"), issuer.token("mallory")
    started = call(params={"name": "echo", "arguments": {}, "task": {"ttl": 60_000}})
    task = ask(guard.address, alice, started).messages()[0]["result"]["task"]["taskId"]
    for method in ("tasks/result", "tasks/cancel"):
        wanted = {"jsonrpc": "2.0", "id": 9, "method": method, "params": {"taskId": task}}
        before = plain.executed(method)
        with Relay(plain.address) as relay:
            ask(("127.0.0.1", relay.port), mallory, wanted)
        assert plain.executed(method) == before + 1
        assert refused(ask(guard.address, mallory, wanted)), method
        assert plain.executed(method) == before + 1
        assert not refused(ask(guard.address, alice, wanted))
        assert plain.executed(method) == before + 2
