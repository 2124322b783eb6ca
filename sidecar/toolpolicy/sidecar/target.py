"""Where the MCP server is: the one fixed upstream that a sidecar forwards to, for each port. Parsing only, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_SERVERS = 16
"""MCP ports of one pod."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
FORMS = "http://HOST:PORT/PATH, https://HOST/PATH or unix:/PATH/TO.sock"


@dataclass(frozen=True, slots=True)
class Target:
    """``socket_path`` is set for a unix socket; then ``host`` and ``port`` only name it. ``path`` is empty where the
    URL gives none.
    """

    host: str
    port: int
    tls: bool = False
    socket_path: str | None = None
    path: str = ""

    @property
    def authority(self) -> bytes:
        """As it stands in a Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}").encode("ascii")

    @property
    def origins(self) -> tuple[bytes, ...]:
        """The forms in which an answer may give this address away (RFC 6454), lower case."""
        scheme = b"https://" if self.tls else b"http://"
        host = (f"[{self.host}]" if ":" in self.host else self.host).lower().encode("ascii")
        full = scheme + host + b":%d" % self.port
        return (full, scheme + host) if self.port == (443 if self.tls else 80) else (full,)

    def __str__(self) -> str:
        if self.socket_path is not None:
            return f"unix:{self.socket_path}"
        return f"{'https' if self.tls else 'http'}://{self.authority.decode()}{self.path}"


def parse_servers(text: str) -> tuple[tuple[int, int], ...]:
    """``15771=8000,15773=9000`` as pairs of (port to listen at, port of the pod's MCP server).

    Raises ValueError with what is wrong and what is expected.
    """
    pairs: list[tuple[int, int]] = []
    for part in text.split(","):
        listen, separator, port = part.strip().partition("=")
        if not separator or not _is_port(listen) or not _is_port(port):
            raise ValueError(f"{part.strip()[:40]!r}: expected LISTENPORT=TARGETPORT, several separated by commas")
        pairs.append((int(listen), int(port)))
    listens, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    for ports in (listens, targets):
        twice = sorted({port for port in ports if ports.count(port) > 1})
        if twice:
            raise ValueError(f"port {twice[0]} is given twice")
    both = sorted(set(listens) & set(targets))
    if both:
        raise ValueError(f"port {both[0]} is listened at and a server's")
    if len(pairs) > MAX_SERVERS:
        raise ValueError(f"{len(pairs)} servers are more than {MAX_SERVERS}")
    return tuple(pairs)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536


def parse_target(url: str) -> Target:
    """``url`` in one of :data:`FORMS`. Raises ValueError with what is wrong and what is expected."""
    if url.startswith("unix:"):
        path = url[5:]
        path = path[2:] if path.startswith("//") else path
        if not path.startswith("/"):
            raise ValueError(f"{url!r} is no absolute socket path; expected unix:/PATH/TO.sock")
        return Target("localhost", 80, socket_path=path)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r}: {error}; expected {FORMS}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of an MCP server; expected {FORMS}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: user, query and fragment are not taken; expected {FORMS}")
    if not url.isascii():
        raise ValueError(f"{url!r}: the host must be given in ASCII (punycode)")
    tls = parts.scheme == "https"
    path = "" if parts.path == "/" else parts.path
    return Target(parts.hostname, port or (443 if tls else 80), tls, None, path)
