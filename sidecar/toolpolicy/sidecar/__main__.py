"""``python -m toolpolicy.sidecar``: the sidecar of a pod, set up by ``TOOLPOLICY_*`` variables alone."""

from __future__ import annotations

import asyncio
import os
import sys

from toolpolicy.sidecar.serve import Running, StartFault, serve
from toolpolicy.sidecar.settings import SettingsError, from_environ


def main() -> int:
    """The exit code: 0 after a drain, 2 for settings or addresses that can't be used."""
    try:
        settings = from_environ(os.environ)
        return asyncio.run(serve(settings, ready=_say))
    except (SettingsError, StartFault) as fault:
        sys.stderr.write(f"toolpolicy: {fault}\n")
        return 2


def _say(running: Running) -> None:
    admin = f", admin on {running.admin}" if running.admin else ""
    policies = ", ".join(running.policies) or "no policy selects this pod"
    if running.denying:
        policies = "no rules yet: everything is denied"
    sys.stderr.write(f"toolpolicy: {running.address}{running.path} -> {running.upstream}{admin} ({policies})\n")
    for address, upstream in running.further:
        sys.stderr.write(f"toolpolicy: {address}{running.path} -> {upstream}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
