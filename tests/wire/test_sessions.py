"""Whose session, task and certificate it is, and what passes unjudged."""

# ruff: noqa: SIM117 -- the client lives within the sidecar that it talks to

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.policies import allow, deny, policy
from toolpolicy.policy.types import Principal
from toolpolicy.sidecar.identity import RequestIdentifier
from toolpolicy.sidecar.interfaces import Identity, IdentityRefused, Peer, RawHeaders
from wire.rig import (
    DEADLINE,
    INITIALIZE,
    Client,
    Seen,
    StaticRules,
    call,
    echo,
    read_request,
    request,
    sidecar,
    upstream,
)
from wire.rig import Peer as Server

pytestmark = pytest.mark.asyncio


class ByName:
    """``Authorization: NAME`` is verified, ``Authorization: ?NAME`` claimed, ``Authorization: !`` refused."""

    def identify(self, peer: Peer, headers: RawHeaders) -> Identity | IdentityRefused:
        name = next((v.decode() for n, v in headers if n.lower() == b"authorization"), "?nobody")
        if name == "!":
            return IdentityRefused(401, "the token has expired", 'Bearer error="invalid_token"')
        return Identity(Principal(name.lstrip("?"), verified=not name.startswith("?")), (name,))


class LateByName(ByName):
    """The same, after a turn of the loop."""

    def identify(self, peer: Peer, headers: RawHeaders) -> Any:
        async def later() -> Identity | IdentityRefused:
            return ByName.identify(self, peer, headers)

        return later()


def as_(name: str, session: str | None = "s-1") -> list[str]:
    return [f"Authorization: {name}", *([f"Mcp-Session-Id: {session}"] if session else [])]


@pytest.mark.parametrize("identifier", [ByName(), LateByName()])
async def test_a_session_belongs_to_the_verified_principal_that_opened_it(identifier: Any) -> None:
    async with upstream() as server, sidecar(server.url, identifier=identifier) as running:
        async with running.client() as client:
            opened = await client.post(INITIALIZE, *as_("alice", None))
            assert opened.headers["mcp-session-id"] == "s-1"
            assert not (await client.call("get_thing", {}, *as_("alice"))).denied
            foreign = await client.call("get_thing", {}, *as_("mallory"))
            assert "belongs to another" in foreign.text
            assert running.audit.entries[-1].decision.code == "ForeignSession"
            assert (await client.post(request("ping"), *as_("mallory"))).json()["error"]
            assert (await client.post({"jsonrpc": "2.0", "method": "notifications/x"}, *as_("mallory"))).status == 403
            await client.get(*as_("mallory"))
            assert (await client.reply()).status == 404
            assert not (await client.call("get_thing", {}, *as_("?claimed"))).denied
            assert [s.header("Authorization") for s in server.seen] == ["alice", "alice", "?claimed"]


async def test_a_session_seen_first_after_a_restart_belongs_to_who_shows_it_once_the_server_took_it() -> None:
    async def script(peer: Server, seen: Seen) -> None:
        if seen.header("Authorization") == "guess":
            await peer.answer({}, 404)
        else:
            await echo(peer, seen)

    async with upstream(script) as server, sidecar(server.url, identifier=ByName()) as running:
        async with running.client() as client:
            assert (await client.call("get_thing", {}, *as_("guess"))).status == 404
            assert not (await client.call("get_thing", {}, *as_("alice"))).denied
            assert (await client.call("get_thing", {}, *as_("mallory"))).denied


async def test_the_end_of_a_session_frees_its_id() -> None:
    async def script(peer: Server, seen: Seen) -> None:
        if seen.method == "DELETE":
            await peer.answer(b"")
        else:
            await echo(peer, seen)

    async with upstream(script) as server, sidecar(server.url, identifier=ByName()) as running:
        async with running.client() as client:
            await client.call("get_thing", {}, *as_("alice"))
            await client.get(*as_("alice"), method="DELETE")
            assert (await client.reply()).status == 200
            assert not (await client.call("get_thing", {}, *as_("bob"))).denied


async def test_a_refused_credential_is_401_with_its_challenge_and_nothing_is_forwarded() -> None:
    async with upstream() as server, sidecar(server.url, identifier=ByName()) as running, running.client() as client:
        reply = await client.call("get_thing", {}, *as_("!"))
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert "expired" in reply.text
        assert server.seen == []


