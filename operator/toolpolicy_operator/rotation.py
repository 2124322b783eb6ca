"""How our own CA and leaf are renewed while everybody goes on trusting what is served: pure, one step at a time.

A CA goes through three roles. *next*: it is in the bundle, which is published, and signs nothing. When everybody has
had the bundle for the overlap it becomes the *authority*, and a leaf of its own is served. The one before stays in the
bundle as *previous* for another overlap, since replicas and API servers do not change in the same moment. No step is
taken before the bundle of the step before it was seen where it must be.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from toolpolicy_operator import pki
from toolpolicy_operator.pki import CertificateFault, Pair

SINCE_ANNOTATION = "toolpolicy.dev/trusted-since"
"""On the Secret: since when the bundle that it makes is published everywhere, RFC 3339."""
_MOST = 128 * 1024


@dataclass(frozen=True, slots=True)
class Terms:
    """``names`` are what the leaf is for; the rest are durations, and the part of one at whose end is renewed."""

    names: tuple[str, ...]
    authority: timedelta = timedelta(days=365)
    leaf: timedelta = timedelta(days=30)
    overlap: timedelta = timedelta(minutes=10)
    """Longer than a kubelet takes to sync a ConfigMap nobody touches (about 90 s) and a replica to read the Secret."""
    renew_below: float = 1 / 3


@dataclass(frozen=True, slots=True)
class Material:
    """What the Secret holds."""

    authority: Pair
    leaf: Pair | None = None
    next: Pair | None = None
    previous: str = ""
    since: datetime | None = None

    @property
    def bundle(self) -> str:
        """Every CA that is to be trusted now, PEM."""
        return pki.bundle(self.authority.certificate, self.next.certificate if self.next else "", self.previous)

    @property
    def settled(self) -> bool:
        return self.next is None and not self.previous


def step(material: Material | None, terms: Terms, now: datetime, published: bool) -> tuple[Material, str]:
    """What the Secret should hold next, and what was done in words: empty if nothing is to be done.

    ``published``: the bundle of ``material`` has been seen wherever it must be.
    """
    if material is None:
        authority = pki.new_authority(now, terms.authority)
        return _signed(Material(authority), terms, now), "made a CA and a certificate"
    if pki.expires(material.authority.certificate) <= now:
        # Nobody trusts it any more, so nothing is gained by an overlap.
        authority = pki.new_authority(now, terms.authority)
        return _signed(Material(authority), terms, now), "replaced a CA that had expired"
    if material.leaf is None or not _serves(material.leaf, material, terms, now):
        return _signed(material, terms, now), "made a certificate"
    if not material.settled and material.since is None:
        return (replace(material, since=now), "the CAs are trusted everywhere") if published else (material, "")
    waited = material.since is not None and now - material.since >= terms.overlap
    if material.next is not None:
        if not waited:
            return material, ""
        previous = pki.without_expired(pki.bundle(material.authority.certificate, material.previous), now)
        after = Material(material.next, previous=previous, since=now)
        return _signed(after, terms, now), "changed to the next CA"
    if material.previous:
        if not waited:
            return material, ""
        return replace(material, previous="", since=None), "took the previous CA out of the bundle"
    if pki.remaining(material.authority.certificate, now) < terms.renew_below:
        return replace(material, next=pki.new_authority(now, terms.authority), since=None), "made the next CA"
    return material, ""


def adopt(before: Material, found: Material) -> Material:
    """What the Secret should hold when somebody replaced it: the CA found becomes the next one, so that it is trusted
    before it is served.
    """
    return Material(before.authority, before.leaf, found.authority, before.previous)


def foreign(before: Material | None, found: Material) -> bool:
    """Whether ``found`` can't be the next step from ``before``: it is someone's replacement, or steps were missed."""
    return before is not None and not pki.contains(found.bundle, before.authority.certificate)


def read(secret: Mapping[str, Any]) -> Material:
    """The material of a Secret. Raises :class:`CertificateFault`, which says what is wrong and never quotes a key."""
    data = cast("Mapping[str, Any]", secret.get("data") or {})
    authority = _pair(data, "ca")
    if authority is None:
        raise CertificateFault("ca.crt and ca.key are missing; for certificates made elsewhere use a directory")
    pki.check_pair(authority)
    following, leaf = _pair(data, "next"), _pair(data, "tls")
    if following is not None:
        pki.check_pair(following)
    if leaf is not None:
        pki.check_pair(leaf)
    previous = _text(data, "previous.crt")
    pki.certificates(previous)
    annotations = cast("Mapping[str, Any]", secret.get("metadata", {}).get("annotations") or {})
    return Material(authority, leaf, following, previous, _time(annotations.get(SINCE_ANNOTATION)))


def secret_data(material: Material) -> dict[str, str]:
    """The ``data`` of the Secret."""
    texts = {"ca.crt": material.authority.certificate, "ca.key": material.authority.key}
    if material.leaf is not None:
        texts |= {"tls.crt": material.leaf.certificate, "tls.key": material.leaf.key}
    if material.next is not None:
        texts |= {"next.crt": material.next.certificate, "next.key": material.next.key}
    if material.previous:
        texts["previous.crt"] = material.previous
    return {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}


def secret_annotations(material: Material) -> dict[str, str]:
    """The annotations of the Secret."""
    return {SINCE_ANNOTATION: material.since.astimezone(UTC).isoformat()} if material.since else {}


def _signed(material: Material, terms: Terms, now: datetime) -> Material:
    leaf = pki.new_leaf(material.authority, _sorted(terms.names), now, terms.leaf)
    return replace(material, leaf=leaf)


def _serves(leaf: Pair, material: Material, terms: Terms, now: datetime) -> bool:
    if not pki.signed_by(leaf.certificate, material.authority.certificate):
        return False
    if not {*terms.names} <= pki.names_of(leaf.certificate):
        return False
    # A leaf that ends with its CA is not renewed over and over: the next CA is on its way.
    ends_with_authority = pki.expires(leaf.certificate) >= pki.expires(material.authority.certificate)
    left = pki.expires(leaf.certificate) - now
    return ends_with_authority or left > terms.leaf * terms.renew_below


def _sorted(names: Sequence[str]) -> list[str]:
    return sorted({*names})


def _pair(values: Mapping[str, Any], name: str) -> Pair | None:
    certificate, key = _text(values, f"{name}.crt"), _text(values, f"{name}.key")
    if not certificate and not key:
        return None
    if not certificate or not key:
        raise CertificateFault(f"of {name}.crt and {name}.key one is missing")
    return Pair(certificate, key)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name) or ""
    if not isinstance(value, str) or len(value) > _MOST:
        raise CertificateFault(f"{name} is no text of at most {_MOST} characters")
    try:
        return base64.b64decode(value, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise CertificateFault(f"{name} is not PEM in base64") from None


def _time(text: Any) -> datetime | None:
    """None for what is no time: then it is waited anew."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None
