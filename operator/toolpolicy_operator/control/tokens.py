"""Who holds a token: TokenReview (authentication.k8s.io/v1), pure parts. Nothing here does I/O.

A projected ServiceAccount token is a JWT. Before the API server is asked its claims are looked at *unverified*, only to
refuse at no cost what can't be valid; what they say counts only once the review has confirmed the token.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, cast

MAX_TOKEN = 8192
"""Characters; a projected token has about 1,200."""
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
_PREFIX = "system:serviceaccount:"


class Refused(Exception):
    """An answer that is no success: HTTP ``status``, a word for programs, a sentence for people, seconds to wait."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.retry_after = status, reason, message, retry_after


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a reviewed token names. ``pod_name`` and ``pod_uid`` are empty for a token that is bound to no pod."""

    namespace: str
    service_account: str
    pod_name: str
    pod_uid: str


@dataclass(frozen=True, slots=True)
class Claims:
    """Unverified: ``audiences``, and ``expires`` in unix seconds (None without)."""

    audiences: tuple[str, ...]
    expires: float | None


def bearer(header: str | None) -> str:
    """The token of an Authorization header. Raises :class:`Refused` (401)."""
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise unauthenticated("no bearer token: send the pod's projected token in the Authorization header")
    if len(token) > MAX_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise unauthenticated("the bearer token is malformed")
    return token


def unauthenticated(message: str) -> Refused:
    return Refused(401, "Unauthorized", message)


def peek(token: str) -> Claims:
    """The claims as they stand in the token, unverified. Raises :class:`Refused` (401) for what is no JWT."""
    parts = token.split(".")
    try:
        if len(parts) != 3:
            raise ValueError
        payload = parts[1]
        decoded: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        raise unauthenticated("the bearer token is no ServiceAccount token (a JWT)") from None
    claims: dict[str, Any] = cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {}
    said: Any = claims.get("aud")
    listed: list[Any] = cast("list[Any]", said) if isinstance(said, list) else [said]
    audiences = tuple(a for a in listed if isinstance(a, str))
    expires = claims.get("exp")
    if not isinstance(expires, int | float) or not 0 <= expires < 2**53:
        return Claims(audiences, None)
    return Claims(audiences, float(expires))


def review_request(token: str, audience: str) -> dict[str, Any]:
    """The TokenReview to create."""
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }


def read_review(review: dict[str, Any], audience: str) -> Caller | str:
    """The caller that a reviewed token names, or why there is none. Trusts nothing that is not confirmed: an API server
    that does not know audiences answers without them.
    """
    status = _dict(review.get("status"))
    if status.get("authenticated") is not True:
        error = status.get("error")
        said = f": {error[:300]}" if isinstance(error, str) and error else ""
        return f"the API server does not accept the token{said}"
    if audience not in _strings(status.get("audiences")):
        return f"the token is not for the audience {audience}"
    user = _dict(status.get("user"))
    username = user.get("username")
    if not isinstance(username, str) or not username.startswith(_PREFIX):
        return "the token is no ServiceAccount's"
    namespace, separator, account = username[len(_PREFIX) :].partition(":")
    if not separator or not namespace or not account:
        return "the token is no ServiceAccount's"
    extra = _dict(user.get("extra"))
    names, uids = _strings(extra.get(POD_NAME)), _strings(extra.get(POD_UID))
    bound = len(names) == 1 and len(uids) == 1
    return Caller(namespace, account, names[0] if bound else "", uids[0] if bound else "")


def _dict(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _strings(value: Any) -> list[str]:
    return [v for v in cast("list[Any]", value) if isinstance(v, str)] if isinstance(value, list) else []
