"""Every limit, timeout and address of the sidecar: one frozen object, each field with a unit, a range and a safe
default.

In a pod the values come from ``TOOLPOLICY_*`` variables (:func:`from_environ`), on a laptop from the options of
``toolpolicy proxy``; both end in the same :class:`Settings`. ``docs/reference/settings.md`` is generated from here.

A trap: for every Service of a namespace Kubernetes puts variables such as ``TOOLPOLICY_PORT=tcp://10.0.0.1:443`` into
each pod (here of a Service named ``toolpolicy``). No setting has a name of that shape, and such variables are passed
over; any other unknown ``TOOLPOLICY_*`` name is an error, because a limit that was mistyped would otherwise silently
not be in force.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from toolpolicy.policy.duration import parse_duration
from toolpolicy.sidecar.target import parse_servers

PREFIX = "TOOLPOLICY_"
_NOT_SETTINGS = frozenset({"TOOLPOLICY_CACHE", "TOOLPOLICY_DEBUG"})
"""Where the tests and the demo keep what they install; whether the command line shows tracebacks."""
KIB = 1024
MIB = 1024 * KIB

_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?$|(^|_)PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_SIZES = {"": 1, "Ki": KIB, "Mi": MIB, "Gi": 1024 * MIB, "k": 1000, "M": 1000**2, "G": 1000**3}


class SettingsError(ValueError):
    """Settings that can't be used; ``problems`` holds every one found, each with the variable's name and what is
    expected.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def _text(default: str, doc: str, *, choices: tuple[str, ...] = (), secret: bool = False) -> Any:
    meta = {"unit": "", "doc": doc, "choices": choices, "secret": secret}
    return dataclasses.field(default=default, repr=not secret, metadata=meta)


def _count(default: int, doc: str, *, low: int = 1, high: int = 10_000_000, unit: str = "") -> Any:
    return dataclasses.field(default=default, metadata={"unit": unit, "doc": doc, "low": low, "high": high})


def _bytes(default: int, doc: str, *, low: int, high: int = 1024 * MIB) -> Any:
    return _count(default, doc, low=low, high=high, unit="bytes")


