"""The programs of a control plane: what each is called with. Pure, but for ``prepare``, which fills a folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cluster import pki

CLUSTER_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
ISSUER = "https://kubernetes.default.svc.cluster.local"

# Only who is tested is of interest: what the cluster's own parts do is left out.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "None",
            "users": ["system:apiserver", "system:kube-scheduler", "system:kube-controller-manager"],
        },
        {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
        {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/openapi*"]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True)
class Layout:
    """Where a control plane lives: ``folder`` takes all its files; etcd listens on 127.0.0.1 at two ports."""

    folder: Path
    address: str
    port: int
    etcd_port: int
    peer_port: int
    node: str = ""
    """The node's name; empty for a control plane without one."""
    host: str = "127.0.0.1"
    """This machine's address as the API server and pods see it."""
    cgroup: str = ""
    """The control group of the node's pods."""

    @classmethod
    def loads(cls, text: str) -> Layout:
        values = cast(dict[str, Any], json.loads(text))
        values["folder"] = Path(values["folder"])
        return cls(**values)

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def audit_log(self) -> Path:
        return self.folder / "log" / "audit.jsonl"

    @property
    def audit_policy(self) -> Path:
        return self.folder / "audit-policy.json"

    def kubeconfig(self, user: str) -> Path:
        return self.pki / f"{user}.kubeconfig"


def prepare(layout: Layout) -> None:
    """Fill an empty folder: the authority, the servers' certificates, a kubeconfig for each user, the audit policy."""
    folder = layout.pki
    folder.mkdir(parents=True)
    layout.audit_policy.write_text(json.dumps(AUDIT_POLICY))
    authority = pki.Authority.create()
    authority.save(folder)
    service = "kubernetes.default.svc"
    names = ("localhost", "kubernetes", "kubernetes.default", service, f"{service}.cluster.local", KUBERNETES_SERVICE)
    here = ("127.0.0.1", layout.address, layout.host)
    pki.save(folder, "apiserver", authority.issue("kube-apiserver", addresses=[*names, *here]))
    pki.save(folder, "front-proxy", authority.issue("front-proxy-client"))
    pki.save(folder, "apiserver-kubelet", authority.issue("kube-apiserver-kubelet-client", ["system:masters"]))
    private, public = pki.signing_key()
    pki.private_file(folder / "sa.key", private)
    (folder / "sa.pub").write_bytes(public)
    users: dict[str, tuple[str, list[str]]] = {
        "admin": ("admin", ["system:masters"]),
        "kcm": ("system:kube-controller-manager", []),
        "scheduler": ("system:kube-scheduler", []),
    }
    if layout.node:
        node = f"system:node:{layout.node}"
        pki.save(folder, "kubelet", authority.issue(node, ["system:nodes"], [layout.node, *here]))
        users |= {"node": (node, ["system:nodes"]), "proxy": ("system:kube-proxy", []), "netpol": ("test:netpol", [])}
    for user, (name, groups) in users.items():
        text = pki.kubeconfig(layout.url, authority.certificate, user, authority.issue(name, groups))
        pki.private_file(layout.kubeconfig(user), text.encode())


def etcd(layout: Layout) -> list[str]:
    client, peer = f"http://127.0.0.1:{layout.etcd_port}", f"http://127.0.0.1:{layout.peer_port}"
    return [
        "etcd",
        f"--data-dir={layout.folder / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=warn",
    ]


def apiserver(layout: Layout) -> list[str]:
    keys = layout.pki
    return [
        "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{layout.etcd_port}",
        f"--bind-address={layout.address}",
        f"--advertise-address={layout.address}",
        f"--secure-port={layout.port}",
        f"--tls-cert-file={keys / 'apiserver.crt'}",
        f"--tls-private-key-file={keys / 'apiserver.key'}",
        f"--client-ca-file={keys / 'ca.crt'}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={keys / 'sa.pub'}",
        f"--service-account-signing-key-file={keys / 'sa.key'}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
        f"--kubelet-certificate-authority={keys / 'ca.crt'}",
        f"--kubelet-client-certificate={keys / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={keys / 'apiserver-kubelet.key'}",
        # Without it exec and logs go by a node's name, which nothing here resolves.
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={keys / 'ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={keys / 'front-proxy.crt'}",
        f"--proxy-client-key-file={keys / 'front-proxy.key'}",
        f"--audit-policy-file={layout.audit_policy}",
        f"--audit-log-path={layout.audit_log}",
        "--audit-log-maxsize=4000",
        *([] if layout.node else ["--endpoint-reconciler-type=none"]),
    ]


def controllers(layout: Layout) -> list[str]:
    keys = layout.pki
    return [
        "kube-controller-manager",
        f"--kubeconfig={layout.kubeconfig('kcm')}",
        "--leader-elect=false",
        "--secure-port=0",
        *_QUICK,
        "--use-service-account-credentials",
        f"--service-account-private-key-file={keys / 'sa.key'}",
        f"--root-ca-file={keys / 'ca.crt'}",
        f"--cluster-signing-cert-file={keys / 'ca.crt'}",
        f"--cluster-signing-key-file={keys / 'ca.key'}",
        "--allocate-node-cidrs",
        f"--cluster-cidr={CLUSTER_CIDR}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
    ]


def scheduler(layout: Layout) -> list[str]:
    return [
        "kube-scheduler",
        f"--kubeconfig={layout.kubeconfig('scheduler')}",
        "--leader-elect=false",
        "--secure-port=0",
        *_QUICK,
    ]


# With the client's default limits a ServiceAccount takes seconds to appear and a thousand pods two minutes.
_QUICK = ("--kube-api-qps=500", "--kube-api-burst=1000")
