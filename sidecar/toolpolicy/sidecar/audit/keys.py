"""The key that chains the audit. Whoever holds it can rewrite the log, so in a cluster it never lies beside the log."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from toolpolicy.sidecar.settings import Settings

MIN_KEY = 32


class KeyFault(ValueError):
    """A key that can't be used; the message says what to do."""


def audit_key(settings: Settings, environ: Mapping[str, str]) -> tuple[bytes, str]:
    """The key and where it is from: a setting, the file named, or (without a cluster) one made in the user's state
    directory.

    In a cluster without either it is random and lost with the process: the chain then only shows damage while it runs.
    Raises :class:`KeyFault`.
    """
    if settings.audit_key:
        return parse_key(settings.audit_key.encode(), "TOOLPOLICY_AUDIT_KEY"), "TOOLPOLICY_AUDIT_KEY"
    if settings.audit_key_file:
        path = Path(settings.audit_key_file)
        if settings.pod_namespace and settings.audit not in ("-", "stderr", "none", ""):
            log = Path(settings.audit)
            if log.resolve().parent == path.resolve().parent:
                raise KeyFault(f"{path} lies beside the audit log: whoever may change the one may change the other")
        return read_key(path), str(path)
    if settings.pod_namespace:
        return secrets.token_bytes(MIN_KEY), ""
    path = default_path(environ)
    return read_key(path), str(path)


def default_path(environ: Mapping[str, str]) -> Path:
    """``$XDG_STATE_HOME/toolpolicy/audit.key``, by default under ``~/.local/state``."""
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "toolpolicy" / "audit.key"


def read_key(path: Path, *, create: bool = True) -> bytes:
    """The key in a file; made there (0600) if there is none. Raises :class:`KeyFault`."""
    try:
        return parse_key(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        if not create:
            raise KeyFault(f"{path}: there is no such key file") from error
    except OSError as error:
        raise KeyFault(f"{path}: the key can't be read: {error.strerror}") from error
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        key = secrets.token_bytes(MIN_KEY)
        with os.fdopen(fd, "wb") as file:
            file.write(key.hex().encode() + b"\n")
    except FileExistsError:
        return read_key(path, create=False)  # another process made it at the same moment
    except OSError as error:
        raise KeyFault(f"{path}: the key can't be made: {error.strerror}; name a file with --audit-key") from error
    return key


def parse_key(raw: bytes, where: str) -> bytes:
    """A key from hex text. Raises :class:`KeyFault`."""
    try:
        key = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError as error:
        raise KeyFault(f"{where}: expected hex digits, such as `openssl rand -hex 32` prints") from error
    if len(key) < MIN_KEY:
        raise KeyFault(f"{where}: expected at least {MIN_KEY} bytes as hex, found {len(key)}")
    return key