async def test_a_task_belongs_to_the_principal_that_started_it() -> None:
    async def script(peer: Server, seen: Seen) -> None:
        message = seen.json()
        result: dict[str, Any] = {"task": {"taskId": "t-1", "status": "working"}}
        if message["method"] != "tools/call":
            result = {"taskId": "t-1", "status": "completed"}
        await peer.answer({"jsonrpc": "2.0", "id": message["id"], "result": result})

    async with upstream(script) as server, sidecar(server.url, identifier=ByName()) as running:
        async with running.client() as client:
            started = {**call("get_thing"), "params": {"name": "get_thing", "arguments": {}, "task": {"ttl": 1000}}}
            assert (await client.post(started, *as_("alice"))).json()["result"]["task"]["taskId"] == "t-1"
            for method in ("tasks/get", "tasks/result", "tasks/cancel"):
                asked = request(method, {"taskId": "t-1"})
                assert "error" in (await client.post(asked, *as_("mallory", "s-2"))).json()
                assert "result" in (await client.post(asked, *as_("alice"))).json()


async def test_the_session_and_the_clients_name_reach_the_audit() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        await client.post(INITIALIZE)
        await client.call("get_thing", {}, "Mcp-Session-Id: s-1")
        entry = running.audit.entries[-1]
        assert entry.session == "s-1"
        assert entry.client == {"name": "tester", "version": "1"}


@pytest.mark.parametrize(
    ("source", "headers", "meta"),
    [({"header": "X-Run"}, ["X-Run: r-1"], {}), ({"metaKey": "acme/run"}, [], {"acme/run": "r-1"})],
)
async def test_a_configured_session_counts_where_the_protocol_has_none(
    source: Mapping[str, str], headers: list[str], meta: dict[str, Any]
) -> None:
    rules = policy(
        allow("get_*", rateLimit={"max": 1, "window": 60, "per": "Session"}), identity={"session": dict(source)}
    )
    envelope = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "modern", "version": "2"},
        **meta,
    }
    body = {**call("get_thing"), "params": {"name": "get_thing", "arguments": {}, "_meta": envelope}}
    async with upstream() as server, sidecar(server.url, rules) as running, running.client() as client:
        modern = ["MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call", "Mcp-Name: get_thing", *headers]
        assert not (await client.post(body, *modern)).denied
        assert (await client.post(body, *modern)).denied
        entry = running.audit.entries[0]
        assert entry.session == "r-1"
        assert entry.client["name"] == "modern"


async def test_a_long_session_id_is_kept_as_a_digest() -> None:
    async with upstream() as server, sidecar(server.url) as running, running.client() as client:
        await client.call("get_thing", {}, "Mcp-Session-Id: " + "x" * 5000)
        session = running.audit.entries[0].session
        assert session is not None
        assert session.startswith("sha256:")
        assert server.seen[0].header("Mcp-Session-Id") == "x" * 5000


# -- unjudged, audited


async def test_discovery_documents_pass_and_are_recorded() -> None:
    async def script(peer: Server, seen: Seen) -> None:
        await peer.answer(b'{"resource":"x"}')

    target = "/.well-known/oauth-protected-resource/mcp"
    async with upstream(script) as server, sidecar(server.url) as running, running.client() as client:
        await client.get("Accept-Encoding: gzip", target=target)
        assert (await client.reply()).json() == {"resource": "x"}
        assert server.seen[0].target == target
        assert server.seen[0].header("Accept-Encoding") == "gzip"
        entry = running.audit.entries[0]
        assert (entry.decision.code, entry.extra["path"], entry.forwarded) == ("Discovery", target, True)
        assert (await client.post(call("get_thing"), target=target)).status == 404
        running.audit.works = False
        await client.get(target=target)
        assert (await client.reply()).status == 503
        assert len(server.seen) == 1


