"""Bearer tokens: a JWT of a configured issuer is verified, and nothing else is believed.

Algorithms are an allow-list of signatures (never ``none``, never a shared secret: a key set is public). The key set
comes from a file or a URL, bounded in size and time; it is fetched again when it is old, in the background, and at
once, but rate-limited, when a token names a key it does not hold. While an issuer is unreachable the keys known stay
in force.

joserfc and cryptography are imported with the first configured issuer, never before: without one they cost no memory.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from toolpolicy.policy.model import Jwt
from toolpolicy.policy.types import Principal
from toolpolicy.sidecar.identity.certificates import RESERVED
from toolpolicy.sidecar.settings import Settings

if TYPE_CHECKING:
    from joserfc.jwk import Key

log = logging.getLogger(__name__)

ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
    "Ed448",
)
_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
MAX_TOKEN = 16 * 1024
MAX_KEYS = 64
SERVICE_ACCOUNT = "system:serviceaccount:"


class TokenFault(ValueError):
    """A token of a configured issuer that is not valid; the message may be told to the caller."""


class KeysUnavailable(Exception):
    """The issuer's keys could never be read, so that no token of it can be judged."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token taken apart, nothing of it believed."""

    compact: str
    algorithm: str
    key_id: str | None
    claims: Mapping[str, Any]


def take_apart(token: str) -> Unverified | None:
    """The header and claims of a compact JWS (RFC 7515), or None if the text is none: then it is an opaque
    credential.
    """
    if len(token) > MAX_TOKEN or token.count(".") != 2:
        return None
    head, payload, _ = token.split(".")
    try:
        header = json.loads(_decode64(head))
        claims = json.loads(_decode64(payload))
    except (ValueError, RecursionError):
        return None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        return None
    header = cast("dict[str, Any]", header)
    key_id, algorithm = header.get("kid"), header.get("alg")
    return Unverified(
        token,
        algorithm if isinstance(algorithm, str) else "",
        key_id if isinstance(key_id, str) else None,
        cast("dict[str, Any]", claims),
    )


class Issuer:
    """One configured issuer and its keys. ``verify`` is synchronous; the caller awaits :meth:`refresh` when it is
    told to.
    """

    def __init__(self, config: Jwt, settings: Settings, others: Iterable[Jwt] = ()) -> None:
        self.config = config
        own = config.principal_prefix
        self._foreign = tuple(
            prefix for other in others if (prefix := other.principal_prefix).startswith(own) and prefix != own
        )
        """Prefixes of other issuers that a subject or group of this one could spell out."""
        self.ambiguous = [o.issuer for o in others if o.issuer != config.issuer and o.principal_prefix == own]
        """Issuers whose principals would have the same ids."""
        self.generation = 0
        """Grows whenever the key set changed: what was verified under another one must be verified again."""
        self._settings = settings
        self._source = KeySource(config.jwks, settings)
        self._keys: tuple[Key, ...] = ()
        self._raw = b""
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    def wants_keys(self, token: Unverified) -> bool:
        """True if a fetch now may help: none read yet, or the token names a key that is not among them."""
        if token.algorithm not in ALGORITHMS:
            return False
        if self._keys and (token.key_id is None or any(k.kid == token.key_id for k in self._keys)):
            return False
        return time.monotonic() - self._tried >= self._settings.jwks_retry or self._refreshing is not None

    def is_stale(self) -> bool:
        now = time.monotonic()
        return now - self._fetched >= self._settings.jwks_refresh and now - self._tried >= self._settings.jwks_retry

    def refresh(self) -> asyncio.Task[None]:
        """Begin to fetch the keys, or join the fetch that is under way. A failure is logged, the old keys stay."""
        if self._refreshing is None:
            self._tried = time.monotonic()
            self._refreshing = asyncio.create_task(self._refresh(), name=f"jwks {self.config.issuer}")
        return self._refreshing

    async def _refresh(self) -> None:
        try:
            raw = await self._source.read()
            if raw != self._raw:
                self._keys = import_keys(raw)
                self._raw = raw
                self.generation += 1
                log.info("read %d keys of issuer %s", len(self._keys), self.config.issuer)
            self._fetched = time.monotonic()
        except (OSError, ValueError, TimeoutError) as error:
            log.warning("can't read the keys of issuer %s: %s", self.config.issuer, error)
        finally:
            self._refreshing = None

    def verify(self, token: Unverified, now: float) -> tuple[Principal, float]:
        """The principal, and until when (unix seconds) it holds. Raises :class:`TokenFault` or
        :class:`KeysUnavailable`.
        """
        if token.algorithm not in ALGORITHMS:
            raise TokenFault(f"the token's algorithm is not one of {', '.join(ALGORITHMS)}")
        if not self._keys:
            raise KeysUnavailable(self.config.issuer)
        claims = self._check_signature(token)
        expires = check_claims(claims, self.config, now, self._settings.jwt_leeway)
        return principal_of(claims, self.config, self._foreign), expires

    def _check_signature(self, token: Unverified) -> dict[str, Any]:
        from joserfc import jws
        from joserfc.errors import JoseError

        registry = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        registry.max_header_length = MAX_TOKEN
        wanted = _KEY_TYPES[token.algorithm[:2]]
        for key in self._keys:
            if key.key_type != wanted or (token.key_id is not None and key.kid != token.key_id):
                continue
            if key.alg is not None and key.alg != token.algorithm:
                continue
            try:
                claims = json.loads(jws.deserialize_compact(token.compact, key, ALGORITHMS, registry).payload)
            except (JoseError, ValueError, RecursionError):
                continue
            if isinstance(claims, dict):
                return cast("dict[str, Any]", claims)
        raise TokenFault("the token's signature does not fit a key of its issuer")

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self._source.close()