def _seconds(default: float, doc: str, *, low: float = 0.001, high: float = 86_400.0) -> Any:
    return dataclasses.field(default=default, metadata={"unit": "seconds", "doc": doc, "low": low, "high": high})


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set. Construct it directly (values are taken as they are) or through :func:`from_environ`
    (checked).
    """

    # Addresses
    listen: str = _text(
        "127.0.0.1:8080", "Where MCP is served: HOST:PORT, unix:PATH, or stdio. Port 0 takes any free port."
    )
    upstream: str = _text("", "The MCP server: http://HOST:PORT/PATH, https://…, or unix:PATH.")
    servers: str = _text(
        "",
        "A pod's MCP ports, instead of listen and upstream: LISTENPORT=TARGETPORT, several separated by commas. Each "
        "is listened at on all addresses, and leads to the server of the same pod at TARGETPORT.",
    )
    admin: str = _text(
        "127.0.0.1:9901", "Where health, readiness, status and metrics are served: HOST:PORT; empty for nowhere."
    )
    upstream_ca_file: str = _text(
        "", "PEM file of the authorities that an https upstream is checked against; empty: the system's."
    )
    tls_certificate_file: str = _text(
        "", "PEM file of the certificate chain that MCP is served with; empty: plain HTTP."
    )
    tls_key_file: str = _text("", "PEM file of that certificate's key.")
    probes: str = _text(
        "",
        'Probes that the admin port answers by asking the server: {"app/liveness": {"type": "http", "port": 8000, '
        '"path": "/healthz"}}, as JSON, asked at /probe/app/liveness; types http, tcp and grpc.',
    )

    # Rules
    rules: str = _text("", "A policy file, or a directory: plain, or a mounted ConfigMap with index.json.")
    rules_index: str = _text(
        "auto",
        "Whether the rules directory must hold an index.json: required in a cluster.",
        choices=("auto", "required"),
    )
    rules_interval: float = _seconds(0.25, "How often the rules are looked at for a change.", low=0.01, high=60)
    rules_max_bytes: int = _bytes(4 * MIB, "All policy files together.", low=KIB, high=64 * MIB)
    pod_namespace: str = _text("", "The pod's namespace; empty without a cluster, where every policy applies.")
    pod_labels: str = _text("", "The pod's labels at admission, as a JSON object.")
    pod_labels_file: str = _text("", "The pod's labels now: a downward API file, read again when it changes.")
    namespace_labels: str = _text(
        "",
        "The namespace's labels, as a JSON object. Not asked where rules_index is required: then the index holds only "
        "what selects the namespace.",
    )
    server_name: str = _text("", "The owning workload, for limits per Server; empty: the upstream's address.")

    # Requests
    max_body: int = _bytes(4 * MIB, "The body of one request. Larger: 413.", low=KIB)
    max_header: int = _bytes(32 * KIB, "One header field, and the request line. Larger: 400.", low=KIB, high=MIB)
    max_headers: int = _count(128, "Header fields of one request. More: 400.", low=16, high=1024)
    max_depth: int = _count(64, "Nesting of JSON in a request. Deeper: 400.", low=4, high=200)
    max_values: int = _count(
        100_000, "Members and items of the JSON of one request, at any depth. More: 400.", low=1000
    )
    max_batch: int = _count(50, "Items of a JSON-RPC batch, where the revision allows one. More: 400.", high=1000)
    max_concurrency: int = _count(1024, "Requests in work at a time, open streams not counted. More: 503, Retry-After.")
    max_connections: int = _count(8192, "Client connections at a time. More: closed at once.")
    max_streams: int = _count(4096, "Open streams (GET, and answers as events) at a time. More: 503, Retry-After.")
    max_sessions: int = _count(
        65_536, "Sessions whose principal is remembered; beyond it the longest unused is forgotten."
    )
    session_idle: float = _seconds(
        86_400.0, "After so long without a request a session is forgotten.", low=1, high=30 * 86_400
    )
    head_timeout: float = _seconds(10.0, "For a client to send the head of a request once it began.")
    body_timeout: float = _seconds(30.0, "Without a further byte of a request's body: 408.")
    write_timeout: float = _seconds(60.0, "Without a byte taken of an answer that waits for its client: closed.")
    client_keepalive: float = _seconds(75.0, "An idle client connection is closed after this.")

    # Upstream
    connect_timeout: float = _seconds(5.0, "To connect to the MCP server. Longer: 502.")
    first_byte_timeout: float = _seconds(300.0, "From the request's last byte to the answer's first. Longer: 504.")
    list_timeout: float = _seconds(10.0, "For the sidecar's own tools/list, when a decision needs the catalogue.")
    upstream_keepalive: float = _seconds(
        4.0, "An idle upstream connection is closed after this; Node and uvicorn close at 5."
    )
    upstream_connections: int = _count(
        2048, "Connections to the MCP server at a time; a quarter of them is kept for what is no stream."
    )
    upstream_idle: int = _count(64, "Idle upstream connections kept.", low=0)
    max_answer_head: int = _bytes(64 * KIB, "The head of an upstream answer. Larger: 502.", low=KIB, high=MIB)
    max_list: int = _bytes(
        8 * MIB, "An answer, or one event, that has to be read whole to be filtered. Larger: 502.", low=KIB
    )
    max_tools: int = _count(10_000, "Tools remembered of the server's catalogue.")
    list_ttl: float = _seconds(60.0, "The most that a filtered list may be cached by a client (ttlMs).", low=0.0)

    # Identity
    jwt_leeway: float = _seconds(30.0, "Clock difference that exp and nbf of a token are allowed.", low=0.0, high=300)
    jwks_refresh: float = _seconds(300.0, "Age at which an issuer's keys are fetched again, in the background.", low=10)
    jwks_retry: float = _seconds(10.0, "The least time between two fetches of one issuer's keys.", low=0.1, high=3600)
    jwks_timeout: float = _seconds(5.0, "For one fetch of an issuer's keys.", low=0.1, high=60)
    jwks_max_bytes: int = _bytes(256 * KIB, "An issuer's key set.", low=KIB, high=16 * MIB)
    jwks_ca_file: str = _text(
        "", "PEM file of the authorities that JWKS addresses are checked against; empty: the system's."
    )
    jwks_token_file: str = _text(
        "", "A bearer token for TOOLPOLICY_JWKS_TOKEN_URL, read before each fetch (a cluster's own issuer wants one)."
    )
    jwks_token_url: str = _text(
        "", "The one JWKS address, exactly as policies give it, that the token is sent to; never to another."
    )
    identity_key: str = _text(
        "", "Secret for the hashes of opaque credentials, the same in all pods; empty: made at start.", secret=True
    )
    identity_cache: int = _count(2048, "Callers whose checked credential is remembered.", high=1_000_000)

    # State, audit, logs
    state: str = _text("memory", "Where limits are counted.", choices=("memory",))
    max_buckets: int = _count(200_000, "Limit buckets held in memory; at the cap calls that need a new one are denied.")
    audit: str = _text("-", "Where audit lines go: a file, - for stdout, stderr, or none.")
    audit_key_file: str = _text("", "File with the key that chains the audit's records (hex, 32 bytes or more).")
    audit_key: str = _text("", "The same key itself, instead of a file.", secret=True)
    metrics_max_tools: int = _count(
        200, "Tools of the catalogue that get a metric label of their own; the rest is `other`.", low=0, high=5000
    )
    log_level: str = _text("info", "What is logged to stderr.", choices=("debug", "info", "warning", "error"))
    log_format: str = _text("text", "How it is logged.", choices=("text", "json"))

    # The operator's control API
    control_url: str = _text("", "The operator's control API: https://HOST:PORT; empty: nothing is reported.")
    control_token_file: str = _text(
        "", "The pod's token for it (audience toolpolicy.dev), read before each request, since the kubelet renews it."
    )
    control_ca_file: str = _text("", "PEM file of the authorities that it is checked against, read again when renewed.")
    pod_name: str = _text("", "The pod's name, as reports give it.")
    pod_uid: str = _text("", "The pod's UID, as reports give it.")

    # Lifecycle
    drain_grace: float = _seconds(
        25.0, "For calls and streams to end after SIGTERM; less than the pod's grace period of 30 s.", low=0.0
    )


FIELDS: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(Settings)


def variable(name: str) -> str:
    """The environment variable of a field: ``max_body`` → ``TOOLPOLICY_MAX_BODY``."""
    return PREFIX + name.upper()


def from_environ(environ: Mapping[str, str], base: Settings | None = None) -> Settings:
    """Settings from ``TOOLPOLICY_*`` variables over ``base`` (default: the defaults).

    Sizes take a number of bytes or ``4Mi``, times seconds or ``1m30s``. Raises :class:`SettingsError` with every
    problem at once.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    known = {variable(f.name): f for f in FIELDS}
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        field = known.get(name)
        if field is None:
            if name not in _NOT_SETTINGS and not _SERVICE_LINK.search(name):
                close = get_close_matches(name, known, 1)
                problems.append(f"{name}: no such setting" + (f"; did you mean {close[0]}?" if close else ""))
            continue
        try:
            values[field.name] = parse_value(field, environ[name])
        except ValueError as error:
            shown = "" if field.metadata.get("secret") else f" {environ[name][:80]!r}:"
            problems.append(f"{name}:{shown} {error}")
    settings = dataclasses.replace(base or Settings(), **values)
    problems.extend(inconsistencies(settings))
    if problems:
        raise SettingsError(problems)
    return settings