async def test_what_a_policy_names_passes_with_its_methods_only() -> None:
    rules = policy(
        allow(),
        server={"passThrough": [{"path": "/health"}, {"path": "/hook", "methods": ["POST"]}, {"path": "/MCP"}]},
    )

    async def script(peer: Server, seen: Seen) -> None:
        await peer.answer(b"fine", 200)

    async with upstream(script) as server, sidecar(server.url, rules) as running, running.client() as client:
        await client.get(target="/health")
        assert (await client.reply()).body == b"fine"
        assert (await client.post(b"not even json", target="/hook")).body == b"fine"
        assert server.seen[1].body == b"not even json"
        for target, method in (("/hook", "GET"), ("/MCP", "GET"), ("/other", "GET")):
            await client.get(target=target, method=method)
            assert (await client.reply()).status == 404
        assert (await client.post(call("get_thing"), target="/health")).status == 404
        assert len(server.seen) == 2


# -- TLS


class Authority:
    """A CA in a directory, and certificates of it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self.key, ca=True)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.file = folder / f"{name}.pem"
        self.file.write_text(self.pem)

    def issue(self, name: str) -> tuple[str, str]:
        """Paths of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, secret = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate.write_bytes(self._sign(name, key, ca=False).public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(certificate), str(secret)

    def _sign(self, name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if ca else self.certificate.subject
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if ca:
            usage = x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                decipher_only=False,
            )  # fmt: skip
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self.key, hashes.SHA256())


async def connect(port: int, authority: Authority, certificate: tuple[str, str] | None) -> Client:
    context = ssl.create_default_context(cafile=str(authority.file))
    if certificate is not None:
        context.load_cert_chain(*certificate)
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    return Client(reader, writer)


async def test_tls_is_served_and_a_clients_certificate_identifies_it(tmp_path: Path) -> None:
    servers, people = Authority(tmp_path, "servers"), Authority(tmp_path, "people")
    certificate, key = servers.issue("localhost")
    alice = people.issue("alice")
    rules = StaticRules(policy(allow("get_*"), deny("delete_*"), identity={"clientCA": people.pem}))
    assert rules.current is not None
    identifier = RequestIdentifier(rules.current.policies.identity, b"key")
    settings: dict[str, Any] = {"tls_certificate_file": certificate, "tls_key_file": key}
    async with upstream() as server, sidecar(server.url, rules=rules, identifier=identifier, **settings) as running:
        anonymous = await connect(running.port, servers, None)
        assert not (await anonymous.call("get_thing")).denied
        known = await connect(running.port, servers, alice)
        assert not (await known.call("get_thing")).denied
        assert (await known.call("delete_thing")).denied
        first, second, _ = running.audit.entries
        assert not first.principal.verified
        assert second.principal.verified
        assert "alice" in second.principal.id
        stranger = await connect(running.port, servers, servers.issue("stranger"))
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            await stranger.call("get_thing")
        for client in (anonymous, known, stranger):
            client.abort()


async def test_a_new_client_ca_counts_without_a_refused_connection(tmp_path: Path) -> None:
    servers, old, new = (Authority(tmp_path, name) for name in ("servers", "old", "new"))
    certificate, key = servers.issue("localhost")
    rules = StaticRules(policy(allow(), identity={"clientCA": old.pem}))
    settings: dict[str, Any] = {"tls_certificate_file": certificate, "tls_key_file": key}
    async with upstream() as server, sidecar(server.url, rules=rules, **settings) as running:
        before = await connect(running.port, servers, old.issue("a"))
        assert not (await before.call("get_thing")).denied
        port = running.port
        rules.put(policy(allow(), identity={"clientCA": new.pem}))
        await running.sidecar.settled()
        after = await connect(port, servers, new.issue("b"))
        assert not (await after.call("get_thing")).denied
        assert not (await before.call("get_thing")).denied
        before.abort()
        after.abort()


async def test_an_https_upstream_is_verified_and_gets_its_own_host(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "servers")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost"))
    hosts: list[str] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                seen = await read_request(reader, 0)
                hosts.append(seen.header("Host") or "")
                body = json.dumps({"jsonrpc": "2.0", "id": seen.json()["id"], "result": {}}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    url = f"https://localhost:{port}/mcp"
    async with sidecar(url, upstream_ca_file=str(authority.file)) as running, running.client() as client:
        for number in range(3):
            assert (await client.call("get_thing", id=number)).json()["id"] == number
        assert set(hosts) == {f"localhost:{port}"}
    async with sidecar(url) as running, running.client() as client:
        reply = await client.call("get_thing")
        assert reply.status == 502
        assert "certificate" in reply.text.lower()
    server.close()