class KeySource:
    """Reads a JWKS from a file, or from an https URL (http only on loopback), within a size and a time."""

    def __init__(self, location: str, settings: Settings) -> None:
        self._location = location
        self._settings = settings
        self._remote = location.startswith(("https://", "http://"))
        if location.startswith("http://") and not _is_loopback(location):
            raise ValueError(f"jwks {location}: http is only accepted on loopback; use https")

    async def read(self) -> bytes:
        limit = self._settings.jwks_max_bytes
        raw = await self._fetch(limit) if self._remote else await asyncio.to_thread(self._read_file, limit)
        if len(raw) > limit:
            raise ValueError(f"the key set is larger than {limit} bytes")
        return raw

    def _read_file(self, limit: int) -> bytes:
        with Path(self._location.removeprefix("file://")).open("rb") as f:
            return f.read(limit + 1)

    async def _fetch(self, limit: int) -> bytes:
        import ssl

        import aiohttp

        settings = self._settings
        headers = {"Accept": "application/json, application/jwk-set+json"}
        if settings.jwks_token_file and self._location == settings.jwks_token_url:
            token = await asyncio.to_thread(Path(settings.jwks_token_file).read_text, "ascii")
            headers["Authorization"] = f"Bearer {token.strip()}"
        context = ssl.create_default_context(cafile=settings.jwks_ca_file or None)
        timeout = aiohttp.ClientTimeout(total=settings.jwks_timeout)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
                session.get(self._location, headers=headers, ssl=context, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise ValueError(f"{self._location} answered {response.status}")
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        break
                return bytes(body)
        except aiohttp.ClientError as error:
            raise ValueError(f"{self._location}: {error}") from error

    async def close(self) -> None: ...


def import_keys(raw: bytes) -> tuple[Key, ...]:
    """The public signature keys of a JWKS (RFC 7517); shared secrets, encryption keys and RSA below 2048 bits are
    passed over.
    """
    from joserfc import jwk
    from joserfc.errors import JoseError

    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError("the key set is not JSON") from error
    entries = cast("dict[str, Any]", document).get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError('the key set has no list "keys"')
    keys: list[Key] = []
    for entry in cast("list[Any]", entries)[:MAX_KEYS]:
        if not isinstance(entry, dict):
            continue
        data = cast("dict[str, Any]", entry)
        if data.get("kty") not in ("RSA", "EC", "OKP") or data.get("use", "sig") != "sig":
            continue
        try:
            key = jwk.import_key(data)
        except (JoseError, ValueError, TypeError, KeyError):
            continue
        if data["kty"] != "RSA" or len(_decode64(str(data.get("n", "")))) >= 256:
            keys.append(key)
    if not keys:
        raise ValueError("the key set holds no usable key (RSA from 2048 bits, EC, OKP; for signatures)")
    return tuple(keys)


def check_claims(claims: Mapping[str, Any], config: Jwt, now: float, leeway: float) -> float:
    """``iss``, ``aud``, ``exp`` (all required) and ``nbf`` (RFC 7519, 4.1). Returns the time of expiry. Raises
    :class:`TokenFault`.
    """
    if claims.get("iss") != config.issuer:
        raise TokenFault("the token is of another issuer")
    audience = claims.get("aud")
    audiences = cast("list[Any]", audience) if isinstance(audience, list) else [audience]
    if not any(isinstance(a, str) and a in config.audiences for a in audiences):
        raise TokenFault("the token is for another audience")
    expires = _time_of(claims, "exp")
    if expires is None:
        raise TokenFault("the token has no expiry (exp)")
    if now >= expires + leeway:
        raise TokenFault("the token has expired")
    begins = _time_of(claims, "nbf")
    if begins is not None and now < begins - leeway:
        raise TokenFault("the token is not valid yet (nbf)")
    return expires + leeway


def principal_of(claims: Mapping[str, Any], config: Jwt, foreign: tuple[str, ...] = ()) -> Principal:
    """The principal that verified claims name. Raises :class:`TokenFault` for one they may not name: a reserved name,
    or one that begins with a prefix of ``foreign``, which is another issuer's.
    """
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject or len(subject) > 1024 or not subject.isprintable():
        raise TokenFault("the token has no usable subject (sub)")
    prefix = config.principal_prefix
    groups = tuple(prefix + group for group in _strings(claims.get(config.groups_claim)))
    if any(name.startswith(foreign) for name in (prefix + subject, *groups)):
        raise TokenFault("the token's subject or a group begins with the prefix of another issuer")
    if prefix:
        if (prefix + subject).startswith(RESERVED):
            raise TokenFault("the token's subject makes a reserved name")
        return Principal(prefix + subject, "JWT", True, groups, None, claims)
    account = service_account(subject, claims)
    if account is not None:
        namespace = account.partition("/")[0]
        groups = (*groups, "system:serviceaccounts", f"system:serviceaccounts:{namespace}")
        return Principal(subject, "ServiceAccount", True, tuple(dict.fromkeys(groups)), account, claims)
    if subject.startswith(RESERVED):
        raise TokenFault("the token's subject is a reserved name that its claims don't bear out")
    return Principal(subject, "JWT", True, groups, None, claims)


def service_account(subject: str, claims: Mapping[str, Any]) -> str | None:
    """``namespace/name`` if subject and the ``kubernetes.io`` claim of a projected token agree on it."""
    claim = claims.get("kubernetes.io")
    if not subject.startswith(SERVICE_ACCOUNT) or not isinstance(claim, dict):
        return None
    details = cast("dict[str, Any]", claim)
    account = details.get("serviceaccount")
    name = cast("dict[str, Any]", account).get("name") if isinstance(account, dict) else None
    namespace = details.get("namespace")
    if not (isinstance(namespace, str) and isinstance(name, str)) or subject != f"{SERVICE_ACCOUNT}{namespace}:{name}":
        return None
    return f"{namespace}/{name}"


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return tuple(v for v in cast("list[Any]", value) if isinstance(v, str))
    return ()


def _time_of(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e15 < value < 1e15:
        raise TokenFault(f"the token's {name} is not a time")
    return float(value)


def _decode64(text: str) -> bytes:
    if not text.isascii() or "=" in text:
        raise ValueError("not base64url")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error


def _is_loopback(url: str) -> bool:
    from urllib.parse import urlsplit

    from toolpolicy.sidecar.identity.addresses import parse_address

    host = urlsplit(url).hostname or ""
    address = parse_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)
