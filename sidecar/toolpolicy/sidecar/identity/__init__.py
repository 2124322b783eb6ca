"""Who is calling: tokens, client certificates, and what is merely claimed."""

from toolpolicy.sidecar.identity.request import RequestIdentifier

__all__ = ["RequestIdentifier"]
