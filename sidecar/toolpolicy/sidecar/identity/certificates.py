"""Who a client certificate names. The chain was verified by TLS before; here only the subject is read.

The id is the SPIFFE id where there is one (a certificate of a workload has exactly one URI name), else the common
name. ``spiffe://DOMAIN/ns/NAMESPACE/sa/NAME``, as service meshes issue it, also names the Kubernetes ServiceAccount.
Groups are the organizations (O), as in Kubernetes itself.
"""

from __future__ import annotations

from toolpolicy.policy.types import Principal

RESERVED = ("addr:", "cred:", "system:serviceaccount:", "anonymous")
"""Ids that only this program gives: a certificate or token that claims one is refused."""


class CertificateFault(ValueError):
    """A certificate that names nobody, or somebody it may not name."""


def principal_of(der: bytes) -> Principal:
    """The principal of a verified certificate (DER). Raises :class:`CertificateFault`."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        certificate = x509.load_der_x509_certificate(der)
        groups = tuple(str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))
        names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
    except ValueError as error:
        raise CertificateFault("the client certificate can't be read") from error
    spiffe = [u for u in uris if u.startswith("spiffe://")]
    if len(spiffe) > 1:
        raise CertificateFault("the client certificate has more than one SPIFFE id")
    identity = spiffe[0] if spiffe else (names[0] if len(names) == 1 else "")
    if not identity or identity.startswith(RESERVED) or not identity.isprintable():
        raise CertificateFault(
            "the client certificate has no usable name: give it one SPIFFE id or one common name (CN)"
        )
    account = _service_account(identity) if spiffe else None
    return Principal(id=identity, kind="Certificate", verified=True, groups=groups, service_account=account)


def _service_account(spiffe: str) -> str | None:
    match spiffe.split("/")[3:]:
        case ["ns", namespace, "sa", name] if namespace and name:
            return f"{namespace}/{name}"
        case _:
            return None
