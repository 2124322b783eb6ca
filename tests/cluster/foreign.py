"""A cluster that somebody else runs (``TOOLPOLICY_TEST_KUBECONFIG``): disposable, since tests install into it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.control import ClusterError, ControlPlane, programs
from cluster.pki import Pair

DEADLINE = 60.0


def join(kubeconfig: str, folder: Path) -> ControlPlane:
    """The cluster of ``kubeconfig``, with PATH's kubectl, else one that is built."""
    path = Path(kubeconfig).expanduser().resolve()
    if not path.is_file():
        raise ClusterError(f"TOOLPOLICY_TEST_KUBECONFIG={kubeconfig}: no such file")
    found = shutil.which("kubectl")
    folder.mkdir(parents=True, exist_ok=True)
    plane = ControlPlane(
        kubeconfig=path,
        url="",
        ca=folder / "ca.crt",
        programs=Path(found).parent if found and "KUBEBUILDER_ASSETS" not in os.environ else programs(),
        host=os.environ.get("TOOLPOLICY_TEST_HOST", "127.0.0.1"),
        folder=folder,
    )
    config = json.loads(plane.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json").stdout)
    cluster = config["clusters"][0]["cluster"]
    if "certificate-authority-data" not in cluster:
        raise ClusterError("TOOLPOLICY_TEST_KUBECONFIG names no certificate authority; the tests need one")
    plane.ca.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    return ControlPlane(**{**vars(plane), "url": cluster["server"]})


def certificate(plane: ControlPlane, user: str, groups: Sequence[str]) -> Pair:
    """A client certificate for ``user`` in ``groups``, signed by the cluster at our own approval."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    subject += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject)).sign(key, hashes.SHA256())
    name = f"toolpolicy-test-{uuid.uuid4().hex[:12]}"
    wanted = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
            "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"],
        },
    }
    plane.kubectl("create", "-f", "-", stdin=json.dumps(wanted))
    plane.kubectl("certificate", "approve", name)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(private, _signed(plane, name))


def _signed(plane: ControlPlane, name: str) -> bytes:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        said = plane.kubectl("get", "csr", name, "-o", "jsonpath={.status.certificate}").stdout
        if said:
            plane.kubectl("delete", "csr", name)
            return base64.b64decode(said)
        time.sleep(0.2)
    raise ClusterError(f"the cluster signed no client certificate within {DEADLINE:.0f} s")
