"""Certificates as values: a CA of our own, leaves signed by it, bundles of what is trusted. Nothing here does I/O.

Keys are ECDSA P-256: small, and in every FIPS module. A CA has its time and four random bytes in its name, because
verifiers choose among the CAs of a bundle by name first, and two of one name with different keys confuse some of them.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SKEW = timedelta(minutes=10)
"""A certificate is valid from this long before it was made: clocks of a cluster differ."""
MAX_PEM = 256 * 1024


class CertificateFault(ValueError):
    """PEM that is no certificate, no key, or two that do not belong together; the message says which."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate (with what it was signed by, if that is sent along) and its private key, both PEM."""

    certificate: str
    key: str

    def __repr__(self) -> str:
        return f"Pair({describe(self.certificate)!r}, key=...)"


def new_authority(now: datetime, lifetime: timedelta) -> Pair:
    """A self-signed CA that may sign leaves only, valid until ``now + lifetime``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = f"toolpolicy {now.astimezone(UTC):%Y-%m-%d} {secrets.token_hex(4)}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signing = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signing, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def new_leaf(authority: Pair, names: Sequence[str], now: datetime, lifetime: timedelta) -> Pair:
    """A server certificate for ``names`` (DNS names and addresses), which never outlives its CA."""
    issuer, signer = _certificate(authority.certificate), _key(authority.key)
    key = ec.generate_private_key(ec.SECP256R1())
    public = issuer.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise CertificateFault("the CA's key is not an elliptic curve key: make the CA with one (ECDSA P-256)")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "toolpolicy-operator")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - SKEW, issuer.not_valid_before_utc))
        .not_valid_after(min(now + lifetime, issuer.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pair(certificate, key)


def check_pair(pair: Pair) -> None:
    """Raise :class:`CertificateFault` unless both are PEM and the key is the certificate's."""
    certificate, key = _certificate(pair.certificate), _key(pair.key)
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise CertificateFault("the key does not belong to the certificate")


def signed_by(leaf: str, bundle: str) -> bool:
    """Whether a CA of the bundle signed the certificate (its first one). False for PEM that can't be read."""
    try:
        certificate = _certificate(leaf)
        authorities = certificates(bundle)
    except CertificateFault:
        return False
    return any(_signed(certificate, authority) for authority in authorities)


def bundle(*parts: str) -> str:
    """One PEM of all certificates of ``parts``, each once, in order."""
    seen: dict[str, None] = {}
    for part in parts:
        for certificate in certificates(part):
            seen.setdefault(certificate.public_bytes(serialization.Encoding.PEM).decode())
    return "".join(seen)


def contains(trusted: str, part: str) -> bool:
    """Whether every certificate of ``part`` is in ``trusted``; text that can't be read contains nothing."""
    try:
        return {*certificates(part)} <= {*certificates(trusted)}
    except CertificateFault:
        return False


def without_expired(pem: str, now: datetime) -> str:
    """The certificates of a bundle whose time has not passed."""
    return _join(c for c in certificates(pem) if c.not_valid_after_utc > now)


def certificates(pem: str) -> list[x509.Certificate]:
    """All certificates of a PEM text, none of an empty one. Raises :class:`CertificateFault`."""
    if not pem.strip():
        return []
    if len(pem) > MAX_PEM:
        raise CertificateFault(f"a bundle of {len(pem)} characters: more than {MAX_PEM} are not read")
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateFault(f"not a PEM certificate: {error}") from None


def remaining(pem: str, now: datetime) -> float:
    """The part of a certificate's lifetime that is left, 0 to 1. Raises :class:`CertificateFault`."""
    certificate = _certificate(pem)
    whole = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds()
    left = (certificate.not_valid_after_utc - now).total_seconds()
    return max(0.0, min(1.0, left / whole)) if whole > 0 else 0.0


def expires(pem: str) -> datetime:
    """When the (first) certificate ends. Raises :class:`CertificateFault`."""
    return _certificate(pem).not_valid_after_utc


def names_of(pem: str) -> frozenset[str]:
    """The DNS names and addresses that a leaf is for. Raises :class:`CertificateFault`."""
    try:
        names = _certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    found = names.get_values_for_type(x509.DNSName)
    return frozenset([*found, *(str(address) for address in names.get_values_for_type(x509.IPAddress))])


def describe(pem: str) -> str:
    """A certificate in a few words, for logs."""
    try:
        certificate = _certificate(pem)
    except CertificateFault as fault:
        return str(fault)
    name = certificate.subject.rfc4514_string()
    return f"{name}, serial {certificate.serial_number:x}, until {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"


def _certificate(pem: str) -> x509.Certificate:
    found = certificates(pem)
    if not found:
        raise CertificateFault("there is no certificate")
    return found[0]


def _key(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's message may quote what it read.
        raise CertificateFault("not a PEM private key without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateFault("the private key is not an elliptic curve key")
    return key


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _join(found: Iterable[x509.Certificate]) -> str:
    return "".join(c.public_bytes(serialization.Encoding.PEM).decode() for c in found)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), text)