def parse_value(field: dataclasses.Field[Any], text: str) -> Any:
    """One value of a field from its text. Raises ValueError with what is expected."""
    meta = field.metadata
    if isinstance(field.default, str):
        choices: tuple[str, ...] = meta["choices"]
        if choices and text not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return text
    text = text.strip()
    if isinstance(field.default, int):
        number = _parse_size(text) if meta["unit"] == "bytes" else _parse_int(text)
    else:
        number = parse_duration(float(text) if _NUMBER.fullmatch(text) else text)
    low, high = meta["low"], meta["high"]
    if not low <= number <= high:
        raise ValueError(f"expected {low} to {high}" + (f" {meta['unit']}" if meta["unit"] else ""))
    return number


def inconsistencies(settings: Settings) -> list[str]:
    """What contradicts itself although every single value is fine."""
    found: list[str] = []
    if bool(settings.tls_certificate_file) != bool(settings.tls_key_file):
        found.append("TOOLPOLICY_TLS_CERTIFICATE_FILE and TOOLPOLICY_TLS_KEY_FILE: give both or neither")
    if settings.audit_key and settings.audit_key_file:
        found.append("TOOLPOLICY_AUDIT_KEY and TOOLPOLICY_AUDIT_KEY_FILE: give one of them")
    if settings.admin and settings.admin == settings.listen and not settings.admin.endswith(":0"):
        found.append(f"TOOLPOLICY_ADMIN: {settings.admin} is where MCP is served; the admin port must be another")
    if bool(settings.jwks_token_file) != bool(settings.jwks_token_url):
        found.append("TOOLPOLICY_JWKS_TOKEN_FILE and TOOLPOLICY_JWKS_TOKEN_URL: give both or neither")
    found.extend(_pod_faults(settings))
    if settings.control_url:
        if not settings.control_url.startswith("https://"):
            found.append(f"TOOLPOLICY_CONTROL_URL: {settings.control_url[:80]!r}: expected https://HOST:PORT")
        needed = ("control_token_file", "control_ca_file", "pod_namespace", "pod_name", "pod_uid")
        missing = [variable(name) for name in needed if not getattr(settings, name)]
        if missing:
            found.append(f"TOOLPOLICY_CONTROL_URL: a report also needs {', '.join(missing)}")
    if settings.listen == "stdio" and settings.audit == "-":
        found.append(
            "TOOLPOLICY_AUDIT: stdout carries MCP when TOOLPOLICY_LISTEN is stdio; give a file, stderr or none"
        )
    return found


