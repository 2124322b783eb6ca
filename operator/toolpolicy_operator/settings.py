"""The operator's settings: flags, or the environment (``--control-url`` is ``TOOLPOLICY_OPERATOR_CONTROL_URL``)."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from toolpolicy_operator import names

PREFIX = "TOOLPOLICY_OPERATOR_"
_EXAMPLES = """
examples:
  in a pod, with the chart's defaults:
    python -m toolpolicy_operator --image ghcr.io/toolpolicy/sidecar:0.1.0 \\
        --control-url https://toolpolicy-operator.toolpolicy-system.svc:9444
  on a laptop, against a test cluster:
    python -m toolpolicy_operator --kubeconfig ~/.kube/config --listen 127.0.0.1:9443 --image sidecar:dev \\
        --control-url https://127.0.0.1:9444
every flag may be set in the environment: --control-url is TOOLPOLICY_OPERATOR_CONTROL_URL.
"""


class SettingsError(ValueError):
    """A setting that can't be used; the message says which and what is expected."""


@dataclass(frozen=True, slots=True)
class Settings:
    """``identity`` names this replica in the Lease; the addresses are HOST:PORT, port 0 a free one."""

    image: str
    kubeconfig: Path | None = None
    namespace: str = names.SYSTEM_NAMESPACE
    identity: str = ""
    listen: str = "0.0.0.0:9443"
    control_listen: str = "0.0.0.0:9444"
    admin_listen: str = "0.0.0.0:8080"
    control_url: str = ""
    control_address: str = ""
    image_pull_policy: str = "IfNotPresent"
    default_injection: bool = False
    webhook_configuration: str = "toolpolicy"
    service: str = "toolpolicy-operator"
    certificates: str = "own"
    certificate_directory: Path | None = None
    dns_names: tuple[str, ...] = ()
    service_account: str = "toolpolicy-operator"
    token_file: Path | None = None
    log_level: str = "INFO"
    resync_seconds: float = 300.0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m toolpolicy_operator",
        description="Injects the toolpolicy sidecar into MCP pods, brings them their rules and says what is enforced.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--image", help="image of the sidecar that is injected (required)")
    p.add_argument("--image-pull-policy", choices=["Always", "IfNotPresent", "Never"], default="IfNotPresent")
    p.add_argument("--kubeconfig", help="default: the pod's ServiceAccount, else ~/.kube/config")
    p.add_argument("--namespace", default=names.SYSTEM_NAMESPACE, help="the operator's own namespace")
    p.add_argument("--identity", default="", help="name of this replica in the Lease (default: host and a random part)")
    p.add_argument("--listen", default="0.0.0.0:9443", help="admission webhooks, TLS")
    p.add_argument("--control-listen", default="0.0.0.0:9444", help="control API for sidecars, TLS")
    p.add_argument("--admin-listen", default="0.0.0.0:8080", help="health and metrics, plain HTTP")
    p.add_argument("--control-url", default="", help="how sidecars reach the control API; none: they don't report")
    p.add_argument("--control-address", default="", help="HOST:PORT at which other replicas reach this one's")
    p.add_argument(
        "--default-injection", choices=["enabled", "disabled"], default="disabled", help="of unlabelled namespaces"
    )
    p.add_argument("--webhook-configuration", default="toolpolicy", help="whose caBundle is kept; empty: none")
    p.add_argument("--service", default="toolpolicy-operator", help="the Service that certificates are for")
    p.add_argument(
        "--certificates",
        choices=["own", "cert-manager", "directory"],
        default="own",
        help="own CA in a Secret, a Secret that cert-manager writes, or tls.crt, tls.key and ca.crt in a directory",
    )
    p.add_argument("--certificate-directory", help="for --certificates directory")
    p.add_argument("--dns-names", default="", help="further names and addresses for the certificate, comma separated")
    p.add_argument("--service-account", default="toolpolicy-operator", help="this operator's, for its other replicas")
    p.add_argument("--token-file", help="its projected token of the audience toolpolicy.dev/operator")
    p.add_argument("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], default="INFO")
    p.add_argument("--resync-seconds", default="300", help="seconds between two LISTs of everything (10 to 3600)")
    return p


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """From flags, else the environment, else defaults. Raises :class:`SettingsError`; argparse exits on wrong flags."""
    flags = parser()
    known = {action.dest for action in flags._actions}  # pyright: ignore[reportPrivateUsage]
    unknown = sorted(n for n in environment if n.startswith(PREFIX) and n[len(PREFIX) :].lower() not in known)
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]}: python -m toolpolicy_operator --help lists them")
    for action in flags._actions:  # pyright: ignore[reportPrivateUsage]
        value = environment.get(PREFIX + action.dest.upper())
        if value is None or action.dest == "help":
            continue
        if action.choices is not None and value not in action.choices:
            raise SettingsError(f"{PREFIX}{action.dest.upper()}={value!r}: expected {' or '.join(action.choices)}")
        action.default = value
    return _settings(vars(flags.parse_args(list(arguments))))


def _settings(v: dict[str, Any]) -> Settings:
    if not v["image"]:
        raise SettingsError("--image (TOOLPOLICY_OPERATOR_IMAGE) is required: the sidecar's image")
    if v["control_url"] and not v["control_url"].startswith("https://"):
        raise SettingsError(f"--control-url {v['control_url']!r}: expected https://HOST[:PORT]")
    if v["certificates"] == "directory" and not v["certificate_directory"]:
        raise SettingsError("--certificates directory needs --certificate-directory")
    for flag in ("listen", "control_listen", "admin_listen"):
        host, separator, port = v[flag].rpartition(":")
        if v[flag] and (not separator or not port.isascii() or not port.isdecimal() or int(port) > 65535 or not host):
            raise SettingsError(f"--{flag.replace('_', '-')} {v[flag]!r}: expected HOST:PORT")
    return Settings(
        image=v["image"],
        kubeconfig=_path(v["kubeconfig"]),
        namespace=v["namespace"],
        identity=v["identity"] or f"{socket.gethostname()}_{uuid4().hex[:8]}",
        listen=v["listen"],
        control_listen=v["control_listen"],
        admin_listen=v["admin_listen"],
        control_url=v["control_url"],
        control_address=v["control_address"],
        image_pull_policy=v["image_pull_policy"],
        default_injection=v["default_injection"] == "enabled",
        webhook_configuration=v["webhook_configuration"],
        service=v["service"],
        certificates=v["certificates"],
        certificate_directory=_path(v["certificate_directory"]),
        dns_names=tuple(n.strip() for n in v["dns_names"].split(",") if n.strip()),
        service_account=v["service_account"],
        token_file=_path(v["token_file"]),
        log_level=v["log_level"],
        resync_seconds=_seconds(v["resync_seconds"]),
    )


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 10 <= seconds <= 3600:
        raise SettingsError(f"--resync-seconds {text!r}: expected 10 to 3600")
    return seconds
