"""Who is calling (WIRE, Identity): a verified JWT or client certificate, else what the caller claims.

- A JWT of a configured issuer that does not hold is refused (401), never taken for an opaque credential: otherwise a
  forged token would merely cost its holder a name.
- Any other Authorization is a *claimed* identity, a keyed hash of it, free to change with every call. It therefore
  never replaces the peer's address: both count for limits. A verified identity does replace it.
- Of two verified ones the JWT counts: a certificate often is a gateway's, the token its user's.

Answers are remembered by what they were made from, so that a caller's second request costs one dictionary look-up.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable

from toolpolicy.policy.model import IdentityConfig
from toolpolicy.policy.types import Principal
from toolpolicy.sidecar.identity.addresses import TrustedProxies
from toolpolicy.sidecar.identity.certificates import CertificateFault
from toolpolicy.sidecar.identity.certificates import principal_of as certificate_principal
from toolpolicy.sidecar.identity.tokens import Issuer, KeysUnavailable, TokenFault, Unverified, take_apart
from toolpolicy.sidecar.interfaces import Identity, IdentityRefused, Peer, RawHeaders
from toolpolicy.sidecar.settings import Settings

log = logging.getLogger(__name__)

Outcome = Identity | IdentityRefused
_Key = tuple[str, bytes | None, bytes | None, tuple[bytes, ...], tuple[bytes, ...]]

MAX_CREDENTIAL = 32 * 1024
_NEVER = float("inf")


class RequestIdentifier:
    """Implements ``interfaces.Identifier``.

    ``config`` is the merged ``spec.identity`` of the policies in force (None: nothing is verified, no proxy trusted).
    ``key`` is the secret of the hashes of opaque credentials (any length; empty: a random one). Make a new one when
    the configuration changes and :meth:`close` the old.
    """

    def __init__(self, config: IdentityConfig | None, key: bytes, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        config = config or IdentityConfig()
        self._key = hashlib.sha256(key).digest() if key else secrets.token_bytes(32)
        self._certificates = config.client_ca is not None
        self._proxies = TrustedProxies(config.trusted_proxies)
        self._issuers = {c.issuer: Issuer(c, settings, config.jwt) for c in config.jwt}
        for issuer in self._issuers.values():
            if issuer.ambiguous:
                log.error("tokens of %s are refused: %s", issuer.config.issuer, _ambiguity(issuer))
        self._remembered: dict[_Key, tuple[float, int, Outcome]] = {}
        self._most = settings.identity_cache
        self._refresh = settings.jwks_refresh

    async def start(self) -> None:
        """Read all issuers' keys once, so that the first token need not wait. Unreachable issuers are logged, not
        raised.
        """
        await asyncio.gather(*(i.refresh() for i in self._issuers.values()))

    def identify(self, peer: Peer, headers: RawHeaders) -> Outcome | Awaitable[Outcome]:
        """The caller of one request. Never raises; answers at once unless an issuer's keys have to be fetched first."""
        authorization: bytes | None = None
        forwarded_for: tuple[bytes, ...] = ()
        forwarded: tuple[bytes, ...] = ()
        for name, value in headers:
            size = len(name)
            if size == 13 and name.lower() == b"authorization":
                if authorization is not None:
                    return IdentityRefused(400, "more than one Authorization header", 'Bearer error="invalid_request"')
                authorization = value
            elif self._proxies:
                if size == 15 and name.lower() == b"x-forwarded-for":
                    forwarded_for = (*forwarded_for, value)
                elif size == 9 and name.lower() == b"forwarded":
                    forwarded = (*forwarded, value)
        certificate = peer.certificate if self._certificates else None
        key = (peer.address, certificate, authorization, forwarded_for, forwarded)
        known = self._remembered.get(key)
        if known is not None and known[0] > time.time() and known[1] == self._generation():
            return known[2]
        return self._identify(key)

    def _generation(self) -> int:
        return sum(i.generation for i in self._issuers.values()) if self._issuers else 0

    def _identify(self, key: _Key) -> Outcome | Awaitable[Outcome]:
        authorization = key[2]
        if authorization is not None:
            if len(authorization) > MAX_CREDENTIAL:
                return IdentityRefused(400, "the Authorization header is too long", 'Bearer error="invalid_request"')
            token = self._token_of(authorization)
            if token is not None:
                issuer = self._issuers[token.claims["iss"]]
                if issuer.wants_keys(token):
                    return self._identify_later(key, issuer, token)
                if issuer.is_stale():
                    issuer.refresh()
                return self._verified(key, issuer, token)
        return self._unsigned(key)

    def _token_of(self, authorization: bytes) -> Unverified | None:
        if not self._issuers:
            return None
        scheme, _, rest = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not rest.isascii():
            return None
        token = take_apart(rest.strip().decode("ascii"))
        if token is None:
            return None
        issuer = token.claims.get("iss")
        return token if isinstance(issuer, str) and issuer in self._issuers else None

    async def _identify_later(self, key: _Key, issuer: Issuer, token: Unverified) -> Outcome:
        await asyncio.shield(issuer.refresh())
        return self._verified(key, issuer, token)

    def _verified(self, key: _Key, issuer: Issuer, token: Unverified) -> Outcome:
        if issuer.ambiguous:
            return IdentityRefused(403, _ambiguity(issuer))
        try:
            now = time.time()
            principal, expires = issuer.verify(token, now)
        except TokenFault as fault:
            return IdentityRefused(401, str(fault), f'Bearer error="invalid_token", error_description="{fault}"')
        except KeysUnavailable:
            return IdentityRefused(
                503, f"the keys of the token's issuer {issuer.config.issuer} can't be read; try again", "Bearer"
            )
        # Not longer than the keys are taken for fresh, so that even a busy caller's token meets a withdrawal.
        return self._remember(key, min(expires, now + self._refresh), Identity(principal, (principal.id,)))

    def _unsigned(self, key: _Key) -> Outcome:
        address, certificate, authorization, forwarded_for, forwarded = key
        if certificate is not None:
            try:
                principal = certificate_principal(certificate)
            except CertificateFault as fault:
                return IdentityRefused(401, str(fault), "Bearer")
            return self._remember(key, _NEVER, Identity(principal, (principal.id,)))
        addresses = self._proxies.clients(address, forwarded_for, forwarded)
        if authorization is None:
            return self._remember(key, _NEVER, Identity(Principal(addresses[0], "Address"), addresses))
        credential = f"cred:{hmac.digest(self._key, authorization, 'sha256')[:16].hex()}"
        return self._remember(key, _NEVER, Identity(Principal(credential, "Credential"), (credential, *addresses)))

    def _remember(self, key: _Key, expires: float, identity: Identity) -> Identity:
        while len(self._remembered) >= self._most:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[key] = (expires, self._generation(), identity)
        return identity

    async def close(self) -> None:
        for issuer in self._issuers.values():
            await issuer.close()


def _ambiguity(issuer: Issuer) -> str:
    """Two policies brought issuers together that could name each other's principals: neither is believed."""
    return (
        f"the policies trust {issuer.config.issuer} and {', '.join(issuer.ambiguous)} without telling their principals "
        "apart; give each issuer a principalPrefix of its own"
    )