def _pod_faults(settings: Settings) -> list[str]:
    from toolpolicy.sidecar.probes import parse_probes

    found: list[str] = []
    if settings.servers:
        try:
            pairs = parse_servers(settings.servers)
        except ValueError as error:
            found.append(f"TOOLPOLICY_SERVERS: {error}")
        else:
            admin = settings.admin.rpartition(":")[2]
            if any(admin == str(port) for pair in pairs for port in pair):
                found.append(f"TOOLPOLICY_ADMIN: port {admin} is also in TOOLPOLICY_SERVERS")
        if settings.upstream:
            found.append("TOOLPOLICY_UPSTREAM: TOOLPOLICY_SERVERS says where the servers are; give one of them")
    if settings.probes:
        try:
            parse_probes(settings.probes)
        except ValueError as error:
            found.append(f"TOOLPOLICY_PROBES: {error}")
        if not settings.admin:
            found.append("TOOLPOLICY_PROBES: probes are answered at TOOLPOLICY_ADMIN, which is empty")
    return found


def _parse_int(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError("expected a whole number")
    return int(text[:20])


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15})(Ki|Mi|Gi|k|M|G)?", text, re.ASCII)
    if match is None:
        raise ValueError("expected a number of bytes, or one such as 4Mi")
    return int(match[1]) * _SIZES[match[2] or ""]


_PREFACE = """\
# Settings of the sidecar

Generated from `sidecar/toolpolicy/sidecar/settings.py`: do not edit. In a pod settings are environment variables; on a
laptop `toolpolicy proxy` has options for the usual ones and reads the same variables for the rest. Sizes take a number
of bytes or `4Mi`, times seconds or `1m30s`. A value out of its range, and a `TOOLPOLICY_` name that is not here, stops
the start with a message; variables that Kubernetes makes of Services are passed over.

| variable | default | range | what it is |
|---|---|---|---|"""


def reference() -> str:
    """The page of all settings, as Markdown."""
    rows = [f"| `{variable(f.name)}` | {_shown(f.default)} | {_range(f)} | {f.metadata['doc']} |" for f in FIELDS]
    return "\n".join([_PREFACE, *rows]) + "\n"


def _range(field: dataclasses.Field[Any]) -> str:
    meta = field.metadata
    if isinstance(field.default, str):
        return ", ".join(f"`{c}`" for c in meta["choices"]) or ("secret" if meta["secret"] else "text")
    unit = f" {meta['unit']}" if meta["unit"] else ""
    return f"{meta['low']:,} to {meta['high']:,}{unit}".replace(".0 ", " ")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"{value:,g}" if value < 1_000_000 else f"{value:,}"


if __name__ == "__main__":
    import sys

    sys.stdout.write(reference())
