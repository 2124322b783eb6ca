"""The audit: one chained line per decision, where it goes, the key that chains it, and how it is verified."""

from toolpolicy.sidecar.audit.keys import audit_key
from toolpolicy.sidecar.audit.log import ChainedAuditLog, NoAuditLog, open_audit
from toolpolicy.sidecar.audit.verify import Finding, VerifyResult, verify

__all__ = ["ChainedAuditLog", "Finding", "NoAuditLog", "VerifyResult", "audit_key", "open_audit", "verify"]
