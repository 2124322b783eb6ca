"""A webhook of one test: HTTPS on loopback, with a certificate of its own, asked by a real API server."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Handler = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(slots=True)
class Webhook:
    """Where it listens, and what it was asked: (path, review in, review out)."""

    url: str
    ca_bundle: str
    seen: list[tuple[str, dict[str, Any], dict[str, Any]]] = field(default_factory=list[Any])

    def client_config(self, path: str) -> dict[str, Any]:
        """``clientConfig`` of a webhook configuration."""
        return {"url": self.url + path, "caBundle": self.ca_bundle}


def _certificate(directory: Path) -> tuple[Path, bytes]:
    """A self-signed certificate for 127.0.0.1; its file with the key, and the PEM alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "webhook of a test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = directory / "webhook.pem"
    file.write_bytes(private + pem)
    return file, pem


@contextmanager
def serving(handlers: Mapping[str, Handler]) -> Generator[Webhook]:
    """Serve ``handlers`` by path until the block ends."""
    with TemporaryDirectory() as directory:
        file, pem = _certificate(Path(directory))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
    seen: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            path = self.path.partition("?")[0]
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = handlers[path](review)
            seen.append((path, review, answer))
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Not on the terminal of the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Webhook(f"https://127.0.0.1:{server.server_address[1]}", base64.b64encode(pem).decode(), seen)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
